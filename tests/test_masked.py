"""ANIL, BOIL, CAVIA: closed forms on the quadratic bed, finite differences, limits, bad input."""
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import backward, close, flat, times
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit.inner.masked import Context, Masked, head_of, matching
from metalit.methods import ANIL, BOIL, CAVIA
from metalit.models import Contextual, Conv4, Point, mlp
from metalit.tasks import curvature, half_square
from metalit.training.memory import flops

LR = 0.4
MASKS = {"head": ({"only": "head"}, [0, 0, 0, 1]), "body": ({"without": "head"}, [1, 1, 1, 0]),
         "all": ({}, [1, 1, 1, 1])}


class Parts(nn.Module):
    "The quadratic bed with θ in two tensors, so that a mask can tell them apart."
    def __init__(self, theta):
        super().__init__()
        self.body, self.head = nn.Parameter(theta[:3].clone()), nn.Parameter(theta[3:].clone())

    def forward(self, x): return x @ torch.cat([self.body, self.head])


class Scalar(nn.Module):
    "ŷ = wx + vc with numbers w, v, c."
    def __init__(self, w=0.8, v=0.6):
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.tensor(value, dtype=torch.float64))
                          for value in (w, v))
        self.register_buffer("context", torch.zeros((), dtype=torch.float64))

    def forward(self, x): return self.w * x + self.v * self.context


def closed_form(task, theta, mask, steps):
    "φ of each task, its slope C(φ − q), and its way back (M_Dᵀ)ᴷ C(φ − q), with M_D = I − αDA."
    (A, s), (C, q) = curvature(task.support), curvature(task.query)
    D, eye = torch.diag(torch.tensor(mask, dtype=A.dtype)), torch.eye(4, dtype=A.dtype)
    phi = s + times(torch.linalg.matrix_power(eye - LR * D @ A, steps), theta - s)
    slope = times(C, phi - q)
    return phi, slope, times(torch.linalg.matrix_power(eye - LR * A @ D, steps), slope)


@pytest.mark.parametrize("which", MASKS)
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_closed_form(which, steps, bowls, start):
    options, mask = MASKS[which]
    model = Parts(start)
    J = ml.MetaLoss(model, half_square, inner=Masked(model, LR, steps, **options))
    value = backward(J, bowls)
    phi, slope, back = closed_form(bowls, start, mask, steps)
    _, q = curvature(bowls.query)
    close(torch.cat([*J.adapt(bowls.support).values()], -1), phi)
    close(value, 0.5 * ((phi - q) * slope).sum(-1).mean())
    close(flat(model), back.mean(0))


@pytest.mark.parametrize("which", ["head", "body"])
def test_the_closed_form_would_notice_a_transpose(which, bowls, start):
    A, _ = curvature(bowls.support)
    D = torch.diag(torch.tensor(MASKS[which][1], dtype=A.dtype))
    _, slope, back = closed_form(bowls, start, MASKS[which][1], 3)
    wrong = times(torch.linalg.matrix_power(torch.eye(4, dtype=A.dtype) - LR * D @ A, 3), slope)
    assert (wrong - back).mean(0).norm() > 0.02


@pytest.mark.parametrize("which", MASKS)
def test_first_order_is_the_slope_at_the_end(which, bowls, start):
    options, mask = MASKS[which]
    model = Parts(start)
    backward(ml.MetaLoss(model, half_square, inner=Masked(model, LR, 3, **options),
                         gradient=ml.FirstOrder()), bowls)
    close(flat(model), closed_form(bowls, start, mask, 3)[1].mean(0))


def gradcheck(J, task):
    names, values = zip(*((name, p.detach().clone().requires_grad_())
                          for name, p in J.named_parameters()), strict=True)
    return torch.autograd.gradcheck(
        lambda *values: functional_call(J, dict(zip(names, values, strict=True)), (task,)), values,
        atol=1e-8
    )


@pytest.mark.parametrize("method", [ANIL, BOIL])
def test_finite_differences(method, small_net, sines):
    assert gradcheck(method(small_net, F.mse_loss, lr=0.1, steps=2), sines)
    assert gradcheck(method(small_net, F.mse_loss, lr=0.1, steps=2, chunk_size=4), sines)


def in_context(size=2):
    return Contextual(mlp(1 + size, 3, 1, activation=nn.Tanh, seed=2).double(), size)


def test_finite_differences_with_a_context(sines):
    assert gradcheck(CAVIA(in_context(), F.mse_loss, lr=0.5, steps=2), sines)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 4.0])
