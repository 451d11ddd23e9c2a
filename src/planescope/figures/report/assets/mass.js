// Negative mass of each layer over the band of chance.

function massFigure(view) {
  const { network, epoch, layer: chosen, color, width } = view;
  const { layers } = network;
  const pitch = rowPitch(layers.length, 27);
  const axis = rowAxis(view, pitch);
  const rows = layers.map((_, i) => i);
  const masses = rows.map((i) => network.value("negative_mass", epoch, i));
  const sides = rows.map((i) => sideOf(network, epoch, i));
  const colors = sides.map((side) => color[side.key]);
  const biased = sides.filter((side) => side !== SIDES.none).length;
  const pool = network.pool.negative_mass[epoch];
  const bands = rows.map((i) => testedBand(network, epoch, i));
  const data = [
    {
      type: "bar", orientation: "h", y: rows, base: bands.map(([low]) => low),
      x: bands.map(([low, high]) => high - low), width: 1, hoverinfo: "skip",
      marker: { color: color.band, line: { width: 0 } },
    },
    // Stems, one colour a side.
    ...Object.values(SIDES).map((side) => ({
      type: "scatter", mode: "lines", hoverinfo: "skip", line: { color: color[side.key], width: 1.5 },
      x: rows.flatMap((i) => (sides[i] === side ? [0.5, masses[i], null] : [])),
      y: rows.flatMap((i) => (sides[i] === side ? [i, i, null] : [])),
    })),
    {
      type: "scatter", mode: "markers", x: masses, y: rows, hoverinfo: "skip", cliponaxis: false,
      marker: {
        size: rows.map((i) => (i === chosen ? 13 : 9.5)),
        symbol: sides.map((side) => (side === SIDES.none ? "circle" : "diamond")),
        color: sides.map((side, i) => (side === SIDES.none ? color.paper : colors[i])),
        line: { color: colors, width: 1.5 }, opacity: 1,
      },
    },
    rowTargets(view, 0, 1),
  ];
  if (network.epochs.length > 1 && epoch > 0) data.splice(-1, 0, beforeTraining(network, rows, color));
  return {
    data,
    height: layers.length * pitch + axis.margin.t + axis.margin.b,
    layout: {
      ...axis,
      barmode: "overlay",
      shapes: [...axis.shapes, {
        type: "line", yref: "paper", x0: 0.5, x1: 0.5, y0: 0, y1: 1, line: { color: color.muted, width: 1 },
      }],
      annotations: [
        sideNote(0, "left", width < 480 ? "▲ toward" : "▲ toward the orthant", color.toward),
        sideNote(1, "right", width < 480 ? "away ▼" : "away from it ▼", color.away),
      ],
      xaxis: {
        range: [0, 1], tickvals: [0, 0.25, 0.5, 0.75, 1], fixedrange: true, zeroline: false,
        gridcolor: color.rule, title: { text: "negative mass m", standoff: 8 },
      },
    },
    caption: [
      `${biased} of ${plural(layers.length, "layer")} ${biased === 1 ? "lies" : "lie"} outside chance${atEpoch(network, epoch)}`,
      pool === null ? ". " : `; all filters together have a negative mass of ${fixed(pool)}. `,
      ...massSentence(network, epoch, chosen),
      network.epochs.length > 1 && epoch > 0 ? " Small rings: before training." : "",
    ],
    numbers: {
      columns: ["layer", "filters", "negative mass", "chance from", "chance to", "q mass", "biased"],
      rows: rows.map((i) => [
        layers[i].name, layers[i].filters, masses[i], ...bands[i],
        network.value("q_mass", epoch, i), network.value("biased", epoch, i) ? "yes" : "no",
      ]),
      chosen,
    },
    pick: pickRow,
  };
}

// The band that was tested: a mass lies outside it where its layer is biased, and nowhere else.
function testedBand(network, epoch, layer) {
  return ["band_low", "band_high"].map((key) => network.value(key, epoch, layer));
}

function massSentence(network, epoch, chosen) {
  const layer = network.layers[chosen];
  const mass = network.value("negative_mass", epoch, chosen);
  if (mass === null) return [[layer.label], " has no usable filter."];
  const [low, high] = testedBand(network, epoch, chosen);
  return [[layer.label], ` has ${fixed(mass)}; chance gives ${fixed(low)} to ${fixed(high)}.`];
}

function beforeTraining(network, rows, color) {
  return {
    type: "scatter", mode: "markers", hoverinfo: "skip", y: rows, cliponaxis: false,
    x: rows.map((i) => network.value("negative_mass", 0, i)),
    marker: { size: 5, symbol: "circle-open", color: color.muted, line: { width: 1 } },
  };
}

function sideNote(x, anchor, text, ink) {
  return {
    x, y: 1, xref: "paper", yref: "paper", xanchor: anchor, yanchor: "bottom", yshift: 8, text,
    showarrow: false, font: { size: 11.5, color: ink },
  };
}
