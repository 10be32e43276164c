// The convolutional network in JavaScript: exact small cases, and every backward pass against finite differences.
import assert from "node:assert/strict";
import test from "node:test";
import { channelsLast, convGradient, convPath, convStep, convTrace, crossEntropy, meanOverPlaces, meanOverPlacesBack,
         normalised, normalisedBack, patches, rowsTimesRows, rowsTimesRowsBack, softmax, unpatched }
  from "../../metalit/widgets/js/conv.js";

// Numbers without a pattern, the same on every run.
function numbers(seed) {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
}

const draw = (count, seed = 1) => Float64Array.from({ length: count }, numbers(seed));
const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
const close = (a, b, limit = 1e-8) => {
  assert.equal(a.length, b.length);
  a.forEach((value, i) => assert.ok(Math.abs(value - b[i]) < limit, `${i}: ${value} and ${b[i]}`));
};

// The slope of a function at every entry of `at`, by central differences.
function slopes(f, at, step = 1e-5) {
  return at.map((_, i) => {
    const moved = (by) => Float64Array.from(at, (value, j) => value + (i === j ? by : 0));
    return (f(moved(step)) - f(moved(-step))) / (2 * step);
  });
}

test("channels move to the end, filter by filter", () => {
  assert.deepEqual([...channelsLast([1, 2, 3, 4, 5, 6, 7, 8], 2, 2, 2)], [1, 3, 2, 4, 5, 7, 6, 8]);
});

test("neighbourhoods have a stride of 2 and a border of zeros", () => {
  const { cut, size } = patches(Float64Array.from([1, 2, 3, 4, 5, 6, 7, 8, 9]), 1, [3, 3], 1);
  assert.deepEqual(size, [2, 2]);
  assert.deepEqual([...cut.subarray(0, 9)], [0, 0, 0, 0, 1, 2, 0, 4, 5]);
  assert.deepEqual([...cut.subarray(27)], [5, 6, 0, 8, 9, 0, 0, 0, 0]);
});

test("neighbourhoods of an oblong with two channels and two images", () => {
  const x = Float64Array.from({ length: 2 * 2 * 4 * 2 }, (_, i) => i + 1);
  const { cut, size } = patches(x, 2, [2, 4], 2);
  assert.deepEqual(size, [1, 2]);
  assert.deepEqual([...cut.subarray(18, 36)], [0, 0, 0, 0, 0, 0, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14, 15, 16]);
  assert.equal(cut.length, 2 * 2 * 18);
});

test("unpatched is the transpose of patches", () => {
  for (const [count, size, inputs] of [[2, [5, 4], 3], [1, [7, 7], 1], [3, [1, 2], 2]]) {
    const x = draw(count * size[0] * size[1] * inputs), { cut } = patches(x, count, size, inputs);
    const slope = draw(cut.length, 2);
    assert.ok(Math.abs(dot(cut, slope) - dot(x, unpatched(slope, count, size, inputs))) < 1e-10);
  }
});

test("rows times rows, for filters in fours and the rest, and back", () => {
  assert.deepEqual([...rowsTimesRows([1, 2, 3, 4], [1, 0, 0, 1, 1, 1], 2, 3)], [1, 2, 3, 3, 4, 7]);
  for (const outputs of [1, 4, 6]) {
    const x = draw(3 * 5), weight = draw(outputs * 5, 2), slope = draw(3 * outputs, 3);
    const { toWeight, toX } = rowsTimesRowsBack(x, weight, slope, 5, outputs);
    close(toX, slopes((moved) => dot(rowsTimesRows(moved, weight, 5, outputs), slope), x));
    close(toWeight, slopes((moved) => dot(rowsTimesRows(x, moved, 5, outputs), slope), weight));
  }
  assert.equal(rowsTimesRowsBack(draw(4), draw(4), draw(4), 2, 2, false).toX, null);
});

test("batch normalisation by hand: values 1 and 3 become −1 and 1, then scale and shift", () => {
  const { out, unit } = normalised(Float64Array.from([1, 10, 3, 10]), [2, 5], [1, 7]);
  close(unit, [-1, 0, 1, 0], 1e-5);
  close(out, [-1, 7, 3, 7], 2e-5);
  close(unit.filter((_, i) => i % 2 === 0), [-1 / Math.sqrt(1 + 1e-5), 1 / Math.sqrt(1 + 1e-5)], 1e-12);
});

test("batch normalisation flows back through mean and variance, scale and shift", () => {
  const x = draw(4 * 3), scale = draw(3, 2), shift = draw(3, 3), slope = draw(12, 4);
  const { toX, toScale, toShift } = normalisedBack(normalised(x, scale, shift), scale, slope);
  close(toX, slopes((moved) => dot(normalised(moved, scale, shift).out, slope), x), 1e-7);
  close(toScale, slopes((moved) => dot(normalised(x, moved, shift).out, slope), scale));
  close(toShift, slopes((moved) => dot(normalised(x, scale, moved).out, slope), shift));
});

