// The toolkit of the live figures: a shell around panels and controls, plots in SVG, and the talk with the kernel.
//
// A figure is a module with `compute(spec, state)`, which returns the numbers to draw or null where only torch can
// know them, and `build(ui, spec)`, which makes panels and controls once and returns `draw(state, picture)`.
// Ink is currentColor and the ground is transparent, so that a figure reads on light and on dark pages.

// ---------------------------------------------------------------------------------------------- numbers

// On white and on dark pages: curves stand out from the ground by 3 : 1 at least, greys by 4.5 : 1.
export const COLOURS = {
  blue: ["#0068A8", "#4BA3E3"], orange: ["#CF8300", "#F0B030"], green: ["#00906A", "#2FC492"], red: ["#C44500", "#F2793A"],
  purple: ["#C46F9E", "#DE9BC0"], sky: ["#3A9AD9", "#8FD0F5"], violet: ["#9467BD", "#B592DC"], brown: ["#94640F", "#D0A04A"],
  grey: ["#707070", "#A0A0A0"] };

export const colour = (name) => (name in COLOURS ? `var(--m-${name})` : name ?? "currentColor");

// Words in a colour are darker than its lines, on dark pages lighter: letters are thin.
const inkOf = (name) => (name in COLOURS ? `color-mix(in srgb, ${colour(name)} 50%, currentColor)` : colour(name));

const paletteOf = (mode) => Object.entries(COLOURS).map(([name, both]) => `--m-${name}: ${both[mode]};`).join(" ");

export function linspace(from, to, count) {
  return Array.from({ length: count }, (_, i) => from + ((to - from) * i) / (count - 1));
}

