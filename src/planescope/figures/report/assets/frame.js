// A figure's frame: it draws what a describing function gives, names it for those who do not see
// it, and offers its numbers and files.
//
// describe(view) gives null where there is no such figure, { empty: text } where there is nothing
// to show yet, or
//   data, layout, height   for Plotly
//   caption                what it shows now, in words; it is the text alternative too
//   numbers                { columns, rows, chosen }: its numbers in a table
//   pick(point)            what a click on a point chooses

const plotlyReady = loadPlotly();

async function loadPlotly() {
  const packed = Uint8Array.from(atob(byId("plotly").textContent), (sign) => sign.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  // It runs at once; the page's policy allows it by its hash.
  document.head.append(script);
}

class Frame {
  constructor(key, describe, store) {
    this.key = key;
    this.describe = describe;
    this.store = store;
    this.root = document.querySelector(`[data-figure="${key}"]`);
    this.plot = this.root.querySelector(".plot");
    this.caption = this.root.querySelector(".caption");
    this.tools = this.root.querySelector(".tools");
    this.title = byId(`${key}-title`).textContent;
    this.numbers = new NumbersTable(this.title);
    this.root.querySelector(".more").prepend(this.numbers.element);
    this.tools.append(...saveButtons(this.title, (format) => this.save(format)));
  }

  view() {
    const { state } = this.store;
    const network = networks[state.network];
    const width = printing ? PAPER : Math.max(240, Math.floor(this.root.clientWidth));
    return { ...state, network, index: state.network, width, color: palette() };
  }

  async draw() {
    await plotlyReady;
    await this.drawNow();
  }

  // All that is seen is drawn when it returns; Plotly ends its own work after that.
  drawNow() {
    const found = this.describe(this.view());
    this.root.closest(".part").hidden = found === null;
    if (found === null) return null;
    const empty = found.empty !== undefined;
    for (const part of [this.plot, this.tools, this.numbers.element]) part.hidden = empty;
    for (const part of this.root.parentElement.querySelectorAll(".reading, .score-choice")) {
      part.hidden = empty;
    }
    setWords(this.caption, empty ? found.empty : found.caption);
    if (empty) return this.numbers.show(null);
    this.numbers.show(found.numbers);
    const done = Plotly.react(this.plot, found.data, this.layout(found), CONFIG);
    this.drawn = found;
    this.plot.setAttribute("role", "img");
    this.plot.setAttribute("aria-label", `${this.title}. ${this.caption.textContent}`);
    if (found.pick && !this.picks) {
      this.picks = true;
      this.plot.on("plotly_click", ({ points }) => {
        const changes = points.length && this.drawn.pick(points[0]);
        if (changes) this.store.choose(changes);
      });
    }
    return done;
  }

  layout({ layout, height }) {
    const { color, width } = this.view();
    const base = {
      width, height, autosize: false, dragmode: false, showlegend: false, hovermode: "closest",
      paper_bgcolor: color.paper, plot_bgcolor: color.paper,
      font: { family: color.font, size: 12, color: color.ink },
      margin: { l: 50, r: 12, t: 10, b: 44 },
      hoverlabel: {
        bgcolor: color.paper, bordercolor: color.muted, align: "left",
        font: { family: color.font, size: 12, color: color.ink },
      },
    };
    return { ...base, ...layout };
  }

  async save(format) {
    const { width, height } = this.plot._fullLayout;
    const scale = format === "png" ? 3 : 1;
    const url = await Plotly.toImage(this.plot, { format, width, height, scale });
    download(blobOf(url), `${this.view().network.name}-${this.key}.${format}`);
  }
}

// Pixels of a figure on paper, where its letters then are as large as those of a caption.
const PAPER = 680;
const CONFIG = { displayModeBar: false, responsive: false, doubleClick: "reset", showTips: false };

function saveButtons(title, save) {
  return ["SVG", "PNG"].map((name) => h(
    "button", { type: "button", onclick: () => save(name.toLowerCase()), "aria-label": `Save ${title} as ${name}` }, name,
  ));
}

function blobOf(url) {
  const [head, body] = url.split(/,(.*)/s);
  const type = head.slice("data:".length).split(";")[0];
  if (!head.includes("base64")) return new Blob([decodeURIComponent(body)], { type });
  return new Blob([Uint8Array.from(atob(body), (sign) => sign.charCodeAt(0))], { type });
}

// A caption is a list of words, [text] for what stands in a file: names are set apart.
function setWords(element, words) {
  const parts = typeof words === "string" ? [words] : words;
  element.replaceChildren(
    ...parts.map((part) => (Array.isArray(part) ? h("code", {}, part[0]) : part)),
  );
}

// The numbers behind a figure: made when they are asked for.
class NumbersTable {
  constructor(title) {
    this.body = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Numbers of ${title}` });
    this.element = h(
      "details", { class: "numbers" }, h("summary", {}, "Numbers"),
      h("div", { class: "numbers-tools" }, copyButton("Copy as CSV", () => csv(this.numbers.columns, this.numbers.rows))),
      this.body,
    );
    this.element.addEventListener("toggle", () => this.fill());
  }

  show(numbers) {
    this.numbers = numbers;
    this.fill();
  }

  fill() {
    if (!this.element.open || !this.numbers) return;
    const { columns, rows, chosen } = this.numbers;
    this.body.replaceChildren(
      h("table", {},
        h("thead", {}, h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)))),
        h("tbody", {}, ...rows.map((row, i) => h("tr", { class: i === chosen ? "chosen" : null },
          ...row.map((cell, k) => h(k ? "td" : "th", k ? {} : { scope: "row" }, general(cell)))))),
      ),
    );
  }
}

// Draws frames one after another, those in sight first, so that the page never stands still.
class Painter {
  constructor(frames) {
    this.frames = frames;
    this.wanted = new Set();
  }

  // Resolves once nothing is left to draw, also of what was asked for meanwhile.
  paint() {
    for (const frame of this.frames) this.wanted.add(frame);
    this.painting ??= this.drawAll().finally(() => (this.painting = null));
    return this.painting;
  }

  async drawAll() {
    while (this.wanted.size) {
      const frame = [...this.wanted].find(inSight) ?? this.wanted.values().next().value;
      this.wanted.delete(frame);
      await frame.draw();
      await new Promise((resume) => setTimeout(resume));
    }
  }
}

function inSight(frame) {
  const { top, bottom } = frame.root.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}
