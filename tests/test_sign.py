"""Sign: Exact is FirstOrder to the last bit, a plain loop, its price, and what it refuses."""
import pytest
import torch
import torch.nn.functional as F
from helpers import close
from torch.func import functional_call

import metalit as ml
from metalit.checks import kept_bytes

LR = 0.05
WAYS = {"vmap": {}, "loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
        "chunks in a loop": {"chunk_size": 1, "batching": "loop"}}
HABITS = {"plain": {}, "momentum": {"momentum": 0.7}, "learned": {"learn_lr": True},
          "nesterov": {"momentum": 0.7, "nesterov": True}, "decay": {"weight_decay": 0.3},
          "rates": {"lr": {"0.*": 0.03, "*": LR}}}


def found(J, task):
    value = J(task)
    slopes = torch.autograd.grad(value, list(J.parameters()))
    return value.detach(), torch.cat([g.flatten() for g in slopes])


def error(phi, x, y):
    first, bias, last, offset = phi
    return (torch.tanh(x @ first.mT + bias) @ last.mT + offset - y).square().mean()


def by_loop(J, task):
    "Three steps, each by the sign of what momentum and decay make of the gradient."
    push, values, theta = J.inner.push, [], list(J.model.parameters())
    mu, decay = ((getattr(push, name) or 0.0 if push else 0.0)
                 for name in ("momentum", "weight_decay"))
    lr = J.inner.lr
    rates = [0.03, 0.03, LR, LR] if isinstance(lr, ml.inner.Rates) else [lr] * 4
    for x, y, x_query, y_query in zip(task.support.x, task.support.y, task.query.x, task.query.y,
                                      strict=True):
        phi, velocity = theta, [0.0] * 4
        for _ in range(3):
            at = [p.detach().requires_grad_() for p in phi]
            g = torch.autograd.grad(error(at, x, y), at)
            g = [d + decay * p.detach() for d, p in zip(g, at, strict=True)]
            velocity = [mu * v + d for v, d in zip(velocity, g, strict=True)]
            if push and push.nesterov: g = [d + mu * v for d, v in zip(g, velocity, strict=True)]
            else: g = velocity
            phi = [p - rate * d.sign() for p, rate, d in zip(phi, rates, g, strict=True)]
        values.append(error(phi, x_query, y_query))
    value = torch.stack(values).mean()
    slopes = torch.autograd.grad(value, list(J.parameters()))
    return value.detach(), torch.cat([g.flatten() for g in slopes])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("habits", HABITS)
def test_both_rules_are_one_and_a_plain_loop(habits, way, small_net, sines):
    def built(rule):
        inner = ml.Sign(**({"lr": LR, "steps": 3} | HABITS[habits]))
        return ml.MetaLoss(small_net, F.mse_loss, inner=inner, gradient=rule, **WAYS[way])
    exact, first = built(ml.Exact()), built(ml.FirstOrder())
    for one, other, right in zip(found(exact, sines), found(first, sines), by_loop(exact, sines),
                                 strict=True):
        assert torch.equal(one, other)
        close(one, right, atol=1e-12)


def test_by_finite_differences(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.Sign(LR, 3, learn_lr=True))
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-8)


def test_it_keeps_no_graph_of_the_inner_gradients(small_net, sines):
    kept = {inner: kept_bytes(ml.MetaLoss(small_net, F.mse_loss, inner=inner(LR, 8))(sines))
            for inner in (ml.Sign, ml.SGD)}
    assert kept[ml.Sign] < 0.3 * kept[ml.SGD]


def test_the_scale_of_a_loss_does_not_matter(small_net, sines):
    def thousand(prediction, y): return 1000 * F.mse_loss(prediction, y)
    ends = [ml.MetaLoss(small_net, F.mse_loss, inner=ml.Sign(LR, 3, loss=loss))(sines).detach()
            for loss in (None, thousand)]
    assert torch.equal(*ends)


def test_clip_is_refused():
    with pytest.raises(TypeError, match=r"Sign .* clip=1.0 would have no effect on it"):
        ml.Sign(clip=1.0)
    assert repr(ml.Sign()) == "Sign(lr=0.0035, steps=5)"
