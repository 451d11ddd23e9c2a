// Statistics of each layer through training, beside loss and accuracy.

const PANELS = [
  { key: "negative_mass", title: "negative mass", range: [0, 1], band: true },
  { key: "agreement", title: "agreement", range: [0, 1] },
  { key: "mean_cosine", title: "mean cosine" },
  { key: "l2", title: "distance from initialisation, l2", low: 0 },
  { key: "negative_centre", title: "negative centre", range: [0, 1] },
];
const CURVES = [["train", "training", "dot"], ["val", "validation", "solid"]];
const MANY_EPOCHS = 30;
const PANEL_HEIGHT = 205;

function dynamicsFigure(view) {
  const { network, epoch, layer: chosen, width, color } = view;
  if (!network.isRun) return null;
  const panels = [...metricPanels(network, color), ...statisticPanels(view)];
  const columns = width < 560 ? 1 : width < 900 ? 2 : 3;
  const rows = Math.ceil(panels.length / columns);
  const height = rows * PANEL_HEIGHT + 40;
  const layout = { margin: { l: 40, r: 16, t: 26, b: 44 }, annotations: [], shapes: [] };
  const data = panels.flatMap((panel, i) => {
    const at = cell(i, columns, rows, height);
    const suffix = i ? i + 1 : "";
    layout[`xaxis${suffix}`] = { ...epochAxis(network, color), domain: at.x, anchor: `y${suffix}`, showticklabels: true };
    layout[`yaxis${suffix}`] = {
      domain: at.y, anchor: `x${suffix}`, fixedrange: true, zeroline: false, gridcolor: color.rule, nticks: 5,
      tickfont: { size: 10.5 }, ...(panel.range ? { range: panel.range } : { rangemode: panel.low === 0 ? "tozero" : "normal" }),
    };
    layout.annotations.push({
      x: at.x[0], y: at.y[1], xref: "paper", yref: "paper", xanchor: "left", yanchor: "bottom", yshift: 4,
      text: panel.title, showarrow: false, font: { size: 12, color: color.ink },
    });
    layout.shapes.push({
      type: "line", xref: `x${suffix}`, yref: `y${suffix} domain`, y0: 0, y1: 1,
      x0: epochPlace(network, network.epochs[epoch]), x1: epochPlace(network, network.epochs[epoch]),
      line: { color: color.ink, width: 1, dash: "dot" },
    });
    return panel.traces.map((trace) => ({ ...trace, xaxis: `x${suffix}`, yaxis: `y${suffix}` }));
  });
  const layer = network.layers[chosen];
  const first = network.value("negative_mass", 0, chosen);
  const now = network.value("negative_mass", epoch, chosen);
  return {
    data, layout, height,
    caption: [
      [layer.label],
      first === null || now === null
        ? " has no usable filter."
        : ` went from a negative mass of ${fixed(first)} before training to ${fixed(now)}${atEpoch(network, epoch)}`,
      ...accuracySentence(network, epoch),
    ],
    numbers: dynamicsNumbers(network, chosen, epoch),
    pick: (point) => ({
      ...(point.data.meta === undefined ? {} : { layer: point.data.meta }),
      ...(point.customdata === undefined ? {} : { epoch: point.customdata }),
    }),
  };
}

function accuracySentence(network, epoch) {
  const row = network.metrics?.epoch.indexOf(network.epochs[epoch]) ?? -1;
  const accuracy = row < 0 ? undefined : network.metrics.val_accuracy?.[row];
  return [accuracy === undefined || accuracy === null ? "." : `; the network then had a validation accuracy of ${fixed(100 * accuracy, 1)} %.`];
}

function cell(i, columns, rows, height) {
  const gapX = columns > 1 ? 0.075 : 0;
  const gapY = 76 / height;
  const wide = (1 - gapX * (columns - 1)) / columns;
  const high = (1 - gapY * (rows - 1)) / rows;
  const [column, row] = [i % columns, Math.floor(i / columns)];
  const left = column * (wide + gapX);
  const top = 1 - row * (high + gapY);
  return { x: [left, Math.min(1, left + wide)], y: [Math.max(0, top - high), top] };
}

// With many epochs their axis is logarithmic: what happens, happens early.
function epochPlace(network, epoch) {
  return lastEpoch(network) > MANY_EPOCHS ? Math.log2(1 + epoch) : epoch;
}

const lastEpoch = (network) => Math.max(network.epochs.at(-1), ...(network.metrics?.epoch ?? [0]));

