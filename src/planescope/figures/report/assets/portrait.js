// The hyperplanes of the chosen layer in the half-plane of the identity line.
//
// Hyperplane i is the half-line c x + sqrt(1 - c^2) y + s = 0 with y >= 0: it leaves the line at
// x = -s / c, and its active side is above it.

const FARTHEST = 1e100;

function portraitFigure(view) {
  const { network, epoch, layer: chosen, color, width } = view;
  const layer = network.layers[chosen];
  const portrait = network.filters.portraits[chosen];
  const cosine = portrait?.cosine[epoch];
  if (!cosine) {
    return { empty: [
      "The values of single filters are not known here. ",
      network.isRun
        ? "The last epoch has them; a run trained with this version keeps them at every snapshot."
        : "A saved measurement leaves them out: report on the checkpoint itself.",
    ] };
  }
  const [low, high, top, stretch] = portrait.range;
  const planes = hyperplanes(cosine, portrait.offset[epoch]);
  const margin = { l: 56, r: 12, t: 40, b: 48 };
  const trueAngles = stretch === 1;
  const height = Math.max(150, 0.5 * (width - margin.l - margin.r)) + margin.t + margin.b;
  const shown = cosine.length;
  return {
    data: [...cones(layer.fan_in, high, top, color), ...sidesOf(planes, top, color)],
    height,
    layout: {
      margin, dragmode: "zoom", showlegend: true,
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", font: { size: 11.5 }, itemclick: false, itemdoubleclick: false, bgcolor: "rgba(0,0,0,0)" },
      xaxis: { range: [low, high], zeroline: false, gridcolor: "rgba(0,0,0,0)", ticks: "outside", tickcolor: color.rule, nticks: 7, exponentformat: "power", title: { text: "t √d, along the identity line", standoff: 8 } },
      yaxis: {
        range: [0, top], zeroline: false, gridcolor: "rgba(0,0,0,0)", ticks: "outside", tickcolor: color.rule, nticks: 5, exponentformat: "power",
        title: { text: "distance from the line", standoff: 8 },
        ...(trueAngles ? { scaleanchor: "x", constrain: "domain" } : {}),
      },
    },
    caption: [
      [layer.label], `${atEpoch(network, epoch)}: ${plural(layer.filters, "filter")} of ${layer.fan_in} weights`,
      shown < layer.filters ? `, of which ${shown} are drawn, evenly chosen` : "",
      `; ${planes.filter((plane) => plane.c < 0).length} drawn with their normal away from the orthant, `,
      `${planes.filter((plane) => plane.c > 0).length} toward it. `,
      leftOut(network, epoch, chosen, planes, [low, high]),
      trueAngles ? "Angles are true." : `Heights are stretched ${general(stretch)} times.`,
    ],
    numbers: {
      columns: ["filter", "cosine", "offset", "crossing t √d"],
      rows: cosine.map((c, k) => [
        Math.floor((k * layer.filters) / shown), c, portrait.offset[epoch][k],
        c ? Number((-portrait.offset[epoch][k] / c).toPrecision(4)) : null,
      ]),
    },
    pick: null,
  };
}

function hyperplanes(cosine, offset) {
  return cosine
    .map((c, k) => ({ c, s: offset[k], x: c ? -offset[k] / c : null }))
    .filter(({ c, x }) => c !== null && x !== null && Math.abs(x) < FARTHEST);
}

function leftOut(network, epoch, chosen, planes, [low, high]) {
  const counts = [
    [planes.filter(({ x }) => x < low || x > high).length, "cross outside"],
    [network.value("degenerate", epoch, chosen) ?? 0, "have no direction"],
    [network.value("non_finite", epoch, chosen) ?? 0, "are not finite"],
    [network.value("sideless", epoch, chosen) ?? 0, "face neither way"],
  ];
  const parts = counts.filter(([count]) => count).map(([count, what]) => `${count} ${what}`);
  return parts.length ? `${parts.join(", ")}. ` : "";
}

// Where each half-line ends: so far above the picture that zooming out a little still shows it.
function sidesOf(planes, top, color) {
  // Thin lines where there are many, so that one still sees how many.
  const thickness = Math.min(1.2, Math.max(0.35, 9 / Math.sqrt(Math.max(planes.length, 1))));
  return [
    ["π > 0, toward the orthant", (plane) => plane.c > 0, color.toward, "triangle-right"],
    ["π < 0, away from it", (plane) => plane.c < 0, color.away, "triangle-left"],
  ].flatMap(([name, chosen, ink, symbol]) => {
    const some = planes.filter(chosen);
    const far = 4 * top;
    const end = ({ c, x }) => x - (far * Math.sqrt(Math.max(0, 1 - c * c))) / c;
    return [
      {
        type: "scatter", mode: "lines", hoverinfo: "skip", showlegend: false, opacity: 0.75,
        x: some.flatMap((plane) => [plane.x, end(plane), null]),
        y: some.flatMap(() => [0, far, null]),
        line: { color: ink, width: thickness },
      },
      {
        type: "scatter", mode: "markers", name: `${name} (${some.length})`, cliponaxis: true,
        x: some.map(({ x }) => x), y: some.map(() => 0),
        marker: { symbol, color: ink, size: 8, opacity: 0.6 },
        hovertemplate: "crosses at %{x:.3g}<extra></extra>",
      },
    ];
  });
}

// Cones about the identity line: one inside the positive orthant, one that holds it.
function cones(fanIn, high, top, color) {
  const slope = Math.sqrt(Math.max(fanIn - 1, 0));
  const far = Math.max(high, 0) * 4;
  const cone = (rise, name, fill) => ({
    type: "scatter", mode: "none", hoverinfo: "skip", name, fill: "toself", fillcolor: fill,
    // Cut off above the picture: a steep cone is thousands of pictures high.
    ...(far * rise > 4 * top
      ? { x: [0, (4 * top) / rise, far, far], y: [0, 4 * top, 4 * top, 0] }
      : { x: [0, far, far], y: [0, far * rise, 0] }),
  });
  const light = cone(slope, "partly in the orthant", color.dark ? "#24272d" : "#f0f0ec");
  const dark = slope && cone(1 / slope, "in the orthant", color.dark ? "#3b4049" : "#d4d4ce");
  return slope ? [light, dark] : [light];
}
