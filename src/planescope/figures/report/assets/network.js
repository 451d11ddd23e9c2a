// The contents of the page, as the figures ask for them.

const contents = JSON.parse(byId("contents").textContent);

// A network with what can be asked of it.
const networks = contents.networks.map((network) => ({
  ...network,
  value: (key, epoch, layer) => network.statistics[key]?.[epoch]?.[layer] ?? null,
  has: (key) => key in network.statistics,
  last: network.epochs.length - 1,
  isRun: network.config !== null,
}));

const SIDES = {
  away: { sign: "▼", text: "faces away", key: "away" },
  toward: { sign: "▲", text: "faces the orthant", key: "toward" },
  none: { sign: "", text: "within chance", key: "ink" },
};

function sideOf(network, epoch, layer) {
  const mass = network.value("negative_mass", epoch, layer);
  if (!network.value("biased", epoch, layer) || mass === null) return SIDES.none;
  return mass > 0.5 ? SIDES.away : SIDES.toward;
}

function epochName(network, epoch) {
  const number = network.epochs[epoch];
  return number === null ? "" : `${network.unit} ${number}`;
}

// " at epoch 12", or nothing where there was no training.
function atEpoch(network, epoch) {
  const name = epochName(network, epoch);
  return name && ` at ${name}`;
}

function layerIndex(network, name, otherwise) {
  const index = network.layers.findIndex((layer) => layer.name === name);
  return index < 0 ? otherwise : index;
}

// The layer a reader wants to see first: that whose normals agree most, among the biased if any.
function mostBiased(network) {
  const rank = network.layers.map((layer, i) => [
    network.value("biased", network.last, i) ? 1 : 0,
    network.value("agreement", network.last, i) ?? 0,
    layer.filters,
  ]);
  let best = 0;
  for (let i = 1; i < rank.length; i++) {
    const difference = rank[i].map((value, k) => value - rank[best][k]).find((d) => d !== 0);
    if (difference > 0) best = i;
  }
  return best;
}
