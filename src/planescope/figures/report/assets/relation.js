// A layer's score, which needs no data, against what resetting it costs.

function scoresOf(network) {
  return network.relation?.scores ?? [];
}

function relationFigure(view) {
  const { network, layer: chosen, color, width } = view;
  const { relation } = network;
  if (!relation) return null;
  const score = relation.scores.find(({ key }) => key === view.score) ?? relation.scores[0];
  const points = relation.drops.flatMap((drop, layer) => {
    const x = score.values[layer];
    if (drop === null || drop[0] === null || x === null) return [];
    return [{ layer, x, y: drop[0], low: drop[1], high: drop[2] }];
  });
  const sides = points.map(({ layer }) => sideOf(network, network.last, layer));
  const known = points.some(({ low }) => low !== null);
  return {
    data: [verdictRings(relation, points, chosen, color), {
      type: "scatter", mode: "markers", x: points.map(({ x }) => x), y: points.map(({ y }) => y), cliponaxis: false,
      ...(known ? { error_y: {
        type: "data", symmetric: false, array: points.map(({ y, high }) => high - y), arrayminus: points.map(({ y, low }) => y - low),
        color: color.muted, thickness: 1, width: 0,
      } } : {}),
      customdata: points.map(({ layer }) => layer), hoverinfo: "text",
      hovertext: points.map((point) => relationText(network, score, point)),
      marker: {
        size: points.map(({ layer }) => (layer === chosen ? 15 : 10)),
        symbol: sides.map((side) => (side === SIDES.none ? "circle" : "diamond")),
        color: sides.map((side) => (side === SIDES.none ? color.paper : color[side.key])), opacity: 1,
        line: { color: sides.map((side) => color[side.key]), width: points.map(({ layer }) => (layer === chosen ? 2.5 : 1.5)) },
      },
    }],
    height: Math.min(420, Math.max(300, 0.5 * width)),
    layout: {
      margin: { l: 56, r: 16, t: 14, b: 48 },
      annotations: apart(network, points, chosen, width).map(({ layer, x, y }) => ({
        x, y, text: plotText(shortened(network.layers[layer].label, 18)), showarrow: false, xanchor: "left", yanchor: "bottom",
        xshift: 6, yshift: 2, font: { size: 10.5, color: layer === chosen ? color.ink : color.muted },
      })),
      xaxis: { title: { text: scoreTitle(score), standoff: 8 }, zeroline: false, gridcolor: color.rule, fixedrange: true },
      yaxis: { title: { text: `relative drop, put back to ${plotText(columnName(relation.column))}, %`, standoff: 8 }, zeroline: true, zerolinecolor: color.chance, gridcolor: color.rule, fixedrange: true },
    },
    caption: relationCaption(network, score, points),
    numbers: relationNumbers(network, chosen),
    pick: (point) => ({ layer: point.customdata }),
  };
}

// Rings around the points of critical layers, and pale ones where that is undecided.
function verdictRings(relation, points, chosen, color) {
  const rings = { critical: color.ink, undecided: color.chance };
  const ringed = points.filter(({ layer }) => relation.decisions[layer] in rings);
  return {
    type: "scatter", mode: "markers", x: ringed.map(({ x }) => x), y: ringed.map(({ y }) => y), cliponaxis: false, hoverinfo: "skip",
    marker: {
      symbol: "circle-open", size: ringed.map(({ layer }) => (layer === chosen ? 25 : 19)), opacity: 1,
      color: ringed.map(({ layer }) => rings[relation.decisions[layer]]), line: { width: 1.5 },
    },
  };
}

// Points whose names have room beside them, the chosen one first.
function apart(network, points, chosen, width) {
  const spread = (key) => {
    const values = points.map((point) => point[key]);
    return [Math.min(...values), Math.max(...values) - Math.min(...values) || 1];
  };
  const [[left, wide], [bottom, high]] = [spread("x"), spread("y")];
  const named = [];
  for (const point of [...points].sort((a, b) => (b.layer === chosen) - (a.layer === chosen) || b.y - a.y)) {
    const x = ((point.x - left) / wide) * (width - 90);
    const y = ((point.y - bottom) / high) * 0.4 * width;
    const room = Math.min(18, network.layers[point.layer].label.length) * 6 + 8;
    if (named.some((other) => Math.abs(other.x - x) < Math.max(room, other.room) && Math.abs(other.y - y) < 13)) continue;
    named.push({ ...point, point, x, y, room });
  }
  return named.map(({ point }) => point);
}

