// Numbers and names as text.

const MINUS = "−";

function fixed(value, digits = 3) {
  if (value === null || value === undefined) return "";
  return value.toFixed(digits).replace("-", MINUS);
}

function signed(value, digits = 3) {
  if (value === null || value === undefined) return "";
  return (value > 0 ? "+" : "") + fixed(value, digits);
}

function pValue(value) {
  if (value === null || value === undefined) return "";
  if (value < 1e-300) return "< 1e−300"; // 0 would read as certain
  return (value < 0.001 ? value.toExponential(1) : value.toFixed(3)).replace("-", MINUS);
}

function general(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  return String(Number(value.toPrecision(4))).replace("-", MINUS);
}

// Plotly reads a little HTML in its labels; names must stay text there too. A name is isolated, so
// that one in a right-to-left script does not turn what stands beside it.
function plotText(name) {
  return name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function shortened(name, longest) {
  if (name.length <= longest) return name;
  const head = Math.floor((longest - 1) / 2);
  return `${name.slice(0, head)}…${name.slice(head + 1 - longest)}`;
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

// RFC 4180.
function csv(columns, rows) {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}
