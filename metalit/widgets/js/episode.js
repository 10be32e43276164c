// An episode: five characters, one image of each; what the network says of others, and of what the reader draws.
import { colour, h, shown, unpack } from "./core.js";
import { channelsLast, convLogits, convPath, softmax } from "./conv.js";

// ---------------------------------------------------------------------------------------------- numbers

// A network from what `as_conv` of metalit.widgets.episode packed.
export function convNet(packed) {
  const read = (name) => unpack(packed[name]);
  const layers = [0, 1, 2, 3].map((l) => {
    const { data, shape } = read(`convolutions.${l}.weight`);
    const [outputs, inputs] = shape;
    return { weight: channelsLast(data, outputs, inputs, 9), scale: read(`norms.${l}.weight`).data,
             shift: read(`norms.${l}.bias`).data, inputs, outputs };
  });
  const { data: weight, shape: [outputs, inputs] } = read("head.weight");
  return { layers, head: { weight, bias: read("head.bias").data, inputs, outputs } };
}

export function decoded(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

// A drawing as the state keeps it: empty where there is no ink.
export function encoded(ink) {
  if (!ink.some((byte) => byte > 0)) return "";
  let text = "";
  for (const byte of ink) text += String.fromCharCode(byte);
  return btoa(text);
}

// The images of one episode for the network: channels last, numbers instead of bytes.
function imagesOf(spec, pictures, episode) {
  const [, count, channels, height, width] = pictures.shape;
  const size = channels * height * width, start = episode * count * size;
  const bytes = pictures.data.subarray(start, start + count * size);
  const found = new Float64Array(bytes.length);
  for (let n = 0; n < count; n++)
    found.set(channelsLast(bytes.subarray(n * size, (n + 1) * size), 1, channels, height * width), n * size);
  return found.map((byte) => byte / 255);
}

function drawnImage(spec, text, channels) {
  const image = [];
  for (const byte of decoded(text))
    for (let c = 0; c < channels; c++) image.push(spec.paper + (spec.ink - spec.paper) * (byte / 255));
  return Float64Array.from(image);
}

function joined(a, b) {
  const both = new Float64Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

const asRows = (table, width) =>
  Array.from({ length: table.length / width }, (_, i) => Array.from(table.subarray(i * width, (i + 1) * width)));

// What the pages of one figure have computed before, the newest last. Drawing then costs no adaptation.
const computedBefore = new WeakMap();
const KEPT = 12;

export function remembered(spec, key, make) {
  if (!computedBefore.has(spec)) computedBefore.set(spec, new Map());
  const found = computedBefore.get(spec);
  if (!found.has(key)) {
    if (found.size >= KEPT) found.delete(found.keys().next().value);
    found.set(key, make());
  }
  return found.get(key);
}

// The inner loop of one episode, and what it takes to ask its networks about more images.
function adapted(spec, { start, episode, lr }) {
  const pictures = remembered(spec, "pictures", () => unpack(spec.images));
  const [, , channels, height, width] = pictures.shape;
  const x = imagesOf(spec, pictures, episode), labels = spec.support[episode];
  const one = channels * height * width, support = x.subarray(0, labels.length * one);
  const net = remembered(spec, `net ${start}`, () => convNet(spec.starts[start].net));
  const size = [height, width], ways = spec.ways;
  const path = convPath(net, support, labels, size, lr, spec.steps);
  const tables = (images) => path.map((phi) => softmax(convLogits(phi, images, images.length / one, size), ways));
  return { support, query: x.subarray(labels.length * one), one, ways, channels, tables };
}

// The table of each step for some images: each beside the support images, or all of them beside each other.
function asked({ support, query, one, ways, tables }, together) {
  if (together) return tables(query).map((table) => asRows(table, ways));
  const alone = Array.from({ length: query.length / one }, (_, i) =>
    tables(joined(support, query.subarray(i * one, (i + 1) * one))).map((table) => asRows(table, ways).at(-1)));
  return alone[0].map((_, k) => alone.map((ofOne) => ofOne[k]));
}

// The module `metalit.widgets.episode` says the same, word for word.
export function blownMessage(step) {
  return step === 0 ? "The answers are not finite before the first inner step: a weight is not a number."
    : `The answers are not finite after inner step ${step}. Take a smaller step size, or look at an earlier step.`;
}

export function compute(spec, state) {
  if (!spec.starts[state.start]?.net) return null;
  const at = `${state.start} ${state.episode} ${state.lr}`;
  const path = remembered(spec, at, () => adapted(spec, state));
  const { support, query } = remembered(spec, `${at} ${state.together}`, () =>
    ({ support: path.tables(path.support).map((table) => asRows(table, path.ways)),
       query: asked(path, state.together) }));
  const finite = (rows) => rows.flat().every(Number.isFinite);
  const end = support.findIndex((_, k) => !finite(support[k]) || !finite(query[k]));
  if (end >= 0 && state.step >= end) return { message: blownMessage(end) };
  const upTo = (tables) => (end < 0 ? tables : tables.slice(0, end));
  return { support: upTo(support), query: upTo(query), drawn: drawnAnswers(spec, state, path, upTo),
           blown: end < 0 ? null : end };
}

function drawnAnswers(spec, state, path, upTo) {
  if (!state.drawing) return null;
  const image = drawnImage(spec, state.drawing, path.channels);
  const company = state.together ? path.query : path.support;
  const known = (value) => (Number.isFinite(value) ? value : null);
  return upTo(path.tables(joined(company, image))).map((table) => asRows(table, path.ways).at(-1).map(known));
}

// ---------------------------------------------------------------------------------------------- the pad

// A stroke from one point to another, in pixels: ink fades over one pixel at its edge, as in the images.
export function stroke(ink, [height, width], [x0, y0], [x1, y1], radius, rub = false) {
  const long = (x1 - x0) ** 2 + (y1 - y0) ** 2, reach = radius + 1;
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const rows = [Math.min(y0, y1) - reach, Math.max(y0, y1) + reach].map((v) => clamp(Math.floor(v), 0, height - 1));
  const columns = [Math.min(x0, x1) - reach, Math.max(x0, x1) + reach].map((v) => clamp(Math.floor(v), 0, width - 1));
  for (let i = rows[0]; i <= rows[1]; i++)
    for (let j = columns[0]; j <= columns[1]; j++) {
      const [x, y] = [j + 0.5, i + 0.5];
      const along = long === 0 ? 0 : clamp(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / long, 0, 1);
      const away = Math.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0));
      const cover = clamp(radius + 0.5 - away, 0, 1), at = i * width + j;
      ink[at] = rub ? Math.min(ink[at], Math.round(255 * (1 - cover))) : Math.max(ink[at], Math.round(255 * cover));
    }
}

