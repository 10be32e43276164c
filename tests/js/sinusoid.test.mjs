// The sinusoid figure: its numbers on cases with a known answer, how its points move, and what it says.
import assert from "node:assert/strict";
import test from "node:test";
import { compute, follow, inWidestGap, movedPoint, sayBlown, sentence, withPoint, withoutPoint }
  from "../../metalit/widgets/js/sinusoid.js";

const packed = (values, shape) => {
  const view = new DataView(new ArrayBuffer(8 * values.length));
  values.forEach((value, i) => view.setFloat64(8 * i, value, true));
  return { b64: btoa(String.fromCharCode(...new Uint8Array(view.buffer))), shape, dtype: "f8" };
};
const line = (slope, bias) => ({ activation: "relu", layers: [{ weight: packed([slope], [1, 1]), bias: packed([bias], [1]) }] });
const spec = { grid: [-5, 5, 100], limit: 1e6, most: 3, steps: 10, lrs: [0.01],
               starts: { flat: { label: "flat", net: line(0, 0), own: null, lr: null },
                         steep: { label: "steep", net: line(2, 0), own: null, lr: null },
                         mine: { label: "mine", net: null, own: "Adam, step size 0.1", lr: 0.1 } } };
const state = { amplitude: 2, phase: 0, points: [[1, 0], [-1, 0.5]], steps: 1, lr: 0.01, left: "flat", right: "steep" };

test("a point lies its distance above the wave, so it rides along with the amplitude", () => {
  const at = (amplitude) => compute(spec, { ...state, amplitude }).points;
  assert.deepEqual(at(2), [[1, 2 * Math.sin(1)], [-1, 2 * Math.sin(-1) + 0.5]]);
  assert.deepEqual(at(3), [[1, 3 * Math.sin(1)], [-1, 3 * Math.sin(-1) + 0.5]]);
});

test("there is a curve for the start and one for each step, over the whole grid", () => {
  const { x, truth, left, right } = compute(spec, { ...state, steps: 4 });
  assert.deepEqual([x.length, x[0], x[99], truth.length], [100, -5, 5, 100]);
  for (const side of [left, right]) {
    assert.deepEqual([side.curves.length, side.query.length, side.support.length, side.blown], [5, 5, 5, null]);
  }
  assert.ok(left.curves[0].every((y) => y === 0));
  assert.deepEqual(right.curves[0], x.map((at) => 2 * at));
});

test("the first step of a line is the one that a pencil finds", () => {
  const { points, left } = compute(spec, state);
  const slope = points.reduce((sum, [x, y]) => sum + x * y, 0), bias = points.reduce((sum, [, y]) => sum + y, 0);
  const expected = (x) => 0.01 * (slope * x + bias);                // minus α times the mean of −2·y·x over two points
  [-5, 5].forEach((x, end) => assert.ok(Math.abs(left.curves[1].at(end ? -1 : 0) - expected(x)) < 1e-14));
});

test("a start whose steps only torch knows is left to torch", () => {
  assert.equal(compute(spec, { ...state, left: "mine" }), null);
  assert.equal(compute(spec, { ...state, right: "mine" }), null);
});

test("a path that blows up ends where it does, and says so", () => {
  const { left } = compute(spec, { ...state, steps: 10, lr: 40, points: [[5, 0]] });
  assert.ok(left.blown > 0 && left.blown < 10);
  assert.equal(left.curves.length, left.blown);
  assert.ok(left.query.every((loss) => loss <= 1e6));
  assert.equal(sayBlown(left, 40), `the path blew up at step ${left.blown}: the step size 40.000 is too large`);
});

test("a network that is not finite blows up at once", () => {
  const broken = { activation: "relu", layers: [{ weight: [NaN], bias: [0], inputs: 1, outputs: 1 }] };
  const side = follow(broken, [[0, 0]], [0, 1], [0, 1], { lr: 0.1, steps: 2 }, 1e6);
  assert.deepEqual([side.blown, side.curves], [0, []]);
  assert.match(sayBlown(side, 0.1), /before the first step/);
});

test("points are moved, added up to the most, and removed down to the last", () => {
  assert.deepEqual(movedPoint(state, 1, 0, 1).points, [[1, 0], [0, 1]]);
  const three = withPoint(spec, state, 0, -1);
  assert.deepEqual(three.points, [[1, 0], [-1, 0.5], [0, -1]]);
  assert.deepEqual(withPoint(spec, three, 0, 0), {});
  assert.deepEqual(withoutPoint(state, 0).points, [[-1, 0.5]]);
  assert.deepEqual(withoutPoint({ ...state, points: [[1, 0]] }, 0), {});
});

test("the button puts a point on the wave, in the widest gap", () => {
  assert.deepEqual(inWidestGap(spec, state).points.at(-1), [-3, 0]);
  assert.deepEqual(inWidestGap(spec, { ...state, points: [[1, 0]] }).points.at(-1), [-2, 0]);
});

test("the sentence names both starts, before and after", () => {
  const picture = compute(spec, state);
  const text = sentence(spec, state, picture);
  assert.match(text, /^Query loss after 1 step\. flat: \d\.\d{3} → \d\.\d{3}; steep: \d+\.\d{3} → \d+\.\d{3}\.$/);
  assert.ok(text.includes(picture.left.query[1].toFixed(3)));
  assert.match(sentence(spec, { ...state, steps: 0 }, compute(spec, { ...state, steps: 0 })), /^Query loss before any step/);
  const own = sentence(spec, { ...state, left: "mine" }, picture);
  assert.match(own, /mine: .* \(it steps in its own way, Adam, step size 0\.1\)/);
});