function epochAxis(network, color) {
  const last = lastEpoch(network);
  const base = {
    fixedrange: true, zeroline: false, gridcolor: "rgba(0,0,0,0)", ticks: "outside", ticklen: 4, tickcolor: color.rule,
    tickfont: { size: 10.5 }, range: [epochPlace(network, 0) - 0.02 * epochPlace(network, last), 1.02 * epochPlace(network, Math.max(last, 1))],
    title: { text: network.unit, standoff: 2, font: { size: 10.5, color: color.muted } },
  };
  if (last <= MANY_EPOCHS) return { ...base, nticks: 6, tickformat: "d" };
  const ticks = [0, 1, 3, 10, 30, 100, 300, 1000].filter((epoch) => epoch <= last);
  return { ...base, tickvals: ticks.map((epoch) => epochPlace(network, epoch)), ticktext: ticks.map(String) };
}

function metricPanels(network, color) {
  const { metrics } = network;
  if (!metrics) return [];
  return ["loss", "accuracy"].flatMap((name) => {
    const curves = CURVES.filter(([key]) => metrics[`${key}_${name}`]);
    if (!curves.length) return [];
    return [{
      title: `${name} (${curves.map(([, text, dash]) => `${text} ${dash === "dot" ? "┄" : "—"}`).join(", ")})`,
      range: name === "accuracy" ? [0, 1] : undefined,
      low: 0,
      traces: curves.map(([key, text, dash]) => ({
        type: "scatter", mode: "lines", x: metrics.epoch.map((epoch) => epochPlace(network, epoch)), y: metrics[`${key}_${name}`],
        text: metrics.epoch.map(String), line: { color: dash === "dot" ? color.muted : color.ink, width: 1.5, dash },
        hovertemplate: `${text} ${name} %{y:.4g}<br>${network.unit} %{text}<extra></extra>`,
      })),
    }];
  });
}

function statisticPanels(view) {
  const { network, layer: chosen, color } = view;
  const last = network.layers.length - 1;
  return PANELS.filter((panel) => network.has(panel.key)).map((panel) => ({
    ...panel,
    // The chosen line last: on top of the others.
    traces: [...(panel.band ? testedBands(network, color) : []), ...[...network.layers.keys()].sort((a, b) => (a === chosen) - (b === chosen)).map((i) => ({
      type: "scatter", mode: i === chosen ? "lines+markers" : "lines", meta: i,
      x: network.epochs.map((epoch) => epochPlace(network, epoch)),
      y: network.epochs.map((_, epoch) => network.value(panel.key, epoch, i)),
      text: network.epochs.map(String), customdata: network.epochs.map((_, epoch) => epoch),
      opacity: i === chosen ? 1 : 0.55,
      line: { color: i === chosen ? color.ink : depthColor(last ? i / last : 0, color.dark), width: i === chosen ? 2.5 : 1.2 },
      marker: { size: 4.5, color: color.ink },
      name: plotText(network.layers[i].label), hovertemplate: `<b>%{fullData.name}</b><br>${panel.title} %{y:.4g}<br>${network.unit} %{text}<extra></extra>`,
    }))],
  }));
}

// The bands that were tested, each epoch by itself and corrected over its layers: of the layer with the fewest filters, pale, and
// within it of the one with the most.
function testedBands(network, color) {
  const width = (i) => network.layers[i].band[1] - network.layers[i].band[0];
  const order = [...network.layers.keys()].sort((a, b) => width(b) - width(a));
  const x = network.epochs.map((epoch) => epochPlace(network, epoch));
  const side = (key, layer, rest) => ({
    type: "scatter", mode: "lines", x, y: network.epochs.map((_, epoch) => network.value(key, epoch, layer)),
    line: { width: 0, shape: "hvh" }, hoverinfo: "skip", showlegend: false, ...rest,
  });
  return [[order[0], color.band], [order.at(-1), color.chance]].flatMap(([layer, fillcolor]) => [
    side("band_low", layer, {}), side("band_high", layer, { fill: "tonexty", fillcolor }),
  ]);
}

function dynamicsNumbers(network, chosen, epoch) {
  const keys = [...PANELS.map((panel) => panel.key), "linf", "q_mass"].filter((key) => network.has(key));
  const metrics = Object.keys(network.metrics ?? {}).filter((key) => key !== "epoch");
  return {
    columns: [network.unit, ...keys.map((key) => `${key.replaceAll("_", " ")} of ${network.layers[chosen].label}`), ...metrics.map((key) => key.replaceAll("_", " "))],
    rows: network.epochs.map((number, i) => {
      const row = network.metrics?.epoch.indexOf(number) ?? -1;
      return [number, ...keys.map((key) => network.value(key, i, chosen)), ...metrics.map((key) => (row < 0 ? null : network.metrics[key][row]))];
    }),
    chosen: epoch,
  };
}