// The box around all ink that an eye can see: [top, bottom, left, right], the last ones included; null without ink.
export function boxOf(ink, [height, width], least = 40) {
  let box = null;
  for (let i = 0; i < height; i++)
    for (let j = 0; j < width; j++) {
      if (ink[i * width + j] < least) continue;
      const [top, bottom, left, right] = box ?? [i, i, j, j];
      box = [Math.min(top, i), Math.max(bottom, i), Math.min(left, j), Math.max(right, j)];
    }
  return box;
}

// The same drawing in the middle of the pad, moved by whole pixels.
export function middled(ink, size) {
  const box = boxOf(ink, size), [height, width] = size;
  if (!box) return ink;
  const down = Math.round((height - 1 - box[0] - box[1]) / 2), across = Math.round((width - 1 - box[2] - box[3]) / 2);
  const moved = new Uint8Array(ink.length);
  for (let i = 0; i < height; i++)
    for (let j = 0; j < width; j++) {
      const [row, column] = [i - down, j - across];
      if (row >= 0 && row < height && column >= 0 && column < width) moved[i * width + j] = ink[row * width + column];
    }
  return moved;
}

// ---------------------------------------------------------------------------------------------- words

const indexOfLargest = (row) => row.indexOf(Math.max(...row));
const percent = (share) => (share === null ? "not a number" : `${Math.round(100 * share)} %`);
const hasPad = (spec) => spec.images.shape[2] === 1;          // no pad for colours
export const rightOnes = (rows, labels) => rows.filter((row, i) => indexOfLargest(row) === labels[i]).length;
export const meanSure = (rows, labels) => rows.reduce((sum, row, i) => sum + row[labels[i]], 0) / rows.length;

