// Blood samples of one patient: what MAP, a meta-learned network and the population's mean curve make of them.
import { linspace, shown, unpack } from "./core.js";
import { mlpGradient, mlpOutput } from "./nn.js";

// ---------------------------------------------------------------------------------------------- one compartment

export function phi(z) {
  return Math.abs(z) < 1e-3 ? 1 - (z / 2) * (1 - (z / 3) * (1 - (z / 4) * (1 - z / 5))) : -Math.expm1(-z) / z;
}

// mg/L after so many hours of a dose in mg/kg; `body` holds the logarithms of absorption, clearance and volume.
export function concentration(hours, dose, body) {
  const [ka, clearance, volume] = body.map(Math.exp);
  const ke = clearance / volume;
  const slow = Math.min(ka, ke), fast = Math.max(ka, ke);
  return ((dose * ka) / volume) * hours * Math.exp(-slow * hours) * phi((fast - slow) * hours);
}

// −log of a body's posterior density, but for a constant.
export function improbable(body, { points, dose }, { middle, spread, noise }) {
  let sum = 0;
  for (const [hours, measured] of points) {
    const curve = concentration(hours, dose, body);
    const variance = (noise[0] * curve) ** 2 + noise[1] ** 2;
    sum += (measured - curve) ** 2 / (2 * variance) + Math.log(variance) / 2;
  }
  body.forEach((value, i) => { sum += ((value - middle[i]) / spread[i]) ** 2 / 2; });
  return sum;
}

// ---------------------------------------------------------------------------------------------- Newton's method

const moved = (point, i, by) => point.map((value, j) => (i === j ? value + by : value));

export function slopeOf(f, at, h = 1e-5) {
  return at.map((_, i) => (f(moved(at, i, h)) - f(moved(at, i, -h))) / (2 * h));
}

export function bendOf(f, at, h = 1e-4) {
  const both = (i, j, a, b) => f(moved(moved(at, i, a), j, b));
  return at.map((_, i) => at.map((_, j) =>
    (both(i, j, h, h) - both(i, j, h, -h) - both(i, j, -h, h) + both(i, j, -h, -h)) / (4 * h * h)));
}

// Sizes and axes (columns) of a symmetric matrix, by Jacobi's turns.
export function eigen(matrix) {
  const n = matrix.length;
  const a = matrix.map((row, i) => row.map((value, j) => (value + matrix[j][i]) / 2));
  const axes = a.map((_, i) => a.map((_, j) => (i === j ? 1 : 0)));
  for (let sweep = 0; sweep < 30; sweep++) {
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        if (Math.abs(a[p][q]) < 1e-300) continue;
        const theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
        const t = (theta < 0 ? -1 : 1) / (Math.abs(theta) + Math.sqrt(theta * theta + 1));
        const c = 1 / Math.sqrt(t * t + 1), s = t * c;
        const turn = (x, y) => [c * x - s * y, s * x + c * y];
        for (let k = 0; k < n; k++) [a[k][p], a[k][q]] = turn(a[k][p], a[k][q]);
        for (let k = 0; k < n; k++) [a[p][k], a[q][k]] = turn(a[p][k], a[q][k]);
        for (let k = 0; k < n; k++) [axes[k][p], axes[k][q]] = turn(axes[k][p], axes[k][q]);
      }
    }
  }
  return { sizes: a.map((row, i) => row[i]), axes };
}

// As `minimum` of metalit.data.patients: directions that bend down are turned around, and no step goes up.
export function minimum(f, start, steps = 60) {
  let here = start, damping = 1;
  for (let k = 0; k < steps; k++) {
    const { sizes, axes } = eigen(bendOf(f, here));
    const slope = slopeOf(f, here);
    const along = sizes.map((size, i) =>
      axes.reduce((sum, row, j) => sum + row[i] * slope[j], 0) / (Math.abs(size) + damping));
    const there = here.map((value, j) =>
      value - Math.min(1, Math.max(-1, axes[j].reduce((sum, axis, i) => sum + axis * along[i], 0))));
    const better = f(there) < f(here);
    if (better) here = there;
    damping = Math.min(1e9, Math.max(1e-9, better ? damping / 4 : damping * 4));
  }
  return here;
}

// ---------------------------------------------------------------------------------------------- the network

const read = new WeakMap();

// The network, the step size of each of its numbers, and the bodies of the population.
export function known(spec) {
  if (!read.has(spec)) {
    const layers = (packed) => packed.map(({ weight, bias }) => ({
      weight: unpack(weight).data, bias: unpack(bias).data, inputs: weight.shape[1], outputs: weight.shape[0] }));
    const { data } = unpack(spec.bodies);
    const bodies = Array.from({ length: data.length / 3 }, (_, i) => Array.from(data.slice(3 * i, 3 * i + 3)));
    read.set(spec, { net: { activation: "tanh", layers: layers(spec.net) }, rates: layers(spec.rates), bodies });
  }
  return read.get(spec);
}

// The hours as the network sees them.
export const seen = (hours) => hours.flatMap((hour) => [hour / 12 - 1, Math.log(hour + 0.1)]);

