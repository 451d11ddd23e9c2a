// Figures with one row a layer: their axis of names, and rows that can be clicked anywhere.

const LABEL_PX = 6.9;

function rowAxis(view, pitch) {
  const { network, layer: chosen, width, color } = view;
  const { labels, signs } = rowLabels(network.layers.map((layer) => layer.label), width);
  // So many rows that not each can be named: one in so many, and always the chosen one.
  const every = Math.ceil(13 / pitch);
  const named = network.layers.map((_, i) => i).filter((i) => i % every === 0 || i === chosen);
  const text = named.map((i) => {
    const name = plotText(labels[i]);
    return i === chosen ? `<b>${name}</b>` : name;
  });
  return {
    margin: { l: signs * LABEL_PX + 14, r: 14, t: 34, b: 44 },
    yaxis: {
      range: [network.layers.length - 0.5, -0.5], tickvals: named, ticktext: text, fixedrange: true,
      showgrid: false, zeroline: false, tickfont: { size: 11.5 }, ticklabelstandoff: 6,
    },
    shapes: [
      ...stageLines(network, color),
      {
        type: "rect", xref: "paper", x0: 0, x1: 1, y0: chosen - 0.5, y1: chosen + 0.5,
        fillcolor: color.wash, line: { width: 0 }, layer: "below",
      },
    ],
  };
}

// Names in the room there is; where they then are no longer told apart, by their places too.
function rowLabels(names, width) {
  const longest = Math.max(...names.map((name) => name.length));
  const signs = Math.max(8, Math.min(longest, Math.floor((0.34 * width) / LABEL_PX)));
  const labels = names.map((name) => shortened(name, signs));
  if (new Set(labels).size === new Set(names).size) return { labels, signs };
  return { labels: names.map((name, i) => `${i + 1} ${shortened(name, signs - 3)}`), signs };
}

function stageLines(network, color) {
  const starts = network.layers.map((_, i) => i).filter((i) => i && newStage(network, i));
  return starts.map((i) => ({
    type: "line", xref: "paper", x0: 0, x1: 1, y0: i - 0.5, y1: i - 0.5,
    line: { color: color.rule, width: 1, dash: "dot" }, layer: "below",
  }));
}

const newStage = (network, i) => network.layers[i].stage !== network.layers[i - 1]?.stage;

// Pixels a row, so that a network of hundreds of layers still is a figure.
function rowPitch(count, best) {
  return Math.max(best / 2.4, Math.min(best, 1400 / count));
}

// Bars that nobody sees, one a row: where the pointer is over a row, there it can be clicked.
function rowTargets(view, low, high) {
  const { network, epoch } = view;
  const rows = network.layers.map((_, i) => i);
  return {
    type: "bar", orientation: "h", y: rows, x: rows.map(() => high - low), base: rows.map(() => low),
    width: 1, marker: { color: "rgba(0,0,0,0)", line: { width: 0 } }, hoverinfo: "text", customdata: rows,
    textposition: "none", hovertext: rows.map((i) => rowText(network, epoch, i)), showlegend: false,
  };
}

function rowText(network, epoch, i) {
  const layer = network.layers[i];
  const mass = network.value("negative_mass", epoch, i);
  return [
    `<b>${plotText(layer.label)}</b>`,
    `${plural(layer.filters, "filter")} of ${plural(layer.fan_in, "weight")}, ${sideOf(network, epoch, i).text}`,
    mass === null ? "no usable filter" : `negative mass ${fixed(mass)}`,
    `mean cosine ${signed(network.value("mean_cosine", epoch, i), 4)}`,
  ].join("<br>");
}

const pickRow = (point) => (point.customdata === undefined ? null : { layer: point.customdata });