def test_scalar_model_with_a_context(alpha):
    """Residual r(1 − αv²); v² = 1/α solves every task in one step.

    ∂J/∂v = −2αvr²(1 − αv²); ∂J/∂w = xr(1 − αv²)².
    """
    x, y = (torch.tensor(values, dtype=torch.float64)[:, None]
            for values in ([1.5, -0.4, 2.0], [0.3, 1.1, -2.0]))
    task = ml.Task(ml.Split(x, y), ml.Split(x, y))
    model = Scalar()
    J = CAVIA(model, half_square, lr=alpha)
    value = backward(J, task)
    r, factor = 0.8 * x - y, 1 - alpha * 0.6**2
    phi = J.adapt(task.support)
    close(phi["context"], (-alpha * 0.6 * r)[:, 0])
    close(J.predict(phi, x) - y, r * factor)
    close(value, 0.5 * (r * factor).square().mean())
    close(model.v.grad, (-2 * alpha * 0.6 * r**2 * factor).mean())
    close(model.w.grad, (x * r * factor**2).mean())
    best = Scalar(v=alpha**-0.5)
    assert backward(CAVIA(best, half_square, lr=alpha), task) < 1e-25 and best.v.grad.abs() < 1e-12
    model = Scalar()
    # c₁ counts as a constant
    backward(CAVIA(model, half_square, lr=alpha, gradient=ml.FirstOrder()), task)
    close(model.v.grad, (r * factor * -alpha * 0.6 * r).mean())


def test_a_context_is_no_parameter_and_starts_at_zero(sines):
    model = in_context()
    J = CAVIA(model, F.mse_loss, steps=2)
    assert not any("context" in name or "zero" in name for name, _ in J.named_parameters())
    assert not any("context" in name or "zero" in name for name in J.state_dict())
    before = J.adapt(sines.support)
    assert before["context"].shape == (6, 2) and before["context"].abs().min() > 0
    for name, p in model.named_parameters(): assert (before[name] == p).all()
    model.context.fill_(7.0)
    close(J.adapt(sines.support)["context"], before["context"], 0)
    close(J.curve(sines, (0,)), CAVIA(in_context(), F.mse_loss).curve(sines, (0,)), 0)


def test_without_a_step_a_context_is_nothing(sines):
    J = CAVIA(in_context(), F.mse_loss, steps=0)
    x = torch.cat([sines.query.x, torch.zeros(6, 3, 2)], -1)
    close(J(sines), F.mse_loss(J.model.model(x), sines.query.y), 1e-14)


def test_conv4_with_a_context():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 5, 1, 8, 8, generator=g), torch.arange(5).expand(2, -1)
    J = CAVIA(Conv4(5, size=8, filters=3, context=4), F.cross_entropy)
    phi = J.adapt(ml.Split(x, y))
    assert phi["context"].shape == (2, 4) and phi["context"].abs().max() > 0


@pytest.mark.parametrize(("pattern", "expected"),
                         [("0.*", {"0.weight", "0.bias"}), ("*.bias", {"0.bias", "2.bias"}),
                          ("[02].bias", {"0.bias", "2.bias"}),
                          ("0.weight, 2.*", {"0.weight", "2.weight", "2.bias"}),
                          (" 2.bias ,", {"2.bias"}), (None, set()), ("", set())])
def test_patterns(pattern, expected): assert matching(mlp(1, 3, 1), pattern) == expected


def test_unknown_pattern():
    for make in (lambda: matching(mlp(1, 3, 1), "0.*, head.*"),
                 lambda: Masked(mlp(1, 3, 1), only="head.*"),
                 lambda: Masked(mlp(1, 3, 1), without="head.*"),
                 lambda: ANIL(mlp(1, 3, 1), F.mse_loss, head="head.*"),
                 lambda: BOIL(mlp(1, 3, 1), F.mse_loss, head="head.*")):
        with pytest.raises(ValueError, match=r"pattern 'head\.\*' matches no parameter of "
                           r"Sequential; its parameters "
                           r"are 0\.weight, 0\.bias, 2\.weight, 2\.bias"):
            make()
    # capitals count
    with pytest.raises(ValueError, match="matches no parameter"): matching(mlp(1, 3, 1), "0.Weight")


def test_nothing_left_to_adapt():
    for make in (lambda: Masked(mlp(1, 3, 1), only="0.*", without="*.weight, *.bias"),
                 lambda: Masked(mlp(1, 3, 1), only=","), lambda: BOIL(Point(2), half_square)):
        with pytest.raises(ValueError, match="leave no parameter to adapt"): make()


