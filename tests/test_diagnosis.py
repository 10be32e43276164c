"""`diagnose`: each number against a closed form, each part broken once."""
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import close, times
from torch.func import functional_call, grad, jacrev

import metalit as ml
from metalit.inner.sgd import largest_eigenvalue
from metalit.judging.diagnosis import (
    CHAPTERS,
    Noise,
    diagnose,
    noise_of,
    products_with_curvature,
)
from metalit.judging.judge import gradient
from metalit.judging.step_size import LATER
from metalit.tasks import curvature, half_square, quadratic_task

LR, K = 0.4, 2


class Apart(ml.tasks.Quadratics):
    "Bowls of which 40 are held out, whose query optima are elsewhere."
    n_held_out = 40

    def draw_held_out(self, n_tasks, random):
        return ml.tasks.Quadratics(self.dim, shift=1.0).draw(n_tasks, random)


def bowl(lr=LR, steps=K, **choices) -> ml.MetaLoss:
    start = torch.ones(3, dtype=torch.float64)
    return ml.MetaLoss(ml.models.Point(start), half_square, inner=ml.SGD(lr, steps), **choices)


def by_hand(task, steps=K):
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    M = torch.linalg.matrix_power(torch.eye(3, dtype=torch.float64) - LR * A, steps)
    away = s + times(M, 1 - s) - q
    return LR * torch.linalg.eigvalsh(A)[:, -1], 0.5 * (away * times(C, away)).sum(1), times(
        M, times(C, away))


def test_numbers_are_those_of_closed_forms():
    family = Apart(3)
    found = diagnose(bowl(), family, n_tasks=32)
    value, drawn = found.values(), family.batch(32, 0, LATER)
    for where in ("a step at θ", "a step at φ"):
        assert value[where] == pytest.approx(by_hand(family.batch(8, 0, LATER))[0].median().item(),
                                             rel=2e-3)
    assert value["what adapting gains"] == pytest.approx(
        (by_hand(drawn)[1] - by_hand(drawn, 0)[1]).mean().item(), abs=1e-12)
    g = torch.cat([by_hand(family.batch(1, 0, LATER + 1 + i))[2] for i in range(32)])
    noise = g.var(0).sum()
    assert value["noise of the gradient"] == pytest.approx(
        (noise / ((g.mean(0)**2).sum() - noise / 32)).item(), rel=1e-10)
    unseen, known = family.held_out(40), family.batch(40, 0, LATER)
    assert value["training and unseen"] == pytest.approx(
        (by_hand(unseen)[1].mean() - by_hand(known)[1].mean()).item(), abs=1e-12)


def apart_bowls() -> tuple[torch.Tensor, ml.Task]:
    "Curvatures 0.3, 0.7 and 2 along random axes, so that power iteration is soon done."
    given = curvature(ml.tasks.Quadratics(3).batch(4).support)[0]
    axes = torch.linalg.eigh(given).eigenvectors
    A = axes @ torch.tensor([0.3, 0.7, 2.0]).double().diag() @ axes.mT
    return A, quadratic_task(A, axes[..., 0])


def learned(model):
    inner = ml.Diagonal(model, LR, K)
    with torch.no_grad(): next(inner.parameters()).copy_(torch.tensor([0.5, 1.0, 2.0]))
    return inner


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize(("inner", "matrix"), [
    (lambda model: ml.SGD(LR, K), lambda A: LR * A),
    (lambda model: ml.SGD(LR, K, weight_decay=0.2), lambda A: LR * (A + 0.2 * torch.eye(3))),
    (lambda model: ml.Proximal(LR, K, pull=0.7), lambda A: LR * (A + 0.7 * torch.eye(3))),
    (learned, lambda A: LR * torch.tensor([0.5, 1.0, 2.0]).double().diag() @ A)])
