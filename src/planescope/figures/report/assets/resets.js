// The heat map of Zhang, Bengio and Singer: layers × snapshots.

function resetsFigure(view) {
  const { network, layer: chosen, width, color } = view;
  const { resets } = network;
  if (!resets) {
    return { empty: [
      "Not looked at yet: ",
      [network.isRun ? `planescope reset ${network.path}` : "planescope reset --trained FILE --snapshot FILE --network NAME --data NAME"],
      network.isRun ? " puts each layer back to earlier weights and adds this figure." : " tells what each layer, put back to earlier weights, costs.",
    ] };
  }
  const rows = resets.rows.map((_, i) => i);
  const labels = resets.rows.map((name, i) => (resets.layers[i] === null ? name : network.layers[resets.layers[i]].label));
  const { labels: ticks, signs } = rowLabels(labels, width);
  const margin = { l: signs * LABEL_PX + 14, r: width < 480 ? 12 : 86, t: 10, b: 52 };
  const pitch = rowPitch(rows.length, 30);
  const across = (width - margin.l - margin.r) / resets.columns.length;
  const row = resets.layers.indexOf(chosen);
  const readable = across >= 34 && pitch >= 14;
  // So many columns that not each can be named: one in so many.
  const every = Math.ceil(26 / across);
  const named = resets.columns.map((_, i) => i).filter((i) => i % every === 0);
  const what = resets.is_drop ? "relative drop" : "accuracy";
  return {
    data: [{
      type: "heatmap", z: resets.values, x: resets.columns.map((_, i) => i), y: rows, zmin: 0, zmax: 100,
      colorscale: "Viridis", xgap: across < 12 ? 0 : 1, ygap: 1, hoverongaps: false, showscale: width >= 480,
      text: resets.texts,
      customdata: rows.map((i) => resets.columns.map((column, j) => [
        `<b>${plotText(labels[i])}</b><br>put back to ${plotText(columnName(column))}`, lossText(resets, i, j),
      ])),
      hovertemplate: `%{customdata[0]}<br>${what} %{text}${resets.is_drop ? " %" : ""}%{customdata[1]}<extra></extra>`,
      colorbar: { thickness: 10, outlinewidth: 0, ticksuffix: " %", title: { text: what, side: "right", font: { size: 11 } }, tickfont: { size: 10.5 } },
    }, ...(readable ? [cellTexts(resets, rows, across)] : [])],
    height: rows.length * pitch + margin.t + margin.b,
    layout: {
      margin,
      xaxis: {
        range: [-0.5, resets.columns.length - 0.5], tickvals: named,
        ticktext: named.map((i) => plotText(shortened(String(resets.columns[i]), 12))),
        fixedrange: true, zeroline: false, showgrid: false, tickfont: { size: 11 }, 
        title: { text: resets.columns.every((column) => typeof column === "number" || column === "rand") ? "put back to epoch" : "put back to", standoff: 8 },
      },
      yaxis: {
        tickvals: rows, fixedrange: true, zeroline: false, showgrid: false, range: [rows.length - 0.5, -0.5], tickfont: { size: 11.5 }, ticklabelstandoff: 6,
        ticktext: ticks.map((label, i) => (i === row ? `<b>${plotText(label)}</b>` : plotText(label))),
      },
      shapes: row < 0 ? [] : [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: row - 0.5, y1: row + 0.5, line: { color: color.ink, width: 2 } }],
    },
    caption: [
      resets.verdict,
      ` Evaluated on ${resets.examples.toLocaleString("en")} ${resets.split === "val" ? "validation" : "training"} examples of `, [resets.data], ".",
    ],
    numbers: {
      columns: [
        "layer", ...resets.columns.map((column) => `${columnName(column)}, ${what} in %`),
        ...resets.columns.map((column) => `${columnName(column)}, critical?`),
      ],
      rows: resets.rows.map((name, i) => [name, ...resets.values[i], ...resets.verdicts[i].map((verdict) => verdict ?? "")]),
      chosen: row,
    },
    pick: (point) => (resets.layers[point.y] === null ? null : { layer: resets.layers[point.y] }),
  };
}

// What the cell says by the definition: loss, its interval, and whether the layer is critical.
function lossText(resets, row, column) {
  const loss = resets.losses[row][column];
  const verdict = resets.verdicts[row][column];
  if (loss === null) return "";
  const span = loss[1] === null ? "" : ` (95 % interval ${fixed(loss[1], 1)} to ${fixed(loss[2], 1)})`;
  return `<br>loss ${fixed(loss[0], 1)} %${span}${verdict === null ? "" : `<br>critical: ${verdict}`}`;
}

// Texts of the cells, each in black or white, whichever stands out.
function cellTexts(resets, rows, across) {
  const cells = rows.flatMap((row) => resets.columns.map((_, column) => ({ row, column })))
    .filter(({ row, column }) => resets.texts[row][column]);
  const ink = ({ row, column }) => {
    const share = Math.min(1, Math.max(0, (resets.values[row][column] ?? 0) / 100));
    const spot = share * (VIRIDIS.length - 1);
    const i = Math.min(Math.floor(spot), VIRIDIS.length - 2);
    return readableOn(mixed(VIRIDIS[i], VIRIDIS[i + 1], spot - i));
  };
  const text = ({ row, column }) => {
    const whole = resets.texts[row][column];
    return whole.length * 6.2 > across ? whole.replace(/ ± .*?(?=\)|$)/, "") : whole;
  };
  return {
    type: "scatter", mode: "text", x: cells.map(({ column }) => column), y: cells.map(({ row }) => row),
    text: cells.map(text), textfont: { size: 11, color: cells.map(ink) }, hoverinfo: "skip",
  };
}

function columnName(column) {
  if (column === "rand") return "a fresh draw";
  return typeof column === "number" ? `epoch ${column}` : column;
}
