// The network as a row of its layers: a group of radio buttons, of which the arrow keys choose one.

class Strip {
  constructor(store) {
    this.store = store;
    this.group = document.querySelector(".strip");
    this.facts = document.querySelector(".facts");
    this.root = document.querySelector('[data-figure="strip"]');
    this.caption = byId("strip-caption");
    this.numbers = new NumbersTable("The network");
    this.root.querySelector(".more").prepend(this.numbers.element);
    this.root.querySelector(".tools").append(...saveButtons("The network", (format) => this.save(format)));
    this.group.addEventListener("keydown", (event) => this.move(event));
  }

  move(event) {
    const { network, layer } = this.store.state;
    const last = networks[network].layers.length - 1;
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -last, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.store.choose({ layer: Math.min(last, Math.max(0, layer + steps[event.key])) });
    this.group.children[this.store.state.layer].focus();
  }

  show() {
    const { state } = this.store;
    const network = networks[state.network];
    const color = palette();
    if (this.shown !== network) {
      this.shown = network;
      this.group.replaceChildren(...network.layers.map((_, i) => this.button(network, i)));
    }
    network.layers.forEach((layer, i) => this.paint(network, state, layer, i, color));
    this.reveal(this.group.children[state.layer]);
    this.describe(network, state);
  }

  // A row that is wider than the window shows the chosen layer.
  reveal(button) {
    const frame = this.group.parentElement;
    const [left, right] = [button.offsetLeft - frame.offsetLeft, button.offsetLeft - frame.offsetLeft + button.offsetWidth];
    if (left < frame.scrollLeft || right > frame.scrollLeft + frame.clientWidth) {
      frame.scrollLeft = (left + right - frame.clientWidth) / 2;
    }
  }

  button(network, i) {
    const button = h(
      "button",
      { type: "button", role: "radio", "data-first-of-stage": i > 0 && newStage(network, i) },
      h("span", { class: "place", "aria-hidden": "true" }, String(i + 1)), h("span", { class: "side", "aria-hidden": "true" }),
    );
    button.style.setProperty("--weight", network.layers[i].weights);
    button.addEventListener("click", () => this.store.choose({ layer: i }));
    return button;
  }

  paint(network, state, layer, i, color) {
    const button = this.group.children[i];
    const chosen = i === state.layer;
    const side = sideOf(network, state.epoch, i);
    const fill = stripFill(network, state.epoch, i, color);
    button.style.setProperty("--fill", rgb(fill));
    button.style.setProperty("--on", readableOn(fill));
    button.setAttribute("aria-checked", String(chosen));
    button.setAttribute("aria-label", stripLabel(network, state.epoch, i));
    button.title = layer.label;
    button.tabIndex = chosen ? 0 : -1;
    button.querySelector(".side").textContent = side.sign;
  }

  describe(network, { epoch, layer: chosen }) {
    const layer = network.layers[chosen];
    const side = sideOf(network, epoch, chosen);
    const at = (key) => network.value(key, epoch, chosen);
    const facts = [
      ["chosen layer", layer.label],
      ["kind", `${KINDS[layer.kind] ?? layer.kind}${layer.kernel ? ` ${layer.kernel}` : ""}${layer.groups > 1 ? `, ${layer.groups} groups` : ""}`],
      ["filters × fan-in", `${layer.filters} × ${layer.fan_in}`],
      ["input", INPUTS[layer.input] ?? layer.input],
      ["negative mass", fixed(at("negative_mass")), `chance ${testedBand(network, epoch, chosen).map((end) => fixed(end, 2)).join(" to ")}`],
      ["mean cosine", signed(at("mean_cosine"), 4)],
      ["verdict", `${side.sign} ${side.text}`.trim(), `q = ${pValue(at("q_mass"))}`, side.key],
      ["negative centre", fixed(at("negative_centre"))],
      ["activation rate", fixed(at("activation_rate"))],
      ["moved from start (l2)", fixed(at("l2"))],
    ].filter(([, value]) => value !== "");
    this.facts.replaceChildren(...facts.map(([name, value, more, kind]) => h(
      "div", {}, h("dt", {}, name), h("dd", { class: kind ?? null }, value, ...(more ? [" ", h("small", {}, more)] : [])),
    )));
    const stages = new Set(network.layers.map((each) => each.stage)).size;
    setWords(this.caption, [
      `${plural(network.layers.length, "layer")}${stages > 1 ? ` in ${stages} stages` : ""}, `,
      `${network.layers.reduce((sum, each) => sum + each.weights, 0).toLocaleString("en")} weights; `,
      `${network.pool.biased[epoch]} biased${atEpoch(network, epoch)}.`,
    ]);
    this.numbers.show({
      columns: ["layer", "stage", "filters", "fan-in", "weights", "negative mass", "side"],
      rows: network.layers.map((each, i) => [
        each.name, each.stage, each.filters, each.fan_in, each.weights, network.value("negative_mass", epoch, i), sideOf(network, epoch, i).text,
      ]),
      chosen,
    });
  }

