// Lines over sliders: what is said of them.
import assert from "node:assert/strict";
import test from "node:test";
import { inWords } from "../../metalit/widgets/js/explore.js";

const spec = { xlabel: "steps", y: [0, 2] };

test("the ends of the lines, to three digits", () => {
  assert.equal(inWords(spec, { x: [0, 1], lines: { a: [1, 0.12345], b: [2, 1] } }), "At steps 1, a: 0.123; b: 1.");
});

test("a line that breaks off and lines that leave the window are named", () => {
  assert.equal(inWords(spec, { x: [0, 1], lines: { a: [1, null], b: [-1, 1], c: [1, 2.01] } }),
    "At steps 1, a: not finite; b: 1; c: 2.01. Where a line breaks off, a is not a finite number."
    + " Beyond the axis in places: b, c.");
});
