"""The judge: verdicts on meta-losses whose answers are known."""
import json
import re
from itertools import cycle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import metalit as ml
from metalit import as_written, judge, plots
from metalit.as_written import AsWritten
from metalit.batching.slope import grad
from metalit.judging import judge as judging
from metalit.judging.judge import MEANINGS, QUESTIONS, Answer

ROOT = Path(__file__).parent.parent


def net() -> torch.nn.Module:
    return ml.models.mlp(1, 5, 1)


NOISE = "how noisy is its gradient?"                          # a number, and has its own tests


def of_all_but_noise(answers) -> dict[str, str]:
    return {question.split("?")[0]: verdict for question, verdict in answers.verdicts().items()
            if question != NOISE}


def verdicts(J: ml.MetaLoss) -> dict[str, str]:
    return of_all_but_noise(judge(J))


def asked(J: ml.MetaLoss, *questions: str, seed: int = 0) -> list[str]:
    "Verdicts on some of the questions; the others are not asked, for they take their time."
    return [QUESTIONS[f"{question}?"](J, seed)[0] for question in questions]


def with_inner(kind, **choices) -> ml.MetaLoss:
    model = net()
    return ml.MetaLoss(model, F.mse_loss, inner=kind(model), **choices)


MAML = {"rewards not adapting": "no", "uses held-out data": "yes",
        "is it a gradient": "of its value",
        "what is held constant": "nothing",
        "invariant to what": "order, order of examples, origin, unit of loss",
        "blind on shared curvature": "no", "does the horizon move the optimum": "yes",
        "cost in K": "4.0, then 3.0 a step", "at αλ = 1.5, K = 1": "descends",
        "solves without support": "yes", "changes when classes are renamed": "yes"}
NO_K = {"does the horizon move the optimum": "has no K"}


@pytest.mark.parametrize(
    ("J", "differs"),
    [(lambda: ml.MAML(net(), F.mse_loss), {}),
     (lambda: ml.MAML(net(), F.mse_loss, chunk_size=2), {}),
     (lambda: ml.FOMAML(net(), F.mse_loss),
      {"is it a gradient": "no",
       "what is held constant": "inner gradients",
       "cost in K": "2.0, then 1.0 a step", "at αλ = 1.5, K = 1": "climbs"}),
     (lambda: ml.Reptile(net(), F.mse_loss),
      {"uses held-out data": "no", "is it a gradient": "no",
       "what is held constant": "in terms.distance", "cost in K": "1.0, then 1.0 a step"}),
     (lambda: ml.Reptile(net(), F.mse_loss, steps=1),
      {"uses held-out data": "no", "is it a gradient": "could be, of another scalar",
       "what is held constant": "in terms.distance", "cost in K": "1.0, then 1.0 a step"}),
     (lambda: AsWritten(net(), F.mse_loss, as_written.maml), NO_K | {"cost in K": "4.0, has no K"}),
     (lambda: AsWritten(net(), F.mse_loss, as_written.reptile),
      NO_K | {"rewards not adapting": "yes", "uses held-out data": "no",
              "cost in K": "3.0, has no K"}),
     (lambda: AsWritten(net(), F.mse_loss, as_written.contrastive),
      NO_K | {"rewards not adapting": "yes", "uses held-out data": "no",
              "blind on shared curvature": "yes",
              "cost in K": "3.0, has no K", "at αλ = 1.5, K = 1": "stands still"}),
     (lambda: ml.TripletMAML(net(), F.mse_loss, embedding="parameters"),
      {"blind on shared curvature": "Triplet is",
       "invariant to what": "order, order of examples, origin",
       "cost in K": "7.0, then 6.0 a step"}),
     (lambda: with_inner(ml.Diagonal), {})]
)
def test_verdicts_on_known_meta_losses(J, differs):
    assert verdicts(J()) == MAML | differs


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_verdicts_do_not_hang_on_the_seed(seed):
    for J, expected in (
        (ml.MAML(net(), F.mse_loss), ["no", "of its value", "nothing"]),
        (ml.FOMAML(net(), F.mse_loss), ["no", "no", "inner gradients"]),
        (AsWritten(net(), F.mse_loss, as_written.reptile), ["yes", "of its value", "nothing"])
    ):
        assert asked(J, "rewards not adapting", "is it a gradient", "what is held constant",
                     seed=seed) == expected


def test_the_seed_is_passed_on():
    J = ml.FOMAML(net(), F.mse_loss)
    answers = {answer.question: (answer.verdict, answer.evidence) for answer in judge(J, seed=1)}
    name = "is it a gradient?"
    assert answers[name] == QUESTIONS[name](J, 1) != QUESTIONS[name](J, 0)


