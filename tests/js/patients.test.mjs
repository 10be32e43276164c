// The patients figure: its numbers on cases with a known answer, how its samples move, and what it says.
import assert from "node:assert/strict";
import test from "node:test";
import { bendOf, concentration, eigen, forDose, improbable, learn, minimum, movedSample, nextPatient, phi, sentence,
         slopeOf } from "../../metalit/widgets/js/patients.js";
import { mlpOutput } from "../../metalit/widgets/js/nn.js";

const near = (a, b, by = 1e-9) => assert.ok(Math.abs(a - b) < by, `${a} and ${b}`);
const prior = { middle: [1.11, 0.05, 0.484].map(Math.log), spread: [0.53, 0.335, 0.17], noise: [0.143, 0.2] };

test("the curve is that of the books, and its limit where both rates meet", () => {
  const [ka, ke, volume] = [1.5, 0.1, 0.5];
  const body = [ka, ke * volume, volume].map(Math.log);
  for (const t of [0, 0.3, 2, 20]) {
    const book = (((4 / volume) * ka) / (ka - ke)) * (Math.exp(-ke * t) - Math.exp(-ka * t));
    near(concentration(t, 4, body), book);
    near(concentration(t, 4, [0.3, 0.3 * volume, volume].map(Math.log)), (4 / volume) * 0.3 * t * Math.exp(-0.3 * t));
  }
  near(phi(1e-3 * (1 - 1e-9)), phi(1e-3 * (1 + 1e-9)), 1e-11);
});

test("differences are slopes and bends", () => {
  const f = ([x, y]) => Math.sin(x) * y ** 2 + x * y;
  const [x, y] = [0.4, 1.3], slope = slopeOf(f, [x, y]), bend = bendOf(f, [x, y]);
  near(slope[0], Math.cos(x) * y ** 2 + y, 1e-8);
  near(slope[1], 2 * Math.sin(x) * y + x, 1e-8);
  near(bend[0][0], -Math.sin(x) * y ** 2, 1e-6);
  near(bend[0][1], 2 * Math.cos(x) * y + 1, 1e-6);
  near(bend[1][1], 2 * Math.sin(x), 1e-6);
});

test("sizes and axes put a matrix together again", () => {
  const matrix = [[2, -1, 0.5], [-1, 3, 0.2], [0.5, 0.2, -1]];
  const { sizes, axes } = eigen(matrix);
  for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) {
    near(sizes.reduce((sum, size, k) => sum + axes[i][k] * size * axes[j][k], 0), matrix[i][j], 1e-12);
    near(axes.reduce((sum, row) => sum + row[i] * row[j], 0), i === j ? 1 : 0, 1e-12);
  }
});

test("Newton's method ends at the bottom of a bowl, and from where it bends down", () => {
  minimum(([x, y]) => (x - 1) ** 2 + 10 * (y + 2) ** 2, [4, 4]).forEach((value, i) => near(value, [1, -2][i], 1e-7));
  near(Math.abs(minimum(([x]) => (x * x - 1) ** 2, [0.1])[0]), 1, 1e-7);
});

test("at the body that is found the posterior is flat", () => {
  const state = { points: [[0.5, 3], [1, 6.5], [4, 7]], dose: 4.5 };
  const f = (body) => improbable(body, state, prior), body = minimum(f, prior.middle);
  slopeOf(f, body).forEach((slope) => near(slope, 0, 1e-7));
  assert.ok(f(body) < f(prior.middle));
});

const net = { activation: "tanh", layers: [
  { weight: Float64Array.from([0.3, -0.2, 0.5, 0.1]), bias: Float64Array.from([0.1, 0]), inputs: 2, outputs: 2 },
  { weight: Float64Array.from([0.7, -0.4]), bias: Float64Array.from([0.2]), inputs: 2, outputs: 1 }] };

test("the dose multiplies the features, and not the bias", () => {
  const at = (dose) => mlpOutput(forDose(net, dose), [0.3, 0.6])[0] - 0.2;
  near(at(10), 2 * at(5), 1e-12);
  near(at(5), mlpOutput(net, [0.3, 0.6])[0] - 0.2, 1e-12);
});

test("a step goes down the loss, by the size of each number", () => {
  const state = { points: [[1, 2], [3, 4]], dose: 3 };
  const rates = net.layers.map(({ weight, bias }) => ({ weight: weight.map((_, i) => 0.01 * (i + 1)), bias: bias.map(() => 0.02) }));
  const loss = (one) => state.points.reduce((sum, [hour, y]) =>
    sum + (mlpOutput(forDose(one, 3), [hour / 12 - 1, Math.log(hour + 0.1)])[0] - y) ** 2, 0) / 2;
  const stepped = learn(net, rates, state), h = 1e-6;
  net.layers.forEach((layer, l) => ["weight", "bias"].forEach((kind) => layer[kind].forEach((value, i) => {
    const by = (d) => loss({ ...net, layers: net.layers.map((other, k) =>
      (k === l ? { ...other, [kind]: other[kind].map((v, j) => (j === i ? v + d : v)) } : other)) });
    near(stepped.layers[l][kind][i], value - (rates[l][kind][i] * (by(h) - by(-h))) / (2 * h), 1e-8);
  })));
});

const spec = { hours: [0.05, 24.5], patients: [{ dose: 4, samples: [[1, 2], [2, 3], [3, 4], [9, 1]] }, { dose: 5, samples: [[1, 1], [2, 2], [4, 3]] }] };

test("a sample that is dragged stays within the day, and is nobody's any more", () => {
  const state = { points: [[1, 2], [2, 3], [3, 4]], later: [[9, 1]], patient: 1 };
  const moved = movedSample(spec, state, 1, 30, -2);
  assert.deepEqual(moved, { points: [[1, 2], [24.5, 0], [3, 4]], later: [], patient: 0 });
  assert.deepEqual(state.points[1], [2, 3]);
});

test("one patient follows the other", () => {
  const first = nextPatient(spec, { points: [0, 0, 0], patient: 0 });
  assert.deepEqual(first, { patient: 1, dose: 4, points: [[1, 2], [2, 3], [3, 4]], later: [[9, 1]] });
  assert.equal(nextPatient(spec, { points: [0, 0, 0], patient: 2 }).patient, 1);
});

test("the sentence says what each forecasts for the evening", () => {
  const picture = { x: [0, 6, 12, 18], curves: [[0, 0, 9, 0], [0, 0, 3.04, 0]], map: [0, 0, 2.5, 0], mean: [0, 0, 4, 0], body: [1.1, 0.05, 0.5] };
  const said = sentence({ patient: 3 }, picture);
  assert.match(said, /^Patient 3 of the twelve\. Twelve hours after the dose: the network says 3\.0, MAP 2\.5, the mean curve 4\.0/);
  assert.match(said, /half of it is gone in 6\.9 hours/);
  assert.match(sentence({ patient: 0 }, picture), /^Twelve hours/);
});
