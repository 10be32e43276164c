// The training run: what is shown of a history, what is said of it, and how a live view follows the kernel.
import assert from "node:assert/strict";
import test from "node:test";
import { bounds, compute, earlier, lookInWords, metaSteps, news, top } from "../../metalit/widgets/js/training_run.js";

const look = (step) => ({ step, mean: [4, 4 - step / 100], ci95: [0.5, 0.25] });
const history = { status: "training", words: "Training: meta-step 30 of 90.", step: 30, steps: 90, inner: [0, 1], own: 1,
                  loss: { step: [10, 20], value: [4, 3] }, validation: { step: [], value: [], ci95: [] },
                  looks: [look(0), look(10), look(20)] };

test("at the end of the slider the newest look is shown, elsewhere the one chosen", () => {
  assert.equal(compute({ history }, { at: null }).now.step, 20);
  assert.equal(compute({ history }, { at: 1 }).now.step, 10);
  assert.deepEqual(compute({ history }, { at: 1 }).before, [4, 4]);
  const longer = { ...history, looks: [...history.looks, look(30)] };
  assert.equal(compute({ history: longer }, { at: null }).now.step, 30);
  assert.equal(compute({ history: longer }, { at: 1 }).now.step, 10);
  assert.equal(compute({ history }, { at: 9 }).at, 2);
});

test("before the first look there is nothing to show, and that is no error", () => {
  const picture = compute({ history: { ...history, looks: [] } }, { at: null });
  assert.deepEqual([picture.count, picture.now, picture.at, picture.traces], [0, null, null, []]);
  assert.equal(lookInWords(picture, 1), "");
});

test("up to eight earlier looks are kept, evenly spaced, never the one that is shown", () => {
  assert.deepEqual(earlier(0), []);
  assert.deepEqual(earlier(3), [0, 1, 2]);
  assert.deepEqual(earlier(80), [0, 10, 20, 30, 40, 50, 60, 70]);
});

test("of a run that goes on, a page says when it was made, a live view what Python says, and silence is told", () => {
  assert.equal(news(history, {}), "This picture was made during the run, at meta-step 30 of 90.");
  assert.equal(news(history, { live: true }), history.words);
  assert.match(news(history, { live: true, silent: 10 }), /^No news for 10 s, since meta-step 30 of 90: the kernel has stopped/);
  const over = { ...history, status: "finished", words: "Finished." };
  for (const how of [{}, { live: true }, { live: true, silent: 10 }]) assert.equal(news(over, how), "Finished.");
});

test("the sentence on a look has its numbers, and says NaN in words", () => {
  assert.equal(lookInWords(compute({ history }, { at: null }), 1),
    " At meta-step 20 the loss on unseen tasks is 4.000 before adapting, 3.800 after 1 inner step (before training 4.000).");
  const broken = { ...history, looks: [look(0), { step: 10, mean: [4, null], ci95: [1, null] }] };
  assert.match(lookInWords(compute({ history: broken }, { at: null }), 1), /not a number after 1 inner step/);
});

test("axes hold all finite numbers", () => {
  assert.deepEqual(bounds([0.02, null, 3], true), [0.01, 10]);
  assert.deepEqual(bounds([1, 1], true), [1, 10]);
  assert.deepEqual(bounds([null], false), [0.1, 1]);
  const [low, high] = bounds([-2, 4], false);
  assert.ok(low < -2 && low > -3 && high > 4 && high < 5);
  assert.equal(bounds([0.1, 4], false)[0], 0);
  assert.ok(bounds([5, 5], false)[1] > bounds([5, 5], false)[0]);
  assert.ok(top([0, 10], false) === 9.5 && top([1, 100], true) > 50 && top([1, 100], true) < 100);
});

test("while it trains the axis has room ahead, afterwards it ends where the run got", () => {
  assert.deepEqual(metaSteps(history, false), [0, 1.02 * 50]);
  assert.deepEqual(metaSteps({ ...history, step: 51 }, false), [0, 1.02 * 90]);
  assert.deepEqual(metaSteps({ ...history, step: 0, loss: { step: [] } }, false), [0, 1.02 * 1]);
  assert.deepEqual(metaSteps(history, true), [0, 1.02 * 30]);
  assert.deepEqual(metaSteps({ step: 1, steps: 90, loss: { step: [1, 2] } }, true), [0, 1.02 * 2]);
});