@pytest.mark.parametrize("lr", [1e-4, 0.1])
def test_verdicts_do_not_hang_on_the_inner_step_size(lr):
    assert verdicts(ml.MAML(net(), F.mse_loss, lr=lr)) == MAML
    assert asked(ml.FOMAML(net(), F.mse_loss, lr=lr), "is it a gradient",
                 "what is held constant") == ["no", "inner gradients"]
    for formula, expected in ((as_written.reptile, "no"), (as_written.contrastive, "yes")):
        assert asked(AsWritten(net(), F.mse_loss, formula, lr=lr),
                     "blind on shared curvature") == [expected]


class Moved(ml.Term):
    "A reader's term: how far predictions move."
    def per_task(self, path, task):
        before, after = (path.predict(phi, path.probe) for phi in (path.theta, path.final))
        return ((after - before) ** 2).mean()


def test_a_term_of_the_readers_own_alone_and_in_a_sum():
    alone = verdicts(ml.MAML(net(), F.mse_loss, terms=Moved()))
    assert (alone["rewards not adapting"], alone["uses held-out data"]) == ("yes", "inputs only")
    added = verdicts(ml.MAML(net(), F.mse_loss, terms=ml.QueryLoss() + 0.1 * Moved()))
    assert (added["rewards not adapting"], added["uses held-out data"]) == ("no", "yes")
    assert added["what is held constant"] == "nothing"


def test_the_rates_beside_the_dead_point_are_the_closed_form():
    "α²‖∇ℓ‖² ≈ 4α²m²w²(u² + v²) near zero, with slope 8α²m²w² a unit."
    from metalit.judging.judge import lines, pulls
    task = lines(0)
    w, m = (task.support.y / task.support.x)[:, 0, 0], (task.support.x**2).mean((1, 2))
    found = pulls(AsWritten(net(), F.mse_loss, as_written.reptile, lr=0.03), task, 1e-4)
    expected = (8 * 0.03**2 * m**2 * w**2).mean().item()
    assert found == pytest.approx([expected, expected], rel=1e-6)


def test_sharp_maml_is_drawn_back_only_within_rho():
    found = verdicts(ml.SharpMAML(net(), F.mse_loss, rho_inner=0.0, rho_outer=0.05))
    assert found["rewards not adapting"] == "only close by"
    assert found["what is held constant"] == "in inner.sam with methods"


def test_what_the_inner_loop_learns_belongs_to_the_field():
    "With learned step sizes and stopped inner gradients, the joint field is no gradient."
    found = verdicts(with_inner(ml.Diagonal, gradient=ml.FirstOrder()))
    assert found["is it a gradient"] == "no"


def test_a_constant_that_detach_does_not_show_is_noticed():
    class Relative(ml.Term):
        def per_task(self, path, task):
            with torch.no_grad(): before = path.loss(path.theta, task.query)
            return path.loss(path.final, task.query) / before
    found = verdicts(ml.MAML(net(), F.mse_loss, terms=Relative()))
    assert found["what is held constant"] == "something without detach"


def test_a_query_set_that_enters_the_value_alone():
    class Reported(ml.Term):
        def per_task(self, path, task):
            return path.loss(path.final, task.support) + path.loss(path.final, task.query).detach()
    assert verdicts(ml.MAML(net(), F.mse_loss,
                            terms=Reported()))["uses held-out data"] == "in its value only"


def test_a_question_that_fails_is_an_answer_and_the_others_go_on():
    class Root(ml.Term):
        across_tasks = True
        def per_task(self, path, task): return path.loss(path.final, task.query)
        def pool(self, values): return ((values - values.mean()) ** 2).mean().sqrt()
    found = verdicts(ml.MAML(net(), F.mse_loss, terms=ml.QueryLoss() + Root()))
    assert found["at αλ = 1.5, K = 1"] == "not finite"
    assert found["is it a gradient"] == "of its value"

    class OnlyColumns(ml.Term):
        def per_task(self, path, task):
            if task.query.y.ndim != 2: raise ValueError("labels must be columns")
            return path.loss(path.final, task.query)
    answers = judge(ml.MAML(net(), F.mse_loss, terms=OnlyColumns()))
    failed = [answer for answer in answers if answer.verdict == "cannot be asked"]
    assert len(failed) == 5
    assert all(answer.evidence == "ValueError: labels must be columns" for answer in failed)


class HeavyBall(ml.InnerLoop):
    "A reader's inner loop, with a memory and without a step size `lr`."
    def step(self, loss, phi, state, k):
        slopes = grad(loss)(phi)
        move = {name: (0.9 * state[name] if k else 0.0) - 0.05 * slopes[name] for name in phi}
        return {name: phi[name] + move[name] for name in phi}, move


