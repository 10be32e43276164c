"""The gradient inside: under vmap, plain and compiled it is that of a loop of plain autograd."""
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap

from metalit.batching.modes import looped
from metalit.batching.slope import grad, hvp, in_transform
from metalit.models import mlp

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
MODEL = mlp(2, 3, 1, activation=nn.Tanh).double()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def theta(seed: int = 0) -> dict[str, Tensor]:
    return {name: random(*p.shape, seed=seed + i)
            for i, (name, p) in enumerate(MODEL.named_parameters())}


def loss(phi, x: Tensor) -> Tensor:
    return functional_call(MODEL, phi, (x,)).exp().sum()


X = random(4, 5, 2, seed=7)                                   # four tasks of five inputs
VECTOR = theta(seed=20)


def by_vmap(one, phi, x):
    return vmap(one, in_dims=(None, 0))(phi, x)


def plain(one, phi, x):
    return looped(one, phi, x)


def compiled(one, phi, x):
    return torch.compile(lambda phi, x: by_vmap(one, phi, x), backend="aot_eager")(phi, x)


ways = pytest.mark.parametrize("way", [by_vmap, plain, compiled])


def stacked(results: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def by_autograd(phi, x: Tensor) -> dict[str, Tensor]:
    leaves = {name: p.detach().requires_grad_() for name, p in phi.items()}
    return dict(zip(leaves, torch.autograd.grad(loss(leaves, x), list(leaves.values())),
                    strict=True))


def assert_same(found, right, atol: float = 1e-12) -> None:
    assert found.keys() == right.keys()
    for name in right:
        torch.testing.assert_close(found[name].detach(), right[name], rtol=0, atol=atol)


@ways
def test_it_is_that_of_a_loop_of_plain_autograd(way):
    phi = theta()
    assert_same(way(grad(loss), phi, X), stacked([by_autograd(phi, x) for x in X]))


@ways
def test_it_is_that_of_central_differences(way):
    phi, h = theta(), 1e-5
    along = {name: (VECTOR[name] * slope).flatten(1).sum(1)
             for name, slope in way(grad(loss), phi, X).items()}
    up, down = ({name: p + sign * h * VECTOR[name] for name, p in phi.items()} for sign in (1, -1))
    right = torch.stack([(loss(up, x) - loss(down, x)) / (2 * h) for x in X])
    torch.testing.assert_close(sum(along.values()).detach(), right, rtol=1e-7, atol=1e-7)


@ways
def test_a_parameter_that_does_not_matter_has_slope_zero(way):
    phi = theta() | {"idle": random(3)}
    found = way(grad(lambda phi, x: loss({n: phi[n] for n in VECTOR}, x)), phi, X)
    assert torch.equal(found["idle"], torch.zeros(4, 3, dtype=torch.float64))
    assert_same({n: found[n] for n in VECTOR}, stacked([by_autograd(theta(), x) for x in X]))


@ways
def test_a_constant_has_slope_zero(way):
    found = way(grad(lambda phi, x: x.sum()), theta(), X)
    for name, p in theta().items():
        assert torch.equal(found[name], torch.zeros(4, *p.shape, dtype=torch.float64))


@ways
def test_hvp_is_the_hessian_times_a_vector(way):
    phi = theta()
    found = way(lambda phi, x: hvp(lambda p: loss(p, x))(phi, VECTOR), phi, X)
    blocks = [hessian(loss)(phi, x) for x in X]
    right = [{row: sum(torch.tensordot(block[row][column], VECTOR[column], VECTOR[column].dim())
                       for column in phi) for row in phi} for block in blocks]
    assert_same(found, stacked(right), atol=1e-10)


@ways
def test_hvp_is_linear_in_the_vector(way):
    phi, other = theta(), theta(seed=40)
    def product(vector): return way(lambda phi, x: hvp(lambda p: loss(p, x))(phi, vector), phi, X)
    both = product({name: 2 * VECTOR[name] - 3 * other[name] for name in phi})
    one, two = product(VECTOR), product(other)
    assert_same(both, {name: (2 * one[name] - 3 * two[name]).detach() for name in phi}, atol=1e-10)


def cubic(p) -> Tensor:
    return (p["w"] ** 3).sum()


def test_hvp_can_be_differentiated_in_both():
    "Of Σ w³ the product is 6 w v: its slope in w is 6 v, in v it is 6 w."
    w, v = random(3).requires_grad_(), random(3, seed=1).requires_grad_()
    product = hvp(cubic)({"w": w}, {"w": v})["w"]
    in_w, in_v = torch.autograd.grad(product.sum(), (w, v))
    for found, right in ((product, 6 * w * v), (in_w, 6 * v), (in_v, 6 * w)):
        torch.testing.assert_close(found.detach(), right.detach(), rtol=0, atol=1e-13)


def test_the_second_derivative():
    w = random(3).requires_grad_()
    slope = grad(cubic)({"w": w})["w"]
    second, = torch.autograd.grad(slope.sum(), w, create_graph=True)
    third, = torch.autograd.grad(second.sum(), w)
    torch.testing.assert_close(slope.detach(), (3 * w ** 2).detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(second.detach(), (6 * w).detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(third, torch.full_like(third, 6), rtol=0, atol=1e-13)


def test_a_tangent_travels_through_the_gradient_of_a_constant():
    "Forward over reverse outside of transforms is the Hessian times the tangent."
    from torch.autograd import forward_ad
    phi, along = theta(), VECTOR
    with forward_ad.dual_level():
        moved = {name: forward_ad.make_dual(p, along[name]) for name, p in phi.items()}
        found = {name: forward_ad.unpack_dual(slope).tangent
                 for name, slope in grad(loss)(moved, X[0]).items()}
    assert_same(found, hvp(lambda phi: loss(phi, X[0]))(phi, along))


def test_under_no_grad_the_result_carries_no_graph():
    w = random(3).requires_grad_()
    assert grad(cubic)({"w": w})["w"].requires_grad
    with torch.no_grad():
        slope = grad(cubic)({"w": w})["w"]
        product = hvp(cubic)({"w": w}, {"w": torch.ones_like(w)})["w"]
    assert not slope.requires_grad
    assert not product.requires_grad
    torch.testing.assert_close(slope, (3 * w ** 2).detach(), rtol=0, atol=1e-13)
    torch.testing.assert_close(product, (6 * w).detach(), rtol=0, atol=1e-13)


def test_from_constants_the_result_carries_a_graph_only_where_something_is_learned():
    phi, factor = theta(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert not any(slope.requires_grad for slope in grad(loss)(phi, X[0]).values())
    for learned in (factor, factor * 1):                     # a leaf, and what comes of one
        slopes = grad(lambda phi, x, by=learned: by * loss(phi, x))(phi, X[0])
        along, = torch.autograd.grad(sum(slope.sum() for slope in slopes.values()), factor)
        torch.testing.assert_close(along, sum(g.sum() for g in by_autograd(phi, X[0]).values()))
    moving = {name: p.requires_grad_() for name, p in theta().items()}
    assert all(slope.requires_grad for slope in grad(loss)(moving, X[0]).values())


@ways
def test_extra_arguments_are_passed_on(way):
    def one(phi, x): return grad(lambda phi, a, b: a * (phi["w"] * b).sum())(phi, 3.0, x)
    found = way(one, {"w": random(2)}, X[:, 0])
    torch.testing.assert_close(found["w"].detach(), 3 * X[:, 0], rtol=0, atol=1e-13)


def test_in_transform():
    seen = []
    def watched(x):
        seen.append(in_transform())
        return x.sum()
    watched(X)
    vmap(watched)(X)
    torch.func.grad(watched)(X)
    watched(X)
    assert seen == [False, True, True, False]


class Sign(torch.autograd.Function):
    "The sign, with the gradient of the identity; in the old style, without `setup_context`."
    @staticmethod
    def forward(ctx, x): return x.sign()

    @staticmethod
    def backward(ctx, weight): return weight


def through_sign(phi) -> Tensor:
    return (Sign.apply(phi["w"]) * torch.arange(3.0, dtype=torch.float64)).sum()


def test_an_old_style_function_runs_outside_of_transforms():
    phi = {"w": random(3)}
    assert torch.equal(grad(through_sign)(phi)["w"], torch.arange(3.0, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="setup_context"): torch.func.grad(through_sign)(phi)
    with pytest.raises(RuntimeError, match="setup_context"):
        vmap(grad(through_sign))({"w": random(2, 3)})
