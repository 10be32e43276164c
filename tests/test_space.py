"""The space of meta-losses: what is drawn, counted, read back and written down as a program."""
import itertools
import math
import random
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit.designing.space import (
    Among,
    Between,
    Call,
    Counting,
    Setting,
    Size,
    Space,
    both,
    either,
    name_in_code,
    program_of,
    tasks_in_code,
)


def small(seed): return ml.models.mlp(1, 6, 1, seed=seed)


class Power(ml.Pooling):
    "A pooling of one's own, with a number."
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, values): return (values ** self.p).mean() ** (1 / self.p)


class Drawn:
    "A trial that draws at random and remembers."
    def __init__(self, seed, **fixed): self.params, self.random = dict(fixed), random.Random(seed)

    def suggest_categorical(self, name, values):
        return self.params.setdefault(name, self.random.choice(values))

    def suggest_int(self, name, low, high):
        return self.params.setdefault(name, self.random.randint(low, high))

    def suggest_float(self, name, low, high, log=False):
        to, back = (math.log, math.exp) if log else (float, float)
        return self.params.setdefault(name, back(self.random.uniform(to(low), to(high))))


SETTING = Setting(ml.tasks.Sinusoids(shots=4), small, F.mse_loss)
INNER = list(Space().choices["inner"].parts)
TERMS = list(Space().choices["terms"].parts)


@pytest.mark.parametrize(("inner", "terms"), [
    *((inner, "QueryLoss") for inner in INNER), *(("SGD", terms) for terms in TERMS)])
def test_a_program_makes_the_same_number_as_the_module_bit_for_bit(inner, terms):
    space, task = Space().add("pooling", Power, p=Between(1.0, 4.0)), SETTING.tasks.batch(3)
    for seed in range(2):
        trial = Drawn(seed, inner=inner, terms=terms)
        space.draw(trial)
        here = space.read(trial.params).made(small(0), F.mse_loss)
        there = {"__name__": "a program"}
        exec(program_of(space.read(trial.params), SETTING, steps=3), there)
        assert torch.equal(here(task), there["J"](task))
        rates = [there["optimizer"](here.parameters()).param_groups[0]["lr"],
                 space.read(trial.params).optimizer()(here.parameters()).param_groups[0]["lr"]]
        assert rates[0] == rates[1] == trial.params["outer"]


