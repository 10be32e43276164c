// The parts of the toolkit that need no page.
import assert from "node:assert/strict";
import test from "node:test";
import { colour, contour, levels, linspace, powersOfTen, same, shown, standIn, ticks, unpack }
  from "../../metalit/widgets/js/core.js";

test("linspace has both ends and equal steps", () => {
  assert.deepEqual(linspace(-1, 1, 5), [-1, -0.5, 0, 0.5, 1]);
});

test("ticks are round, inside, and include the ends where these are round", () => {
  assert.deepEqual(ticks(-5, 5, 5), [-4, -2, 0, 2, 4]);
  assert.deepEqual(ticks(0, 0.1, 5), [0, 0.02, 0.04, 0.06, 0.08, 0.1]);
  assert.deepEqual(ticks(3, 3), [3]);
});

test("powers of ten lie between the ends", () => {
  assert.deepEqual(powersOfTen(0.01, 150), [0.01, 0.1, 1, 10, 100]);
});

test("numbers are shown with a true minus, as powers where they are far away, and NaN in words", () => {
  assert.equal(shown(-1.23456, 2), "−1.23");
  assert.equal(shown(0), "0.000");
  assert.equal(shown(1234567), "1.2e+6");
  assert.equal(shown(null), "not a number");
  assert.equal(shown(NaN), "not a number");
  assert.equal(shown(-Infinity), "−∞");
});

test("unpack reads what Python packed: little-endian, with its shape", () => {
  const bytes = new Uint8Array(16);
  new DataView(bytes.buffer).setFloat64(0, 1.5, true);
  new DataView(bytes.buffer).setFloat64(8, -0.1, true);
  const b64 = btoa(String.fromCharCode(...bytes));
  assert.deepEqual([...unpack({ b64, shape: [2], dtype: "f8" }).data], [1.5, -0.1]);
  const four = new Uint8Array(4);
  new DataView(four.buffer).setFloat32(0, 0.1, true);
  assert.equal(unpack({ b64: btoa(String.fromCharCode(...four)), shape: [1], dtype: "f4" }).data[0], Math.fround(0.1));
  assert.deepEqual([...unpack({ b64: btoa("\x00\xff"), shape: [2], dtype: "u1" }).data], [0, 255]);
});

test("the contours of a cone are circles, to the accuracy of the grid", () => {
  const xs = linspace(-2, 2, 81), ys = linspace(-2, 2, 81);
  const cone = ys.map((y) => xs.map((x) => Math.hypot(x, y)));
  const segments = contour(xs, ys, cone, 1.234);
  assert.ok(segments.length > 50);
  for (const [a, b, c, d] of segments) {
    assert.ok(Math.abs(Math.hypot(a, b) - 1.234) < 1e-3);
    assert.ok(Math.hypot(a - c, b - d) <= 0.05 * Math.SQRT2 + 1e-12);
  }
  const length = segments.reduce((sum, [a, b, c, d]) => sum + Math.hypot(a - c, b - d), 0);
  assert.ok(Math.abs(length - 2 * Math.PI * 1.234) < 1e-2);
});

test("a saddle's cell gives two segments, and a cell with a hole none", () => {
  assert.equal(contour([0, 1], [0, 1], [[1, -1], [-1, 1]], 0).length, 2);
  assert.equal(contour([0, 1], [0, 1], [[1, NaN], [-1, 1]], 0).length, 0);
  assert.equal(contour([0, 1], [0, 1], [[1, null], [-1, 1]], 0).length, 0);
});

test("levels lie inside the surface, closer where it is low; a flat one has none", () => {
  const found = levels([[0, 4], [null, 16]], 4);
  assert.ok(found.every((level) => level > 0 && level < 16));
  assert.ok(found[1] - found[0] < found[3] - found[2]);
  assert.deepEqual(levels([[2, 2]], 4), []);
});

test("states are compared by value", () => {
  assert.ok(same({ lr: 0.1, points: [[1, 2]] }, { points: [[1, 2]], lr: 0.1 }));
  assert.ok(!same({ lr: 0.1 }, { lr: 0.1, steps: 1 }));
  assert.ok(!same({ points: [1] }, { points: [2] }));
  assert.ok(!same(null, {}));
});

test("colours have names, and a stand-in gives its data", () => {
  assert.equal(colour("blue"), "var(--m-blue)");
  assert.equal(colour("#123456"), "#123456");
  assert.equal(colour("#123456"), "#123456");
  const model = standIn({ state: { lr: 1 } });
  assert.ok(model.isStatic);
  assert.deepEqual(model.get("state"), { lr: 1 });
});
