// The meta-losses on the quadratic bed: by hand where a hand can do it, and by finite differences.
import assert from "node:assert/strict";
import { test } from "node:test";

import { META_LOSS_KEYS, bestStart, edgeOf, innerPath, largestEigenvalue, metaLoss, outerPath, solved, surfaceOf }
  from "../../metalit/widgets/js/bed.js";

const near = (a, b, tolerance = 1e-12) => a.forEach((value, i) =>
  assert.ok(Math.abs(value - b[i]) <= tolerance * (1 + Math.abs(b[i])), `${a} is not ${b}`));

// Steep in one direction, flat in the other, so that one inner step of ½ can be done by hand.
const one = { A: [1, 0, 0.5], s: [1, 0], C: [2, 0, 1], q: [1, 1] };
const other = { A: [2, 0, 0.5], s: [-1, 2], C: [1, 0, 1], q: [-1, 2] };
const oblique = { A: [1.2, 0.5, 0.6], s: [0.4, -0.7], C: [0.9, -0.3, 0.8], q: [0.6, -0.2] };
const bed = { tasks: [one, other], lr: 0.5, steps: 1, weight: 0, margin: 1 };

test("the inner path of one step, by hand", () => {
  near(innerPath(one, [3, 4], 0.5, 1)[1], [3 - 0.5 * 2, 4 - 0.5 * 2]);
  assert.equal(innerPath(one, [3, 4], 0.5, 7).length, 8);
});

test("MAML, first order and Reptile after one step, by hand", () => {
  // φ = (2, 3) for `one`: gap to q (1, 2), value ½(2·1 + 1·4) = 3, slope (2, 2), through M = diag(½, ¾) (1, 1.5).
  const single = { ...bed, tasks: [one] };
  near(metaLoss("maml", single)([3, 4]), [3, 1, 1.5]);
  near(metaLoss("fomaml", single)([3, 4]), [3, 2, 2]);
  near(metaLoss("reptile", single)([3, 4]), [1, 1, 1]);
});

test("the formulas of the article, by hand", () => {
  // §4.1: α²‖A(θ − s)‖² = ¼‖(2, 2)‖², slope 2α²A²(θ − s) = ½·(2, 1).
  near(metaLoss("written_reptile", { ...bed, tasks: [one] })([3, 4]), [2, 1, 0.5]);
  // §4.2: φ of `one` is (2, 3), of `other` (−1, 3.5): m + ‖(3, −½)‖, slope (M₁ − M₂)v/‖v‖ = ½·3/‖v‖ in x.
  const length = Math.hypot(3, 0.5);
  near(metaLoss("written_contrastive", bed)([3, 4]), [1 + length, 1.5 / length, 0]);
  // §4.3: 3 + λ/2·‖(1, 1.5)‖².
  near(metaLoss("written_curvature", { ...bed, tasks: [one], weight: 2 })([3, 4]).slice(0, 1), [3 + 3.25]);
});

test("the gradient norm takes the slope at the adapted point", () => {
  near(metaLoss("norm", { ...bed, tasks: [one], weight: 2 })([3, 4]).slice(0, 1), [3 + 8]);
});

test("equal curvatures: the contrastive formula has no slope at all", () => {
  const same = { ...bed, tasks: [one, { ...one, s: [-2, 0.5] }] };
  near(metaLoss("written_contrastive", same)([3, 4]).slice(1), [0, 0], 1e-14);
});

test("two equal tasks have distance 0, and a slope of 0", () => {
  near(metaLoss("written_contrastive", { ...bed, tasks: [one, one] })([3, 4]), [1, 0, 0]);
});

test("a hinge that is closed leaves the query loss alone", () => {
  // From 0, each task gets half of the way to (±40, 0) by its first half, and nowhere by its second: 20 within, and 40
  // between the tasks.
  const far = { ...bed, tasks: [40, -40].map((x) => ({ ...one, s: [x, 0], q: [x, 0] })), margin: 19.9, weight: 3 };
  near(metaLoss("triplet", far)([0, 0]), metaLoss("maml", far)([0, 0]));
  const open = metaLoss("triplet", { ...far, margin: 21 })([0, 0]);
  near(open.slice(0, 1), [metaLoss("maml", far)([0, 0])[0] + 3]);
});

test("every slope is that of its value, but for the two rules that hold something constant", () => {
  const full = { tasks: [one, other, oblique], lr: 0.3, steps: 3, weight: 0.7, margin: 1.5 };
  const [x, y, h] = [0.8, -1.7, 1e-6];
  for (const key of META_LOSS_KEYS) {
    const term = metaLoss(key, full), found = term([x, y]).slice(1);
    const slope = [[h, 0], [0, h]].map(([u, v]) => (term([x + u, y + v])[0] - term([x - u, y - v])[0]) / (2 * h));
    const apart = Math.hypot(found[0] - slope[0], found[1] - slope[1]);
    if (["fomaml", "reptile"].includes(key)) assert.ok(apart > 0.01, key);
    else near(found, slope, 1e-8);
  }
});

test("λ = 0 leaves the query loss", () => {
  const plain = { tasks: [one, oblique], lr: 0.3, steps: 2, weight: 0, margin: 1 };
  for (const key of ["norm", "triplet", "conml"]) near(metaLoss(key, plain)([1, 2]), metaLoss("maml", plain)([1, 2]));
});

test("the best start has no slope, and no grid point is better", () => {
  const full = { tasks: [one, other, oblique], lr: 0.3, steps: 3 };
  const best = bestStart(full), error = metaLoss("maml", full), xs = [-3, -1, 0, 1, 3];
  near(error(best).slice(1), [0, 0], 1e-12);
  assert.ok(surfaceOf(error, xs).flat().every((value) => value >= error(best)[0]));
});

test("a surface has its rows along y", () => {
  assert.deepEqual(surfaceOf(([x, y]) => [x + 10 * y], [0, 1, 2])[2], [20, 21, 22]);
});

test("beyond the edge the inner path goes away, before it comes near", () => {
  const off = (lr) => innerPath(oblique, [2, 2], lr, 60).map(([x, y]) => Math.hypot(x - 0.4, y + 0.7)).at(-1);
  assert.ok(off(edgeOf(oblique) * 1.05) > 10 && off(edgeOf(oblique) * 0.95) < 0.5);
  assert.equal(largestEigenvalue([2, 0, 0.5]), 2);
});

test("outer descent is plain: θ − β·gradient", () => {
  near(outerPath(([x, y]) => [0, x, 2 * y], [1, 1], 0.1, 2)[2], [0.81, 0.64]);
  near(solved([2, 1, 3], [5, 10]), [1, 3]);
});
