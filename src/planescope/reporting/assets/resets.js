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
  const signs = Math.max(8, Math.min(Math.max(...labels.map((label) => label.length)), Math.floor((0.34 * width) / LABEL_PX)));
  const margin = { l: signs * LABEL_PX + 14, r: width < 480 ? 12 : 86, t: 10, b: 52 };
  const pitch = rowPitch(rows.length, 30);
  const across = (width - margin.l - margin.r) / resets.columns.length;
  const row = resets.layers.indexOf(chosen);
  const readable = across >= 34 && pitch >= 14;
  const what = resets.is_drop ? "relative drop" : "accuracy";
  return {
    data: [{
      type: "heatmap", z: resets.values, x: resets.columns.map((_, i) => i), y: rows, zmin: 0, zmax: 100,
      colorscale: "Viridis", xgap: 1, ygap: 1, hoverongaps: false, showscale: width >= 480,
      text: resets.texts, ...(readable ? { texttemplate: "%{text}", textfont: { size: 11 } } : {}),
      customdata: rows.map((i) => resets.columns.map((column) => `<b>${plotText(labels[i])}</b><br>put back to ${plotText(columnName(column))}`)),
      hovertemplate: `%{customdata}<br>${what} %{text}${resets.is_drop ? " %" : ""}<extra></extra>`,
      colorbar: { thickness: 10, outlinewidth: 0, ticksuffix: " %", title: { text: what, side: "right", font: { size: 11 } }, tickfont: { size: 10.5 } },
    }],
    height: rows.length * pitch + margin.t + margin.b,
    layout: {
      margin,
      xaxis: {
        tickvals: resets.columns.map((_, i) => i), ticktext: resets.columns.map((column) => plotText(shortened(String(column), 12))),
        fixedrange: true, zeroline: false, showgrid: false, tickfont: { size: 11 }, tickangle: across < 26 ? -60 : "auto",
        title: { text: resets.columns.every((column) => typeof column === "number" || column === "rand") ? "put back to epoch" : "put back to", standoff: 8 },
      },
      yaxis: {
        tickvals: rows, fixedrange: true, zeroline: false, showgrid: false, autorange: "reversed", tickfont: { size: 11.5 }, ticklabelstandoff: 6,
        ticktext: labels.map((label, i) => { const text = plotText(shortened(label, signs)); return i === row ? `<b>${text}</b>` : text; }),
      },
      shapes: row < 0 ? [] : [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: row - 0.5, y1: row + 0.5, line: { color: color.ink, width: 2 } }],
    },
    caption: [
      resets.verdict,
      ` Evaluated on ${resets.examples.toLocaleString("en")} ${resets.split === "val" ? "validation" : "training"} examples of `, [resets.data], ".",
    ],
    numbers: {
      columns: ["layer", ...resets.columns.map((column) => `${columnName(column)}, ${what} in %`)],
      rows: resets.rows.map((name, i) => [name, ...resets.values[i]]),
      chosen: row,
    },
    pick: (point) => (resets.layers[point.y] === null ? null : { layer: resets.layers[point.y] }),
  };
}

function columnName(column) {
  if (column === "rand") return "a fresh draw";
  return typeof column === "number" ? `epoch ${column}` : column;
}
