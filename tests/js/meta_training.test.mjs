// Meta-training in the browser: its tasks, its gradients by finite differences, Adam by hand.
import assert from "node:assert/strict";
import test from "node:test";
import { adamStep, compute, inARow, metaGradient, metaStep, netOf, newAdam, remembered, taskOf, told }
  from "../../metalit/widgets/js/meta_training.js";
import { innerPath, meanSquare, mlpOutput } from "../../metalit/widgets/js/nn.js";

const sizes = [1, 4, 3, 1], shots = 5;
const theta = Array.from({ length: 8 + 15 + 4 }, (_, i) => Math.sin(7 * i + 1));
const spec = { sizes, shots, batch: 3, held: 4, outer: 0.01, grid: [-5, 5, 11], shown: [0, 1, 2] };
const state = { theta, count: 0, lr: 0.1, steps: 3, rule: "exact" };

test("a network is read from its parameters in a row, and written so", () => {
  const net = netOf(sizes, theta);
  assert.deepEqual(inARow(net.layers), theta);
  assert.deepEqual([...net.layers[1].bias], theta.slice(8 + 12, 8 + 15));
});

test("no two tasks are alike, and their points lie on their wave", () => {
  const waves = Array.from({ length: 50 }, (_, n) => taskOf(n, shots));
  assert.equal(new Set(waves.map(({ f }) => f(1))).size, 50);
  assert.equal(new Set(waves.flatMap(({ x, queryX }) => [...x, ...queryX])).size, 500);
  for (const { f, x, y } of waves) assert.deepEqual([...y], [...x].map(f));
});

test("the exact rule is the slope of the query loss after adaptation", () => {
  const task = taskOf(3, shots), h = 1e-6;
  const value = (row) => meanSquare(mlpOutput(innerPath(netOf(sizes, row), task.x, task.y, 0.1, 3).at(-1), task.queryX), task.queryY);
  const found = metaGradient(netOf(sizes, theta), task, state);
  found.forEach((slope, i) => {
    const moved = (by) => value(theta.map((v, j) => (i === j ? v + by : v)));
    const wanted = (moved(h) - moved(-h)) / (2 * h);
    assert.ok(Math.abs(slope - wanted) < 1e-6 * (1 + Math.abs(wanted)), `${i}: ${slope} is not ${wanted}`);
  });
  const first = metaGradient(netOf(sizes, theta), task, { ...state, rule: "first" });
  assert.ok(Math.hypot(...first.map((v, i) => v - found[i])) > 0.1);
});

test("Adam's first step is as long as its step size, in the direction of each slope", () => {
  const found = adamStep(newAdam(2), [1, 1], [5, -0.01], 0.1);
  assert.ok(Math.abs(found[0] - 0.9) < 1e-6 && Math.abs(found[1] - 1.1) < 1e-6);
});

test("meta-training helps after adaptation, and asks for other tasks each time", () => {
  let now = { ...state, lr: 0.02 };
  const memory = newAdam(theta.length), before = compute(spec, now).losses;
  for (let n = 0; n < 200; n++) now = { ...now, ...metaStep(spec, now, memory) };
  assert.equal(now.count, 200);
  assert.ok(compute(spec, now).losses[1] < 0.8 * before[1]);
});

test("rows of a run are thinned out, and a new run begins a new list", () => {
  let rows = [];
  for (let count = 0; count < 5000; count += 5) rows = remembered(rows, count, [1, 2]);
  assert.ok(rows.length <= 400 && rows.at(-1)[0] === 4995);
  assert.deepEqual(remembered(rows, 0, [3, 4]), [[0, 3, 4]]);
});

test("what is told", () => {
  assert.equal(told({ count: 1, steps: 1 }, { losses: [2, 1.234] }),
    "After 1 meta-step, the error on unseen tasks is 2.00 from θ itself and 1.23 after 1 inner step.");
  assert.match(told({ lost: true }, {}), /beyond all bounds/);
});