def test_head_of():
    assert matching(mlp(1, 4, 4, 1), head_of(mlp(1, 4, 4, 1))) == {"4.weight", "4.bias"}
    assert matching(Point(2), head_of(Point(2))) == {"theta"}
    for options in ({}, {"pool": "max"}, {"context": 3}):
        assert matching(Conv4(5, size=16, filters=2, **options), head_of(
            Conv4(5, size=16, filters=2, **options)
        )) == {"head.weight", "head.bias"}
    assert head_of(Contextual(mlp(3, 4, 1), 2)) == "model.2.*"
    with pytest.raises(ValueError, match="ReLU has no layer with parameters"): head_of(nn.ReLU())


def test_only_what_is_named_is_adapted(small_net, sines):
    for method, moving in ((ANIL, {"2.weight", "2.bias"}), (BOIL, {"0.weight", "0.bias"})):
        phi = method(small_net, F.mse_loss, lr=0.1, steps=2).adapt(sines.support)
        assert ({name for name, p in small_net.named_parameters() if (phi[name] != p).any()}
                == moving)
        assert set(phi) == set(dict(small_net.named_parameters()))


@pytest.mark.parametrize("under_vmap", [False, True])
def test_the_gradient_is_taken_of_the_adapted_parameters_alone(under_vmap, small_net):
    theta = {name: p.detach() for name, p in small_net.named_parameters()}
    inner, asked = Masked(small_net, only="2.*"), []

    def loss(phi):
        asked.append({name for name, p in phi.items()
                      if p.requires_grad or torch._C._functorch.is_gradtrackingtensor(p)})
        return sum((p**2).sum() for p in phi.values())

    def slope(scale):
        return inner.slope(lambda phi: scale * loss(phi), theta)
    scales = torch.tensor([1.0, 3.0], dtype=torch.float64)
    found = (torch.func.vmap(slope)(scales)["2.weight"] if under_vmap
             else torch.stack([slope(scale)["2.weight"] for scale in scales]))
    assert set(slope(1.0)) == {"2.weight", "2.bias"} == asked[0]
    close(found, 2 * scales[:, None, None] * theta["2.weight"])


def test_a_loop_over_the_head_costs_no_inner_backward_pass_through_the_body(sines):
    net = mlp(1, 40, 40, 1).double()
    maml, anil = ([flops(lambda m=m, K=K: m(net, F.mse_loss, steps=K)(sines)) for K in (1, 3)]
                  for m in (ml.MAML, ANIL))
    assert anil[1] - anil[0] < 0.4 * (maml[1] - maml[0])
    first_order = [
        flops(lambda K=K: ANIL(net, F.mse_loss, steps=K, gradient=ml.FirstOrder())(sines))
        for K in (0, 2)
    ]
    # forward and backward, over 4 examples instead of 3
    once = first_order[0] * 4 / 3
    # two passes forward: two thirds, and the head
    assert first_order[1] - first_order[0] < 0.75 * once


def test_a_full_mask_is_maml(small_net, sines):
    value = backward(ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2), sines)
    gradient = flat(small_net)
    for options in ({}, {"only": "*"}, {"only": "0.*, 2.*"}):
        J = ml.MetaLoss(small_net, F.mse_loss, inner=Masked(small_net, 0.1, 2, **options))
        close(backward(J, sines), value, 1e-14)
        close(flat(small_net), gradient, 1e-13)


METHODS = {"anil": (ANIL, 0.1), "boil": (BOIL, 0.1), "cavia": (CAVIA, 0.5)}


def make(name, **options):
    method, lr = METHODS[name]
    model = in_context() if name == "cavia" else mlp(1, 5, 1, activation=nn.Tanh).double()
    return method(model, F.mse_loss, lr=lr, steps=2, **options)


def gradients(J, task):
    return [J(task).detach(), *torch.autograd.grad(J(task), list(J.parameters()))]


@pytest.mark.parametrize("name", METHODS)
def test_loop_is_vmap_is_chunks_is_compiled(name, sines):
    J = make(name)
    expected = gradients(J, sines)
    one_by_one = [gradients(J, sines.select(i)) for i in range(6)]
    chunked, compiled = make(name, chunk_size=4), make(name)
    compiled.compile(backend="eager")
    for found in ([torch.stack(parts).mean(0) for parts in zip(*one_by_one, strict=True)],
                  gradients(chunked, sines), gradients(compiled, sines)):
        for a, b in zip(found, expected, strict=True): close(a, b, 1e-12)
    close(J.per_task(sines)[0], torch.stack([of[0] for of in one_by_one]), 1e-12)


