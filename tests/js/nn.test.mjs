// The network in JavaScript: exact small cases, and its gradient against finite differences.
import assert from "node:assert/strict";
import test from "node:test";
import { ACTIVATIONS, affine, innerPath, meanSquare, mlpGradient, mlpHessianProduct, mlpOutput,
         sgdStep }
  from "../../metalit/widgets/js/nn.js";

// Numbers without a pattern, the same on every run.
function numbers(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
}

function net(activation, sizes, seed = 1) {
  const next = numbers(seed);
  const draw = (count) => Float64Array.from({ length: count }, next);
  return { activation, layers: sizes.slice(1).map((outputs, l) => ({
    weight: draw(outputs * sizes[l]), bias: draw(outputs), inputs: sizes[l], outputs })) };
}

test("an affine layer multiplies rows of the weight with each example", () => {
  const layer = { weight: [1, 2, 3, 4], bias: [10, 20], inputs: 2, outputs: 2 };
  assert.deepEqual([...affine(layer, [1, 1, 0, -1], 2)], [13, 27, 8, 16]);
});

test("ReLU has value and slope 0 at 0, as in torch, and lets NaN through", () => {
  assert.equal(ACTIVATIONS.relu.slope(0), 0);
  assert.equal(ACTIVATIONS.relu.slope(1e-9), 1);
  const broken = net("relu", [1, 2, 1]);
  broken.layers[0].bias[0] = NaN;
  assert.ok(Number.isNaN(mlpOutput(broken, [0.5])[0]));
});

test("the mean squared error is a mean", () => assert.equal(meanSquare([1, 2], [0, 4]), 2.5));

for (const activation of ["relu", "tanh"]) {
  test(`the gradient of a ${activation} network is the slope of its error`, () => {
    const start = net(activation, [2, 5, 4, 3]);
    const next = numbers(7);
    const x = Float64Array.from({ length: 2 * 6 }, next), y = Float64Array.from({ length: 3 * 6 }, next);
    const { loss, gradient } = mlpGradient(start, x, y);
    assert.equal(loss, meanSquare(mlpOutput(start, x), y));
    const at = (l, key, i, by) => {
      const moved = structuredClone(start);
      moved.layers[l][key][i] += by;
      return meanSquare(mlpOutput(moved, x), y);
    };
    let checked = 0;
    gradient.forEach((layer, l) => ["weight", "bias"].forEach((key) => layer[key].forEach((slope, i) => {
      const found = (at(l, key, i, 1e-6) - at(l, key, i, -1e-6)) / 2e-6;
      assert.ok(Math.abs(found - slope) < 1e-8, `layer ${l} ${key} ${i}: ${slope}, by differences ${found}`);
      checked += 1;
    })));
    assert.equal(checked, 2 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3);
  });
}

test("a step goes down the slope and leaves the network it came from as it was", () => {
  const start = { activation: "relu", layers: [{ weight: Float64Array.of(2), bias: Float64Array.of(1), inputs: 1, outputs: 1 }] };
  const { gradient } = mlpGradient(start, [1], [0]);              // error (2 + 1)², slopes 2·3 and 2·3
  const next = sgdStep(start, gradient, 0.5);
  assert.deepEqual([next.layers[0].weight[0], next.layers[0].bias[0]], [2 - 3, 1 - 3]);
  assert.deepEqual([start.layers[0].weight[0], start.layers[0].bias[0]], [2, 1]);
});

test("gradient descent on a line contracts its distance to the answer by the known factor", () => {
  // At x = 1 weight and bias have the same slope, so one step changes the output by twice as much: factor 1 − 4α.
  const start = { activation: "relu", layers: [{ weight: Float64Array.of(3), bias: Float64Array.of(0), inputs: 1, outputs: 1 }] };
  const path = innerPath(start, [1], [1], 0.1, 3);
  assert.equal(path.length, 4);
  path.forEach((at, k) => assert.ok(Math.abs(mlpOutput(at, [1])[0] - 1 - 2 * 0.6 ** k) < 1e-12));
});

for (const activation of ["relu", "tanh"]) {
  test(`the Hessian of a ${activation} network times a vector is how its gradient changes that way`, () => {
    const start = net(activation, [2, 5, 4, 3]), next = numbers(7);
    const x = Array.from({ length: 8 }, next), y = Array.from({ length: 12 }, next), h = 1e-6;
    const v = start.layers.map(({ weight, bias }) => ({ weight: weight.map(next), bias: bias.map(next) }));
    const found = mlpHessianProduct(start, x, y, v);
    const [there, back] = [-h, h].map((lr) => mlpGradient(sgdStep(start, v, lr), x, y).gradient);
    found.forEach((layer, l) => ["weight", "bias"].forEach((part) => layer[part].forEach((value, i) => {
      const wanted = (there[l][part][i] - back[l][part][i]) / (2 * h);
      assert.ok(Math.abs(value - wanted) < 1e-6 * (1 + Math.abs(wanted)), `${part} ${l}: ${value} is not ${wanted}`);
    })));
  });
}
