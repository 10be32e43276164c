// Two parameters: drag θ over a meta-loss, and see where each rule would send it.
import { colour, linspace, shown } from "./core.js";
import { META_LOSS_KEYS, edgeOf, innerPath, metaLoss, surfaceOf } from "./bed.js";
import { angleBetween, ellipse, enough, fixedDigits, heights, inWords, knobs, places } from "./plane.js";

const ARROW = 1.1;                                           // the length of an arrow, in units of θ
const FIRST_STEP = 0.1, LAST_STEP = 2e-4;                    // the lengths between which a played θ moves

const chosenArrows = (spec, state) => spec.choices.map(({ key }) => key).filter((key) => state[`arrow_${key}`]);

export function compute(spec, state) {
  const arrows = chosenArrows(spec, state);
  if (![state.shown, ...arrows].every((key) => META_LOSS_KEYS.includes(key))) return null;
  const bed = { ...state, tasks: spec.tasks };
  const theta = [state.x, state.y], term = metaLoss(state.shown, bed);
  return {
    value: term(theta)[0],
    surface: surfaceOf(term, linspace(-spec.reach, spec.reach, spec.grid)),
    paths: spec.tasks.map((task) => innerPath(task, theta, state.lr, state.steps)),
    arrows: Object.fromEntries(arrows.map((key) => [key, metaLoss(key, bed)(theta).slice(1)])),
  };
}

// What is seen, in words: the value, the angles to the exact gradient, and whether the inner loop holds.
function told(spec, state, picture, lengths) {
  const names = Object.fromEntries(spec.choices.map(({ key, short }) => [key, short]));
  const parts = [`The meta-loss is ${fixedDigits(picture.value)} here.`];
  if (heights(picture.surface).length === 0) parts.push("It is the same everywhere: a flat surface has no contours.");
  const exact = picture.arrows.maml;
  const angles = Object.keys(lengths).filter((key) => key !== "maml" && lengths[key] && exact && lengths.maml)
    .map((key) => `${names[key]} ${Math.round(angleBetween(picture.arrows[key], exact))}°`);
  if (angles.length) parts.push(`Angles to the exact arrow: ${angles.join(", ")}.`);
  const flat = Object.keys(lengths).filter((key) => !lengths[key]).map((key) => names[key]);
  if (flat.length) parts.push(`No slope here: ${inWords(flat)}.`);
  const edges = spec.tasks.map(edgeOf), beyond = edges.flatMap((edge, i) => (state.lr > edge ? [`τ${i + 1}`] : []));
  const verb = beyond.length > 1 ? "get farther away from their optima" : "gets farther away from its optimum";
  if (beyond.length)
    parts.push(`α is beyond the edge 2/λ (${shown(Math.min(...edges))}): with every inner step, ${inWords(beyond)} ${verb}.`);
  return parts.join(" ");
}

// One step of θ down the meta-loss whose contours are shown, or null where it rests or has run away. `last` is the step
// before: its rate is kept, and halved where this step would lead back.
export function downhill(spec, state, last) {
  const [, u, v] = metaLoss(state.shown, { ...state, tasks: spec.tasks })([state.x, state.y]), length = Math.hypot(u, v);
  if (!enough(length)) return null;
  const back = last && u * last.u + v * last.v < 0;
  const rate = Math.min((last?.rate ?? Infinity) / (back ? 2 : 1), FIRST_STEP / length);
  const [x, y] = [state.x - rate * u, state.y - rate * v];
  return rate * length < LAST_STEP || Math.hypot(x, y) > 4 * spec.reach ? null : { x, y, u, v, rate };
}

// A button that lets θ go downhill until it rests, or until it is pressed again. All sliders work meanwhile.
function player(ui, spec) {
  let timer = null, last = null, chosen = null;
  const button = ui.button({ label: "play: train θ", press: () => ({}) });
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "play: train θ"; };
  const step = () => {
    const look = [ui.state.shown, ui.state.lr, ui.state.steps].join();
    if (look !== chosen) [chosen, last] = [look, null];      // another surface has another scale
    last = button.isConnected ? downhill(spec, ui.state, last) : null;
    if (last === null) return stop();
    ui.set({ x: last.x, y: last.y });
  };
  button.addEventListener("click", () => {
    if (timer !== null) return stop();
    last = null;
    button.textContent = "pause";
    timer = setInterval(step, 60);
  });
  return button;
}