def test_for_model_and_on(small_net, sines):
    other = mlp(1, 7, 1).double()
    inner = Masked(small_net, 0.3, 4, only="2.*", without="2.bias", batch_size=3)
    twin = inner.for_model(other)
    assert twin.names == ["2.weight"] and (twin.lr, twin.steps, twin.batch_size) == (0.3, 4, 3)
    J = ANIL(small_net, F.mse_loss, lr=0.3).on(other, F.l1_loss)
    assert J.model is other and J.loss is F.l1_loss and J(sines).isfinite()
    context = Context(in_context(), 0.7, 3, batch_size=2)
    twin = context.for_model(in_context(4))
    assert twin.zero.shape == (4,) and (twin.lr, twin.steps, twin.batch_size) == (0.7, 3, 2)
    assert CAVIA(in_context(), F.mse_loss).on(in_context(4), F.l1_loss)(sines).isfinite()
    with pytest.raises(ValueError, match="matches no parameter of Point"):
        ANIL(small_net, F.mse_loss, head="2.*").on(Point(4), half_square)
    all_of_it = ANIL(small_net, F.mse_loss).on(Point(4), half_square)
    assert all_of_it.inner.names == ["theta"]


def test_a_schedule_of_the_rate_reaches_the_copy(small_net):
    falling = ml.schedule.Linear(0.5, 0.25)
    for twin in (Masked(small_net, falling).for_model(mlp(1, 7, 1)),
                 Context(in_context(), falling).for_model(in_context(4))):
        assert twin.lr == 0.5
        twin.at(9, 10)
        assert twin.lr == 0.25


def test_an_inner_loop_made_for_another_model(small_net, sines):
    with pytest.raises(ValueError, match=r"Masked was made for another model: this one has no "
                       r"parameter '4\.weight'"):
        ml.MetaLoss(small_net, F.mse_loss, inner=Masked(mlp(1, 5, 5, 1), only="4.*"))(sines)
    with pytest.raises(ValueError, match="this model has no parameter and no buffer 'context': the "
                       "inner loop was made for another model"):
        ml.MetaLoss(small_net, F.mse_loss, inner=Context(in_context()))(sines)


def test_a_model_without_a_context(small_net):
    with pytest.raises(ValueError, match="Sequential has 0 buffers called 'context'"):
        Context(small_net)
    with pytest.raises(ValueError, match="has 2 buffers called 'context'"):
        Context(nn.ModuleList([in_context(), in_context()]))

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.context = nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="Learned has 0 buffers"): Context(Learned())
    with pytest.raises(ValueError, match="size=0"): Contextual(mlp(1, 1), 0)


@pytest.mark.parametrize("kind", [Masked, Context])
def test_bad_numbers(kind):
    for options in ({"lr": 0.0}, {"lr": float("nan")}, {"steps": -1}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=next(iter(options))): kind(in_context(), **options)
    with pytest.raises(TypeError, match="moment"): kind(in_context(), moment=0.9)


def test_what_is_said_about_it(small_net):
    assert repr(Masked(small_net, only="2.*")) == "Masked(lr=0.01, steps=1, only='2.*')"
    assert repr(Masked(small_net, lr=0.3,
                       without="2.*")) == "Masked(lr=0.3, steps=1, without='2.*')"


def test_float64_and_float32_and_copies(sines):
    J = CAVIA(in_context(), F.mse_loss)
    twin = copy.deepcopy(J).float()
    assert twin.inner.zero.dtype == torch.float32
    torch.testing.assert_close(twin(sines.to(dtype=torch.float32)).double(), J(sines), rtol=1e-5,
                               atol=1e-5)


def test_an_unknown_label_is_a_lesson():
    "Not about masks: the words that few-shot classification needs most."
    x, y = (torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0)),
            torch.tensor([[0, 1, 2], [0, 1, 3]]))
    fine, task_loss = torch.zeros_like(y), F.cross_entropy
    for task in (((x, y), (x, fine)), ((x, fine), (x, y)), ((x, fine), (x, fine - 1))):
        J = ml.MAML(mlp(2, 4, 3), task_loss)
        for ask in (lambda J=J, task=task: J(task), lambda J=J, task=task: J.curve(task)):
            with pytest.raises(ValueError, match="The model has 3 outputs, so labels are 0 … 2"):
                ask()

    def broken(prediction, y): raise RuntimeError("of a reader's loss")
    with pytest.raises(RuntimeError, match=r"^of a reader's loss"):
        ml.MAML(mlp(2, 4, 3), broken)(((x, x), (x, x)))
    with pytest.raises((RuntimeError, ValueError), match="of a reader's loss"):  # with labels, too
        ml.MAML(mlp(2, 4, 3), broken)(((x, y), (x, y)))