export function sentence(spec, state, picture) {
  const labels = spec.query[state.episode], own = spec.starts[state.start].own;
  const right = (k) => `${rightOnes(picture.query[k], labels)} of ${labels.length}`;
  const when = state.step === 0 ? "Before any step" : `After ${state.step} step${state.step === 1 ? "" : "s"}`;
  const before = state.step === 0 ? "" : ` (before: ${right(0)})`;
  const row = picture.drawn?.[state.step], top = row && indexOfLargest(row);
  const drawn = row ? ` Your drawing is taken for number ${top + 1}, ${percent(row[top])}.`
    : hasPad(spec) ? " The pad is empty: draw one of the characters." : "";
  return `${when}, ${right(state.step)} queries are right${before}.${drawn}`
    + (own ? ` This start steps in its own way, ${own}.` : "");
}

// ---------------------------------------------------------------------------------------------- the figure

const LOOK = `
.metalit-figure .e-ink { display: block; width: 100%; aspect-ratio: var(--ratio, 1); background: currentColor;
  -webkit-mask-size: 100% 100%; mask-size: 100% 100%; }
.metalit-figure img.e-ink { background: none; }
.metalit-figure .e-scroll { overflow-x: auto; position: relative; }
.metalit-figure table.e-table { border-collapse: collapse; width: 100%; table-layout: fixed; margin: .2rem 0 0;
  font-size: 12px; display: table; border: 0; }
.metalit-figure .e-table :is(th, td, tr, thead) { padding: 0; border: 0; background: none; font-weight: 400;
  text-align: left; }
.metalit-figure .e-table thead th { padding: 0 .3rem .3rem 0; vertical-align: bottom; }
.metalit-figure .e-table thead tr { border-bottom: 1px solid color-mix(in srgb, currentColor 35%, transparent); }
.metalit-figure .e-table tbody th { padding: .1rem .3rem .1rem 0; }
.metalit-figure .e-stamps { display: flex; flex-wrap: wrap; gap: 2px; }
.metalit-figure .e-stamps > * { flex: 0 1 40px; min-width: 18px; }
.metalit-figure > label { max-width: 29rem; margin-bottom: .4rem; }
.metalit-figure .e-small { width: 34px; }
.metalit-figure .e-number { font-size: 12px; width: 40px; text-align: center; }
.metalit-figure button.e-copy { border: 1px solid transparent; padding: 0; width: 34px; max-width: 100%;
  display: block; }
.metalit-figure button.e-copy:hover { border-color: color-mix(in srgb, currentColor 40%, transparent); }
.metalit-figure .e-cell { display: flex; align-items: center; gap: 3px; padding-right: .2rem;
  font-variant-numeric: tabular-nums; }
.metalit-figure .e-bar { height: 11px; border-radius: 0 2px 2px 0; min-width: 1px; flex: none; }
.metalit-figure .e-cell span { font-size: 12px; }
.metalit-figure .e-faint span { opacity: .8; }
.metalit-figure .e-mark { width: 1.3em; text-align: right; }
.metalit-figure .e-drawing { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: flex-start; }
.metalit-figure .e-pad { position: relative; width: 12.25rem; flex: none; cursor: crosshair; touch-action: none;
  outline: none;
  border: 1px solid color-mix(in srgb, currentColor 45%, transparent); border-radius: 4px; overflow: hidden; }
.metalit-figure .e-pad:focus { box-shadow: 0 0 0 2px var(--m-sky); }
.metalit-figure .e-guide, .metalit-figure .e-cursor { position: absolute; pointer-events: none; }
.metalit-figure .e-guide { border: 1px dashed color-mix(in srgb, currentColor 28%, transparent); }
.metalit-figure .e-cursor { border: 2px solid var(--m-red); display: none; }
.metalit-figure .e-pad.e-keys:focus .e-cursor { display: block; }
.metalit-figure .e-answers { flex: 1 1 8rem; min-width: 8rem; }
.metalit-figure .e-answers .e-line { display: flex; align-items: center; gap: .5rem; min-height: 38px; }
.metalit-figure .e-answers .e-line > :last-child { flex: 1; }
.metalit-figure .e-tools { display: flex; flex-wrap: wrap; gap: .3rem; margin-top: .35rem; }
.metalit-figure .e-tools button[aria-pressed=true] { background: color-mix(in srgb, currentColor 18%, transparent); }
.metalit-figure .e-help { font-size: 12px; margin: .3rem 0 .6rem; }
.metalit-figure .e-hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
`;