def test_steps_of_any_kind_against_their_matrix(inner, matrix, batching):
    A, task = apart_bowls()
    model = ml.models.Point(torch.ones(3, dtype=torch.float64))
    J = ml.MetaLoss(model, half_square, inner=inner(model), batching=batching)
    expected = torch.linalg.eigvals(matrix(A)).real.amax(1)
    close(products_with_curvature(J, task, 40), expected[:, None].expand(-1, 2), 1e-7)


def test_on_a_network_it_is_the_largest_eigenvalue_of_the_hessian(small_net, sines):
    J = ml.MAML(small_net, F.mse_loss, lr=0.05)
    names = [name for name, _ in small_net.named_parameters()]
    theta = torch.nn.utils.parameters_to_vector(small_net.parameters()).detach()

    def loss(flat):
        parts = flat.split([p.numel() for p in small_net.parameters()])
        shaped = {name: part.view_as(p) for name, part, p in
                  zip(names, parts, small_net.parameters(), strict=True)}
        return F.mse_loss(functional_call(small_net, shaped, (sines.support.x[0],)),
                          sines.support.y[0])
    values = torch.linalg.eigvalsh(jacrev(grad(loss))(theta))
    largest = values[values.abs().argmax()]
    close(products_with_curvature(J, sines, 300)[0, 0], 0.05 * largest, 1e-6)


