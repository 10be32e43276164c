// What a meta-loss rewards: the surface it descends and where descent ends, beside the error after adaptation.
import { linspace } from "./core.js";
import { META_LOSS_KEYS, bestStart, edgeOf, metaLoss, outerPath, surfaceOf } from "./bed.js";
import { fixedDigits, heights, knobs } from "./plane.js";

// The outer step of a formula: `outer` times the step that suits its scale, as in rewards.py.
export function outerStep(spec, state) {
  const { rate, power } = spec.rates[state.loss];
  return (state.outer * rate * state.lr ** power) / (1 + state.weight);
}

export function compute(spec, state) {
  if (!META_LOSS_KEYS.includes(state.loss)) return null;
  const bed = { ...state, tasks: spec.tasks }, xs = linspace(-spec.reach, spec.reach, spec.grid);
  const term = metaLoss(state.loss, bed), error = metaLoss("maml", bed), best = bestStart(bed);
  const path = outerPath(term, [state.x, state.y], outerStep(spec, state), state.count);
  return {
    surface: surfaceOf(term, xs), errors: surfaceOf(error, xs), path, best, best_error: error(best)[0],
    value_along: path.map((theta) => term(theta)[0]), error_along: path.map((theta) => error(theta)[0]),
  };
}

// What is seen, in words.
function told(spec, state, picture) {
  const { path, value_along: values, error_along: errors } = picture;
  const edge = Math.min(...spec.tasks.map(edgeOf)), end = path.at(-1);
  if (![...end, values.at(-1)].every(Number.isFinite) || Math.hypot(...end) > 1e3)
    return state.loss === "fomaml" && state.lr > edge
      ? `Descent runs away: beyond the edge 2/λ (${fixedDigits(edge)}) this rule can go uphill, with any step.`
      : "Descent runs away: take a smaller outer step.";
  const [from, to] = [errors[0], errors.at(-1)], way = to < from ? "falls" : to > from ? "rises" : "stays";
  const parts = [`In ${state.count} outer ${state.count === 1 ? "step" : "steps"} the meta-loss goes from ` +
    `${fixedDigits(values[0])} to ${fixedDigits(values.at(-1))}. The error after adaptation ${way} from ` +
    `${fixedDigits(from)} to ${fixedDigits(to)}; from the best start it is ${fixedDigits(picture.best_error)}.`];
  if (state.lr > edge)
    parts.push(`α is beyond the edge 2/λ (${fixedDigits(edge)}) of the steepest bowl: adaptation to it runs away.`);
  return parts.join(" ");
}

export function build(ui, spec) {
  const reach = [-spec.reach, spec.reach], xs = linspace(...reach, spec.grid);
  const look = { x: reach, y: reach, xlabel: "θ₁", ylabel: "θ₂", square: true };
  ui.columns(3, "15rem");
  const maps = [["surface", "What it descends", "blue"], ["errors", "What counts: error after adaptation", "green"]]
    .map(([key, label, ink]) => ({ key, ink, plot: ui.plot({ ...look, label }) }));
  const along = ui.plot({ label: "Error after adaptation, along the way", x: [0, 1], y: [0, 1], xlabel: "outer step",
                          height: 1 });
  ui.choice({ key: "loss", label: "meta-loss", options: spec.choices.map(({ key, name }) => [key, name]) });
  ui.slider({ key: "lr", label: "inner step size α", min: 0.02, max: 1.2, step: 0.02 });
  ui.slider({ key: "steps", label: "inner steps K", min: 1, max: 10, step: 1, digits: 0 });
  knobs(ui, spec.choices, 5, 0.1);
  ui.slider({ key: "count", label: "outer steps N", min: 0, max: 40, step: 1, digits: 0 });
  ui.slider({ key: "outer", label: "outer step size", values: spec.outers, digits: 2 });
  ui.button({ label: "Start back to its first place", press: () => ({ x: spec.x, y: spec.y }) });
  const remark = document.createElement("p");
  ui.controls.after(remark);                                  // its length moves no control

  return (state, picture) => {
    const [px, py] = [0, 1].map((axis) => picture.path.map((point) => point[axis]));
    for (const { key, ink, plot } of maps) {
      const Z = picture[key];
      plot.shade("shade", xs, xs, Z, { colour: ink, opacity: 0.28 });
      plot.contours("contours", xs, xs, Z, { colour: ink, opacity: 0.9, levels: heights(Z), label: "equal height" });
      plot.line("path", px, py, { colour: "red", width: 1.5, label: "outer steps" });
      plot.dots("steps", px.slice(1, -1), py.slice(1, -1), { colour: "red", radius: 2 });
      plot.dots("end", px.slice(-1), py.slice(-1),
        { colour: "red", shape: "diamond", radius: 5, label: "where descent ends" });
      plot.dots("best", [picture.best[0]], [picture.best[1]],
        { colour: "green", shape: "cross", radius: 5, label: "best start" });
      plot.handle("theta", state.x, state.y,
        { label: "start of the descent", legend: "start", move: (x, y) => ui.set({ x, y }), colour: "currentColor" });
    }
    drawAlong(along, picture);
    remark.textContent = spec.remarks[state.loss] ?? "A meta-loss of yours.";
    ui.note(told(spec, state, picture));
  };
}

function drawAlong(plot, { error_along: errors, best_error: best }) {
  const steps = errors.map((_, i) => i), last = Math.max(1, errors.length - 1);
  const high = Math.max(best, ...errors.filter((e) => Number.isFinite(e) && e <= 10 * errors[0]));
  plot.domain({ x: [0, last * 1.04], y: [0, high > 0 ? high * 1.1 : 1] });
  plot.line("best", [0, last], [best, best], { colour: "green", dash: true, width: 1.5, label: "from the best start" });
  plot.line("error", steps, errors, { colour: "red", label: "along the descent" });
  plot.dots("end", [steps.at(-1)], [errors.at(-1)], { colour: "red", shape: "diamond", radius: 5 });
}
