// A training run: how far it is, its meta-loss, and how well its model adapts, now and at any meta-step before.
import { h, shown, start } from "./core.js";

// ---------------------------------------------------------------------------------------------- numbers

// Up to eight earlier looks, evenly spaced.
export const earlier = (at) => [...new Set(Array.from({ length: 8 }, (_, i) => Math.floor((i * at) / 8)))].filter((i) => i < at);

// What a history shows with the slider at a look; null is the newest.
export function compute({ history }, state) {
  const { looks, inner, loss, validation, step, steps } = history;
  const empty = { at: null, now: null, before: null, traces: [] };
  if (looks.length === 0) return { inner, loss, validation, step, steps, count: 0, ...empty };
  const at = state.at === null || state.at >= looks.length ? looks.length - 1 : state.at;
  return { inner, loss, validation, step, steps, count: looks.length, at, now: looks[at], before: looks[0].mean,
           traces: earlier(at).map((i) => looks[i].mean) };
}

// ---------------------------------------------------------------------------------------------- words

// What is said of the run: Python's words, unless they can no longer be true.
export function news(history, { live = false, silent = 0 } = {}) {
  if (history.status !== "training") return history.words;
  if (!live) return `This picture was made during the run, at meta-step ${history.step} of ${history.steps}.`;
  if (silent) return `No news for ${silent} s, since meta-step ${history.step} of ${history.steps}: the kernel has stopped, `
    + "or a step takes long. The picture is what it last said.";
  return history.words;
}

export function lookInWords({ now, before, inner, count }, own) {
  if (!now) return "";
  const k = Math.max(0, inner.indexOf(own));
  const steps = `${inner[k]} inner step${inner[k] === 1 ? "" : "s"}`;
  const first = count > 1 ? ` (before training ${shown(before[k], 3)})` : "";
  return ` At meta-step ${now.step} the loss on unseen tasks is ${shown(now.mean[0], 3)} before adapting, `
    + `${shown(now.mean[k], 3)} after ${steps}${first}.`;
}

// ---------------------------------------------------------------------------------------------- the figure

const known = (values) => values.filter((v) => v !== null);

// Round bounds around numbers: on a log scale where all are above 0.
export function bounds(values, log) {
  const found = known(values);
  if (found.length === 0) return [0.1, 1];
  const low = Math.min(...found), high = Math.max(...found);
  if (log) return [10 ** Math.floor(Math.log10(low)), 10 ** Math.max(Math.ceil(Math.log10(high)), Math.floor(Math.log10(low)) + 1)];
  const room = 0.06 * (high - low || Math.abs(high) || 1);
  return [low >= 0 && low < 0.5 * high ? 0 : low - room, high + room];
}

// A little below the upper end of an axis.
export function top([low, high], log) {
  return log ? high / (high / low) ** 0.05 : high - 0.05 * (high - low);
}

// A curve and its points; where a number is not finite, a cross at the top.
function curve(plot, id, xs, ys, { radius = 3, ...look }) {
  plot.line(id, xs, ys, look);
  if (radius || known(ys).length < 2) plot.dots(`${id} dots`, xs, ys, { colour: look.colour, radius: 3 });
  const lost = xs.filter((_, i) => ys[i] === null);
  if (lost.length === 0) return;
  const y = top(plot.y, plot.log === "y");
  plot.dots(`${id} lost`, lost, lost.map(() => y), { colour: "red", shape: "cross", label: "not a number" });
}

// The axis of meta-steps: as far as the run went, with room for the last point. While it goes on, the axis grows by
// doubling or so, and no further than the run.
export function metaSteps({ step, steps, loss }, over) {
  const reached = Math.max(step, loss.step.at(-1) ?? 0, 1);
  if (over) return [0, 1.02 * reached];
  const power = 10 ** Math.floor(Math.log10(reached));
  return [0, 1.02 * Math.min(Math.max(steps, reached), [1, 2, 5, 10].map((m) => m * power).find((end) => end >= reached))];
}

function drawLoss(plot, { loss, now }, x) {
  plot.domain({ x, y: bounds(loss.value, false) });
  if (now) plot.line("here", [now.step, now.step], plot.y, { colour: "grey", width: 1, dash: "3 3" });
  curve(plot, "loss", loss.step, loss.value, { colour: "blue", width: 2, radius: 0 });
}

function drawValidation(plot, { validation }, x) {
  plot.node.style.display = validation.step.length ? "" : "none";
  if (!validation.step.length) return;
  const ends = [-1, 1].flatMap((sign) => validation.value.map((v, i) => (v === null ? null : v + sign * (validation.ci95[i] ?? 0))));
  plot.domain({ x, y: bounds(ends, false) });
  validation.step.forEach((at, i) => plot.line(`ci ${i}`, [at, at], [ends[i], ends[i + validation.step.length]],
    { colour: "green", width: 1, opacity: 0.7 }));
  curve(plot, "validation", validation.step, validation.value, { colour: "green", width: 1.5 });
}