export function build(ui, spec) {
  const reach = [-spec.reach, spec.reach], ground = linspace(...reach, spec.grid);
  ui.columns(2);
  const look = { x: reach, y: reach, xlabel: "θ₁", ylabel: "θ₂", square: true };
  const plot = ui.plot({ ...look, label: "θ on the surface of the meta-loss" });
  const inner = ui.plot({ ...look, label: "The inner loop of each task" });
  ui.choice({ key: "shown", label: "contours of", options: spec.choices.map(({ key, name }) => [key, name]) });
  ui.slider({ key: "lr", label: "inner step size α", min: 0.02, max: 1.5, step: 0.02 });
  ui.slider({ key: "steps", label: "inner steps K", min: 1, max: 10, step: 1, digits: 0 });
  knobs(ui, spec.choices, 2, 0.05);
  ui.row("Arrows: where to, not how far");
  for (const { key, name, colour: ink } of spec.choices)
    ui.check({ key: `arrow_${key}`, label: name }).style.accentColor = colour(ink);
  const play = player(ui, spec);
  ui.button({ label: "θ back to its first place", press: () => ({ x: spec.x, y: spec.y }) });

  return (state, picture) => {
    play.hidden = !META_LOSS_KEYS.includes(state.shown);     // what the browser cannot compute is not offered
    const move = (x, y) => ui.set({ x, y });
    const Z = picture.surface;
    plot.shade("shade", ground, ground, Z, { colour: "blue", opacity: 0.28 });
    plot.contours("surface", ground, ground, Z, { colour: "blue", opacity: 0.9, levels: heights(Z), label: "equal meta-loss" });
    const lengths = {};
    const drawn = spec.choices.filter(({ key }) => key in picture.arrows).map((choice) => {
      const [u, v] = picture.arrows[choice.key], length = Math.hypot(u, v);
      lengths[choice.key] = enough(length);
      return { ...choice, u: -u / length, v: -v / length };
    }).filter(({ key }) => lengths[key]);
    for (const { key, short, colour: ink, u, v } of drawn)
      plot.arrow(`arrow ${key}`, state.x, state.y, state.x + ARROW * u, state.y + ARROW * v, { colour: ink, label: short });
    plot.handle("theta", state.x, state.y, { label: "start θ", legend: "θ", move, colour: "currentColor" });
    drawInner(inner, spec, state, picture, move);
    ui.note(told(spec, state, picture, lengths));
  };
}

const NAME = [18, 13];                                       // the size of τ₁, in pixels

function drawInner(plot, spec, state, picture, move) {
  spec.tasks.forEach(({ A, s }, i) => plot.line(`bowl ${i}`, ...ellipse(A, s, 0.1),
    { colour: "grey", width: 1, opacity: 0.8, label: i === 0 ? "support loss 0.1" : "" }));
  picture.paths.forEach((path, i) => {
    const [xs, ys] = [0, 1].map((axis) => path.map((point) => point[axis]));
    plot.line(`path ${i}`, xs, ys, { colour: "blue", width: 1.5, label: i === 0 ? "inner path" : "" });
    plot.dots(`steps ${i}`, xs.slice(1), ys.slice(1), { colour: "blue", radius: 3, label: i === 0 ? "φ₁ … φ_K" : "" });
  });
  for (const [id, axis, shape, ink] of [["s", "support", "cross", "grey"], ["q", "query", "diamond", "orange"]])
    plot.dots(id, spec.tasks.map((task) => task[id][0]), spec.tasks.map((task) => task[id][1]),
      { colour: ink, shape, radius: 4, label: `optimum, ${axis}` });
  plot.handle("theta", state.x, state.y, { label: "start θ", legend: "θ", move, colour: "currentColor" });
  nameTasks(plot, spec, state, picture);
}

// Each name beside its optimum, where it covers no mark and no other name.
function nameTasks(plot, spec, state, picture) {
  const pixels = ([x, y]) => [plot.px(x), plot.py(y)];
  const marks = [...spec.tasks.flatMap(({ s, q }) => [s, q]), ...picture.paths.flat(), [state.x, state.y]].map(pixels);
  const found = places(spec.tasks.map(({ s }) => pixels(s)), marks, NAME, plot.box);
  spec.tasks.forEach(({ s }, i) => {
    const [x, y] = pixels(s);
    plot.text(`task ${i}`, ...s, `τ${"₁₂₃₄₅₆₇₈₉"[i] ?? i + 1}`, { anchor: "middle", dx: found[i][0] - x, dy: found[i][1] - y + 4 });
  });
}