class Learned(HeavyBall):
    "One whose step size is learned, so that no question can set it."
    def __init__(self):
        super().__init__()
        self.lr = torch.nn.Parameter(torch.tensor(0.05))

    def step(self, loss, phi, state, k):
        slopes = grad(loss)(phi)
        return {name: phi[name] - self.lr * slopes[name] for name in phi}, state


@pytest.mark.parametrize("inner", [HeavyBall, Learned])
def test_an_inner_loop_without_a_step_size_to_set_is_asked_all_that_can_be_asked(inner):
    answers = judge(ml.MetaLoss(net(), F.mse_loss, inner=inner()))
    edge = answers[8]
    assert (edge.verdict, edge.question) == ("cannot be asked", "at αλ = 1.5, K = 1?")
    assert f"TypeError: {inner.__name__} has no step size lr" in edge.evidence
    assert of_all_but_noise(answers) == MAML | {
        "invariant to what": "order, order of examples, origin",
        "at αλ = 1.5, K = 1": "cannot be asked"}
    assert asked(ml.MetaLoss(net(), F.mse_loss, inner=inner(), gradient=ml.FirstOrder()),
                 "what is held constant") == ["inner gradients"]


def test_where_the_step_size_can_be_set_a_subclass_is_asked_at_it():
    class Half(ml.SGD):
        def direction(self, gradient): return {name: g / 2 for name, g in gradient.items()}
    found = judge(ml.MetaLoss(net(), F.mse_loss, inner=Half(0.01)))
    # half the step of α = 1 on a bowl of 1.5: λ(1 − αλ/2)² = 1.5 · 0.25²
    assert found[8].verdict == "descends"
    assert found[8].evidence.startswith("slope 0.09375 at a unit distance from the optimum")


def test_what_is_held_constant_is_found_in_a_loop_over_tasks_too():
    for kind, expected in ((ml.MAML, "nothing"), (ml.FOMAML, "inner gradients"),
                           (ml.Reptile, "in terms.distance"), (ml.SharpMAML, "in inner.sam")):
        assert asked(kind(net(), F.mse_loss, batching="loop"),
                     "what is held constant") == [expected]
    assert verdicts(ml.MAML(net(), F.mse_loss, batching="loop")) == MAML


def test_a_pooling_that_asks_which_tasks_these_are_is_judged():
    class Last(ml.Pooling):
        def forward(self, values, ids): return values[ids.argmax()]
    found = verdicts(ml.MAML(net(), F.mse_loss, pooling=Last()))
    assert (found["invariant to what"], found["uses held-out data"]) == (
        "order, order of examples, origin, unit of loss", "yes")
    assert "cannot be asked" not in found.values()


def test_what_cannot_be_judged_at_all_is_an_error():
    with pytest.raises(TypeError, match="judge asks a MetaLoss; found Linear"):
        judge(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="does not say what it measures"):
        judge(ml.MAML(net(), F.mse_loss, terms=ml.Term()))


