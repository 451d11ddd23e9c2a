// The bar: network, layer and epoch, bound to what is chosen.

function setUpControls(store) {
  const pickNetwork = byId("choose-network");
  const pickLayer = byId("choose-layer");
  const sliders = [...document.querySelectorAll("[data-slider]")];
  const score = byId("choose-score");
  let shown = null;

  pickNetwork?.append(...networks.map((network, i) => h("option", { value: i }, shortened(network.name, 40))));
  pickNetwork?.addEventListener("change", () => chooseNetwork(store, Number(pickNetwork.value)));
  pickLayer.addEventListener("change", () => store.choose({ layer: Number(pickLayer.value) }));
  const step = (by) => () => {
    const { network, layer } = store.state;
    store.choose({ layer: Math.min(networks[network].layers.length - 1, Math.max(0, layer + by)) });
  };
  byId("previous-layer").addEventListener("click", step(-1));
  byId("next-layer").addEventListener("click", step(1));
  for (const slider of sliders) {
    const input = slider.querySelector("input");
    input.addEventListener("input", () => store.choose({ epoch: Number(input.value) }));
  }
  score.addEventListener("change", () => store.choose({ score: score.value }));

  return () => {
    const { state } = store;
    const network = networks[state.network];
    if (shown !== network) {
      shown = network;
      if (pickNetwork) pickNetwork.value = state.network;
      pickLayer.replaceChildren(...network.layers.map((layer, i) => h("option", { value: i }, `${i + 1}  ${layer.label}`)));
      score.replaceChildren(...scoresOf(network).map(({ key }) => h("option", { value: key }, scoreName(key))));
      for (const part of document.querySelectorAll("[data-network]")) {
        part.hidden = Number(part.dataset.network) !== state.network;
      }
    }
    pickLayer.value = state.layer;
    byId("previous-layer").disabled = state.layer === 0;
    byId("next-layer").disabled = state.layer === network.layers.length - 1;
    score.value = state.score;
    for (const slider of sliders) {
      const input = slider.querySelector("input");
      slider.hidden = network.epochs.length < 2;
      input.max = network.last;
      input.value = state.epoch;
      input.setAttribute("aria-valuetext", epochName(network, state.epoch));
      slider.querySelector("output").textContent = network.epochs[state.epoch] ?? "";
    }
  };
}

// Another network with the same layer chosen, or the one at the same place.
function chooseNetwork(store, index) {
  const { state } = store;
  const [before, after] = [networks[state.network], networks[index]];
  const place = Math.round((state.layer / Math.max(1, before.layers.length - 1)) * (after.layers.length - 1));
  const layer = layerIndex(after, before.layers[state.layer].name, place);
  const score = scoresOf(after).some(({ key }) => key === state.score) ? state.score : "agreement";
  store.choose({ network: index, layer, epoch: after.last, score });
}
