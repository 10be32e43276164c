// The drawing pad without a page, and what the figure says in words.
import assert from "node:assert/strict";
import test from "node:test";
import { blownMessage, boxOf, decoded, encoded, meanSure, middled, remembered, rightOnes, sentence, stroke }
  from "../../metalit/widgets/js/episode.js";

const SIZE = [28, 28];
const blank = () => new Uint8Array(784);
const at = (ink, column, row) => ink[row * 28 + column];

test("a stroke is dark in the middle, fades over its edge, and leaves the rest alone", () => {
  const ink = blank();
  stroke(ink, SIZE, [5, 10.5], [15, 10.5], 1.2);
  assert.equal(at(ink, 10, 10), 255);
  assert.equal(at(ink, 10, 11), at(ink, 10, 9));
  assert.ok(at(ink, 10, 9) > 100 && at(ink, 10, 9) < 255);
  assert.equal(at(ink, 10, 12), 0);
  assert.equal(at(ink, 2, 10), 0);
  assert.equal(at(ink, 17, 10), 0);
});

test("a dot is round; a stroke over it keeps the darker ink; the rubber takes it away", () => {
  const ink = blank();
  stroke(ink, SIZE, [14.5, 14.5], [14.5, 14.5], 1);
  assert.equal(at(ink, 14, 14), 255);
  assert.equal(at(ink, 13, 14), at(ink, 14, 13));
  assert.ok(at(ink, 13, 13) < at(ink, 13, 14));
  const before = ink.slice();
  stroke(ink, SIZE, [14.5, 16.5], [14.5, 16.5], 1);
  assert.ok(ink.every((byte, i) => byte >= before[i]));
  stroke(ink, SIZE, [14.5, 10], [14.5, 20], 3, true);
  assert.ok(ink.every((byte) => byte === 0));
});

test("a stroke beyond the pad stays on it", () => {
  const ink = blank();
  stroke(ink, SIZE, [-9, 2], [40, 2], 1);
  assert.equal(at(ink, 0, 1), at(ink, 27, 1));
  assert.equal(ink.slice(5 * 28).some((byte) => byte > 0), false);
  stroke(ink, SIZE, [60, 60], [70, 70], 1);
  assert.equal(at(ink, 27, 27), 0);
});

test("a drawing comes back from the state byte by byte, and an empty one is empty", () => {
  const ink = Uint8Array.from({ length: 784 }, (_, i) => i % 256);
  assert.deepEqual(decoded(encoded(ink)), ink);
  assert.equal(encoded(blank()), "");
});

test("the box holds all visible ink", () => {
  assert.equal(boxOf(blank(), SIZE), null);
  const ink = blank();
  ink[3 * 28 + 5] = ink[9 * 28 + 20] = 255;
  ink[27 * 28 + 27] = 10;
  assert.deepEqual(boxOf(ink, SIZE), [3, 9, 5, 20]);
});

test("to the middle: moved by whole pixels, nothing lost, and at rest there", () => {
  const ink = blank();
  stroke(ink, SIZE, [3, 3], [9, 6], 1.2);
  const moved = middled(ink, SIZE), [top, bottom, left, right] = boxOf(moved, SIZE);
  assert.ok(Math.abs(top + bottom - 27) <= 1 && Math.abs(left + right - 27) <= 1);
  const sum = (bytes) => bytes.reduce((a, b) => a + b, 0);
  assert.equal(sum(moved), sum(ink));
  assert.deepEqual(middled(moved, SIZE), moved);
  assert.deepEqual(middled(blank(), SIZE), blank());
});

const spec = { images: { shape: [1, 4, 1, 28, 28] }, query: [[0, 1]],
               starts: { maml: { own: null }, mine: { own: "Adam" } } };
const picture = { query: [[[0.4, 0.6], [0.4, 0.6]], [[0.9, 0.1], [0.2, 0.8]]], drawn: null };

test("counts and means", () => {
  assert.equal(rightOnes(picture.query[0], [0, 1]), 1);
  assert.equal(rightOnes(picture.query[1], [0, 1]), 2);
  assert.ok(Math.abs(meanSure(picture.query[1], [0, 1]) - 0.85) < 1e-12);
});

test("the sentence says what is seen, also of an empty pad, a drawing, and a start that steps in its own way", () => {
  const state = { start: "maml", episode: 0, step: 1 };
  assert.equal(sentence(spec, state, picture),
    "After 1 step, 2 of 2 queries are right (before: 1 of 2). The pad is empty: draw one of the characters.");
  const coloured = { ...spec, images: { shape: [1, 4, 3, 28, 28] } };
  assert.equal(sentence(coloured, state, picture), "After 1 step, 2 of 2 queries are right (before: 1 of 2).");
  assert.match(sentence(spec, { ...state, step: 0 }, picture), /^Before any step, 1 of 2 queries are right\. The pad/);
  const drawn = { ...picture, drawn: [[0.5, 0.5], [0.07, 0.93]] };
  assert.match(sentence(spec, { ...state, start: "mine" }, drawn),
    /Your drawing is taken for number 2, 93 %\. This start steps in its own way, Adam\.$/);
});

test("the message names the step", () => {
  assert.match(blownMessage(0), /before the first inner step/);
  assert.match(blownMessage(3), /after inner step 3/);
});

test("what was computed is computed once for each figure, and the oldest makes room", () => {
  const spec = {}, other = {};
  let made = 0;
  const ask = (of, key) => remembered(of, key, () => ({ number: made++ }));
  const first = ask(spec, "a");
  assert.equal(ask(spec, "a"), first);                          // the same object, not an equal one
  assert.notEqual(ask(other, "a"), first);
  for (let i = 0; i < 11; i++) ask(spec, `b${i}`);
  assert.equal(ask(spec, "a"), first);
  assert.equal(made, 13);
  ask(spec, "one too many");
  assert.notEqual(ask(spec, "a"), first);
  assert.equal(made, 15);
});