def test_judging_changes_neither_the_meta_loss_nor_the_random_numbers():
    J = with_inner(ml.Diagonal)
    before, state = ({name: value.clone() for name, value in J.state_dict().items()},
                     torch.get_rng_state())
    judge(J)
    assert all(torch.equal(value, before[name]) for name, value in J.state_dict().items())
    assert all(p.grad is None for p in J.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert (J.inner.steps, J.inner.lr) == (1, 0.01)


def test_a_term_that_draws_random_numbers_gets_the_same_ones_at_each_call():
    class Noisy(ml.Term):
        def per_task(self, path, task):
            return path.loss(path.final, task.query) * (1 + 0.1 * torch.rand(()))
    J = ml.MAML(net(), F.mse_loss, terms=Noisy())
    assert verdicts(J)["is it a gradient"] == "of its value"
    with torch.random.fork_rng():
        torch.manual_seed(123)
        first = str(judge(J))
        torch.manual_seed(321)
        assert str(judge(J)) == first


WRITTEN = AsWritten(net(), F.mse_loss, as_written.contrastive)


def test_it_prints_in_eighty_columns_with_marks_and_the_evidence_of_what_is_no_fine_thing():
    answers = judge(WRITTEN)
    first, empty, *lines = str(answers).splitlines()
    assert first == ("2 faults (rewards not adapting?; blind on shared curvature?), 5 warnings in "
                     "12 answers") and not empty
    assert all(len(line) <= 80 for line in lines)
    assert [line[0] for line in lines if not line.startswith(" ")] == [a.mark for a in answers]
    place = lines.index("✗ blind on shared curvature?         yes")
    below = " ".join(line.strip() for line in lines[place + 1:place + 4])
    assert re.match(r"gradient there, against unequal curvatures: \S+ \(J\)\. See the chapter "
                    "“Contrast: comparing tasks”", below)
    assert lines[lines.index("✓ is it a gradient?                  of its value") + 1][0] != " "


def test_in_a_notebook_it_is_a_table_with_all_evidence():
    table = judge(WRITTEN)._repr_markdown_()
    assert table.startswith("**2 faults (")
    assert "| ✗ | blind on shared curvature? | yes | gradient there" in table
    assert "| ✓ | is it a gradient? | of its value | gradient off" in table


@pytest.mark.parametrize(("question", "verdict", "mark"), [
    ("rewards not adapting?", "no", "✓"), ("rewards not adapting?", "only close by", "!"),
    ("rewards not adapting?", "yes", "✗"), ("uses held-out data?", "no", "!"),
    ("is it a gradient?", "no", "!"), ("what is held constant?", "in inner.sam", "!"),
    ("invariant to what?", "order, order of examples, origin, unit of loss", "✓"),
    ("invariant to what?", "order, order of examples, origin", "!"),
    ("invariant to what?", "none", "✗"), ("blind on shared curvature?", "Triplet is", "!"),
    ("cost in K?", "4.0, then 3.0 a step", "✓"), ("cost in K?", "8.1, has no K", "!"),
    ("at αλ = 1.5, K = 1?", "climbs", "✗"), ("at αλ = 1.5, K = 1?", "cannot be asked", "!"),
    (NOISE, "1.9 × MAML's", "✓"), (NOISE, "2.1 × MAML's", "!"), (NOISE, "no signal seen", "!"),
    (NOISE, "not finite", "✗"), ("a question of mine?", "yes", "·")])
def test_what_an_answer_means(question, verdict, mark):
    answer = Answer(question, verdict, "")
    assert answer.mark == mark
    assert bool(answer.chapter) == (mark in "!✗" and question in QUESTIONS)


def test_every_question_has_a_meaning_and_its_chapter_is_one():
    titles = {json.loads(path.read_text())["cells"][0]["source"][0].strip("# \n")
              for path in (ROOT / "nbs").rglob("[0-9]*_*.ipynb")}
    assert QUESTIONS.keys() == MEANINGS.keys()
    assert {meaning.chapter for meaning in MEANINGS.values()} <= titles


def test_the_noise_of_a_gradient_is_what_one_computes_by_hand(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(16, 30, generator=generator, dtype=torch.float64)
    drawn[:, :3] += 1.5
    J, here = ml.MAML(net(), F.mse_loss), iter(drawn)
    monkeypatch.setattr(judging, "gradient", lambda J, task: next(here))
    first = drawn[:, :19]                                    # θ of the bed; the rest is not its own
    noise = first.var(0).sum().item()
    signal = (first.mean(0) ** 2).sum().item() - noise / 16
    assert judging.noise_against_signal(J, 0) == pytest.approx(noise / signal, rel=1e-12)


def test_no_signal_is_told_and_noise_is_told_beside_that_of_maml(monkeypatch):
    def noisy(**choices): return QUESTIONS[NOISE](ml.MAML(net(), F.mse_loss, **choices), 0)
    assert noisy()[0] == noisy(steps=3)[0] == "1 × MAML's"   # the same inner steps for both
    assert float(noisy(pooling=ml.Worst())[0].split()[0]) > 1.5
    both = cycle([torch.ones(19).double(), -torch.ones(19).double()])
    monkeypatch.setattr(judging, "gradient", lambda J, task: next(both))
    assert noisy()[0] == "no signal seen"


def test_the_pictures_have_the_numbers_of_every_question(tmp_path):
    answers, beside = judge(ml.FOMAML(net(), F.mse_loss)), judge(ml.MAML(net(), F.mse_loss))
    figure = answers.show(beside=beside)
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title() for ax in shown] == [f"{a.mark} {a.question}" for a in answers]
    edge = shown[8]
    assert [label.get_text() for label in edge.get_yticklabels()] == ["slope"]
    hollow, filled = (line.get_xdata() for line in edge.lines[:2])
    assert list(hollow) == [pytest.approx(0.375)] and list(filled) == [pytest.approx(-0.75)]
    assert edge.lines[1].get_color() == plots.COLOURS["red"]
    assert len(answers.show().axes[8].lines) == 2            # nothing beside it, and the zero


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("make", "verdict"), [
    (ml.MAML, "yes"), (ml.ANIL, "yes"), (ml.ProtoNet, "no"), (ml.ProtoMAML, "no"), (ml.R2D2, "no"),
    (ml.Unicorn, "no"),
    (lambda model, loss: ml.Unicorn(model, loss, gradient=ml.MixedMode()), "no")])
def test_whose_value_hangs_on_the_names_of_classes(make, verdict, seed):
    found = QUESTIONS["changes when classes are renamed?"](make(net(), F.cross_entropy), seed)
    assert found[0] == verdict and "J changes by" in found[1]