// Bytes as a node: ink in the colour of the text, colours as they are.
function stamp(bytes, { height, width, channels, inverted }, words = "") {
  const canvas = h("canvas", { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const size = height * width;
  for (let i = 0; i < size; i++) {
    const ink = channels === 1 ? [0, 0, 0, inverted ? 255 - bytes[i] : bytes[i]]
      : [bytes[i], bytes[size + i], bytes[2 * size + i], 255];
    pixels.data.set(ink, 4 * i);
  }
  context.putImageData(pixels, 0, 0);
  const url = canvas.toDataURL();
  if (channels === 3) return h("img", { class: "e-ink", src: url, alt: words });
  const style = `mask-image:url(${url});-webkit-mask-image:url(${url});--ratio:${width / height}`;
  return h("span", { class: "e-ink", style, role: words ? "img" : false, "aria-label": words || false });
}

// A bar with its number beside it; small ones speak softly.
function bar(node, share, ink) {
  const [box, text] = node.childNodes;
  box.style.width = `calc((100% - 2.1em) * ${share ?? 0})`;
  box.style.background = colour(ink);
  text.textContent = share === null ? "–" : Math.round(100 * share);
  node.classList.toggle("e-faint", !(share >= 0.05));
}

const emptyBar = () => h("div", { class: "e-cell" }, h("div", { class: "e-bar" }), h("span", {}));

// Everything that is drawn of one episode, and how its images look.
function sceneOf(spec, pictures, episode) {
  const [, count, channels, height, width] = pictures.shape;
  const look = { channels, height, width, inverted: spec.paper > spec.ink }, size = channels * height * width;
  const bytes = (i) => pictures.data.subarray((episode * count + i) * size, (episode * count + i + 1) * size);
  const [support, query, names] = [spec.support, spec.query, spec.names].map((of) => of[episode]);
  return { look, bytes, support, query, names, ways: spec.ways };
}

const calm = (name) => name.toLowerCase();

function supportStamps({ look, bytes, support, names }, c) {
  return support.flatMap((label, i) => (label === c ? [stamp(bytes(i), look, `${c + 1}: ${calm(names[c])}`)] : []));
}

class Answers {
  constructor(copy) {
    this.copy = copy;
    this.table = h("table", { class: "e-table" });
    this.node = h("div", {},
      h("p", { class: "m-title" }, "Support images; below, the probability of each class for each query, %"),
      h("div", { class: "e-scroll" }, this.table));
  }

  show(scene) {
    const { look, bytes, support, query, names, ways } = scene;
    const heads = Array.from({ length: ways }, (_, c) => h("th", { scope: "col" },
      h("div", { class: "e-stamps" }, ...supportStamps(scene, c)), h("div", { class: "e-number" }, String(c + 1))));
    this.cells = query.map(() => Array.from({ length: ways }, emptyBar));
    this.marks = query.map(() => h("td", { class: "e-mark" }));
    const rows = query.map((label, i) => {
      const image = stamp(bytes(support.length + i), look);
      const words = `query ${i + 1}, number ${label + 1}, ${calm(names[label])}`;
      const shownAs = look.channels === 1 ? h("button", { type: "button", class: "e-copy", title: "copy to the pad",
        "aria-label": `${words}: copy to the pad`,
        onclick: () => this.copy(bytes(support.length + i)) }, image) : image;
      const cells = this.cells[i].map((cell) => h("td", {}, cell));
      return h("tr", {}, h("th", { scope: "row" }, shownAs), ...cells, this.marks[i]);
    });
    this.table.replaceChildren(
      h("colgroup", {}, h("col", { style: "width:44px" }),
        ...heads.map(() => h("col", {})), h("col", { style: "width:20px" })),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, h("span", { class: "e-hidden" }, "query")), ...heads,
        h("th", { scope: "col" }, h("span", { class: "e-hidden" }, "right?")))),
      h("tbody", {}, ...rows));
    this.table.style.minWidth = `${64 + 46 * ways}px`;
  }

  draw(rows, labels) {
    rows.forEach((row, i) => {
      row.forEach((share, c) => bar(this.cells[i][c], share, c === labels[i] ? "blue" : "orange"));
      const right = indexOfLargest(row) === labels[i];
      this.marks[i].textContent = right ? "✓" : "✗";
      this.marks[i].setAttribute("aria-label", right ? "right" : "wrong");
      this.marks[i].style.color = `color-mix(in srgb, ${colour(right ? "green" : "red")} 60%, currentColor)`;
    });
  }
}

const PENS = { pen: { radius: 0.7 }, bold: { radius: 1.4 }, rubber: { radius: 1.8, rub: true } };