  // The row as a picture of its own: what Plotly does for the other figures.
  svg() {
    const frame = this.group.getBoundingClientRect();
    const color = palette();
    const boxes = [...this.group.children].map((button) => {
      const at = button.getBoundingClientRect();
      const style = getComputedStyle(button);
      const [x, y] = [at.left - frame.left + 4, at.top - frame.top + 4];
      const text = (value, dy) => `<text x="${x + at.width / 2}" y="${y + at.height / 2 + dy}" fill="${style.color}">${value}</text>`;
      const ring = button.getAttribute("aria-checked") === "true" ? ` stroke="${color.ink}" stroke-width="2"` : "";
      const [place, side] = [...button.children].map((part) => part.textContent);
      return `<rect x="${x}" y="${y}" width="${at.width}" height="${at.height}" rx="2" fill="${style.backgroundColor}"${ring}/>${text(place, -2)}${text(side, 13)}`;
    });
    const [width, height] = [Math.ceil(frame.width + 8), Math.ceil(frame.height + 8)];
    return {
      width, height,
      text: `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" font-family="sans-serif" font-size="11" text-anchor="middle">` +
        `<rect width="100%" height="100%" fill="${color.paper}"/>${boxes.join("")}</svg>`,
    };
  }

  async save(format) {
    const { width, height, text } = this.svg();
    const name = `${networks[this.store.state.network].name}-network.${format}`;
    const svg = new Blob([text], { type: "image/svg+xml" });
    if (format === "svg") return download(svg, name);
    const image = new Image();
    image.src = `data:image/svg+xml,${encodeURIComponent(text)}`;
    await image.decode();
    const canvas = h("canvas", { width: 3 * width, height: 3 * height });
    canvas.getContext("2d").drawImage(image, 0, 0, 3 * width, 3 * height);
    canvas.toBlob((png) => download(png, name));
  }
}

const KINDS = { conv: "convolution", pointwise: "convolution", transposed: "transposed convolution", linear: "linear" };
const INPUTS = { image: "the image", relu: "a ReLU", other: "no ReLU", unknown: "" };

// The side's colour by how many normals agree; grey within chance.
function stripFill(network, epoch, i, color) {
  const side = sideOf(network, epoch, i);
  if (side === SIDES.none) return channels(color.chance);
  const agreement = network.value("agreement", epoch, i) ?? 0;
  return mixed(channels(color.paper), channels(color[side.key]), 0.35 + 0.65 * agreement);
}

function stripLabel(network, epoch, i) {
  const layer = network.layers[i];
  const mass = network.value("negative_mass", epoch, i);
  return `${layer.label}: ${plural(layer.filters, "filter")} of ${layer.fan_in} weights, ` +
    `${mass === null ? "no usable filter" : `negative mass ${fixed(mass)}`}, ${sideOf(network, epoch, i).text}`;
}