def test_a_program_runs_by_itself(tmp_path):
    trial = Drawn(0, inner="Sign", steps=1)
    sentence = Space().draw(trial)
    setting = SETTING._replace(written={"model": "ml.models.mlp(1, 6, 1, seed=0)"})
    file = tmp_path / "best.py"
    file.write_text(program_of(sentence, setting, steps=2, inner_steps=(2,)))
    done = subprocess.run([sys.executable, "-W", "error", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "600 unseen tasks" in done.stdout and "\n          2 " in done.stdout


class EveryAnswer:
    "A trial that goes through all discrete answers."
    def __init__(self): self.path, self.depth, self.numbers = [], 0, 0

    def again(self):
        self.depth = self.numbers = 0
        while self.path and self.path[-1][0] + 1 == self.path[-1][1]: self.path.pop()
        if self.path: self.path[-1] = (self.path[-1][0] + 1, self.path[-1][1])
        return bool(self.path)

    def suggest_categorical(self, name, values):
        if self.depth == len(self.path): self.path.append((0, len(values)))
        self.depth += 1
        return values[self.path[self.depth - 1][0]]

    def suggest_int(self, name, low, high):
        return self.suggest_categorical(name, range(low, high + 1))

    def suggest_float(self, name, low, high, log=False):
        self.numbers += 1
        return low


def test_the_size_is_what_one_counts():
    space = Space(steps=Counting(1, 2)).only(
        inner=["SGD", "SAM", "Forget"], extras=["Contrast"], gradient=["Exact"],
        pooling=["Mean", "Tail", "Worst"])
    trial, sentences, numbers = EveryAnswer(), set(), []
    for _ in itertools.count():
        sentences.add(space.draw(trial).words())
        numbers.append(trial.numbers)
        if not trial.again(): break
    assert space.size() == Size(len(sentences), min(numbers), max(numbers))
    assert len(numbers) == len(sentences)


def test_sizes_multiply_and_add():
    assert both(Size(2, 1, 1), Size(3, 0, 2)) == Size(6, 1, 3)
    assert either(Size(2, 1, 1), Size(3, 0, 2)) == Size(5, 0, 2)
    assert str(Size(1200, 1, 1)) == "1,200 sentences, each with 1 numbers"
    assert Space().size().sentences == 76800


def test_what_is_fixed_is_not_asked():
    space = Space(steps=2, outer=1e-3)
    trial = Drawn(0)
    sentence = space.draw(trial)
    assert not {"steps", "outer"} & set(trial.params)
    assert (sentence.inner.arguments["steps"], sentence.outer) == (2, 1e-3)


def test_a_part_that_says_its_own_number_of_steps_takes_as_many():
    space = ml.designing.Space().add("inner", ml.Ridge, weight=0.1, steps=0)
    space = space.only(inner=["SGD", "Ridge"], extras=[], mask=["all of them"])
    params = {"steps": 3, "terms": "QueryLoss", "pooling": "Mean", "gradient": "Exact",
              "outer": 1e-3, "SGD.lr": 0.1, "SGD.learn_lr": False, "mask": "all of them"}
    found = {name: space.read(params | {"inner": name}).made(ml.models.mlp(1, 4, 1), F.mse_loss)
             for name in ("SGD", "Ridge")}
    assert {name: J.inner.steps for name, J in found.items()} == {"SGD": 3, "Ridge": 0}
    ridge, both = (space.only(inner=names, pooling=["Mean"], terms=["QueryLoss"]).size().sentences
                   for names in (["Ridge"], ["SGD", "Ridge"]))
    assert (ridge, both) == (2, 2 + 2 * 2 * 5)               # two rules; rates learned or not, K


def test_a_mask_is_asked_for_plain_descent_alone():
    for seed, name in ((0, "SGD"), (1, "Adam")):
        trial = Drawn(seed, inner=name)
        Space().draw(trial)
        assert ("mask" in trial.params) == (name == "SGD")
    masked = Drawn(0, inner="SGD", mask="the last layer")
    J = Space().draw(masked).made(small(0), F.mse_loss)
    assert type(J.inner) is ml.Masked and J.inner.only == "{head}"


def test_a_description_lists_every_part_and_the_size():
    text = Space().add("extras", ml.Triplet, margin=Between(0.1, 2.0)).describe()
    for part in (*INNER, *TERMS, "Triplet: weight 0.0001 … 1 (log), margin 0.1 … 2 (log)"):
        assert part in text
    assert text.endswith("153,600 sentences, each with 2 to 11 numbers")
    assert str(Among((1, "a"))) == "1 or a" and str(Counting(1, 5)) == "1 … 5"


def made_inside(): return [lambda x: x, Space().describe]


@pytest.mark.parametrize(("wrong", "says"), [
    (lambda: Space().add("poling", Power), r"no choice 'poling' \(did you mean pooling\?\)"),
    (lambda: Space().add("pooling", ml.Mean), "has a part 'Mean' already"),
    (lambda: Space().only(inner=["sgd"]), r"inner has no part 'sgd'"),
    (lambda: Space().only(pooling=[]), r"pooling=\[\]: a sentence needs an answer"),
    (lambda: Space().read({"steps": 1}), "do not say 'inner'"),
    (lambda: name_in_code(made_inside()[0], {}), "at the left edge of a file"),
    (lambda: name_in_code(made_inside()[1], {}), "at the left edge of a file"),
    (lambda: tasks_in_code(ml.tasks.Quadratics(2), {}), "does not say how these tasks are made"),
    (lambda: SETTING._replace(written={"modle": ""}).code({}, 0), "'modle': it names"),
    (lambda: tasks_in_code(ml.tasks.Sinusoids(grid=7), {}), "does not say how"),
])
def test_errors_name_the_thing(wrong, says):
    with pytest.raises(ValueError, match=says): wrong()


def test_only_leaves_the_space_as_it_was():
    space = Space()
    fewer = space.only(inner=["SGD"])
    assert list(fewer.choices["inner"].parts) == ["SGD"] and len(INNER) == 10
    assert list(space.choices["inner"].parts) == INNER


def test_a_call_is_made_written_and_told():
    call, needed = Call(Power, {"p": 2.5}), {}
    assert call.made().p == 2.5 and call.words() == "Power (p 2.5)"
    assert call.code(needed) == "Power(p=2.5)" and list(needed) == [f"from {__name__} import Power"]
    assert Call(ml.SGD, {"lr": 0.1}).code({}) == "ml.SGD(lr=0.1)"
