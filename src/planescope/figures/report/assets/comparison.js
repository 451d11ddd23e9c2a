// Negative mass by layer of several networks.

// Okabe and Ito's palette after the two colours that mean a side.
const SERIES = ["#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#999933"];
const MARKS = ["circle", "square", "triangle-up", "star", "cross", "hexagon"];

function comparisonFigure(view) {
  const { index, layer: chosen, color, width } = view;
  if (networks.length < 2) return null;
  const names = networks[0].layers.map((layer) => layer.name);
  const alike = networks.every(({ layers }) => layers.length === names.length && layers.every((layer, i) => layer.name === names[i]));
  const place = (network, i) => (alike ? i : i / Math.max(1, network.layers.length - 1));
  const every = Math.ceil(names.length / Math.max(4, Math.floor(width / 70)));
  const ticks = [...names.keys()].filter((i) => i % every === 0);
  // So many that colours would no longer tell them apart: the chosen one stands out.
  const many = networks.length > 12;
  const ink = (k) => (many ? (k === index ? color.ink : color.chance) : SERIES[k % SERIES.length]);
  return {
    data: networks.map((network, k) => ({
      type: "scatter", mode: "lines+markers", name: plotText(shortened(network.name, 24)), meta: k, cliponaxis: false,
      x: network.layers.map((_, i) => place(network, i)), y: network.layers.map((_, i) => network.value("negative_mass", network.last, i)),
      customdata: network.layers.map((_, i) => i), hoverinfo: "text",
      hovertext: network.layers.map((layer, i) => `<b>${plotText(shortened(network.name, 40))}</b><br>${plotText(layer.label)}<br>negative mass ${fixed(network.value("negative_mass", network.last, i))}`),
      line: { color: ink(k), width: k === index ? 2.5 : 1.25 }, opacity: k === index ? 1 : 0.75,
      marker: {
        symbol: MARKS[k % MARKS.length], size: network.layers.map((_, i) => (k === index && i === chosen ? 13 : many && k !== index ? 4 : 8)),
        color: network.layers.map((_, i) => (network.value("biased", network.last, i) ? ink(k) : color.paper)),
        line: { color: ink(k), width: 1.5 }, opacity: 1,
      },
    })),
    height: 360,
    layout: {
      margin: { l: 50, r: 16, t: 40, b: alike ? 90 : 48 }, showlegend: !many,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
      xaxis: {
        fixedrange: true, zeroline: false, gridcolor: "rgba(0,0,0,0)",
        ...(alike
          ? { tickvals: ticks, ticktext: ticks.map((i) => plotText(shortened(networks[0].layers[i].label, 16))), tickangle: -40 }
          : { title: { text: "position in the network, from input to output", standoff: 8 }, tickvals: [0, 0.25, 0.5, 0.75, 1] }),
      },
      yaxis: { range: [0, 1], fixedrange: true, zeroline: false, gridcolor: color.rule, title: { text: "negative mass m", standoff: 8 } },
      shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 0.5, y1: 0.5, line: { color: color.muted, width: 1 } }],
    },
    caption: many
      ? [`${networks.length} networks; `, [networks[index].name], " is drawn heavier."]
      : networks.flatMap((network, k) => [
          k ? "; " : "", [network.name], `: ${network.pool.biased[network.last]} of ${plural(network.layers.length, "layer")} biased`,
        ]).concat("."),
    numbers: {
      columns: ["network", "layers", "biased layers", "filters", "negative mass of all", "mean cosine of all"],
      rows: networks.map((network) => [
        network.name, network.layers.length,
        ...["biased", "filters", "negative_mass", "mean_cosine"].map((key) => network.pool[key][network.last]),
      ]),
      chosen: index,
    },
    pick: (point) => ({ network: point.data.meta, layer: point.customdata, epoch: networks[point.data.meta].last }),
  };
}
