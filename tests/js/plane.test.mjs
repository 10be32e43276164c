// The small helpers of the figures in two parameters, and what the figures themselves compute.
import assert from "node:assert/strict";
import { test } from "node:test";

import { angleBetween, ellipse, enough, fixedDigits, heights, inWords, spread }
  from "../../metalit/widgets/js/plane.js";
import { compute as rewards, outerStep } from "../../metalit/widgets/js/rewards.js";
import { compute as twoParameters } from "../../metalit/widgets/js/two_parameters.js";

const tasks = [{ A: [1, 0, 0.5], s: [1, 0], C: [2, 0, 1], q: [1, 1] },
               { A: [2, 0, 0.5], s: [-1, 2], C: [1, 0, 1], q: [-1, 2] }];
const spec = { tasks, grid: 5, reach: 2, choices: [{ key: "maml" }, { key: "reptile" }, { key: "mine" }],
               rates: { maml: { rate: 1.5, power: 0 }, written_reptile: { rate: 0.3, power: -2 } } };
const state = { shown: "maml", loss: "maml", x: 1, y: 1, lr: 0.5, steps: 2, weight: 0.5, margin: 1, count: 3, outer: 2,
                arrow_maml: true, arrow_reptile: false, arrow_mine: false };

test("only the arrows that are chosen are computed, and a surface of the wanted size", () => {
  const picture = twoParameters(spec, state);
  assert.deepEqual(Object.keys(picture.arrows), ["maml"]);
  assert.deepEqual([picture.surface.length, picture.surface[0].length], [5, 5]);
  assert.deepEqual([picture.paths.length, picture.paths[0].length], [2, 3]);
});

test("what only torch knows is null", () => {
  assert.equal(twoParameters(spec, { ...state, arrow_mine: true }), null);
  assert.equal(twoParameters(spec, { ...state, shown: "mine" }), null);
  assert.equal(rewards(spec, { ...state, loss: "mine" }), null);
});

test("descent on MAML: both surfaces are the same, and so are values and errors", () => {
  const picture = rewards(spec, { ...state, outer: 0.1 });
  assert.deepEqual(picture.surface, picture.errors);
  assert.deepEqual(picture.value_along, picture.error_along);
  assert.equal(picture.path.length, 4);
  assert.ok(picture.error_along.every((error) => error >= picture.best_error));
});

test("the outer step follows the scale of its formula", () => {
  assert.equal(outerStep(spec, state), (2 * 1.5) / 1.5);
  assert.equal(outerStep(spec, { ...state, loss: "written_reptile", weight: 0 }), 2 * 0.3 * 4);
});

test("angles, numbers and lists in words", () => {
  assert.ok(Math.abs(angleBetween([1, 0], [-1, 1e-9]) - 180) < 1e-6);
  assert.ok(Math.abs(angleBetween([1, 0], [0, 3]) - 90) < 1e-12);
  assert.deepEqual([1234.5, 12.345, 1.2345, 0.12345, -2].map(fixedDigits), ["1235", "12.3", "1.23", "0.123", "−2.00"]);
  assert.deepEqual([[], ["a"], ["a", "b"], ["a", "b", "c"]].map(inWords), ["", "a", "a and b", "a, b and c"]);
  assert.deepEqual([0, 1e-13, 1e-3, NaN, Infinity].map(enough), [false, false, true, false, false]);
});

test("levels rise from the lowest value, and a flat surface has none", () => {
  const found = heights([[0, 1], [2, 4]]);
  assert.ok(found.every((level, i) => level > 0 && level < 4 && (i === 0 || level > found[i - 1])));
  assert.deepEqual(heights([[3, 3], [3, NaN]]), []);
  assert.deepEqual(heights([[3, 3 + 1e-15], [3, 3]]), []);
});

test("an ellipse lies at its height of the bowl", () => {
  const [xs, ys] = ellipse([1.2, 0.5, 0.6], [0.4, -0.7], 0.1);
  xs.forEach((x, i) => {
    const [u, v] = [x - 0.4, ys[i] + 0.7];
    assert.ok(Math.abs((1.2 * u * u + 2 * 0.5 * u * v + 0.6 * v * v) / 2 - 0.1) < 1e-12);
  });
});

test("names are moved apart where they are close, and left alone where they are not", () => {
  const apart = [0, Math.PI / 2, Math.PI];
  spread(apart).forEach((angle, i) => assert.ok(Math.abs(angle - apart[i]) < 1e-9));
  const [a, b, c] = spread([-1.5, -1.5, -1.4]);
  assert.ok(b - a > 0.4 && c - b > 0.4);
});
