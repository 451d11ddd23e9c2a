// Light and dark: by the system's preference, or as the reader chooses.

const THEMES = { auto: "Colours: automatic", light: "Colours: light", dark: "Colours: dark" };
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
let printing = false;
let chosenTheme = remembered("localStorage", "planescope-theme") ?? "auto";
if (!(chosenTheme in THEMES)) chosenTheme = "auto";

function resolvedTheme() {
  if (printing) return "light";
  if (chosenTheme !== "auto") return chosenTheme;
  return prefersDark.matches ? "dark" : "light";
}

function setUpTheme(onChange) {
  const button = byId("theme");
  const show = () => {
    document.documentElement.dataset.theme = resolvedTheme();
    button.textContent = THEMES[chosenTheme];
    onChange();
  };
  button.addEventListener("click", () => {
    const names = Object.keys(THEMES);
    chosenTheme = names[(names.indexOf(chosenTheme) + 1) % names.length];
    remember("localStorage", "planescope-theme", chosenTheme);
    show();
  });
  prefersDark.addEventListener("change", show);
  show();
  return show;
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    paper: value("paper"), ink: value("ink"), muted: value("muted"), rule: value("rule"),
    wash: value("wash"), away: value("away"), toward: value("toward"), chance: value("chance"), band: value("band"),
    font: value("plain"), dark: resolvedTheme() === "dark",
  };
}

// Viridis, which colour-blind readers tell apart and which grows lighter throughout.
const VIRIDIS = [
  [68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
  [53, 183, 121], [109, 205, 89], [180, 222, 44], [253, 231, 37],
];

// Colour of a place in [0, 1]; only what stands out from the paper.
function depthColor(place, dark) {
  const [low, high] = dark ? [0.28, 1] : [0, 0.86];
  const spot = (low + (high - low) * place) * (VIRIDIS.length - 1);
  const i = Math.min(Math.floor(spot), VIRIDIS.length - 2);
  return rgb(mixed(VIRIDIS[i], VIRIDIS[i + 1], spot - i));
}

const mixed = (a, b, share) => a.map((value, i) => Math.round(value + (b[i] - value) * share));
const rgb = (color) => `rgb(${color.join(",")})`;

function channels(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// Relative luminance, as WCAG defines it.
function luminance(color) {
  const [r, g, b] = color.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// Black or white, whichever stands out more.
const readableOn = (color) => (luminance(color) > 0.179 ? "#000" : "#fff");