// What `pack` of metalit.widgets.figure wrote: base64 of little-endian floats (or bytes, "u1"), with their shape.
export function unpack({ b64, shape, dtype }) {
  const bytes = Uint8Array.from(atob(b64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  if (dtype === "u1") return { data: Float64Array.from(bytes), shape };
  const size = dtype === "f8" ? 8 : 4;
  const read = dtype === "f8" ? (i) => view.getFloat64(i, true) : (i) => view.getFloat32(i, true);
  return { data: Float64Array.from({ length: bytes.length / size }, (_, i) => read(i * size)), shape };
}

// A number as a reader wants to see it.
export function shown(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size !== 0 && (size >= 1e5 || size < 10 ** -digits / 2) ? value.toExponential(1) : value.toFixed(digits);
  return text.replace("-", "−");
}

// About `count` round numbers between two ends.
export function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let i = first; i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

export function powersOfTen(low, high) {
  const found = [];
  for (let p = Math.ceil(Math.log10(low) - 1e-9); p <= Math.log10(high) + 1e-9; p++) found.push(10 ** p);
  return found;
}

// Where the surface Z[j][i] at (xs[i], ys[j]) crosses a level: segments [x0, y0, x1, y1], by marching squares.
export function contour(xs, ys, Z, level) {
  const segments = [];
  const cross = (a, b, p, q) => p + ((level - a) / (b - a)) * (q - p);
  for (let j = 0; j + 1 < ys.length; j++) {
    for (let i = 0; i + 1 < xs.length; i++) {
      const [a, b, c, d] = [Z[j][i], Z[j][i + 1], Z[j + 1][i + 1], Z[j + 1][i]];
      if (![a, b, c, d].every(Number.isFinite)) continue;
      const points = [];
      if (a < level !== b < level) points.push([cross(a, b, xs[i], xs[i + 1]), ys[j]]);
      if (b < level !== c < level) points.push([xs[i + 1], cross(b, c, ys[j], ys[j + 1])]);
      if (d < level !== c < level) points.push([cross(d, c, xs[i], xs[i + 1]), ys[j + 1]]);
      if (a < level !== d < level) points.push([xs[i], cross(a, d, ys[j], ys[j + 1])]);
      for (let k = 0; k + 1 < points.length; k += 2) segments.push([...points[k], ...points[k + 1]]);
    }
  }
  return segments;
}

// Levels that lie closer together where the surface is low, where the eye should be.
export function levels(Z, count) {
  const values = Z.flat().filter(Number.isFinite);
  const low = Math.min(...values), high = Math.max(...values);
  if (!(high > low)) return [];
  return Array.from({ length: count }, (_, i) => low + (high - low) * ((i + 0.5) / count) ** 2);
}

export function same(a, b) {
  if (a === b) return true;
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return false;
  const keys = Object.keys(a);
  return keys.length === Object.keys(b).length && keys.every((key) => same(a[key], b[key]));
}

// ---------------------------------------------------------------------------------------------- nodes

function node(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const h = (tag, attributes, ...children) => node(document.createElement(tag), attributes, children);
export const svg = (tag, attributes, ...children) =>
  node(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// On a phone, held upright or not, the main control is stuck to the edge of the window and the others are folded.
const SHORT = "(max-height: 480px)", NARROW = `(max-width: 640px), ${SHORT}`;

const STYLE = `
.metalit-figure { ${paletteOf(0)} }
html[data-theme=dark] .metalit-figure, body[data-jp-theme-light=false] .metalit-figure { ${paletteOf(1)} }
.metalit-figure { color: inherit; font-size: 14px; line-height: 1.4; max-width: 60rem; margin: .5rem 0 1rem;
  overflow-x: clip; }
html[data-theme=dark] .metalit-figure, body[data-jp-theme-light=false] .metalit-figure { color-scheme: dark; }
.metalit-figure * { box-sizing: border-box; }
.metalit-figure .m-panels { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: flex-start; }
.metalit-figure .m-panel { flex: 1 1 var(--basis, 18rem); min-width: min(100%, var(--least, 16rem)); }
.metalit-figure .m-title { font-weight: 600; margin: 0; font-size: 13px; }
.metalit-figure .m-fold { display: none; }
.metalit-figure .m-legend { display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: 12px; min-height: 1.4em; }
.metalit-figure .m-legend i { display: inline-block; width: 1.1em; height: 0; border-top: 3px solid; margin-right: .35em;
  vertical-align: .25em; }
.metalit-figure .m-legend svg.m-mark { margin-right: .3em; vertical-align: -1px; }
.metalit-figure .m-panels > .m-panel:has(> svg.m-plot):not([hidden]) { display: flex; flex-direction: column; align-self: stretch; }
.metalit-figure .m-panel > svg.m-plot { margin-top: auto; }
.metalit-figure svg.m-plot { display: block; width: 100%; overflow: visible; touch-action: pan-y; }
.metalit-figure svg text { fill: currentColor; font-size: 12px; font-family: inherit; }
.metalit-figure .m-axis { stroke: currentColor; stroke-opacity: .45; }
.metalit-figure .m-handle { cursor: grab; touch-action: none; outline: none; }
.metalit-figure .m-handle:focus-visible circle.m-ring, .metalit-figure .m-handle:hover circle.m-ring { stroke-opacity: .9; }
.metalit-figure .m-controls { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr));
  gap: .35rem 1.2rem; margin-top: .5rem; align-items: end; }
.metalit-figure .m-group { grid-column: 1 / -1; font-weight: 600; font-size: 12px; margin: .3rem 0 0; }
.metalit-figure label { display: block; font-size: 13px; margin: 0; }
.metalit-figure label .m-top { display: flex; justify-content: space-between; gap: .5rem; }
.metalit-figure output { font-variant-numeric: tabular-nums; }
.metalit-figure input[type=range] { width: 100%; margin: .15rem 0; accent-color: var(--m-blue); }
.metalit-figure select, .metalit-figure button { font: inherit; font-size: 13px; color: inherit; background: transparent;
  border: 1px solid color-mix(in srgb, currentColor 45%, transparent); border-radius: 4px; padding: .2rem .5rem; max-width: 100%;
  width: 100%; }
.metalit-figure select option { color: #111; background: #fff; }
.metalit-figure button { cursor: pointer; width: auto; }
.metalit-figure .m-pair { font-size: 13px; }
.metalit-figure .m-pair div { display: flex; flex-wrap: wrap; gap: .35rem; margin-top: .15rem; }
.metalit-figure button[aria-pressed=true] { font-weight: 600; border-color: currentColor;
  background: color-mix(in srgb, currentColor 16%, transparent); }
.metalit-figure input[type=checkbox] { accent-color: var(--m-blue); margin-right: .4em; }
.metalit-figure :is(input, select, button):focus-visible { outline: 2px solid var(--m-sky); outline-offset: 2px; }
.metalit-figure p { margin: .4rem 0 0; }
.metalit-figure .m-note { min-height: 1.4em; }
.metalit-figure .m-caption { font-style: italic; }
.metalit-figure .m-status { font-size: 12px; color: color-mix(in srgb, currentColor 80%, var(--m-grey)); }
.metalit-figure .m-message { border-left: 4px solid var(--m-red); padding: .5rem .8rem; margin: .5rem 0; }
.metalit-figure.m-stale .m-panels { opacity: .45; }
.metalit-figure .m-touched circle.m-ring { stroke-opacity: .9; }
@media ${NARROW} {
  .metalit-figure .m-sheet { position: sticky; bottom: 0; z-index: 5; max-height: 44vh; overflow-y: auto; padding: .35rem 0 .5rem;
    margin-top: .5rem; border-top: 1px solid color-mix(in srgb, currentColor 30%, transparent);
    background: var(--pst-color-background, var(--jp-layout-color1, Canvas)); }
  .metalit-figure .m-controls { margin: 0; }
  .metalit-figure .m-controls > .m-main { order: -1; }
  .metalit-figure .m-sheet:not(.m-open) .m-controls > :not(.m-main) { display: none; }
  .metalit-figure .m-fold { display: block; width: 100%; margin-top: .35rem; }
  .metalit-figure input[type=range] { height: 1.9rem; }
  .metalit-figure :is(button, select) { min-height: 2.3rem; }
}
@media ${SHORT} {
  .metalit-figure .m-sheet { max-height: 60vh; padding: 0; }
  .metalit-figure .m-sheet:not(.m-open) { display: flex; gap: 1.2rem; align-items: end; }
  .metalit-figure .m-sheet:not(.m-open) > :not(.m-controls, .m-fold) { display: none; }
  .metalit-figure .m-sheet:not(.m-open) .m-controls { flex: 1; }
  .metalit-figure .m-sheet:not(.m-open) .m-fold { width: auto; margin: 0 0 .25rem; }
}
@media print {
  .metalit-figure { break-inside: avoid; }
  .metalit-figure :is(.m-sheet, .m-status) { display: none; }
}
`;

// ---------------------------------------------------------------------------------------------- plots

const MARGIN = { left: 46, right: 10, top: 20, bottom: 34 };  // pixels; the name of the y axis stands on top
const TALL = 340, LOW = 150;                 // no plot is higher, and none is made lower to let a figure fit
const GAP_BETWEEN_TICKS = 70;

// A number that no other plot of the page has: figures do not share their scripts, but they share the page's names.
const nextNumber = () => (globalThis.metalitPlots = (globalThis.metalitPlots ?? 0) + 1);

const near = (pixel) => Math.min(1e5, Math.max(-1e5, pixel));

// A mark, drawn from its middle.
function markOf(shape, r) {
  return { circle: `m${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0`,
           square: `m${-r},${-r}h${2 * r}v${2 * r}h${-2 * r}z`,
           diamond: `m0,${-r * 1.3}l${r * 1.3},${r * 1.3}l${-r * 1.3},${r * 1.3}l${-r * 1.3},${-r * 1.3}z`,
           cross: `m${-r},${-r}l${2 * r},${2 * r}m0,${-2 * r}l${-2 * r},${2 * r}` }[shape];
}

// What stands before a name in the legend: the line or the mark of the plot itself.
function swatch({ kind, colour: ink, shape }) {
  if (kind === "arrow")
    return svg("svg", { class: "m-mark", width: 18, height: 10, viewBox: "0 -5 18 10", "aria-hidden": "true" },
      svg("path", { d: "M1,0H16M11,-4L16,0L11,4", fill: "none", style: `stroke: ${ink}`, "stroke-width": 2 }));
  if (kind !== "dot") return h("i", { class: kind, style: `border-top:3px ${kind} ${ink}` });
  return svg("svg", { class: "m-mark", width: 12, height: 12, viewBox: "-6 -6 12 12", "aria-hidden": "true" },
    svg("path", { d: `M0,0${markOf(shape, 3.6)}`, style: `fill: ${ink}; stroke: ${shape === "cross" ? ink : "none"}`,
      "stroke-width": 2 }));
}

class Plot {
  constructor(ui, { label, x, y, xlabel = "", ylabel = "", height = 0.72, log = "", square = false, whole = false }) {
    Object.assign(this, { ui, label, x, y, height: square ? 1 : height, log, square, whole, used: new Set(), parts: new Map() });
    this.clip = `metalit-clip-${nextNumber()}`;
    this.ground = svg("rect", { fill: "transparent" });
    this.window = svg("rect", {});
    this.axes = svg("g", { "aria-hidden": "true" });
    this.layers = ["shade", "contours", "lines", "marks", "handles"].map((name) =>
      svg("g", name === "handles" ? {} : { "clip-path": `url(#${this.clip})` }));
    this.names = [svg("text", { "text-anchor": "middle" }, xlabel), svg("text", { "text-anchor": "start" }, ylabel)];
    this.svg = svg("svg", { class: "m-plot", role: "group", "aria-label": label },
      svg("defs", {}, svg("clipPath", { id: this.clip }, this.window)),
      this.layers[0], this.ground, this.axes, ...this.names, ...this.layers.slice(1));
    this.legend = h("div", { class: "m-legend" });
    this.node = h("div", { class: "m-panel" }, h("p", { class: "m-title" }, label), this.legend, this.svg);
    this.layout();
  }

  // Pixels follow the width that the page gives, so that text keeps its size on a phone; what has to be lower, to be
  // seen together with its controls, is a share of that.
  layout() {
    const wide = this.wide = this.legend.getBoundingClientRect().width || 320;
    const upright = MARGIN.top + MARGIN.bottom - MARGIN.left - MARGIN.right;
    const full = this.square ? wide + upright : Math.min(wide * this.height, TALL);
    const tall = Math.round(Math.min(full, Math.max(LOW, Math.min(full * this.ui.share, this.ui.most))));
    this.size = [this.square ? tall - upright : wide, tall];
    this.svg.style.maxWidth = this.square ? `${this.size[0]}px` : "";
    this.svg.setAttribute("viewBox", `0 0 ${this.size[0]} ${this.size[1]}`);
    this.svg.setAttribute("height", this.size[1]);
    const [w, t] = this.size;
    const box = { x: MARGIN.left, y: MARGIN.top, width: w - MARGIN.left - MARGIN.right,
                  height: t - MARGIN.top - MARGIN.bottom };
    for (const rect of [this.ground, this.window]) for (const key of Object.keys(box)) rect.setAttribute(key, box[key]);
    this.box = box;
    this.names[0].setAttribute("x", box.x + box.width / 2);
    this.names[0].setAttribute("y", t - 4);
    this.names[1].setAttribute("x", 2);
    this.names[1].setAttribute("y", MARGIN.top - 10);
    this.frame();
  }

  domain({ x = this.x, y = this.y }) {
    if (same([x, y], [this.x, this.y])) return;
    [this.x, this.y] = [x, y];
    this.frame();
  }

  // Far beyond the window a pixel stays a number that SVG can read.
  px(x) { return near(this.box.x + ((x - this.x[0]) / (this.x[1] - this.x[0])) * this.box.width); }

  py(y) {
    const [low, high] = this.log === "y" ? this.y.map(Math.log10) : this.y;
    const at = this.log === "y" ? Math.log10(Math.max(y, 1e-300)) : y;
    return near(this.box.y + this.box.height - ((at - low) / (high - low)) * this.box.height);
  }

  // Where a pointer is, in the units of the axes.
  at(event) {
    const rect = this.svg.getBoundingClientRect();
    const scale = this.size[0] / rect.width;
    const x = ((event.clientX - rect.left) * scale - this.box.x) / this.box.width;
    const y = 1 - ((event.clientY - rect.top) * scale - this.box.y) / this.box.height;
    const clamp = (v) => Math.min(1, Math.max(0, v));
    return [this.x[0] + clamp(x) * (this.x[1] - this.x[0]), this.y[0] + clamp(y) * (this.y[1] - this.y[0])];
  }

  frame() {
    const { box } = this;
    const bottom = box.y + box.height;
    const xs = ticks(...this.x, Math.max(2, Math.round(box.width / GAP_BETWEEN_TICKS)))
      .filter((v) => !this.whole || Number.isInteger(v));    // where things are counted
    const ys = this.log === "y" ? powersOfTen(...this.y) : ticks(...this.y, 4);
    const every = Math.ceil(ys.length / 6);
    const power = (v) => "10" + [...String(Math.round(Math.log10(v)))].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
    const plain = (v) => String(Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-3) ? v.toExponential(0) : v).replace("-", "−");
    const name = (v) => this.log === "y" && (v >= 1e3 || v < 1e-2) ? power(v) : plain(v);
    this.axes.replaceChildren(
      svg("path", { class: "m-axis", fill: "none", d: `M${box.x},${box.y}V${bottom}H${box.x + box.width}` }),
      ...xs.flatMap((v) => [
        svg("path", { class: "m-axis", d: `M${this.px(v)},${bottom}v4` }),
        svg("text", { x: this.px(v), y: bottom + 15, "text-anchor": "middle" }, plain(v))]),
      ...ys.filter((_, i) => i % every === 0).flatMap((v) => [
        svg("path", { class: "m-axis", d: `M${box.x},${this.py(v)}h-4` }),
        svg("text", { x: box.x - 7, y: this.py(v) + 4, "text-anchor": "end" }, name(v))]));
  }

  // The element of an id: made at first sight, moved later, removed when a draw does not mention it.
  part(id, layer, make) {
    this.used.add(id);
    if (!this.parts.has(id)) {
      const made = make();
      this.parts.set(id, made);
      this.layers[layer].append(made);
    }
    return this.parts.get(id);
  }

  sweep() {
    for (const [id, element] of this.parts) if (!this.used.has(id)) this.clear(id, element);
    this.used.clear();
    const entries = [...this.parts.values()].filter((element) => element.dataset.label);
    const key = entries.map((e) => e.dataset.label + e.dataset.colour).join();
    if (this.legend.dataset.key === key) return;
    this.legend.dataset.key = key;
    this.legend.replaceChildren(...entries.map(({ dataset }) => h("span", {}, swatch(dataset), dataset.label)));
  }

  clear(id, element = this.parts.get(id)) {
    element?.remove();
    this.parts.delete(id);
  }

  paint(element, { colour: ink, label, opacity = 1 }, kind) {
    element.setAttribute("opacity", opacity);
    Object.assign(element.dataset, { label: label ?? "", colour: colour(ink), kind });
  }

  line(id, xs, ys, { width = 2, dash, ...look } = {}) {
    const element = this.part(id, 2, () => svg("path", { fill: "none", "stroke-linejoin": "round" }));
    this.paint(element, look, !dash ? "solid" : parseFloat(dash) < 3 ? "dotted" : "dashed");
    element.style.stroke = colour(look.colour);
    element.setAttribute("stroke-width", width);
    element.setAttribute("stroke-dasharray", dash === true ? "6 4" : dash || "none");
    const pixel = (v) => v.toFixed(2);
    let open = false;
    element.setAttribute("d", Array.from(xs, (x, i) => {
      if (!Number.isFinite(x) || ys[i] === null || !Number.isFinite(ys[i])) { open = false; return ""; }
      const step = `${open ? "L" : "M"}${pixel(this.px(x))},${pixel(this.py(ys[i]))}`;
      open = true;
      return step;
    }).join(""));
  }

  // The ground between two lines.
  band(id, xs, low, high, { colour: ink, opacity = 0.18 } = {}) {
    const element = this.part(id, 1, () => svg("path", { stroke: "none" }));
    this.paint(element, { colour: ink, opacity }, "solid");
    element.style.fill = colour(ink);
    const known = Array.from(xs, (x, i) => [x, low[i], high[i]]).filter((row) => row.every((v) => v !== null && Number.isFinite(v)));
    const pixel = (x, y) => `${this.px(x).toFixed(2)},${this.py(y).toFixed(2)}`;
    const way = [...known.map(([x, , top]) => pixel(x, top)), ...known.reverse().map(([x, bottom]) => pixel(x, bottom))];
    element.setAttribute("d", way.length ? `M${way.join("L")}Z` : "");
  }

  dots(id, xs, ys, { radius = 4, shape = "circle", ...look } = {}) {
    const element = this.part(id, 3, () => svg("path", {}));
    this.paint(element, look, "dot");
    element.style.fill = colour(look.colour);
    element.style.stroke = shape === "cross" ? colour(look.colour) : "none";
    element.setAttribute("stroke-width", 2);
    element.dataset.shape = shape;
    const mark = markOf(shape, radius);
    element.setAttribute("d", Array.from(xs, (x, i) => Number.isFinite(x) && Number.isFinite(ys[i]) && ys[i] !== null
      ? `M${this.px(x).toFixed(2)},${this.py(ys[i]).toFixed(2)}${mark}` : "").join(""));
  }

  arrow(id, x0, y0, x1, y1, { width = 2.5, ...look } = {}) {
    const element = this.part(id, 3, () => svg("path", { fill: "none", "stroke-linecap": "round" }));
    this.paint(element, look, "arrow");
    element.style.stroke = colour(look.colour);
    element.setAttribute("stroke-width", width);
    const from = [this.px(x0), this.py(y0)], to = [this.px(x1), this.py(y1)];
    const length = Math.hypot(to[0] - from[0], to[1] - from[1]);
    if (!Number.isFinite(length) || length < 0.5) { element.setAttribute("d", ""); return; }
    const [u, v] = [(to[0] - from[0]) / length, (to[1] - from[1]) / length];
    const head = Math.min(9, length * 0.6);
    const barb = (side) => `L${(to[0] - head * u + side * head * 0.5 * v).toFixed(2)},${(to[1] - head * v - side * head * 0.5 * u).toFixed(2)}`;
    const tip = `${to[0].toFixed(2)},${to[1].toFixed(2)}`;
    element.setAttribute("d", `M${from[0].toFixed(2)},${from[1].toFixed(2)}L${tip}${barb(1)}M${tip}${barb(-1)}`);
  }

  text(id, x, y, string, { anchor = "start", dx = 0, dy = 0, ...look } = {}) {
    const element = this.part(id, 4, () => svg("text", { "pointer-events": "none" }));
    this.paint(element, look, "");
    element.style.fill = inkOf(look.colour);
    element.setAttribute("text-anchor", anchor);
    element.setAttribute("x", this.px(x) + dx);
    element.setAttribute("y", this.py(y) + dy);
    element.textContent = string;
  }

  contours(id, xs, ys, Z, { levels: wanted = 14, ...look } = {}) {
    const element = this.part(id, 1, () => svg("path", { fill: "none", "stroke-width": 1 }));
    this.paint(element, { opacity: 0.55, ...look }, "solid");
    element.style.stroke = colour(look.colour);
    const heights = Array.isArray(wanted) ? wanted : levels(Z, wanted);
    element.setAttribute("d", heights.flatMap((level) => contour(xs, ys, Z, level)).map(([a, b, c, d]) =>
      `M${this.px(a).toFixed(1)},${this.py(b).toFixed(1)}L${this.px(c).toFixed(1)},${this.py(d).toFixed(1)}`).join(""));
  }

  // Cells in one hue: the lower, the stronger.
  shade(id, xs, ys, Z, look = {}) {
    const element = this.part(id, 0, () => svg("image", { preserveAspectRatio: "none" }));
    this.paint(element, { opacity: 0.5, ...look }, "solid");
    const values = Z.flat().filter(Number.isFinite);
    const low = Math.min(...values), high = Math.max(...values);
    const canvas = h("canvas", { width: xs.length, height: ys.length });
    const context = canvas.getContext("2d");
    const ink = getComputedStyle(this.svg).getPropertyValue(`--m-${look.colour ?? "blue"}`).trim();
    const [r, g, b] = [1, 3, 5].map((i) => parseInt(ink.slice(i, i + 2), 16));
    Z.forEach((row, j) => row.forEach((value, i) => {
      const depth = Number.isFinite(value) && high > low ? 1 - Math.sqrt((value - low) / (high - low)) : 0;
      context.fillStyle = `rgba(${r},${g},${b},${depth.toFixed(3)})`;
      context.fillRect(i, ys.length - 1 - j, 1, 1);
    }));
    const half = [(xs[1] - xs[0]) / 2, (ys[1] - ys[0]) / 2];
    const left = this.px(xs[0] - half[0]), top = this.py(ys.at(-1) + half[1]);
    element.setAttribute("x", left);
    element.setAttribute("y", top);
    element.setAttribute("width", this.px(xs.at(-1) + half[0]) - left);
    element.setAttribute("height", this.py(ys[0] - half[1]) - top);
    element.setAttribute("href", canvas.toDataURL());
  }

  // A point that the reader moves: by pointer, or by the arrow keys (Shift: larger steps).
  handle(id, x, y, { label = "point", legend, move, remove, radius = 6, colour: ink = "red" } = {}) {
    const element = this.part(id, 4, () => this.makeHandle());
    element.live = { id, x, y, move, remove };
    element.setAttribute("transform", `translate(${this.px(x).toFixed(2)},${this.py(y).toFixed(2)})`);
    element.setAttribute("aria-label", label);
    element.setAttribute("aria-valuenow", x);
    element.setAttribute("aria-valuetext", `${shown(x, 2)}, ${shown(y, 2)}`);
    const [ring, dot] = element.children;
    ring.setAttribute("r", radius + 5);
    dot.setAttribute("r", radius);
    dot.style.fill = colour(ink);
    this.paint(element, { colour: ink, label: legend }, "dot");
    element.dataset.shape = "circle";
    element.classList.toggle("m-touched", Boolean(remove) && this.ui.touched === id);
  }

  makeHandle() {
    const element = svg("g", { class: "m-handle", tabindex: 0, role: "slider" },
      svg("circle", { class: "m-ring", fill: "transparent", stroke: "currentColor", "stroke-opacity": 0, "stroke-width": 1.5 }),
      svg("circle", { stroke: "#fff", "stroke-width": 1 }));
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      element.focus();
      event.preventDefault();
      if (!element.live.remove) return;
      this.ui.touched = element.live.id;                     // what a button to remove it means
      this.ui.redraw();
    });
    element.addEventListener("pointermove", (event) => {
      if (element.hasPointerCapture(event.pointerId)) element.live.move(...this.at(event));
    });
    element.addEventListener("keydown", (event) => {
      const { x, y, move, remove } = element.live;
      const step = event.shiftKey ? 10 : 50;
      const [dx, dy] = [(this.x[1] - this.x[0]) / step, (this.y[1] - this.y[0]) / step];
      const to = { ArrowLeft: [x - dx, y], ArrowRight: [x + dx, y], ArrowUp: [x, y + dy], ArrowDown: [x, y - dy] }[event.key];
      const clamp = (v, [low, high]) => Math.min(high, Math.max(low, v));
      if (to) move(clamp(to[0], this.x), clamp(to[1], this.y));
      else if ((event.key === "Delete" || event.key === "Backspace") && remove) remove();
      else return;
      event.preventDefault();
      event.stopPropagation();                               // JupyterLab listens to arrow keys and Delete too
    });
    return element;
  }

  // Where the pointer is, in the units of the x axis; null once it has left.
  watch(told) {
    this.svg.addEventListener("pointermove", (event) => told(this.at(event)[0]));
    this.svg.addEventListener("pointerleave", () => told(null));
  }

  // A click on empty ground.
  click(press) {
    this.ground.style.cursor = "copy";
    this.ground.onclick = (event) => press(...this.at(event));
  }
}

// ---------------------------------------------------------------------------------------------- controls

class Interface {
  constructor(spec, set) {
    Object.assign(this, { spec, set, state: {}, plots: [], updates: [], basis: "18rem", least: "16rem" });
    Object.assign(this, { share: 1, most: Infinity });       // of the height of plots
    this.panels = h("div", { class: "m-panels" });
    this.controls = h("div", { class: "m-controls" });
    this.fold = h("button", { type: "button", class: "m-fold", "aria-expanded": false, onclick: () => this.unfold() });
    this.sheet = h("div", { class: "m-sheet" }, this.controls, this.fold);
    this.touched = null;
    this.window = matchMedia(NARROW);
    this.short = matchMedia(SHORT);
    this.noteNode = h("p", { class: "m-note", "aria-live": "polite" });
  }

  // Whether the figure is shown in one column, as on a phone.
  get narrow() { return this.window.matches; }

  // The control that stays on a phone when the others are folded: the first slider, if no other one was named.
  chooseMain() {
    const parts = [...this.controls.children], { main: key } = this.spec;
    const main = parts.find((part) => key && part.querySelector(`[data-key="${key}"]`))
      ?? parts.find((part) => part.classList.contains("m-main"))
      ?? parts.find((part) => part.querySelector("input[type=range]")) ?? parts[0];
    main?.classList.add("m-main");
    this.unfold(false);
    if (parts.length < 2) this.fold.remove();
  }

  unfold(open = !this.sheet.classList.contains("m-open")) {
    this.sheet.classList.toggle("m-open", open);
    this.fold.setAttribute("aria-expanded", open);
    this.fold.textContent = open ? "fewer controls" : "all controls";
  }

  // On a phone, whoever moves a control sees what it moves.
  keepInView() {
    const edge = this.sheet.getBoundingClientRect().top;
    const seen = (plot) => {
      const { top, bottom } = plot.svg.getBoundingClientRect();
      return top >= 0 && bottom <= edge + 1;
    };
    if (this.narrow && this.plots.length && !this.plots.some(seen)) this.plots[0].node.scrollIntoView({ block: "start" });
  }

  // Lay the plots out so that the figure fits into the window: all of it where it can scroll no further, and on a phone
  // that is held across each plot above the control that is stuck below it.
  fit(figure) {
    const lay = () => { for (const plot of this.plots) plot.layout(); };
    const page = document.documentElement, book = figure.closest(".jp-WindowedPanel-outer, .jp-Notebook");
    const room = (book ?? page).clientHeight - (parseFloat(getComputedStyle(page).scrollPaddingTop) || 0);
    const shown = this.plots.filter((plot) => plot.svg.getBoundingClientRect().width);
    Object.assign(this, { share: 1, most: Infinity });
    lay();
    if (this.short.matches) {
      const heads = shown.map(({ node, svg: plot }) => plot.getBoundingClientRect().top - node.getBoundingClientRect().top);
      this.most = room - this.sheet.getBoundingClientRect().height - Math.max(0, ...heads) - 8;
    } else if (!this.narrow && shown.length) {
      const rows = new Map();
      for (const { node, size } of shown) {
        const top = Math.round(node.getBoundingClientRect().top);
        rows.set(top, Math.max(size[1], rows.get(top) ?? 0));
      }
      const all = [...rows.values()].reduce((sum, row) => sum + row, 0);
      this.share = Math.min(1, Math.max(0.5, 1 - (figure.getBoundingClientRect().height + 4 - room) / all));
    }
    if (this.share < 1 || this.most < TALL) lay();
  }

  plot(options) {
    const made = new Plot(this, options);
    this.plots.push(made);
    this.element(made.node);
    made.layout();
    return made;
  }

  element(node) {
    if (!node.classList.contains("m-panel")) node.classList.add("m-panel");
    node.style.setProperty("--basis", this.basis);
    node.style.setProperty("--least", this.least);
    this.panels.append(node);
  }

  // So many plots side by side, as long as each is so wide.
  columns(count, least = "16rem") { Object.assign(this, { basis: `calc(${100 / count}% - 1rem)`, least }); }

  row(label) { if (label) this.controls.append(h("p", { class: "m-group" }, label)); }

  note(text) { if (this.noteNode.textContent !== text) this.noteNode.textContent = text; }

  slider({ key, label, min, max, step, digits = 2, values }) {
    const text = h("output", {});
    const input = h("input", { type: "range", min: values ? 0 : min, max: values ? values.length - 1 : max,
                               step: values ? 1 : step, "data-key": key });
    input.addEventListener("input", () =>
      this.set({ [key]: values ? values[Number(input.value)] : Number(input.value) }));
    this.updates.push((state) => {
      input.value = values ? Math.max(0, values.indexOf(state[key])) : state[key];
      text.value = values ? String(state[key]).replace("-", "−") : shown(state[key], digits);
      input.setAttribute("aria-valuetext", text.value);
    });
    this.controls.append(h("label", {}, h("span", { class: "m-top" }, h("span", {}, label), text), input));
    return input;
  }

  select({ key, label, options }) {
    const input = h("select", { "data-key": key },
      ...options.map(([value, name], i) => h("option", { value: i }, name ?? String(value))));
    input.addEventListener("change", () => this.set({ [key]: options[Number(input.value)][0] }));
    this.updates.push((state) => { input.value = options.findIndex(([value]) => value === state[key]); });
    this.controls.append(h("label", {}, h("span", { class: "m-top" }, label), input));
    return input;
  }

  // Two things to choose from are two buttons; more are a menu.
  choice({ key, label, options }) {
    if (options.length !== 2) return this.select({ key, label, options });
    const pair = options.map(([value, name]) => h("button",
      { type: "button", "data-key": key, onclick: () => this.set({ [key]: value }) }, name ?? String(value)));
    this.updates.push((state) => pair.forEach((made, i) => made.setAttribute("aria-pressed", options[i][0] === state[key])));
    this.controls.append(h("div", { class: "m-pair", role: "group", "aria-label": label },
      h("span", { class: "m-top" }, label), h("div", {}, ...pair)));
    return pair;
  }

  check({ key, label }) {
    const input = h("input", { type: "checkbox", "data-key": key });
    input.addEventListener("change", () => this.set({ [key]: input.checked }));
    this.updates.push((state) => { input.checked = Boolean(state[key]); });
    this.controls.append(h("label", {}, input, label));
    return input;
  }

  button({ label, press }) {
    const made = h("button", { type: "button", onclick: () => this.set(press(this.state)) }, label);
    this.controls.append(h("div", {}, made));
    return made;
  }
}

// ---------------------------------------------------------------------------------------------- the figure

const PATIENCE = 2000;  // ms without an answer after which the kernel is taken to be busy or stopped

// The model of a figure on a page without a kernel.
export function standIn(data) {
  return { isStatic: true, get: (key) => data[key], set() {}, save_changes() {}, on() {}, off() {} };
}

export function start(figure, model, el) {
  const spec = model.get("spec");
  // JupyterLab takes arrow keys for itself, unless they end here.
  const figureNode = h("div", { class: "metalit-figure", role: "group", "aria-label": spec.alt,
    onkeydown: (event) => { if (event.key.startsWith("Arrow")) event.stopPropagation(); } });
  const message = h("p", { class: "m-message", role: "alert", hidden: true });
  const status = h("p", { class: "m-status" });
  let state = model.get("state"), asked = model.get("asked") ?? 0;
  let sent = state, waiting = null, silent = false, scheduled = false, draw = null, last = null;

  const ui = new Interface(spec, (patch) => {
    state = { ...state, ...patch };
    if (!scheduled) requestAnimationFrame(refresh);          // several moves within one frame are one
    scheduled = true;
  });
  // What is told stands below the controls: however long it is, it moves none of them.
  figureNode.append(h("style", {}, STYLE), message, ui.panels, ui.sheet, ui.noteNode,
    h("p", { class: "m-caption" }, spec.caption ?? ""), status);
  el.replaceChildren(figureNode);

  function show(picture, by) {
    last = [picture, by];
    figureNode.live = { state, picture, by };
    const trouble = picture.message ?? "";
    message.hidden = !trouble;
    message.textContent = trouble;
    for (const part of [ui.panels, ui.noteNode]) part.style.display = trouble ? "none" : "";
    ui.state = state;
    for (const update of ui.updates) update(state);
    if (!trouble) draw(state, picture);
    for (const plot of ui.plots) plot.sweep();
  }

  const again = () => { ui.fit(figureNode); ui.redraw(); };     // another size, or other colours
  ui.redraw = () => { if (last) show(...last); };              // the same numbers once more

  function compute() {
    try {
      return figure.compute(spec, state);
    } catch (error) {
      return { message: error.message };
    }
  }

  function say(stale) {
    figureNode.classList.toggle("m-stale", stale);
    if (model.isStatic) {
      status.textContent = stale ? "This value needs Python: run the notebook to see it. The picture is of the last one that was computed."
        : last[1] === "frame" ? "Computed by torch when this page was made." : "Computed in your browser.";
    } else if (silent) {
      status.textContent = "No answer from the kernel (busy or stopped). " + (stale
        ? "The picture is the last one it computed." : "This picture is computed in the browser.");
    } else status.textContent = stale ? "Waiting for the kernel …"
      : last[1] === "browser" ? "Computed in the browser." : `Computed by ${last[1]}.`;
  }

  // The browser's own answer comes at once; torch's replaces it.
  function refresh() {
    scheduled = false;
    const own = compute();
    const here = ({ device, ...rest }) => rest;
    const frame = own ? null : (model.get("frames") ?? []).find((f) => same(here(f.state), here(state)));
    if (own) show(own, "browser");
    else if (frame) show(frame.picture, "frame");
    else {
      figureNode.live = { ...figureNode.live, state, stale: true };
      for (const update of ui.updates) update(state);
    }
    say(!own && !frame);
    if (!model.isStatic) ask();
  }

  function ask() {
    sent = state;
    asked = (model.get("asked") ?? 0) + 1;
    model.set("state", state);
    model.set("asked", asked);
    try {
      model.save_changes();                                  // with a dead kernel this may throw, or do nothing
    } catch (error) {
      console.warn("metalit: the kernel cannot be asked:", error.message);
    }
    clearTimeout(waiting);
    waiting = setTimeout(() => { silent = true; say(figureNode.classList.contains("m-stale")); }, silent ? 0 : PATIENCE);
  }

  function answered() {
    const answer = model.get("answer");
    if (!answer?.picture || answer.asked !== asked || scheduled) return;
    clearTimeout(waiting);
    silent = false;
    show(answer.picture, answer.by);
    say(false);
  }

  function moved() {
    if (model.get("state") === sent) return;
    state = sent = model.get("state");                       // moved from Python, or by another view of this figure
    asked = model.get("asked") ?? 0;
    const own = compute();
    if (own) { show(own, "browser"); say(false); }
  }

  if (!model.isStatic && (spec.devices?.length ?? 0) > 1)
    ui.select({ key: "device", label: "device", options: spec.devices.map((name) => [name, name]) });
  draw = figure.build(ui, spec);
  ui.chooseMain();
  // A press would miss what moves under it: the page is moved by what follows the press.
  ui.sheet.addEventListener("focusin", ({ target }) => target.matches(":focus-visible") && ui.keepInView());
  for (const moved of ["input", "click"])
    ui.sheet.addEventListener(moved, ({ target }) => target !== ui.fold && ui.keepInView());
  const first = model.get("answer");
  if (model.isStatic) {
    const own = compute();
    show(own ?? first.picture, own ? "browser" : "frame");
  } else show(first.picture, first.by);
  say(false);
  again();
  model.on("change:answer", answered);
  model.on("change:state", moved);
  const watch = new ResizeObserver(() => {
    if (ui.plots.every((plot) => plot.node.hidden || Math.abs(plot.legend.getBoundingClientRect().width - plot.wide) < 1)) return;
    again();
  });
  watch.observe(figureNode);
  ui.window.addEventListener("change", again);
  ui.short.addEventListener("change", again);
  let tall = document.documentElement.clientHeight;
  const resized = () => {
    if (document.documentElement.clientHeight === tall) return;
    tall = document.documentElement.clientHeight;
    again();
  };
  addEventListener("resize", resized);
  const themes = new MutationObserver(again);                // the ground of a map is painted in the colours of the page
  for (const top of [document.documentElement, document.body])
    themes.observe(top, { attributeFilter: ["data-theme", "data-jp-theme-light"] });
  return () => {
    watch.disconnect();
    themes.disconnect();
    ui.window.removeEventListener("change", again);
    ui.short.removeEventListener("change", again);
    removeEventListener("resize", resized);
    clearTimeout(waiting);
    model.off("change:answer", answered);
    model.off("change:state", moved);
  };
}
