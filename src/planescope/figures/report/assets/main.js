// Puts the page together.

const store = createStore(begin());
const showControls = setUpControls(store);
const strip = new Strip(store);
const table = new LayersTable(store);
const frames = Object.entries({
  comparison: comparisonFigure, mass: massFigure, cosines: cosinesFigure, portrait: portraitFigure,
  dynamics: dynamicsFigure, resets: resetsFigure, relation: relationFigure,
})
  .filter(([key]) => document.querySelector(`[data-figure="${key}"]`))
  .map(([key, describe]) => new Frame(key, describe, store));
const painter = new Painter(frames);

async function show() {
  document.documentElement.dataset.drawn = "false";
  showControls();
  strip.show();
  table.show();
  await painter.paint();
  document.documentElement.dataset.drawn = "true";
  performance.mark("planescope-drawn");
}

const showTheme = setUpTheme(show);
store.subscribe(show);
performance.mark("planescope-interactive");

const main = document.querySelector("main");
let width = main.clientWidth;
let resized;
new ResizeObserver(() => {
  clearTimeout(resized);
  resized = setTimeout(() => {
    if (main.clientWidth === width) return;
    width = main.clientWidth;
    show();
  }, 120);
}).observe(main);

// Paper is white and narrow, and printing does not wait: all figures are drawn at once.
function setPrinting(value) {
  printing = value;
  showTheme();
  if (window.Plotly) for (const frame of frames) frame.drawNow();
}
addEventListener("beforeprint", () => setPrinting(true));
addEventListener("afterprint", () => setPrinting(false));

if (contents.follows) follow();

// Where the reader was, in the page that this one takes the place of.
function begin() {
  const network = networks[0];
  const fresh = { network: 0, layer: mostBiased(network), epoch: network.last, score: "agreement" };
  const before = contents.follows ? remembered("sessionStorage", "planescope-place") : null;
  if (!before || before.network !== network.name) return fresh;
  requestAnimationFrame(() => scrollTo(0, before.scroll));
  const epoch = before.epoch === "last" ? network.last : network.epochs.indexOf(before.epoch);
  return { ...fresh, layer: layerIndex(network, before.layer, fresh.layer), epoch: epoch < 0 ? network.last : epoch };
}

// A page of a training that goes on reads itself anew, unless somebody is at work in it.
function follow() {
  const seconds = 10;
  const status = byId("following");
  status.textContent = `Follows the training: the page is read anew every ${seconds} seconds.`;
  setInterval(() => {
    const busy = document.hidden || document.activeElement?.matches("input, select") || document.querySelector(".numbers[open]");
    if (busy) return;
    const { network, layer, epoch } = store.state;
    const shown = networks[network];
    remember("sessionStorage", "planescope-place", {
      network: networks[0].name, layer: shown.layers[layer].name, scroll: scrollY,
      epoch: epoch === shown.last ? "last" : shown.epochs[epoch],
    });
    location.reload();
  }, 1000 * seconds);
}
