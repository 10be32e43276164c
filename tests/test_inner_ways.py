"""Inner loops that learn something of each tensor: which works in which way of computing.

What works gives the value and the gradient that a plain call gives.
"""
import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import close, value_and_gradient
from torch import nn
from ways import check_goes_on, in_one_way

import metalit as ml

INNER = {
    "lslr": lambda net: ml.LSLR(net, 0.1, 3, momentum=0.5),
    "alfa": lambda net: ml.ALFA(net, 0.1, 3, decay=0.3),
    "alfa, nothing held": lambda net: ml.ALFA(net, 0.1, 3, decay=0.3, detach=False),
    "forget": lambda net: ml.Forget(net, 0.1, 3, momentum=0.5),
    "forget, nothing held": lambda net: ml.Forget(net, 0.1, 3, detach=False),
}
WAYS = ("loop", "chunks", "chunks in a loop", "processes", "torch.func", "twice", "a list",
        "padded")
RULES = {"first order": ml.FirstOrder, "truncated": lambda: ml.Truncated(1),
         "mixed mode": ml.MixedMode}


def meta_loss(name, net, **options):
    "What is learned is no longer what it was at the start, and has the net's dtype."
    J = ml.MetaLoss(net, F.mse_loss, inner=INNER[name](net), **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in J.inner.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return J


# As the authors have them they are in `test_all_ways.py`.
FREE = [name for name in INNER if name.endswith("nothing held")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FREE)
def test_an_inner_loop_in_a_way(name, way, small_net, sines):
    found = in_one_way(way, partial(meta_loss, name, small_net), sines)
    right = value_and_gradient(meta_loss(name, small_net), sines)
    close(found[0], right[0])
    close(found[1], right[1][:len(found[1])])                # some ways give θ's part alone


@pytest.mark.parametrize("name", ["lslr", "alfa", "forget"])
def test_an_inner_loop_in_one_graph(name, small_net, sines):
    "Traced; compiled they are in `test_all_ways.py`."
    found = in_one_way("traced", partial(meta_loss, name, small_net), sines)
    for one, other in zip(found, value_and_gradient(meta_loss(name, small_net), sines),
                          strict=True): close(one, other)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", INNER)
def test_an_inner_loop_under_a_rule(name, rule, small_net, sines):
    "Values are those of the exact rule, and so are the gradients of mixed mode."
    for batching in ("vmap", "loop"):
        found = value_and_gradient(
            meta_loss(name, small_net, gradient=RULES[rule](), batching=batching), sines)
        right = value_and_gradient(meta_loss(name, small_net), sines)
        close(found[0], right[0])
        if rule == "mixed mode": close(found[1], right[1])
        else: assert (found[1] - right[1]).norm() > 1e-6


@pytest.mark.parametrize("name", ["alfa", "forget"])
def test_trials_are_refused_where_something_is_held_constant(name, small_net):
    with pytest.raises(ValueError, match=r"(ALFA|Forget) holds a part of its value constant"):
        meta_loss(name, small_net, gradient=ml.Evolution())
    meta_loss(f"{name}, nothing held", small_net, gradient=ml.Evolution())


@pytest.mark.parametrize("name", FREE)
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(name, tmp_path):
    check_goes_on(lambda: meta_loss(name, ml.models.mlp(1, 4, 1, seed=0)), tmp_path)


@pytest.mark.parametrize("name", INNER)
def test_an_adapted_model_is_the_end_of_the_path(name, small_net, sines):
    J = meta_loss(name, small_net)
    ends, (x, y) = J.adapt(sines.support), sines.support[:2]
    adapted = J.adapted(x[1], y[1])
    for place, tensor in adapted.named_parameters(): close(tensor, ends[place][1])
    further = J.adapted(x[1], y[1], start=adapted, steps=0)  # what stands there is not forgotten
    for one, other in zip(further.parameters(), adapted.parameters(), strict=True):
        assert torch.equal(one, other)
    other = J.adapted(x[1], y[1], lr=0.05)
    assert not torch.equal(other[0].weight, adapted[0].weight)


@pytest.mark.parametrize("name", INNER)
def test_learning_as_a_program(name, small_net, sines):
    from metalit.program import as_program
    J, one = meta_loss(name, small_net), [part[0] for part in sines.support[:2]]
    asked = sines.query.x[0]
    close(as_program(J, *one, asked)(*one, asked), J.adapted(*one)(asked))


@pytest.mark.parametrize("name", INNER)
def test_for_another_model(name, small_net, sines):
    "What was learned goes along where the tensors have the same names, and else begins anew."
    J = meta_loss(name, small_net)
    wide = ml.models.mlp(1, 9, 1, seed=3).double()
    other = J.on(wide, F.mse_loss)
    assert other.inner.steps == 3
    for one, another in zip(J.inner.parameters(), other.inner.parameters(), strict=True):
        assert torch.equal(one, another)
    other(sines).backward()
    with pytest.warns(UserWarning, match="starts anew at .*: what it has learned") as told:
        deep = J.on(ml.models.mlp(1, 5, 5, 1, seed=3).double(), F.mse_loss)
    assert told[0].filename == __file__
    if name == "lslr": assert torch.equal(deep.inner.scale[:, :4], J.inner.scale)
    if name != "lslr": assert "its network" in str(told[0].message)
    deep(sines).backward()
    fresh = ml.MetaLoss(small_net, F.mse_loss, inner=INNER[name](small_net))
    fresh.on(ml.models.mlp(1, 5, 5, 1, seed=3).double(), F.mse_loss)  # nothing is lost, no warning
    assert copy.deepcopy(deep)(sines) == deep(sines)


@pytest.mark.parametrize("name", INNER)
def test_frozen_parameters(name, small_net, sines):
    "Those frozen at first are left out; more frozen ones later are missed by networks that look."
    small_net[0].weight.requires_grad_(False)
    J = meta_loss(name, small_net)
    J(sines).backward()
    small_net[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"while '0.weight' was frozen.*Make it anew"): J(sines)
    small_net[0].weight.requires_grad_(False)
    small_net[0].bias.requires_grad_(False)
    if name == "lslr": return J(sines).backward()
    with pytest.raises(ValueError, match=r"'0.bias' is now frozen or gone"): J(sines)


def test_rates_may_have_a_schedule_and_decay_too(small_net, sines):
    inner = ml.ALFA(small_net, ml.schedule.Linear(0.1, 0.0), 2, decay=ml.schedule.Linear(0.0, 1.0))
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner)
    values = []
    for step in range(3):
        J.at(step, 3)
        values.append(J(sines).item())
        fixed = ml.ALFA(small_net, [0.1, 0.05, 1e-300][step], 2, decay=[0.0, 0.5, 1.0][step])
        close(torch.tensor(values[-1]).double(), ml.MetaLoss(small_net, F.mse_loss,
                                                             inner=fixed)(sines).detach(), 1e-7)
    assert values[2] == pytest.approx(ml.MAML(small_net, F.mse_loss, steps=0)(sines).item())


def test_dtypes_and_parts_follow_the_model(small_net):
    for kind in (ml.LSLR, ml.ALFA, ml.Forget):
        assert {p.dtype for p in kind(small_net).parameters()} == {torch.float64}
        assert {p.dtype for p in kind(nn.Linear(1, 1)).parameters()} == {torch.float32}
        assert repr(kind(small_net, steps=2)).startswith(f"{kind.__name__}(")