function drawAdaptation(plot, picture, all) {
  if (!picture.now) return;
  const { inner, now, before, traces, at } = picture;
  const log = known(all).every((v) => v > 0);
  if (log !== (plot.log === "y")) {
    plot.log = log ? "y" : "";
    plot.frame();
  }
  plot.domain({ x: [-0.02 * inner.at(-1), 1.02 * inner.at(-1)], y: bounds(all, log) });
  traces.slice(1).forEach((trace, i) => plot.line(`trace ${i}`, inner, trace, { colour: "blue", width: 1, opacity: 0.25 }));
  if (at > 0) plot.line("before", inner, before, { colour: "grey", width: 1.5, dash: true, label: "before training" });
  const end = (sign) => now.mean.map((v, i) => (v === null || now.ci95[i] === null ? null : v + sign * now.ci95[i]));
  for (const sign of [-1, 1]) plot.line(`ci ${sign}`, inner, end(sign), { colour: "blue", width: 1, dash: "1 3" });
  curve(plot, "now", inner, now.mean, { colour: "blue", width: 2.5, label: `meta-step ${now.step}` });
}

// The slider over the looks: its length grows with the run; at its end it follows the newest.
function timeline(ui) {
  const input = ui.slider({ key: "at", label: "look back: meta-step", min: 0, max: 0, step: 1, digits: 0 });
  input.addEventListener("input", () => { if (Number(input.value) === Number(input.max)) ui.set({ at: null }); });
  const text = input.parentNode.querySelector("output");
  return ({ at, count, now }) => {
    input.max = Math.max(0, count - 1);
    input.value = at ?? 0;
    input.disabled = count < 2;
    text.value = now ? String(now.step) : "–";
    input.setAttribute("aria-valuetext", now ? `meta-step ${now.step}` : "no look yet");
  };
}

// A bar that fills. (The browser's own <progress> has a white ground on dark pages.)
function progressBar() {
  const full = h("div", { style: "height: 100%; border-radius: inherit; background: var(--m-blue)" });
  const bar = h("div", { role: "progressbar", "aria-label": "progress of the training run", "aria-valuemin": 0, "aria-valuemax": 100,
    style: "height: .4rem; border-radius: .2rem; background: color-mix(in srgb, currentColor 15%, transparent)" }, full);
  const fill = (share) => {
    full.style.width = `${100 * share}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * share));
  };
  return [h("div", {}, bar), fill];
}

export function build(ui, spec) {
  const [bar, fill] = progressBar();
  ui.panels.parentNode.querySelector(".m-status").hidden = true;   // torch measured it, while it trained: the note says so
  ui.columns(1);
  ui.element(bar);
  ui.columns(3);
  const look = { x: [0, 1], y: [0, 1], xlabel: "meta-step", height: 0.62 };
  const loss = ui.plot({ ...look, label: "Meta-loss while it trains", ylabel: "J" });
  const validation = ui.plot({ ...look, label: "Validation" });
  const adaptation = ui.plot({ label: "Learning an unseen task", x: [0, 1], y: [0.1, 1], log: "y", xlabel: "inner step",
                               ylabel: "query loss", height: 0.62 });
  const slide = timeline(ui);
  return (state, picture) => {
    const history = picture.history ?? spec.history;
    fill(history.steps ? history.step / history.steps : 0);
    slide(picture);
    const x = metaSteps(picture, history.status !== "training");
    drawLoss(loss, picture, x);
    drawValidation(validation, picture, x);
    drawAdaptation(adaptation, picture, history.looks.flatMap(({ mean }) => mean));
    ui.note(news(history, picture) + lookInWords(picture, history.own));
  };
}

// ---------------------------------------------------------------------------------------------- in a notebook

const QUIET = 10;  // s without news after which a run that said it is training may have been stopped

// The kernel cannot answer while it trains, so it is never asked: it tells its history, and the browser draws it.
export function listen(model, el, quiet = QUIET) {
  let ui = null, waiting = null, silent = 0;
  const deaf = { isStatic: true, get: (key) => model.get(key), set() {}, save_changes() {}, on() {}, off() {} };
  const stop = start({
    compute: (_, state) => {
      const { history } = model.get("spec");
      return { ...compute({ history }, state), history, live: true, silent };
    },
    build: (made, spec) => build((ui = made), spec),
  }, deaf, el);
  const wait = () => {
    clearTimeout(waiting);
    if (model.get("spec").history.status !== "training") return;
    waiting = setTimeout(() => { silent = quiet; ui.set({}); }, 1000 * quiet);
  };
  const told = () => {
    silent = 0;
    wait();
    ui.set({});                                              // draw again, wherever the slider is
  };
  const moved = () => ui.set(model.get("state"));
  wait();
  model.on("change:spec", told);
  model.on("change:state", moved);
  return () => {
    clearTimeout(waiting);
    model.off("change:spec", told);
    model.off("change:state", moved);
    stop();
  };
}