class Pad {
  constructor({ height, width }, changed) {
    Object.assign(this, { size: [height, width], changed, ink: new Uint8Array(height * width), text: "", pen: "pen",
                          last: null, cursor: [Math.floor(width / 2), Math.floor(height / 2)] });
    this.picture = h("div", { style: `aspect-ratio:${width / height}` });
    this.guide = h("div", { class: "e-guide" });
    this.mark = h("div", { class: "e-cursor" });
    this.pad = h("div", { class: "e-pad", tabindex: 0, role: "application", "data-key": "pad" },
      this.picture, this.guide, this.mark);
    this.pens = Object.keys(PENS).map((name) =>
      h("button", { type: "button", onclick: () => this.choose(name) }, name));
    const tools = h("div", { class: "e-tools" }, ...this.pens,
      h("button", { type: "button", onclick: () => this.put(new Uint8Array(this.ink.length)) }, "clear"),
      h("button", { type: "button", onclick: () => this.put(middled(this.ink, this.size)) }, "to the middle"));
    this.answers = h("div", { class: "e-answers" });
    this.node = h("div", {}, h("p", { class: "m-title" }, "Draw one of them"),
      h("div", { class: "e-drawing" }, this.pad, this.answers), tools,
      h("p", { class: "e-help" }, "By keyboard: arrows move, Space paints, Shift and arrows draw, Backspace rubs out. "
        + "A click on a query copies it here."));
    this.listen();
    this.choose("pen");
    this.moveCursor(0, 0);
  }

  choose(name) {
    this.pen = name;
    for (const button of this.pens) button.setAttribute("aria-pressed", button.textContent === name);
  }

  at(event) {
    const rect = this.picture.getBoundingClientRect();
    return [((event.clientX - rect.left) / rect.width) * this.size[1],
            ((event.clientY - rect.top) / rect.height) * this.size[0]];
  }

  listen() {
    this.pad.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      this.pad.setPointerCapture(event.pointerId);
      this.pad.classList.remove("e-keys");
      this.pad.focus({ preventScroll: true });
      event.preventDefault();
      this.last = this.at(event);
      this.paint(this.last, this.last);
    });
    this.pad.addEventListener("pointermove", (event) => {
      if (!this.last || !this.pad.hasPointerCapture(event.pointerId)) return;
      for (const moved of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) {
        const to = this.at(moved);
        this.paint(this.last, to);
        this.last = to;
      }
    });
    for (const end of ["pointerup", "pointercancel"]) this.pad.addEventListener(end, () => { this.last = null; });
    this.pad.addEventListener("keydown", (event) => this.key(event));
    this.pad.addEventListener("keyup", (event) => { if (event.key === "Tab") this.pad.classList.add("e-keys"); });
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const here = () => this.cursor.map((v) => v + 0.5);
    if (step) {
      const from = here();
      this.moveCursor(...step);
      if (event.shiftKey) this.paint(from, here());
    } else if (event.key === " ") this.paint(here(), here());
    else if (event.key === "Backspace" || event.key === "Delete") this.paint(here(), here(), PENS.rubber);
    else return;
    this.pad.classList.add("e-keys");
    event.preventDefault();
    event.stopPropagation();                                 // JupyterLab listens to these keys too
  }

  moveCursor(across, down) {
    const [height, width] = this.size, clamp = (v, top) => Math.min(top - 1, Math.max(0, v));
    this.cursor = [clamp(this.cursor[0] + across, width), clamp(this.cursor[1] + down, height)];
    this.place(this.mark, [this.cursor[1], this.cursor[1], this.cursor[0], this.cursor[0]]);
  }

  // A box of pixels, the last ones included, in per cent of the pad.
  place(node, [top, bottom, left, right]) {
    const [height, width] = this.size;
    Object.assign(node.style, { top: `${(100 * top) / height}%`, height: `${(100 * (bottom - top + 1)) / height}%`,
                                left: `${(100 * left) / width}%`, width: `${(100 * (right - left + 1)) / width}%` });
  }

  paint(from, to, { radius, rub } = PENS[this.pen]) {
    stroke(this.ink, this.size, from, to, radius, rub);
    this.put(this.ink);
  }

  put(ink) {
    this.ink = ink;
    this.text = encoded(ink);
    this.paintPicture();
    this.changed(this.text);
  }

  paintPicture() {
    const [height, width] = this.size;
    this.picture.replaceChildren(stamp(this.ink, { height, width, channels: 1, inverted: false }));
    const empty = this.text ? "" : ", empty";
    this.pad.setAttribute("aria-label", `Drawing pad of ${width} by ${height} pixels${empty}. Arrow keys move, `
      + "Space paints, Shift and arrows draw, Backspace rubs out.");
  }

  // Which images there are to be told apart, and where their ink lies.
  show(scene) {
    const ink = new Uint8Array(this.ink.length);
    for (let i = 0; i < scene.support.length; i++) scene.bytes(i).forEach((byte, at) => {
      ink[at] = Math.max(ink[at], scene.look.inverted ? 255 - byte : byte);
    });
    this.place(this.guide, boxOf(ink, this.size) ?? [0, this.size[0] - 1, 0, this.size[1] - 1]);
    this.bars = Array.from({ length: scene.ways }, emptyBar);
    this.answers.replaceChildren(...this.bars.map((cell, c) => h("div", { class: "e-line" },
      h("div", { class: "e-small" }, supportStamps(scene, c)[0]), cell)));
  }

  draw(text, row) {
    if (text !== this.text || !this.picture.firstChild) {    // moved from Python, or by another view of this figure
      this.text = text;
      this.ink = text ? decoded(text) : new Uint8Array(this.size[0] * this.size[1]);
      this.paintPicture();
    }
    this.bars.forEach((cell, c) => {
      cell.style.visibility = row ? "" : "hidden";
      if (row) bar(cell, row[c], "green");
    });
  }
}

