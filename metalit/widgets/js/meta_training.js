// Meta-training of a network, in the browser: θ learns from tasks that never repeat, and its inner loops move with it.
import { linspace } from "./core.js";
import { innerPath, meanSquare, mlpGradient, mlpHessianProduct, mlpOutput, sgdStep } from "./nn.js";

// ---------------------------------------------------------------------------------------------- tasks

// Numbers between 0 and 1 that fill it evenly, and are the same in every language.
const evenly = (n, root) => (n * root) % 1;
const GOLDEN = 0.6180339887498949, SILVER = 0.4142135623730951, BRONZE = 0.3027756377319946;

// Task n: a sine wave, and points on it to learn from and to be judged by.
export function taskOf(n, shots) {
  const amplitude = 0.1 + 4.9 * evenly(n + 1, GOLDEN), phase = Math.PI * evenly(n + 1, SILVER);
  const f = (x) => amplitude * Math.sin(x - phase);
  const points = (first) => Float64Array.from({ length: shots }, (_, i) => -5 + 10 * evenly(first + i + 1, BRONZE));
  const [x, queryX] = [points(2 * n * shots), points((2 * n + 1) * shots)];
  return { f, x, y: x.map(f), queryX, queryY: queryX.map(f) };
}

// ---------------------------------------------------------------------------------------------- θ

// A network from its parameters in a row, layer by layer, weight before bias.
export function netOf(sizes, theta) {
  let at = 0;
  const take = (count) => Float64Array.from(theta.slice(at, (at += count)));
  const layers = sizes.slice(1).map((outputs, l) => {
    const inputs = sizes[l];
    return { inputs, outputs, weight: take(inputs * outputs), bias: take(outputs) };
  });
  return { activation: "tanh", layers };
}

export const inARow = (layers) => layers.flatMap(({ weight, bias }) => [...weight, ...bias]);

// The gradient of a task's meta-loss in θ, by one of the rules; in a row.
export function metaGradient(net, { x, y, queryX, queryY }, { lr, steps, rule }) {
  const path = innerPath(net, x, y, lr, steps), end = path.at(-1);
  if (rule === "reptile") {
    const there = inARow(end.layers);
    return inARow(net.layers).map((value, i) => value - there[i]);
  }
  let back = mlpGradient(end, queryX, queryY).gradient;
  for (let k = steps - 1; rule === "exact" && k >= 0; k--)
    back = sgdStep({ layers: back }, mlpHessianProduct(path[k], x, y, back), lr).layers;   // v ← v − α·Hv
  return inARow(back);
}

// Adam as torch has it: what it remembers, and where θ goes.
export const newAdam = (size) => ({ count: 0, mean: new Float64Array(size), square: new Float64Array(size) });

export function adamStep(memory, theta, gradient, lr) {
  memory.count += 1;
  const [fade, fading] = [1 - 0.9 ** memory.count, 1 - 0.999 ** memory.count];
  return theta.map((value, i) => {
    const g = gradient[i];
    memory.mean[i] += 0.1 * (g - memory.mean[i]);
    memory.square[i] += 0.001 * (g * g - memory.square[i]);
    return value - (lr * (memory.mean[i] / fade)) / (Math.sqrt(memory.square[i] / fading) + 1e-8);
  });
}

// One outer step on the tasks that come next.
export function metaStep(spec, state, memory) {
  const net = netOf(spec.sizes, state.theta), total = new Float64Array(state.theta.length);
  for (let b = 0; b < spec.batch; b++)
    metaGradient(net, taskOf(spec.held + state.count * spec.batch + b, spec.shots), state)
      .forEach((g, i) => { total[i] += g / spec.batch; });
  return { theta: adamStep(memory, state.theta, total, spec.outer), count: state.count + 1 };
}

// ---------------------------------------------------------------------------------------------- what is shown

// Mean query loss of the first tasks, which training never sees: from θ, and after adaptation.
export function judged(spec, state) {
  const net = netOf(spec.sizes, state.theta), found = [0, 0];
  for (let n = 0; n < spec.held; n++) {
    const { x, y, queryX, queryY } = taskOf(n, spec.shots), end = innerPath(net, x, y, state.lr, state.steps).at(-1);
    [net, end].forEach((one, i) => { found[i] += meanSquare(mlpOutput(one, queryX), queryY) / spec.held; });
  }
  return found;
}

export function compute(spec, state) {
  const x = linspace(...spec.grid), net = netOf(spec.sizes, state.theta);
  const tasks = spec.shown.map((n) => {
    const task = taskOf(n, spec.shots), end = innerPath(net, task.x, task.y, state.lr, state.steps).at(-1);
    return { points: Array.from(task.x, (at, i) => [at, task.y[i]]), truth: x.map(task.f), curve: Array.from(mlpOutput(end, x)) };
  });
  return { x, start: Array.from(mlpOutput(net, x)), tasks, losses: judged(spec, state) };
}

