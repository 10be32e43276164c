// Lines over sliders: what is said of them.
import assert from "node:assert/strict";
import test from "node:test";
import { inWords, lowest, nearest, sides, snapped, valuesAt } from "../../metalit/widgets/js/explore.js";

const spec = { xlabel: "steps", y: [0, 2] };

test("the ends of the lines, to three digits", () => {
  assert.equal(inWords(spec, { x: [0, 1], lines: { a: [1, 0.12345], b: [2, 1] } }), "At steps 1, a: 0.123; b: 1.");
});

test("a line that breaks off and lines that leave the window are named", () => {
  assert.equal(inWords(spec, { x: [0, 1], lines: { a: [1, null], b: [-1, 1], c: [1, 2.01] } }),
    "At steps 1, a: not finite; b: 1; c: 2.01. Where a line breaks off, a is not a finite number."
    + " Beyond the axis in places: b, c.");
});

test("the lowest places are told, and an end of the axis is none", () => {
  assert.equal(lowest([2, 1, 3]), 1);
  assert.deepEqual([[1, 2, 3], [3, 2, 1], [null, null, null], []].map(lowest), [-1, -1, -1, -1]);
  const lines = { a: [2, 1, 2], b: [0, 1, 2] };
  assert.equal(inWords({ ...spec, lowest: true }, { x: [0, 0.5, 1], lines }), "Lowest: a at 0.5.");
  assert.equal(inWords({ ...spec, lowest: true }, { x: [0, 0.5, 1], lines: { b: lines.b } }), "Lowest: nowhere.");
});

test("the values under the pointer are those of the nearest place", () => {
  const now = { x: [0, 1, 2], lines: { a: [5, 6.12345, 7], b: [1, null, 3] } };
  assert.equal(valuesAt(spec, now, 0.8), "At steps 1, a: 6.12; b: not finite.");
  assert.equal(valuesAt(spec, now, 9), "At steps 2, a: 7; b: 3.");
});

test("what a logarithmic axis cannot show is said, and so is a picture of nothing", () => {
  const log = { xlabel: "steps", y: [0.1, 10], log: true };
  assert.equal(inWords(log, { x: [0, 1], lines: { a: [-1, 1], b: [1, 2] } }),
    "At steps 1, a: 1; b: 2. A logarithmic axis shows no number that is not above 0: a has some.");
  assert.equal(inWords(spec, { x: [0, 1], lines: { a: [null, null] } }),
    "There is nothing to draw: not one of these numbers is finite.");
  assert.match(inWords(spec, { x: [0, 1], lines: { a: [1, 1e308] } }), /Beyond the axis in places: a\./);
});

test("an interval has two ends, and none where there is no number; the nearest place is found", () => {
  assert.deepEqual(sides([1, null, 3], [0.5, 1, null]), [[0.5, null, null], [1.5, null, null]]);
  assert.deepEqual([-9, 0.4, 0.6, 9].map((at) => nearest([0, 1, 2], at)), [0, 0, 1, 2]);
});

test("a handle goes to the nearest value, and a key moves it by one at least", () => {
  const values = [-2, 0, 0.5, 3];
  assert.deepEqual([1.9, 0.2, -1.4].map((to) => snapped(values, 0, to)), [3, 0.5, -2]);
  assert.deepEqual([[0, 0.01], [0, -0.01], [3, 3.1], [-2, -2.5]].map(([from, to]) => snapped(values, from, to)),
    [0.5, -2, 3, -2]);
  assert.equal(snapped(values, 0, 0), 0);
});