function drawPath(plot, spec, state, picture) {
  const ks = picture.query.map((_, k) => k);
  const one = (id, values, look) => {
    plot.line(id, ks, values, look);
    plot.dots(`${id} dots`, ks, values, { colour: look.colour, radius: 3 });
  };
  plot.line("now", [state.step, state.step], [0, 1], { colour: "grey", width: 1.5, dash: "2 3" });
  one("support", picture.support.map((rows) => meanSure(rows, spec.support[state.episode])),
      { colour: "grey", dash: "5 4", label: "support, right class" });
  one("query", picture.query.map((rows) => meanSure(rows, spec.query[state.episode])),
      { colour: "blue", width: 2.5, label: "queries, right class" });
  const row = picture.drawn?.[state.step];
  if (!row) return;
  const top = indexOfLargest(row);
  one("drawn", picture.drawn.map((of) => of[top]), { colour: "green", label: `your drawing, number ${top + 1}` });
}

function controls(ui, spec) {
  const numbered = (names) => names.map((name, i) => [i, name]);
  ui.slider({ key: "lr", label: "inner step size α", values: spec.lrs, digits: 2 });
  const starts = Object.entries(spec.starts).map(([name, { label }]) => [name, label]);
  ui.choice({ key: "start", label: "start", options: starts });
  ui.choice({ key: "episode", label: "episode", options: numbered(spec.titles) });
  ui.check({ key: "together", label: "judge all queries together" });
}

export function build(ui, spec) {
  controls(ui, spec);
  const pictures = unpack(spec.images), [, , , height, width] = pictures.shape;
  const ink = (byte) => (spec.paper > spec.ink ? 255 - byte : byte);
  const answers = new Answers((bytes) => pad?.put(Uint8Array.from(bytes, ink)));
  const step = ui.slider({ key: "step", label: "inner step k", min: 0, max: spec.steps, step: 1, digits: 0 });
  const stepping = step.closest("label");
  stepping.classList.add("m-main");
  const place = () => (ui.narrow ? ui.controls.prepend(stepping) : ui.panels.before(stepping));  // near what it moves
  ui.window.addEventListener("change", place);
  place();
  const pad = hasPad(spec) ? new Pad({ height, width }, (drawing) => ui.set({ drawing })) : null;
  ui.columns(2);
  ui.element(h("div", {}, h("style", {}, LOOK), answers.node));
  const plot = ui.plot({ label: "Mean probability along the inner loop", x: [-0.1, spec.steps + 0.1], y: [0, 1.05],
                         xlabel: "inner step", height: 0.42 });
  const side = h("div", {});
  ui.element(side);
  side.append(...(pad ? [pad.node] : []), plot.node);
  let seen = null;
  return (state, picture) => {
    const scene = sceneOf(spec, pictures, state.episode);
    if (seen !== state.episode) for (const part of [answers, pad]) part?.show(scene);
    seen = state.episode;
    answers.draw(picture.query[state.step], scene.query);
    pad?.draw(state.drawing, picture.drawn?.[state.step] ?? null);
    drawPath(plot, spec, state, picture);
    ui.note(sentence(spec, state, picture));
  };
}