// Its features are multiplied by the dose, which is the same as a last layer of weights that are.
export function forDose(net, dose) {
  const last = net.layers.at(-1);
  const layers = [...net.layers.slice(0, -1), { ...last, weight: last.weight.map((w) => (w * dose) / 5) }];
  return { ...net, layers };
}

// The network after one step on the samples, each number by a step size of its own.
export function learn(net, rates, { points, dose }) {
  const { gradient } = mlpGradient(forDose(net, dose), seen(points.map(([hour]) => hour)), points.map(([, y]) => y));
  const last = net.layers.length - 1;
  const step = (values, slopes, sizes, factor) => values.map((value, i) => value - sizes[i] * slopes[i] * factor);
  return { ...net, layers: net.layers.map((layer, l) => ({ ...layer,
    weight: step(layer.weight, gradient[l].weight, rates[l].weight, l === last ? dose / 5 : 1),
    bias: step(layer.bias, gradient[l].bias, rates[l].bias, 1) })) };
}

export function compute(spec, state) {
  const { net, rates, bodies } = known(spec), { dose, points } = state;
  const x = linspace(...spec.grid), path = [net];
  for (let k = 0; k < state.steps; k++) path.push(learn(path[k], rates, state));
  const body = minimum((at) => improbable(at, state, spec.prior), spec.prior.middle);
  return {
    x, points, body: body.map(Math.exp),
    mean: x.map((hour) => bodies.reduce((sum, one) => sum + concentration(hour, dose, one), 0) / bodies.length),
    map: x.map((hour) => concentration(hour, dose, body)),
    curves: path.map((one) => Array.from(mlpOutput(forDose(one, dose), seen(x)))) };
}

// ---------------------------------------------------------------------------------------------- samples

const rounded = (v) => Math.round(v * 100) / 100;

// A sample where the reader put it. What a real patient's later samples were is no longer true of it.
export function movedSample(spec, state, index, hour, value) {
  const [low, high] = spec.hours;
  const to = [rounded(Math.min(high, Math.max(low, hour))), rounded(Math.max(0, value))];
  return { points: state.points.map((point, i) => (i === index ? to : point)), later: [], patient: 0 };
}

// The next of the twelve: the first samples, to be dragged, and those that came later.
export function nextPatient(spec, state) {
  const patient = (state.patient % spec.patients.length) + 1;
  const { dose, samples } = spec.patients[patient - 1];
  return { patient, dose, points: samples.slice(0, state.points.length), later: samples.slice(state.points.length) };
}

// ---------------------------------------------------------------------------------------------- words

export function sentence(state, picture) {
  const who = state.patient ? `Patient ${state.patient} of the twelve. ` : "";
  const [ka, clearance, volume] = picture.body;
  const half = (Math.LN2 * volume) / clearance;
  const at = picture.x.findIndex((hour) => hour >= 12);
  const [net, map, mean] = [picture.curves.at(-1), picture.map, picture.mean].map((curve) => shown(curve[at], 1));
  return `${who}Twelve hours after the dose: the network says ${net}, MAP ${map}, the mean curve ${mean} mg/L. ` +
    `MAP's body takes up ${shown(ka, 2)} of the drug in an hour, and half of it is gone in ${shown(half, 1)} hours.`;
}

// ---------------------------------------------------------------------------------------------- the figure

export function build(ui, spec) {
  const plot = ui.plot({ label: "One patient", x: [0, spec.grid[1]], y: [0, 14], height: 0.5,
                         xlabel: "hours after the dose", ylabel: "concentration (mg/L)" });
  ui.slider({ key: "steps", label: "inner steps K", min: 0, max: spec.steps, step: 1, digits: 0 });
  ui.slider({ key: "dose", label: "dose (mg/kg)", min: 1, max: 8, step: 0.01, digits: 2 });
  ui.button({ label: "another of the twelve", press: (state) => nextPatient(spec, state) });
  ui.button({ label: "as it was", press: () => spec.initial });
  return (state, picture) => {
    const { x } = picture;
    plot.line("mean", x, picture.mean, { colour: "grey", width: 2, label: "mean curve" });
    plot.line("map", x, picture.map, { colour: "orange", width: 2.5, label: "MAP" });
    if (state.steps) plot.line("start", x, picture.curves[0], { colour: "blue", width: 1.5, dash: "4 4", label: "network, start" });
    plot.line("learned", x, picture.curves.at(-1), { colour: "blue", width: 2.5, label: "network, adapted" });
    if (state.later.length) {
      plot.dots("later", ...[0, 1].map((i) => state.later.map((point) => point[i])),
                { colour: "green", radius: 3.5, label: "measured later" });
    }
    picture.points.forEach(([hour, value], i) => plot.handle(`sample ${i}`, hour, value, {
      label: `blood sample ${i + 1} of ${picture.points.length}`, legend: i === 0 ? "blood samples" : "",
      move: (toHour, toValue) => ui.set(movedSample(spec, ui.state, i, toHour, toValue)) }));
    ui.note(sentence(state, picture));
  };
}
