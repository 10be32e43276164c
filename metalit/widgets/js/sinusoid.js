// The inner loop on a sinusoid, from two starts side by side.
import { linspace, shown, unpack } from "./core.js";
import { innerPath, meanSquare, mlpOutput } from "./nn.js";

// ---------------------------------------------------------------------------------------------- numbers

export const wave = ({ amplitude, phase }) => (x) => amplitude * Math.sin(x - phase);

const netsRead = new WeakMap();

// The network of a start as `innerPath` reads it; null where only torch can take its steps.
export function netOf(start) {
  if (!start.net) return null;
  if (!netsRead.has(start)) {
    netsRead.set(start, { activation: start.net.activation, layers: start.net.layers.map(({ weight, bias }) => ({
      weight: unpack(weight).data, bias: unpack(bias).data, inputs: weight.shape[1], outputs: weight.shape[0] })) });
  }
  return netsRead.get(start);
}

// What one start makes of the points: a curve per inner step, and the losses, up to where the path blows up.
export function follow(net, points, grid, truth, { lr, steps }, limit) {
  const xs = points.map(([x]) => x), ys = points.map(([, y]) => y);
  const side = { curves: [], query: [], support: [], blown: null };
  const path = innerPath(net, xs, ys, lr, steps);
  for (let k = 0; k <= steps; k++) {
    const curve = mlpOutput(path[k], grid);
    const [query, support] = [meanSquare(curve, truth), meanSquare(mlpOutput(path[k], xs), ys)];
    if (!(query <= limit && support <= limit)) return { ...side, blown: k };
    side.curves.push(Array.from(curve));
    side.query.push(query);
    side.support.push(support);
  }
  return side;
}

export function compute(spec, state) {
  const nets = [state.left, state.right].map((name) => netOf(spec.starts[name]));
  if (nets.includes(null)) return null;
  const f = wave(state);
  const x = linspace(...spec.grid), truth = x.map(f);
  const points = state.points.map(([at, above]) => [at, f(at) + above]);
  const [left, right] = nets.map((net) => follow(net, points, x, truth, state, spec.limit));
  return { x, truth, points, left, right };
}

// ---------------------------------------------------------------------------------------------- points

const rounded = (v) => Math.round(v * 1000) / 1000;

// A point where the reader put it, as the state keeps it: so far above the true curve.
export const placed = (state, x, y) => [rounded(x), rounded(y - wave(state)(x))];

export function movedPoint(state, index, x, y) {
  return { points: state.points.map((point, i) => (i === index ? placed(state, x, y) : point)) };
}

export function withPoint(spec, state, x, y) {
  return state.points.length < spec.most ? { points: [...state.points, placed(state, x, y)] } : {};
}

export function withoutPoint(state, index) {
  return state.points.length > 1 ? { points: state.points.filter((_, i) => i !== index) } : {};
}

// Where a point tells most: in the middle of the widest gap, on the true curve.
export function inWidestGap(spec, state) {
  const [low, high] = spec.grid;
  const xs = [low, ...state.points.map(([x]) => x).sort((a, b) => a - b), high];
  const gaps = xs.slice(1).map((x, i) => x - xs[i]);
  const widest = gaps.indexOf(Math.max(...gaps));
  const x = (xs[widest] + xs[widest + 1]) / 2;
  return withPoint(spec, state, x, wave(state)(x));
}

// ---------------------------------------------------------------------------------------------- words

const stepsInWords = (count) => `${count} step${count === 1 ? "" : "s"}`;

export function sayBlown(side, lr) {
  return side.blown === 0 ? "its losses are not finite before the first step"
    : `the path blew up at step ${side.blown}: the step size ${shown(lr, 3)} is too large`;
}

// One sentence per side: where its query loss began, where it is now.
export function sentence(spec, state, picture) {
  const one = (which) => {
    const start = spec.starts[state[which]], side = picture[which];
    const lr = start.lr ?? state.lr;
    const words = side.blown !== null ? sayBlown(side, lr)
      : state.steps === 0 ? shown(side.query[0], 3)
      : `${shown(side.query[0], 3)} → ${shown(side.query.at(-1), 3)}`;
    return `${start.label}: ${words}${start.own ? ` (it steps in its own way, ${start.own})` : ""}`;
  };
  const sides = state.left === state.right ? one("left") : `${one("left")}; ${one("right")}`;
  return `Query loss ${state.steps ? `after ${stepsInWords(state.steps)}` : "before any step"}. ${sides}.`;
}

// ---------------------------------------------------------------------------------------------- the figure

const INK = { left: "orange", right: "blue" };

// `who` stands before the names where both starts share a plot, and only the last curves are drawn then.
function drawCurves(plot, side, x, ink, steps, who = "") {
  const last = side.curves.length - 1, of = who && `${who}, `;
  side.curves.forEach((curve, k) => {
    const id = `${who}step ${k}`;
    if (k === 0) plot.line(id, x, curve, { colour: ink, width: 1.5, dash: "4 4", label: `${of}start` });
    else if (k === last) plot.line(id, x, curve, { colour: ink, width: 2.5, label: `${of}after ${stepsInWords(k)}` });
    else if (!who) plot.line(id, x, curve, { colour: ink, width: 1, opacity: 0.2 + (0.35 * k) / last });
  });
  if (side.blown !== null && side.blown <= steps)
    plot.text(`${who}blown`, 0, ink === "orange" ? 5.2 : 4.4, `${of}blew up at step ${side.blown}`,
      { anchor: "middle", colour: "red" });
}

