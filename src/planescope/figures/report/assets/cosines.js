// Distributions of the cosine, a row a layer, over the density of chance.

const PEAK = 0.88;

function cosinesFigure(view) {
  const { network, epoch, layer: chosen, color } = view;
  const { layers, filters } = network;
  const pitch = rowPitch(layers.length, 42);
  const axis = rowAxis(view, pitch);
  const reach = cosineReach(network);
  const data = layers.flatMap((layer, i) => ridge(view, i));
  data.push(rowTargets(view, -reach, reach));
  const known = filters.histograms.some((histogram) => histogram?.counts[epoch]);
  const layer = layers[chosen];
  const mean = network.value("mean_cosine", epoch, chosen);
  return {
    data,
    height: layers.length * pitch + 2 * 36,
    layout: {
      ...axis,
      margin: { ...axis.margin, t: 14 },
      barmode: "overlay",
      xaxis: {
        range: [-reach, reach], fixedrange: true, zeroline: true, zerolinecolor: color.chance,
        gridcolor: "rgba(0,0,0,0)", ticks: "outside", tickcolor: color.rule, nticks: 7,
        title: { text: "cosine c", standoff: 8 },
      },
    },
    caption: [
      known ? "" : "Single filters are not known here: boxes span the quartiles, whiskers all filters. ",
      [layer.label],
      mean === null
        ? " has no usable filter."
        : ` has a mean cosine of ${signed(mean, 4)}${atEpoch(network, epoch)}, ` +
          `${fixed(Math.abs(network.value("z", epoch, chosen) ?? 0), 1)} standard deviations of chance from 0.`,
    ],
    numbers: {
      columns: ["layer", "mean", "std", "minimum", "lower quartile", "median", "upper quartile", "maximum", "z", "q cosine"],
      rows: layers.map((each, i) => [
        each.name,
        ...["mean_cosine", "std_cosine", "min_cosine", "q25_cosine", "median_cosine", "q75_cosine", "max_cosine", "z", "q_cosine"]
          .map((key) => network.value(key, epoch, i)),
      ]),
      chosen,
    },
    pick: pickRow,
  };
}

// The range that shows every filter at every epoch, and what chance may give.
function cosineReach(network) {
  let largest = 0;
  network.layers.forEach((layer, i) => {
    largest = Math.max(largest, 4 / Math.sqrt(Math.max(1, layer.fan_in)));
    for (let epoch = 0; epoch <= network.last; epoch++) {
      largest = Math.max(
        largest,
        Math.abs(network.value("min_cosine", epoch, i) ?? 0),
        Math.abs(network.value("max_cosine", epoch, i) ?? 0),
      );
    }
  });
  return 1.03 * Math.min(1, largest);
}

function ridge(view, i) {
  const { network, epoch, color } = view;
  const side = sideOf(network, epoch, i);
  const ink = color[side.key];
  const face = side === SIDES.none ? color.chance : ink;
  const histogram = network.filters.histograms[i];
  const law = network.filters.laws[network.layers[i].fan_in];
  const peak = Math.max(highest(histogram), ...law[1], 1e-9);
  const base = i + 0.5 * PEAK;
  const place = (density) => base - (PEAK * density) / peak;
  const counts = histogram?.counts[epoch];
  const traces = counts ? [outline(histogram, counts, place, face)] : quartiles(network, epoch, i, ink);
  traces.push({
    type: "scatter", mode: "lines", hoverinfo: "skip", x: law[0], y: law[1].map(place),
    line: { color: color.ink, width: 1 },
  });
  return traces;
}

function density(histogram, counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  return counts.map((count) => count / (Math.max(total, 1) * histogram.width));
}

// The highest density of any epoch, so that a row keeps its scale.
function highest(histogram) {
  if (!histogram) return 0;
  return Math.max(...histogram.counts.flatMap((counts) => (counts ? density(histogram, counts) : [])));
}

function outline(histogram, counts, place, face) {
  const x = [histogram.low];
  const y = [place(0)];
  density(histogram, counts).forEach((value, k) => {
    const left = histogram.low + k * histogram.width;
    x.push(left, left + histogram.width);
    y.push(place(value), place(value));
  });
  x.push(x.at(-1), x[0]);
  y.push(place(0), place(0));
  return {
    type: "scatter", mode: "lines", x, y, fill: "toself", fillcolor: face, opacity: 0.85,
    line: { color: face, width: 0.5 }, hoverinfo: "skip",
  };
}

function quartiles(network, epoch, i, ink) {
  const at = (key) => network.value(key, epoch, i);
  if (at("median_cosine") === null) return [];
  const line = (x, width) => ({
    type: "scatter", mode: "lines", x, y: [i, i], line: { color: ink, width }, hoverinfo: "skip",
  });
  return [
    line([at("min_cosine"), at("max_cosine")], 1),
    line([at("q25_cosine"), at("q75_cosine")], 7),
    {
      type: "scatter", mode: "markers", x: [at("median_cosine")], y: [i], hoverinfo: "skip",
      marker: { symbol: "line-ns", size: 12, line: { width: 2, color: ink } },
    },
  ];
}
