"""What is set beside a figure: each baseline against a closed form or a plain loop.

And by name: in `compare`, with a user's own J, in `evaluate`, and in the command.
"""
import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import metalit
from torch import nn

import metalit as ml
from metalit.judging.baselines import (
    BASELINES,
    Baseline,
    Blind,
    GaussianProcess,
    InContext,
    Joint,
    NearestMean,
    Reader,
    RidgeOn,
    Scratch,
    all_examples,
    baseline,
    cholesky,
    kernel,
    surprise,
)
from metalit.judging.comparison import against, compare
from metalit.training.identity import identity

waves = ml.tasks.Sinusoids(shots=4, queries=3, grid=7)
generator = torch.Generator().manual_seed(0)
images = torch.rand(60, 1, 3, 3, generator=generator)
episodes = ml.tasks.Episodes(images, torch.arange(60) // 6, ways=5, shots=2, queries=3)
FEW = {"steps": 3, "batch_size": 4}


def net(seed=0): return ml.models.mlp(1, 6, 1, activation=nn.Tanh, seed=seed)


def double(task): return task.to(torch.float64)


def for_images(name):
    model = nn.Sequential(nn.Flatten(), ml.models.mlp(9, 6, 5))
    return baseline(name, model, F.cross_entropy, classes=True, **FEW, **quick(name))


def quick(name): return {"counts": (2,)} if name in ("scratch", "joint") else {}


def test_the_blind_constant_of_waves_is_the_one_that_is_known():
    found = Blind(F.mse_loss, steps=100).fit(waves)
    assert found.constant.item() == pytest.approx(-4 / math.pi * 2.55 * math.sin(5) / 10, abs=0.06)
    assert found.predict(*waves.held_out(3).query).shape == (3, 7, 1)


def test_who_is_blind_to_classes_is_right_once_in_as_many_as_there_are():
    found = ml.evaluate(for_images("blind").fit(episodes), episodes, n_tasks=5, steps=(0, 3),
                        metric={"accuracy": ml.accuracy, "loss": F.cross_entropy})
    assert found["accuracy"].mean == pytest.approx([0.2, 0.2])
    assert found["loss"].mean == pytest.approx([math.log(5)] * 2, rel=1e-5)


def test_scratch_and_joint_descend_as_a_plain_loop_does():
    task, rates = double(waves.held_out(2)), {"rates": (0.01,), "counts": (5,)}
    for kind in (Scratch, Joint):
        found = kind(net().double(), F.mse_loss, **rates, **FEW).fit(waves)
        answers = found.predict(task.support, task.query.x)
        for i in range(2):
            model = copy.deepcopy(found.learner.model)
            optimizer = torch.optim.Adam(model.parameters(), 0.01, betas=(0.0, 0.999))
            for _ in range(5):
                optimizer.zero_grad()
                F.mse_loss(model(task.support.x[i]), task.support.y[i]).backward()
                optimizer.step()
            torch.testing.assert_close(answers[i], model(task.query.x[i]).detach(), rtol=0,
                                       atol=1e-6)


def test_joint_training_is_adam_on_the_queries_of_all_tasks():
    model = net().double()
    joint = Joint(model, F.mse_loss, counts=(0,), **FEW)
    found = joint.fit(waves).learner.model
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    for task in waves.stream(4, 3, seed=0):
        optimizer.zero_grad()
        F.mse_loss(twin(double(task).query.x), double(task).query.y).backward()
        optimizer.step()
    torch.testing.assert_close(found.state_dict(), twin.state_dict(), rtol=0, atol=1e-12)
    assert not torch.equal(next(model.parameters()), next(twin.parameters()))   # ours is untouched


def test_ridge_takes_the_penalty_that_is_best_on_training_tasks_and_solves():
    found = RidgeOn(F.mse_loss, weights=(1e-3, 0.1, 30.0)).fit(waves)
    tried = [RidgeOn(F.mse_loss, weights=(w,)).fit(waves) for w in (1e-3, 0.1, 30.0)]
    task = found.looked(waves)
    losses = [F.mse_loss(one.predict(task.support, task.query.x), task.query.y).item()
              for one in tried]
    assert found.learner.inner.penalty() == (1e-3, 0.1, 30.0)[losses.index(min(losses))]
    X = torch.cat([task.support.x, torch.ones(50, 4, 1)], 2)[0]
    head = torch.linalg.solve(X.T @ X / 4 + found.learner.inner.penalty() * torch.eye(2),
                              X.T @ task.support.y[0] / 4)
    asked = torch.cat([task.query.x[0], torch.ones(3, 1)], 1)
    torch.testing.assert_close(found.predict(task.support, task.query.x)[0], asked @ head,
                               rtol=1e-4, atol=1e-4)


def test_ridge_on_features_sees_what_joint_training_made():
    joint = Joint(net(), F.mse_loss, **FEW)
    found = RidgeOn(F.mse_loss, joint, weights=(0.1,), **FEW).fit(waves)
    torch.testing.assert_close(found.learner.model.state_dict(),
                               joint.fit(waves).learner.model.state_dict())


def test_the_nearest_mean_is_the_nearest():
    task = episodes.batch(3)
    said = NearestMean(F.cross_entropy).fit(episodes).predict(task.support, task.query.x)
    for i in range(3):
        x, y = task.support.x[i].flatten(1), task.support.y[i]
        means = torch.stack([x[y == label].mean(0) for label in range(5)])
        nearest = torch.cdist(task.query.x[i].flatten(1), means).argmin(1)
        assert torch.equal(said[i].argmax(1), nearest)


def gaussian():
    found = GaussianProcess(F.mse_loss)
    found.numbers = torch.tensor([0.3, 0.8, 0.4, -1.5], dtype=torch.float64)
    return found


def test_a_gaussian_process_has_the_likelihood_of_the_normal_distribution():
    task, gp = double(waves.batch(2)), gaussian()
    K = kernel(task.support.x, task.support.x, gp.numbers)
    K = K + (math.exp(-3) + 1e-6 * math.exp(1.6)) * torch.eye(4)
    normal = torch.distributions.MultivariateNormal(torch.full((4,), 0.3).double(), K)
    torch.testing.assert_close(surprise(task.support, gp.numbers),
                               -normal.log_prob(task.support.y[..., 0]))


def test_a_gaussian_process_leaves_padding_out():
    task, gp = double(waves.batch(2)), gaussian()
    mask = torch.tensor([[True, True, True, False], [True, False, True, False]])
    wild = ml.Split(torch.where(mask[..., None], task.support.x, 7.0),
                    torch.where(mask[..., None], task.support.y, 0.0), mask)
    for i in range(2):
        short = ml.Split(*(leaf[i:i + 1, mask[i]] for leaf in task.support))
        torch.testing.assert_close(gp.predict(wild, task.query.x)[i],
                                   gp.predict(short, task.query.x[i:i + 1])[0])
        torch.testing.assert_close(surprise(wild, gp.numbers)[i], surprise(short, gp.numbers)[0])
    half = all_examples(ml.Task(wild, task.query))
    assert half.mask.sum(1).tolist() == [6, 5] and half.x.shape == (2, 7, 1)


def test_a_gaussian_process_finds_the_numbers_that_made_the_tasks():
    class Drawn(ml.Family):
        def sample(self, batch_size, generator):
            x = torch.rand(batch_size, 12, 1, generator=generator, dtype=torch.float64) * 8
            white = torch.randn(batch_size, 12, 1, generator=generator, dtype=torch.float64)
            y = 0.3 + cholesky(ml.Split(x, x), gaussian().numbers) @ white
            return ml.Task(ml.Split(x[:, :6], y[:, :6]), ml.Split(x[:, 6:], y[:, 6:]))
    found = GaussianProcess(F.mse_loss, steps=150, batch_size=30).fit(Drawn())
    torch.testing.assert_close(found.numbers, gaussian().numbers, rtol=0, atol=0.25)


def test_a_reader_minds_neither_the_order_nor_the_padding_of_what_it_reads():
    support, query = double(waves.batch(2))
    reader = Reader(waves.batch(2), 8, seed=0).double()
    said = reader(support, query.x)
    turned = ml.Split(support.x.flip(1), support.y.flip(1))
    torch.testing.assert_close(reader(turned, query.x), said)
    mask = torch.arange(5).expand(2, -1) < 4
    longer = ml.Split(*(torch.cat([leaf, leaf[:, :1]], 1) for leaf in support), mask)
    torch.testing.assert_close(reader(longer, query.x), said)
    assert not torch.allclose(reader(ml.Split(support.x, support.y + 1), query.x), said)


def shaped(x, y):
    "Tasks with inputs and targets of these shapes, whose target is one number, everywhere."
    class Shaped(ml.Family):
        def sample(self, batch_size, generator):
            level = torch.randn(batch_size, 1, generator=generator).expand(-1, 7)
            inputs = torch.randn(batch_size, 7, 2, generator=generator)
            targets = level + 0 * inputs.sum(-1)
            inputs, targets = inputs.reshape(batch_size, 7, *x), targets.reshape(
                batch_size, 7, *(1 for _ in y)).expand(-1, -1, *y)
            return ml.Task(ml.Split(inputs[:, :3], targets[:, :3]),
                           ml.Split(inputs[:, 3:], targets[:, 3:]))
    return Shaped()


@pytest.mark.parametrize("kind", [GaussianProcess, InContext])
@pytest.mark.parametrize("shape", [(), (3, 2)], ids=str)
def test_targets_of_any_shape(kind, shape):
    family = shaped((2,), shape)
    found = kind(F.mse_loss, **FEW).fit(family)
    support, query = family.held_out(3)
    said = found.predict(support, query.x)
    assert said.shape == query.y.shape
    if kind is GaussianProcess:
        flat = ml.Split(support.x, support.y.reshape(3, 3, -1))
        torch.testing.assert_close(said.reshape(3, 4, -1), found.predict(flat, query.x))
        one = kind(F.mse_loss, **FEW).fit(shaped((2,), (1,)))
        one.numbers = found.numbers
        single = one.predict(ml.Split(support.x, flat.y[..., :1]), query.x)
        torch.testing.assert_close(said.reshape(3, 4, -1), single.expand(3, 4, said[0, 0].numel()))


def test_a_network_that_reads_learns():
    before, after = (ml.evaluate(InContext(F.mse_loss, width=16, meta_lr=0.01, steps=steps,
                                           batch_size=10).fit(waves), waves, n_tasks=50).mean[0]
                     for steps in (1, 60))
    assert after < 0.9 * before


@pytest.mark.parametrize("name", list(BASELINES))
def test_every_baseline_answers_numbers_or_classes_as_often_as_it_says(name):
    made = {"numbers": lambda: baseline(name, net(), F.mse_loss, classes=False, **FEW,
                                        **quick(name)),
            "classes": lambda: for_images(name)}
    families = {"numbers": waves, "classes": episodes}
    only = {"nearest-mean": "classes", "gaussian-process": "numbers"}.get(name)
    for kind, make in made.items():
        if only not in (None, kind):
            with pytest.raises(ValueError, match=f"{name} is for tasks of {only}"): make()
            continue
        one, two = (ml.evaluate(make().fit(families[kind]), families[kind], n_tasks=4, steps=(0, 2))
                    for _ in range(2))
        assert torch.isfinite(one.per_task).all() and torch.equal(one.per_task, two.per_task)
        assert torch.equal(one.per_task[:, 0], one.per_task[:, 1])


def test_answers_are_judged_on_real_queries_alone_and_beside_a_method():
    tasks = {i: (torch.rand(n, 1), torch.rand(n, 1)) for i, n in enumerate((4, 6, 7, 9))}
    given = ml.tasks.Given({"a": tasks[3]}, tasks, shots=2)
    found = ml.evaluate(Blind(F.mse_loss, **FEW).fit(given), given, steps=(0, 1))
    task, constant = given.held_out(), Blind(F.mse_loss, **FEW).fit(given).constant
    for i in range(4):
        y = task.query.y[i][task.query.mask[i]]
        assert found.per_task[i, 0].item() == pytest.approx(((y - constant)**2).mean().item())
    J = ml.MAML(net(), F.mse_loss)
    assert ml.evaluate(J, given, steps=(0, 1)).minus(found).n_tasks == 4


def small(folder, methods, **changes):
    options = {"steps": 3, "seeds": [0, 1], "batch_size": 4, "inner_steps": (0, 1),
               "folder": folder, "progress": False}
    return compare(waves, net, F.mse_loss, methods=methods, **(options | changes))


def mine(seed): return ml.MAML(net(seed), F.mse_loss, lr=0.05)


def test_baselines_and_a_j_of_ones_own_stand_in_one_table(tmp_path):
    runs = small(tmp_path, {"maml": "maml", "mine": mine, "blind": "blind",
                            "smooth": lambda seed: GaussianProcess(F.mse_loss, steps=2)})
    assert [run.method for run in runs] == [n for n in ("maml", "mine", "blind", "smooth")
                                            for _ in range(2)]
    by_hand = mine(1)
    ml.meta_train(by_hand, waves, steps=3, batch_size=4, seed=1, progress=False)
    assert runs[3].rows[1]["loss"] == ml.evaluate(by_hand, waves, steps=(0, 1)).mean[1]
    assert [run.ms is None for run in runs] == [False] * 4 + [True] * 4
    assert runs[4].rows[0]["loss"] == runs[4].rows[1]["loss"]
    assert [one.method for one in against(runs, 1)] == ["mine", "blind", "smooth"]
    kept = tmp_path / "blind-seed0" / "result.json"
    assert small(tmp_path, ["blind"]) == runs[4:6] and kept.exists()
    changed = json.loads(kept.read_text())
    changed["run_of"]["J"]["steps"] = 4
    kept.write_text(json.dumps(changed))
    with pytest.raises(ValueError, match="steps"): small(tmp_path, ["blind"])


def test_what_is_asked_for_wrongly_is_said_before_anything_runs(tmp_path):
    with pytest.raises(ValueError, match="did you mean blind"): small(tmp_path / "a", ["blnd"])
    with pytest.raises(ValueError, match=r"no baseline 'blnd' \(did you mean blind"):
        baseline("blnd", net(), F.mse_loss, classes=False)
    with pytest.raises(ValueError, match="for tasks of classes"):
        small(tmp_path / "a", ["maml", "nearest-mean"])
    assert not (tmp_path / "a").exists()
    with pytest.raises(TypeError, match="predict"): ml.evaluate(Baseline(F.mse_loss), waves)

    class OfModel(ml.TaskLoss):
        def forward(self, predict, split, phi): return torch.zeros(())
    with pytest.raises(ValueError, match="asks the model itself"):
        ml.evaluate(Blind(OfModel(), **FEW).fit(waves), waves)


def test_a_baseline_says_what_it_is():
    words = [identity(one, weights=True) for one in (
        Scratch(net(), F.mse_loss), Scratch(net(1), F.mse_loss), Joint(net(), F.mse_loss),
        Scratch(net(), F.mse_loss, rates=(0.1,)), Scratch(net(), F.mse_loss, steps=7))]
    assert all(one != two for i, one in enumerate(words) for two in words[:i])


def test_the_command_sets_a_run_beside_those_who_do_not_learn(tmp_path):
    said = metalit("train", "sinusoids", "--steps", 2, "--out", tmp_path / "run", "--quiet",
                   "--test-tasks", 10)
    assert said.count("   blind\n") == 1
    found = metalit("evaluate", tmp_path / "run", "--tasks", 10, "--beside",
                    "blind,ridge-inputs,scratch")
    line = next(line for line in found.splitlines() if line.endswith("   blind"))
    assert line in said.splitlines()
    assert "   ridge-inputs\n" in found and "   scratch\n" in found
    assert "nearest-mean is for tasks of classes" in metalit(
        "evaluate", tmp_path / "run", "--beside", "nearest-mean", code=1)
    assert "did you mean joint" in metalit("evaluate", tmp_path / "run", "--beside", "jont", code=1)
