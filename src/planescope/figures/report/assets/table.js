// The table of all layers: sorted by a click on a heading, searched, and copied.

const COLUMNS = [
  { title: "layer", cell: (network, epoch, i) => network.layers[i].name },
  { title: "stage", cell: (network, epoch, i) => network.layers[i].stage },
  { title: "input", cell: (network, epoch, i) => network.layers[i].input, left: true },
  { title: "kernel", cell: (network, epoch, i) => network.layers[i].kernel },
  { title: "filters", cell: (network, epoch, i) => network.layers[i].filters },
  { title: "fan-in", cell: (network, epoch, i) => network.layers[i].fan_in },
  { title: "negative mass", key: "negative_mass", text: fixed },
  { title: "mean cosine", key: "mean_cosine", text: (value) => signed(value, 4) },
  { title: "z", key: "z", text: (value) => signed(value, 1) },
  { title: "q mass", key: "q_mass", text: pValue },
  { title: "q cosine", key: "q_cosine", text: pValue },
  { title: "biased", cell: (network, epoch, i) => sideOf(network, epoch, i), text: (side) => (side === SIDES.none ? "" : `${side.sign} ${side.key}`), raw: (side) => (side === SIDES.none ? "" : side.key), sort: (side) => side.key, left: true },
  { title: "negative centre", key: "negative_centre", text: fixed },
  { title: "mean centre", key: "mean_centre", text: signed },
  { title: "activation rate", key: "activation_rate", text: fixed },
  { title: "l2", key: "l2", text: fixed },
  { title: "l∞", key: "linf", text: fixed },
  { title: "drop in %", cell: (network, epoch, i) => firstDrop(network, i), text: (value) => fixed(value, 1) },
].map((column) => ({
  text: general, raw: (value) => value, sort: (value) => value,
  cell: (network, epoch, i) => network.value(column.key, epoch, i),
  ...column,
}));

function firstDrop(network, i) {
  if (!network.resets?.is_drop) return null;
  const row = network.resets.layers.indexOf(i);
  return row < 0 ? null : network.resets.values[row][0];
}

class LayersTable {
  constructor(store) {
    this.store = store;
    this.table = byId("layers");
    this.search = byId("search");
    this.count = byId("table-count");
    this.order = null; // as in the network
    this.search.addEventListener("input", () => this.show());
    byId("copy").replaceWith(Object.assign(copyButton("Copy as CSV", () => this.csv()), { id: "copy" }));
  }

  columns(network, epoch) {
    const there = (column) => network.layers.some((_, i) => {
      const value = column.cell(network, epoch, i);
      return value !== null && value !== "" && value !== "unknown";
    });
    return COLUMNS.filter(there);
  }

  // Layers that the search leaves, in the order chosen; what has no value comes last either way.
  rows(network, epoch) {
    const wanted = this.search.value.trim().toLowerCase();
    const found = [...network.layers.keys()].filter((i) => network.layers[i].name.toLowerCase().includes(wanted));
    if (!this.order) return found;
    const { column, descending } = this.order;
    const value = (i) => column.sort(column.cell(network, epoch, i));
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const way = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
      return descending ? -way : way;
    };
    return found.sort((i, k) => compare(value(i), value(k)) || i - k);
  }

  csv() {
    const { state } = this.store;
    const network = networks[state.network];
    const columns = this.columns(network, state.epoch);
    const rows = this.rows(network, state.epoch);
    return csv(
      columns.map((column) => column.title),
      rows.map((i) => columns.map((column) => column.raw(column.cell(network, state.epoch, i)))),
    );
  }

  show() {
    const { state } = this.store;
    const network = networks[state.network];
    const columns = this.columns(network, state.epoch);
    const rows = this.rows(network, state.epoch);
    const focused = document.activeElement?.closest?.("#layers button")?.dataset.key;
    this.table.replaceChildren(
      h("thead", {}, h("tr", {}, ...columns.map((column) => this.heading(column)))),
      h("tbody", {}, ...rows.map((i) => this.row(network, state, columns, i))),
    );
    this.count.textContent = `${rows.length} of ${plural(network.layers.length, "layer")}${atEpoch(network, state.epoch)}`;
    // The buttons are new ones; whoever works by keyboard must not lose the place.
    if (focused) this.table.querySelector(`button[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  heading(column) {
    const sorted = this.order?.column === column;
    const direction = sorted ? (this.order.descending ? "descending" : "ascending") : "none";
    return h("th", { scope: "col", "aria-sort": direction, class: column.left ? "left" : null }, h(
      "button", { type: "button", "data-key": column.title, onclick: () => this.sortBy(column) }, column.title,
    ));
  }

  // Ascending, descending, and back to the order of the network.
  sortBy(column) {
    if (this.order?.column !== column) this.order = { column, descending: false };
    else if (!this.order.descending) this.order = { column, descending: true };
    else this.order = null;
    this.show();
  }

  row(network, state, columns, i) {
    const chosen = i === state.layer;
    const choose = () => this.store.choose({ layer: i });
    const [name, ...others] = columns;
    return h("tr", { class: chosen ? "chosen" : null, onclick: choose },
      h("th", { scope: "row" }, h("button", { type: "button", "data-key": `layer ${i}`, "aria-pressed": String(chosen), title: network.layers[i].name }, network.layers[i].label)),
      ...others.map((column) => {
        const value = column.cell(network, state.epoch, i);
        const side = column.title === "biased" ? value.key : "";
        return h("td", { class: `${column.left ? "left" : ""} ${side}`.trim() || null }, column.text(value));
      }),
    );
  }
}
