// The small helpers of the figures in two parameters, and what the figures themselves compute.
import assert from "node:assert/strict";
import { test } from "node:test";

import { angleBetween, ellipse, enough, fixedDigits, heights, inWords, places }
  from "../../metalit/widgets/js/plane.js";
import { META_LOSS_KEYS, bestStart } from "../../metalit/widgets/js/bed.js";
import { compute as rewards, outerStep } from "../../metalit/widgets/js/rewards.js";
import { compute as twoParameters, downhill } from "../../metalit/widgets/js/two_parameters.js";

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

test("names stand beside their points, inside, and cover no mark and no other name", () => {
  const inside = { x: 0, y: 0, width: 200, height: 200 }, size = [18, 13];
  const points = [[100, 100], [104, 103], [196, 100], [100, 4]], marks = [...points, [80, 100], [88, 96]];
  const found = places(points, marks, size, inside);
  const apart = (a, b, [across, down]) => Math.abs(a[0] - b[0]) >= across || Math.abs(a[1] - b[1]) >= down;
  found.forEach((name, i) => {
    assert.ok(name[0] >= 9 && name[0] <= 191 && name[1] >= 6.5 && name[1] <= 193.5, name);
    assert.ok(Math.hypot(name[0] - points[i][0], name[1] - points[i][1]) < 60);
    for (const other of found.slice(0, i)) assert.ok(apart(name, other, size));
    for (const mark of marks) assert.ok(apart(name, mark, [9 + 5, 6.5 + 5]));
  });
});

test("where every place is taken a name still gets one", () => {
  const inside = { x: 0, y: 0, width: 60, height: 60 };
  const marks = Array.from({ length: 400 }, (_, i) => [3 * (i % 20), 3 * Math.floor(i / 20)]);
  assert.equal(places([[30, 30], [30, 30]], marks, [18, 13], inside).length, 2);
});

// Where a played θ comes to rest, and by how many steps.
function played(from, most = 2000) {
  let now = { ...from }, last = null, count = 0;
  while (count < most && (last = downhill(spec, now, last))) { now = { ...now, x: last.x, y: last.y }; count++; }
  return { ...now, count };
}

test("a played θ rests at the best start of MAML, from far away and from beside it, and within half a minute", () => {
  const best = bestStart({ ...state, tasks });
  for (const [x, y] of [[-1.9, 1.9], [1, -2], [best[0] + 0.02, best[1]]]) {
    const end = played({ ...state, x, y });
    assert.ok(Math.hypot(end.x - best[0], end.y - best[1]) < 0.03, `${[x, y]} → ${[end.x, end.y]}, not ${best}`);
    assert.ok(end.count < 500, `${end.count} steps`);
  }
});

test("no step of a played θ is longer than a tenth, whatever the scale of its meta-loss", () => {
  for (const shown of META_LOSS_KEYS) {
    let now = { ...state, shown, x: -1.5, y: 1.5 }, last = null;
    for (let i = 0; i < 300 && (last = downhill(spec, now, last)); i++) {
      assert.ok(Math.hypot(last.x - now.x, last.y - now.y) <= 0.1 + 1e-12);
      now = { ...now, x: last.x, y: last.y };
    }
  }
});

test("where there is no slope a played θ stays, and one that has run away stops", () => {
  const best = bestStart({ ...state, tasks });
  assert.equal(downhill(spec, { ...state, x: best[0], y: best[1] }, { u: 0, v: 0, rate: 1 }), null);
  assert.equal(downhill(spec, { ...state, x: 100, y: 100 }, null), null);
});