test("the mean over places, and back", () => {
  assert.deepEqual([...meanOverPlaces(Float64Array.from([1, 2, 3, 4, 5, 6, 7, 8]), 2, 2)], [2, 3, 6, 7]);
  const x = draw(2 * 3 * 4), slope = draw(2 * 4, 2);
  close(meanOverPlacesBack(slope, 2, 4, 3), slopes((moved) => dot(meanOverPlaces(moved, 2, 4), slope), x));
});

test("softmax adds up to one, also where the logits are huge", () => {
  close(softmax(Float64Array.from([0, Math.log(3), 1000, 0]), 2), [0.25, 0.75, 1, 0], 1e-12);
  assert.ok(Number.isNaN(softmax(Float64Array.from([NaN, 0]), 2)[1]));
});

test("cross-entropy by hand, its slope, and a loss that is large but finite", () => {
  const { loss, slope } = crossEntropy(Float64Array.from([0, Math.log(3)]), [0], 2);
  assert.ok(Math.abs(loss - Math.log(4)) < 1e-12);
  close(slope, [-0.75, 0.75], 1e-12);
  const logits = draw(3 * 4), labels = [2, 0, 2];
  close(crossEntropy(logits, labels, 4).slope, slopes((moved) => crossEntropy(moved, labels, 4).loss, logits));
  assert.equal(crossEntropy(Float64Array.from([0, 2000]), [0], 2).loss, 2000);
});

function network(inputs, filters, ways) {
  const fan = (count, length, seed) => draw(count, seed).map((value) => value / Math.sqrt(length));
  const layers = [inputs, filters, filters, filters].map((from, l) => ({
    weight: fan(filters * 9 * from, from, 10 + l), inputs: from, outputs: filters,
    scale: draw(filters, 20 + l).map((value) => 1 + value / 3),
    shift: draw(filters, 30 + l).map((value) => value / 3) }));
  return { layers, head: { weight: draw(ways * filters, 40), bias: draw(ways, 41), inputs: filters, outputs: ways } };
}

for (const [inputs, size] of [[1, [9, 9]], [3, [10, 7]]]) {
  test(`the gradient of a network on ${size} with ${inputs} channels is the slope of its loss`, () => {
    const start = network(inputs, 5, 3), x = draw(4 * size[0] * size[1] * inputs, 5), labels = [0, 2, 1, 0];
    const { loss, gradient } = convGradient(start, x, labels, size);
    assert.equal(loss, crossEntropy(convTrace(start, x, 4, size).logits, labels, 3).loss);
    const lossOf = (net) => crossEntropy(convTrace(net, x, 4, size).logits, labels, 3).loss;
    let checked = 0;
    const check = (part, slopesOfPart, put) => {
      for (const [key, found] of Object.entries(slopesOfPart)) {
        close(found, slopes((moved) => lossOf(put({ ...part, [key]: moved })), part[key], 1e-6), 1e-6);
        checked += found.length;
      }
    };
    gradient.layers.forEach((ofLayer, l) => check(start.layers[l], ofLayer, (moved) =>
      ({ ...start, layers: start.layers.map((layer, i) => (i === l ? moved : layer)) })));
    check(start.head, gradient.head, (moved) => ({ ...start, head: moved }));
    assert.equal(checked, 9 * 5 * (inputs + 15) + 4 * 10 + 3 * 5 + 3);
  });
}

test("a step goes down the slope and leaves the network it came from as it was", () => {
  const start = network(1, 4, 2), before = structuredClone(start), x = draw(3 * 64), labels = [0, 1, 1];
  const { gradient } = convGradient(start, x, labels, [8, 8]);
  const next = convStep(start, gradient, 0.5);
  assert.deepEqual(start, before);
  assert.equal(next.layers[2].scale[1], start.layers[2].scale[1] - 0.5 * gradient.layers[2].scale[1]);
  assert.equal(next.head.bias[0], start.head.bias[0] - 0.5 * gradient.head.bias[0]);
  assert.equal(next.layers[2].inputs, 4);
});

test("the path has every network on the way, and learns", () => {
  const x = draw(3 * 64), labels = [0, 1, 1], path = convPath(network(1, 4, 2), x, labels, [8, 8], 0.05, 4);
  assert.equal(path.length, 5);
  const losses = path.map((net) => convGradient(net, x, labels, [8, 8]).loss);
  assert.ok(losses.every((loss, k) => k === 0 || loss < losses[k - 1]), losses.join());
});

test("a NaN in the images reaches the answers: ReLU does not hide it", () => {
  const x = draw(2 * 64);
  x[5] = NaN;
  assert.ok(convTrace(network(1, 4, 2), x, 2, [8, 8]).logits.every(Number.isNaN));
});