@pytest.mark.parametrize("matrix", [[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -2.0]],
                                    [[1.0, -1.0], [-1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
def test_power_iteration_finds_the_largest_in_size(matrix):
    "Of a matrix, too, whose largest direction is at right angles to a vector of ones; and of none."
    A = torch.tensor(matrix, dtype=torch.float64)
    values = torch.linalg.eigvalsh(A)
    found = largest_eigenvalue(lambda v: {"w": A @ v["w"]}, {"w": torch.ones(2).double()})
    close(found, values[values.abs().argmax()])


def test_noise_has_no_bias():
    "Means over many small samples are the true ones; without the correction they are not."
    generator = torch.Generator().manual_seed(0)
    mu = torch.tensor([0.6, 0.8], dtype=torch.float64)
    samples = mu + 2 * torch.randn(4000, 4, 2, generator=generator, dtype=torch.float64)
    found = [noise_of(sample) for sample in samples]
    signal = torch.tensor([one.signal for one in found])
    error = signal.std().item() / 4000**0.5
    assert abs(signal.mean().item() - 1.0) < 3 * error < 0.5
    assert torch.tensor([one.noise for one in found]).mean() == pytest.approx(8.0, rel=0.05)
    assert Noise(1.0, 8.0).tasks == 8.0 and Noise(1.0, 8.0, size=5).tasks == 40.0
    assert Noise(-0.1, 8.0).tasks == math.inf and Noise(0.0, 0.0).tasks == 0.0


def test_frozen_parameters_have_no_gradient_and_no_say():
    model = ml.models.mlp(1, 4, 1).double()
    model[0].weight.requires_grad_(False)
    sines = ml.tasks.Sinusoids().batch(2).to(dtype=torch.float64)
    g = gradient(ml.MAML(model, F.mse_loss), sines)
    assert len(g) == sum(p.numel() for p in model.parameters()) and (g[:4] == 0).all()
    assert g[4:].abs().max() > 0


BREAKS = {
    "sound": (LR, Apart, {"n_tasks": 24}, "training"),
    "long": (5.0, ml.tasks.Quadratics, {}, "too long"),
    "short": (1e-4, ml.tasks.Quadratics, {}, "hardly move"),
    "noisy": (LR, ml.tasks.Quadratics, {"batch_size": 1}, "batch_size="),
    "well": (LR, ml.tasks.Quadratics, {}, "train on")}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_is_named_first(name):
    lr, family, options, says = BREAKS[name]
    assert says in diagnose(bowl(lr), family(3), **{"n_tasks": 24} | options).next


def test_terms_and_poolings_that_look_at_batches_are_asked_by_batches():
    J, family = bowl(pooling=ml.Tail(0.5)), ml.tasks.Quadratics(3)
    found = diagnose(J, family, n_tasks=8, batch_size=4)
    gradients = [gradient(J, family.batch(4, 0, LATER + 1 + i)) for i in range(8)]
    expected = noise_of(gradients, 4).tasks
    assert found.values()["noise of the gradient"] in (expected, math.inf)
    assert expected > 4 * noise_of(gradients).tasks * 0.999


@pytest.mark.parametrize("inner", [ml.Adam(0.01, 2), ml.Sign(0.01, 2), ml.SGD(0.01, 0)])
def test_who_has_no_steps_from_a_slope_is_not_asked(inner):
    J = ml.MetaLoss(ml.models.mlp(1, 4, 1), F.mse_loss, inner=inner)
    found = diagnose(J, ml.tasks.Sinusoids(), n_tasks=8)
    assert found.mark("a step at θ") == "–" and found.values()["a step at φ"] is None


def test_unequal_tasks_and_a_family_of_its_own_for_unseen_ones():
    rows = {f"{i}": (torch.rand(5 + i, 1), torch.rand(5 + i, 1)) for i in range(6)}
    J = ml.MAML(ml.models.mlp(1, 4, 1), F.mse_loss)
    found = diagnose(J, ml.tasks.Given(rows, shots=3), unseen=ml.tasks.Sinusoids(), n_tasks=8)
    assert found.mark("training and unseen") == "✗"          # waves are larger than these numbers
    assert diagnose(J, ml.tasks.Given(rows, shots=3), n_tasks=8)[-1].found.endswith("no task out")


class Failing(ml.Term):
    "A term that can be measured and not be differentiated."
    def per_task(self, path, task):
        if torch.is_grad_enabled(): raise RuntimeError("this term of mine is broken")
        return path.loss(path.final, task.query)


def test_what_has_no_gradient_says_so_beside_the_rest():
    found = diagnose(bowl(terms=Failing()), ml.tasks.Quadratics(3), n_tasks=8)
    assert [one.mark for one in found][:4] == ["✓", "✓", "✓", "✗"]
    assert "this term of mine is broken" in str(found).replace("\n", " ").replace("  ", "")
    assert "mend" in found.next


def test_a_number_that_no_sample_shows_is_not_told():
    "Eight tasks about a place of rest: too few to see a signal, whatever the batch."
    J = ml.MAML(ml.models.Point(3), half_square, lr=0.3)
    found = diagnose(J, ml.tasks.Quadratics(3, spread=5.0), n_tasks=8, batch_size=1000)
    assert found.mark("noise of the gradient") == "!" and "too few" in found[3].found


def test_J_is_left_alone_and_mistakes_are_told():
    J, family = bowl(), ml.tasks.Quadratics(3)
    torch.manual_seed(1)
    state, theta = torch.get_rng_state(), J.model.theta.detach().clone()
    diagnose(J, family, n_tasks=8)
    assert torch.equal(J.model.theta, theta) and torch.equal(torch.get_rng_state(), state)
    assert J.model.theta.grad is None
    with pytest.raises(TypeError, match="found Point"): diagnose(J.model, family)
    with pytest.raises(TypeError, match="tasks is a Task"): diagnose(J, family.batch(8))
    with pytest.raises(ValueError, match="8 tasks or more"): diagnose(J, family, n_tasks=7)


def test_it_prints_in_a_terminal_and_leads_to_chapters_that_are_there():
    found = diagnose(bowl(), ml.tasks.Quadratics(3), n_tasks=8)
    lines = str(found).splitlines()
    assert all(len(line) <= 80 for line in lines) and lines[0][0] in "✓!✗–"
    assert "](../1_idea/07_inner_loop.ipynb)" in found._repr_markdown_()
    for title, page in CHAPTERS.items():
        text = (Path(__file__).parents[1] / "nbs" / f"{page}.ipynb").read_text(encoding="utf-8")
        assert f'"# {title}' in text, title