function drawLosses(plot, state, picture, spec) {
  const all = ["left", "right"].flatMap((which) => [...picture[which].query, ...picture[which].support])
    .filter((loss) => loss > 0);
  const power = (v, round) => 10 ** round(Math.log10(v));
  const y = [Math.max(1e-6, Math.min(0.01, power(Math.min(...all), Math.floor))),
             Math.max(10, power(Math.max(...all), Math.ceil))];
  plot.domain({ y });
  for (const which of state.left === state.right ? ["right"] : ["left", "right"]) {
    const side = picture[which], colour = INK[which], name = spec.starts[state[which]].label;
    const ks = side.query.map((_, k) => k);
    plot.line(`${which} support`, ks, side.support, { colour, width: 1.5, dash: "2 3", label: `${name}, on the points` });
    plot.line(`${which} query`, ks, side.query, { colour, width: 2.5, label: name });
    plot.dots(`${which} dots`, ks, side.query, { colour, radius: 3 });
    if (side.blown === null) continue;
    const top = y[1] / (y[1] / y[0]) ** 0.05;                 // within the window, below its edge
    plot.dots(`${which} blown`, [side.blown], [top], { colour, shape: "cross", radius: 5 });
    if (side.blown > 0) plot.line(`${which} up`, [side.blown - 1, side.blown], [side.query.at(-1), top], { colour, width: 1 });
  }
}

function drawPoints(plot, ui, spec, state, picture) {
  picture.points.forEach(([x, y], i) => plot.handle(`point ${i}`, x, y, {
    label: `support point ${i + 1} of ${picture.points.length}`, legend: i === 0 ? "points" : "",
    move: (toX, toY) => ui.set(movedPoint(ui.state, i, toX, toY)),
    remove: () => {
      if (i === ui.state.points.length - 1) plot.parts.get(`point ${i - 1}`)?.focus();
      ui.set(withoutPoint(ui.state, i));
    } }));
}

function controls(ui, spec) {
  const options = Object.entries(spec.starts).map(([name, { label }]) => [name, label]);
  ui.choice({ key: "left", label: "left: start", options });
  ui.choice({ key: "right", label: "right: start", options });
  ui.slider({ key: "steps", label: "inner steps K", min: 0, max: spec.steps, step: 1, digits: 0 });
  ui.slider({ key: "lr", label: "inner step size α", values: spec.lrs, digits: 3 });
  ui.slider({ key: "amplitude", label: "amplitude", min: 0.1, max: 5, step: 0.1, digits: 1 });
  ui.slider({ key: "phase", label: "phase", min: 0, max: 3.14, step: 0.02, digits: 2 });
  ui.button({ label: "add a point", press: (state) => inWidestGap(spec, state) });
  ui.button({ label: "remove a point", press: (state) => {     // the one that was touched, or the last one
    const touched = Number(ui.touched?.slice("point ".length) ?? state.points.length - 1);
    ui.touched = null;
    return withoutPoint(state, Math.min(touched, state.points.length - 1));
  } });
  ui.button({ label: "as it was", press: () => spec.initial });
}

export function build(ui, spec) {
  const [low, high] = spec.grid;
  ui.columns(3);
  const plots = ["left", "right"].map((which) =>
    ui.plot({ label: which, x: [low, high], y: [-6, 6], xlabel: "x", ylabel: "y", height: 0.7 }));
  const losses = ui.plot({ label: "Loss along the path", x: [-0.3, spec.steps + 0.3], y: [0.01, 10], log: "y",
                           xlabel: "inner step", ylabel: "squared error (dotted: on the points)", height: 0.7 });
  for (const plot of plots) plot.click((x, y) => ui.set(withPoint(spec, ui.state, x, y)));
  controls(ui, spec);
  return (state, picture) => {
    const joined = ui.narrow && state.left !== state.right;      // on a phone both starts are in one plot
    plots[1].node.hidden = ui.narrow;
    ["left", "right"].forEach((which, i) => {
      const start = spec.starts[state[which]], plot = plots[joined ? 0 : i];
      plot.node.firstChild.textContent = joined ? "From both starts" : start.title;
      plot.line("truth", picture.x, picture.truth, { colour: "grey", width: 4, opacity: 0.78, label: "truth" });
      drawCurves(plot, picture[which], picture.x, INK[which], state.steps, joined ? start.label : "");
      drawPoints(plot, ui, spec, state, picture);
    });
    drawLosses(losses, state, picture, spec);
    const full = state.points.length >= spec.most ? ` ${spec.most} points are the most.` : "";
    ui.note(sentence(spec, state, picture) + full);
  };
}