// ---------------------------------------------------------------------------------------------- the figure

const INKS = ["blue", "orange", "green"];
const TIME = 25;                                             // ms of training between two pictures
const MOST = 400;                                            // rows that are kept; then every second one goes

// A row of the two losses, now and then. Rows of long runs lie farther apart.
export function remembered(rows, count, losses) {
  if (rows.length && count <= rows.at(-1)[0]) rows = [];
  const found = [...rows, [count, ...losses]];
  return found.length > MOST ? found.filter((_, i) => i % 2 === 0) : found;
}

// Training, until it is paused: outer steps for a while, then a picture.
function trainer(ui, spec) {
  let running = false, memory = null, reached = null;
  const button = ui.button({ label: "play: train θ", press: () => ({}) });
  button.parentNode.classList.add("m-main");
  const again = () => {
    if (!running || !button.isConnected) return stop();
    if (ui.state.count !== reached) memory = newAdam(ui.state.theta.length);   // moved by something else
    const until = performance.now() + TIME, rows = ui.state.rows;
    let now = ui.state;
    do now = { ...now, ...metaStep(spec, now, memory) };
    while (performance.now() < until);
    reached = now.count;
    if (!now.theta.every(Number.isFinite)) { stop(); ui.set({ ...spec.initial, lost: true }); return; }
    ui.set({ theta: now.theta, count: now.count, rows, lost: false });
    setTimeout(again, 10);
  };
  const stop = () => { running = false; button.textContent = "play: train θ"; };
  button.addEventListener("click", () => {
    if (running) return stop();
    running = true;
    button.textContent = "pause";
    again();
  });
  return button;
}

function drawTasks(plot, { x, start, tasks }) {
  plot.line("start", x, start, { colour: "currentColor", width: 2, dash: true, label: "θ, before any step" });
  tasks.forEach(({ truth, curve, points }, i) => {
    const colour = INKS[i], first = i === 0;
    plot.line(`truth ${i}`, x, truth, { colour, width: 1.5, dash: "2 3", label: first ? "truth of a task" : "" });
    plot.line(`curve ${i}`, x, curve, { colour, width: 2.5, label: first ? "θ adapted to it" : "" });
    plot.dots(`points ${i}`, ...[0, 1].map((axis) => points.map((p) => p[axis])), { colour, radius: 3, label: first ? "its points" : "" });
  });
}

function drawRows(plot, rows) {
  const last = Math.max(100, rows.at(-1)?.[0] ?? 0);
  plot.domain({ x: [0, last], y: [0.05, 10] });
  const xs = rows.map(([count]) => count);
  plot.line("before", xs, rows.map((row) => row[1]), { colour: "grey", dash: true, label: "before adaptation" });
  plot.line("after", xs, rows.map((row) => row[2]), { colour: "blue", width: 2.5, label: "after adaptation" });
  plot.dots("now", xs.slice(-1), rows.slice(-1).map((row) => row[2]), { colour: "blue" });
}

export function told(state, { losses }) {
  if (state.lost) return "The numbers grew beyond all bounds, so θ is back at its start: take a smaller inner step.";
  const [before, after] = losses.map((loss) => loss.toFixed(2));
  const steps = `${state.steps} inner step${state.steps === 1 ? "" : "s"}`;
  return `After ${state.count} meta-step${state.count === 1 ? "" : "s"}, the error on unseen tasks is ${before} from θ itself and `
    + `${after} after ${steps}.`;
}

export function build(ui, spec) {
  ui.columns(2);
  const plot = ui.plot({ label: "θ, and what three tasks make of it", x: spec.grid.slice(0, 2), y: [-5.5, 5.5], xlabel: "x", ylabel: "y" });
  const run = ui.plot({ label: "Unseen tasks", x: [0, 100], y: [0.05, 10], log: "y", xlabel: "meta-step", ylabel: "squared error" });
  trainer(ui, spec);
  ui.slider({ key: "lr", label: "inner step size α", values: spec.lrs, digits: 3 });
  ui.slider({ key: "steps", label: "inner steps K", min: 1, max: spec.most, step: 1, digits: 0 });
  ui.choice({ key: "rule", label: "meta-gradient", options: spec.rules });
  ui.button({ label: "θ back to its start", press: () => ({ ...spec.initial, lost: false }) });
  let rows = [];
  return (state, picture) => {
    rows = remembered(rows, state.count, picture.losses);
    drawTasks(plot, picture);
    drawRows(run, rows);
    ui.note(told(state, picture));
  };
}
