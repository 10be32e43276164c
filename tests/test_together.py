"""Experiments over seeds in one call: the same as one after the other; differences; what is kept.

And the commands that use them: what each row is.
"""
import json
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers import close

import metalit as ml
from reproduce import bootstrap, every_step, inner_state, learned_loss, maml_plus_plus
from reproduce.together import Bed, Row, finish, less, measured, summary, train_and_write, trained
from tools.tables import over_seeds

WAVES = ml.tasks.Sinusoids(shots=3)
BED = Bed(WAVES, WAVES, 4, 2, (0, 1, 3), n_tasks=5)


def plus_plus(seed):
    return ml.MAMLPlusPlus(ml.models.mlp(1, 4, 1, seed=seed), F.mse_loss, 0.05, 3)


def one_by_one(row, bed, seed, steps):
    "A run of its own."
    J = row.make(seed)
    adam = torch.optim.Adam(J.parameters(), lr=bed.lr)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, eta_min=bed.lr / 100)
    for step in range(steps):
        J.at(step, steps)
        adam.zero_grad()
        J(bed.tasks.batch(bed.batch_size, seed, step)).backward()
        adam.step()
        if row.cosine: slower.step()
    return J


@pytest.mark.parametrize("cosine", [False, True])
def test_all_seeds_at_once_are_one_after_the_other(cosine):
    row = Row(plus_plus, cosine)
    for seed, J in zip((3, 5), trained(row, BED, (3, 5), 4), strict=True):
        other = one_by_one(row, BED, seed, 4)
        assert J.gradient.exact == 1.0
        for p, q, first in zip(J.parameters(), other.parameters(),
                               plus_plus(seed).parameters(), strict=True):
            close(p, q, 1e-6)
            assert not torch.equal(p, first)


def test_what_is_frozen_stays_and_is_no_part_of_the_stack():
    row = Row(lambda seed: inner_state.with_inner(inner_state.ROWS["ALFA, the same for all tasks"],
                                                  seed))
    learned, _, unseen = ml.glyphs(size=14, per_class=8).split((0.7, 0.1, 0.2))
    bed = Bed(learned.episodes(5, 1, 1), unseen.episodes(5, 1, 1), 1, 1, (0, 1), accuracy=True,
              n_tasks=3)
    J, = trained(row, bed, (1,), 1)
    assert not J.inner.net[-1].weight.any() and not J.inner.net[-1].weight.requires_grad
    assert 0 <= measured(J, bed)["mean"][1] <= 100


def runs(*losses): return [{"mean": [loss]} for loss in losses]


def test_differences_seed_by_seed():
    found, = less(runs(1.0, 2.0, 3.5), runs(0.5, 1.0, 2.0))
    assert found["mean"] == pytest.approx(1.0)
    assert found["ci95"] == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)
    assert not found["shown"]
    assert less(runs(1.0, 2.1, 3.0), runs(0.0, 1.0, 2.0))[0]["shown"]
    broken, = less(runs(1.0, None), runs(0.5, 1.0))
    assert broken == {"mean": None, "ci95": None, "shown": False}
    assert summary(runs(1.0, None)) == [{"mean": None, "sd_of_seeds": None}]
    assert summary(runs(1.0, 3.0))[0] == {"mean": 2.0, "sd_of_seeds": pytest.approx(2**0.5)}


def test_a_wave_that_the_last_steps_made_worse_is_counted():
    @dataclass
    class Losses:
        per_task: torch.Tensor
    each = torch.tensor([[1.0, 0.5, 0.6], [1.0, 2.0, torch.nan]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ml, "evaluate", lambda *args, **options: Losses(each))
        assert measured(None, BED) == {"mean": [1.0, 1.25, None], "worse": [0.0, 0.5, 1.0]}


def test_a_row_that_is_there_is_not_trained_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = []
    def make(seed):
        made.append(seed)
        return plus_plus(seed)
    def write(share=1.0):
        train_and_write({"waves": BED}, {"waves": {"a": Row(make), "b": Row(make, True)}},
                        {"waves": (0, 1)}, share, {"what": "a trial"}, "trial")
        return json.loads((tmp_path / "results/trial.json").read_text())
    first, again = write(), write()
    assert made == [0, 1, 0, 1] and first["beds"] == again["beds"]
    rows = first["beds"]["waves"]["rows"]
    assert [gap["mean"] for gap in rows["a"]["minus_first"]["mean"]] == [0.0] * 3
    write(0.5)
    assert len(made) == 8                                    # other steps make another run
    table = over_seeds("waves", 3)(first)
    head, *_ = table.splitlines()
    assert head == "| loss after inner steps | 1 | 3 | beside the first, after 3 |"


def test_the_rows_of_the_commands_are_what_they_are_called():
    for name, row in maml_plus_plus.ROWS["characters"].items():
        J = row.make(0)
        scale = dict(J.inner.named_parameters()).get("scale")
        off = [part for part, kind in {
            "a loss at every step": type(next(iter(J.terms.each()))) is ml.QueryLoss,
            "learned rates": scale is None or not scale.requires_grad,
            "norms of each step": not isinstance(J.inner, ml.StepNorms),
            "first order first": isinstance(J.gradient, ml.Exact),
            "the cosine": not row.cosine}.items() if kind]
        expected = {"all parts": 0, "MAML": 5}.get(name, 1)
        assert len(off) == expected and (expected != 1 or name == f"without {off[0]}")
    for kind in every_step.METHODS.values():
        made = [row.make(0) for row in every_step.rows(kind).values()]
        steps = [(J.inner.steps, next(iter(J.terms.each())).early) for J in made]
        assert steps == [(5, 0.0), (5, 1.0), (1, 0.0)]
    assert [row.make(0).inner.steps for row in bootstrap.ROWS.values()] == [1] * 5
    found = {"rows": {"a": {"runs": [{"seed": 0, "mean": [1.0]}]}}}
    finish(found["rows"])
    assert found["rows"]["a"]["summary"][0]["mean"] == 1.0


@pytest.mark.parametrize("bed", learned_loss.BEDS.values())
def test_a_loss_is_learned_and_networks_descend_it(bed):
    tasks = bed.tasks(0)
    one, other = tasks.drawn(), tasks.drawn()
    assert not torch.equal(one.support.x, other.support.x)
    small = learned_loss.Bed(lambda seed: Short(bed.tasks(seed)), bed.query)
    plain, learned = (learned_loss.run(learned_loss.LOSSES[name], small, 0, 1.0)["mean"]
                      for name in ("squared error", "squared error, learned weight"))
    assert plain[0] == learned[0] and plain[1] != learned[1]


class Short:
    "The same tasks, for three meta-steps."
    steps, at = 3, (0, 2)

    def __init__(self, tasks): self.tasks = tasks

    def __getattr__(self, name): return getattr(self.tasks, name)