const scoreName = (key) => key.replaceAll("_", " ");
const scoreTitle = ({ key, title }) => `${scoreName(key)}: ${title}`;

function relationText(network, score, { layer, x, y, low, high }) {
  const interval = low === null ? "" : ` (95 % interval ${fixed(low, 1)} to ${fixed(high, 1)})`;
  const decision = network.relation.decisions[layer];
  const loss = network.relation.losses[layer];
  const span = loss === null || loss[1] === null ? "" : ` (95 % interval ${fixed(loss[1], 1)} to ${fixed(loss[2], 1)})`;
  return [
    `<b>${plotText(network.layers[layer].label)}</b>`, `${scoreName(score.key)} ${general(x)}`,
    `relative drop ${fixed(y, 1)} %${interval}`,
    ...(loss === null ? [] : [`loss ${fixed(loss[0], 1)} %${span}`]),
    decision ?? "critical or not is not known",
  ].join("<br>");
}

function relationCaption(network, score, points) {
  const { relation } = network;
  const { association: found } = score;
  if (relation.verdict === null) {
    const ask = network.isRun ? [
      " How well the score ranks the layers, with an interval: ",
      [`planescope relate ${network.path} --out ${network.path}/relation.json`], " and this page again.",
    ] : [];
    const highest = points.reduce((best, point) => (point.y > best.y ? point : best), points[0]);
    if (!highest) return ["No layer has both this score and a drop."];
    return [
      `${criticalSentence(relation)}${plural(points.length, "layer")}; the costliest to put back is `,
      [network.layers[highest.layer].label], `, with a relative drop of ${fixed(highest.y, 1)} %.`, ...ask,
    ];
  }
  const numbers = found?.rho === null || found?.rho === undefined
    ? "this score has no rank correlation"
    : `ρ = ${signed(found.rho, 2)}${interval(found, "rho")}, p = ${pValue(found.rho_p)}` +
      (found.auc === null ? "" : `; area under the ROC curve for “critical” ${fixed(found.auc, 2)}${interval(found, "auc")}, ${plural(found.decided, "decided layer")}`);
  return [`Over ${plural(relation.runs, "run")}, ${relation.selection}: ${numbers}. `, relation.verdict];
}

// How many layers are critical by the interval of the loss; nothing where no loss is known.
function criticalSentence({ decisions, bound }) {
  const count = (word) => decisions.filter((decision) => decision === word).length;
  const [yes, no, undecided] = ["critical", "not critical", "undecided"].map(count);
  if (!(yes + no + undecided)) return "Critical or not is not known of these layers. ";
  return `Critical, with a loss above ${fixed(bound, 0)} % in its whole interval: ${yes}; not critical: ${no}; undecided: ${undecided}. `;
}

function interval(found, key) {
  const [low, high] = [found[`${key}_low`], found[`${key}_high`]];
  return low === null ? "" : ` (95 % interval ${fixed(low, 2)} to ${fixed(high, 2)})`;
}

// With a relation a row a score; without one a row a layer.
function relationNumbers(network, chosen) {
  const { relation } = network;
  const { scores } = relation;
  if (relation.verdict === null) {
    return {
      columns: ["layer", "relative drop in %", "loss in %", "critical?", ...scores.map(({ key }) => scoreName(key))],
      rows: network.layers.map((layer, i) => [
        layer.name, relation.drops[i]?.[0] ?? null, relation.losses[i]?.[0] ?? null, relation.decisions[i] ?? "",
        ...scores.map(({ values }) => values[i]),
      ]),
      chosen,
    };
  }
  const keys = ["rho", "rho_low", "rho_high", "rho_p", "rho_q", "tau", "partial", "auc", "auc_low", "auc_high", "average_precision"];
  return {
    columns: ["score", ...keys.map(scoreName), ...network.layers.map(({ label }) => `of ${label}`)],
    rows: [
      ["relative drop in %", ...keys.map(() => null), ...relation.drops.map((drop) => drop?.[0] ?? null)],
      ["loss in %", ...keys.map(() => null), ...relation.losses.map((loss) => loss?.[0] ?? null)],
      ["critical?", ...keys.map(() => null), ...relation.decisions.map((decision) => decision ?? "")],
      ...scores.map(({ key, association, values }) => [scoreName(key), ...keys.map((number) => association?.[number] ?? null), ...values]),
    ],
  };
}
