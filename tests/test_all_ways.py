"""Every public class of every choice in every way of computing: which work, and which are refused.

What works gives the value and the gradient that a plain call gives. A new public class that stands
in no table here fails the last test.
"""
import pytest
import torch
import torch.nn.functional as F
from helpers import close, value_and_gradient
from torch import nn
from ways import check_goes_on, in_one_way

import metalit
import metalit as ml

# What cannot be for a reason that has a test of its own elsewhere, or one that is said here.
HALVES = "a mean of two halves is another number; test_distributed.py has two processes"


def net(): return ml.models.mlp(1, 5, 1, activation=nn.Tanh, seed=0).double()
def head(): return ml.models.mlp(1, 5, 3, activation=nn.Tanh, seed=0).double()
def in_context(): return ml.models.Contextual(ml.models.mlp(3, 5, 1, seed=0), 2).double()


def normed():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)).double()


def bottleneck():
    encoder, last = ml.models.mlp(1, 4, 4, seed=0), ml.models.mlp(2, 4, 1, seed=0)
    return ml.models.Bottleneck(encoder, last).double()


def priced(model=net, **more):
    "In evaluation mode, where nothing is drawn at random."
    return lambda **options: ml.MRMAML(model(), F.mse_loss, 0.1, 2, weight=0.1, **more,
                                       **options).eval()


def moved(part):
    "A part, whose learned numbers are no longer what they were at the start."
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in part.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return part


def inner(make, model=net):
    def build(**options):
        network = model()
        return ml.MetaLoss(network, F.mse_loss, inner=moved(make(network).double()), **options)
    return build


def learned(make): return inner(lambda net: ml.SGD(0.05, 2, loss=make().double()))


def term(make, model=net):
    def build(**options):
        return ml.MetaLoss(model(), F.mse_loss, inner=ml.SGD(0.1, 2), **options,
                           terms=ml.QueryLoss() + 0.7 * make())
    return build


def pooling(make):
    def build(**options):
        return ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(0.1, 1), pooling=make().double(),
                           **options)
    return build


def rule(make):
    def build(**options):
        return ml.MetaLoss(net(), F.mse_loss, inner=ml.Proximal(0.02, 2, pull=20.0),
                           gradient=make(), **options)
    return build


def of_classes(make, **choices):
    def build(**options):
        model = head()
        loop = make(model) if make else ml.SGD(0.3, 2)
        return ml.MetaLoss(model, F.cross_entropy, inner=loop.double(), **choices, **options)
    return build


INNER = {
    "SGD": inner(lambda net: ml.SGD(0.1, 2, momentum=0.5, weight_decay=0.1, clip=1.0)),
    "Adam": inner(lambda net: ml.Adam(0.01, 2)), "SAM": inner(lambda net: ml.SAM(0.1, 2)),
    "Masked": inner(lambda net: ml.Masked(net, 0.1, 2, only="2.*")),
    "Context": inner(lambda net: ml.Context(net, 0.1, 2), in_context),
    "Diagonal": inner(lambda net: ml.Diagonal(net, 0.1, 2)),
    "Kronecker": inner(lambda net: ml.Kronecker(net, 0.1, 2)),
    "Proximal": inner(lambda net: ml.Proximal(0.1, 2)), "Sign": inner(lambda net: ml.Sign(0.01, 2)),
    "LSLR": inner(lambda net: ml.LSLR(net, 0.1, 2, momentum=0.5)),
    "StepNorms": inner(lambda net: ml.StepNorms(net, 0.1, 2), normed),
    "ALFA": inner(lambda net: ml.ALFA(net, 0.1, 2, decay=0.3)),
    "Forget": inner(lambda net: ml.Forget(net, 0.1, 2, momentum=0.5)), "Noisy": priced(),
    "Ridge": inner(lambda net: ml.Ridge(net, 0.1, learn=True)),
    "LossNetwork": learned(lambda: ml.LossNetwork(width=4)),
    "LossPolynomial": learned(ml.LossPolynomial), "LossLibrary": learned(ml.LossLibrary),
    "LossWeights": learned(lambda: ml.LossWeights(width=4)),
    "Prototypes": of_classes(lambda net: ml.Prototypes(net, 0.3, 2)),
    "SharedHead": of_classes(lambda net: ml.SharedHead(net, 0.3, 2)),
}
TERMS = {
    "QueryLoss": term(ml.QueryLoss), "EveryStep": term(ml.EveryStep),
    "ParameterDistance": term(ml.ParameterDistance), "Contrast": term(ml.Contrast),
    "Triplet": term(ml.Triplet), "GradientNorm": term(ml.GradientNorm),
    "PathLength": term(ml.PathLength), "Bootstrap": term(lambda: ml.Bootstrap(1)),
    "GradientAlignment": term(ml.GradientAlignment), "Inequality": term(ml.Inequality),
    "EntropyReduction": of_classes(None, terms=ml.QueryLoss() + ml.EntropyReduction()),
    "WeightInformation": priced(),
    "ActivationInformation": priced(bottleneck, information="activations"),
}
POOLINGS = {"Mean": pooling(ml.Mean), "ByExamples": pooling(ml.ByExamples),
            "Tail": pooling(lambda: ml.Tail(0.4)), "Tilted": pooling(lambda: ml.Tilted(2.0)),
            "Worst": pooling(ml.Worst), "WorstCase": pooling(lambda: ml.WorstCase(6))}
RULES = {"Exact": rule(ml.Exact), "FirstOrder": rule(ml.FirstOrder),
         "MixedMode": rule(ml.MixedMode), "Truncated": rule(lambda: ml.Truncated(1)),
         "AnnealedOrder": rule(ml.AnnealedOrder),
         "Implicit": rule(lambda: ml.Implicit(5)),
         "Evolution": rule(lambda: ml.Evolution(0.1, n=6))}
PARTS = INNER | TERMS | POOLINGS | RULES
CLASSES = {"Prototypes", "SharedHead", "EntropyReduction"}
ACROSS = {"Contrast", "Triplet", "Inequality", "Tail", "Tilted", "Worst", "WorstCase"}
WAYS = ("loop", "chunks", "chunks in a loop", "processes", "torch.func", "twice", "a list",
        "padded")
GRAPHS = ("compiled", "traced")
ONCE = RuntimeError, r"differentiated once only.*ml.Exact"
REFUSED = {
    ("MixedMode", "traced"): (ValueError, "trac"),
    ("Implicit", "torch.func"): ONCE, ("Implicit", "twice"): ONCE,
    ("Implicit", "compiled"): (ValueError, r"no part of a compiled graph.*ml.Truncated"),
    ("Implicit", "traced"): (ValueError, r"ml.Implicit\(\) .* cannot be traced.*ml.Exact"),
    ("Evolution", "twice"): (RuntimeError, "does not require grad"),
    ("Evolution", "compiled"): (ValueError, r"no part of a compiled graph.*ml.Exact"),
    ("Evolution", "traced"): (ValueError, r"ml.Evolution\(\) .* cannot be traced.*ml.Exact")}


@pytest.fixture(scope="module")
def tasks():
    "Sine waves, and tasks of three classes; numbered."
    ids, generator = torch.arange(6), torch.Generator().manual_seed(0)
    x = torch.randn(6, 12, 1, generator=generator, dtype=torch.float64)
    waves = ml.tasks.Sinusoids(shots=4).batch(6).to(dtype=torch.float64)
    y = (torch.arange(6) % 3).expand(6, -1)
    return (ml.Task(*waves, ids=ids),
            ml.Task(ml.Split(x[:, :6], y), ml.Split(x[:, 6:], y), ids=ids))


def check(name, way, tasks):
    "A part in a way gives what a plain call gives, or the error of the table."
    make, task = PARTS[name], tasks[name in CLASSES]
    if (name, way) in REFUSED:
        error, words = REFUSED[name, way]
        with pytest.raises(error, match=words): in_one_way(way, make, task)
        return
    found, right = in_one_way(way, make, task), value_and_gradient(make(), task)
    close(found[0], right[0])
    size = min(len(found[1]), len(right[1]))                 # some ways give θ's part alone
    assert size > 10
    close(found[1][:size], right[1][:size])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PARTS)
def test_a_part_in_a_way(name, way, tasks):
    if way != "processes" or name not in ACROSS: check(name, way, tasks)  # HALVES


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize("way", GRAPHS)
@pytest.mark.parametrize("name", RULES)
def test_a_rule_in_one_graph(name, way, tasks): check(name, way, tasks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize("name", [*INNER, *POOLINGS, "ActivationInformation", "EntropyReduction"])
def test_a_part_in_a_compiled_graph(name, tasks): check(name, "compiled", tasks)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
def test_terms_in_a_compiled_graph(tasks):
    kinds = (ml.EveryStep, ml.ParameterDistance, ml.Contrast, ml.Triplet, ml.GradientNorm)
    make = term(lambda: sum(kind() for kind in kinds))       # the others: test_term_ways.py
    for one, other in zip(in_one_way("compiled", make, tasks[0]),
                          value_and_gradient(make(), tasks[0]), strict=True): close(one, other)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_on_another_device_waits_for_no_number(name, tasks):
    """On the device "meta" tensors have shapes and no values.

    One of another device beside them is an error, and so is every look at a number, for which a
    GPU would have to be waited for; looks at what is wrong with a batch are left out there.
    """
    J, task = PARTS[name]().to("meta"), tasks[name in CLASSES].to("meta")
    value, parameters = J(task), list(J.parameters())
    slopes = torch.autograd.grad(value, parameters)
    assert value.is_meta and value.shape == () and value.dtype == torch.float64
    assert [g.shape for g in slopes] == [p.shape for p in parameters]
    assert all(g.is_meta for g in slopes)


@pytest.mark.parametrize("name", ["SGD", "Diagonal", "LSLR", "ALFA", "LossNetwork", "LossLibrary",
                                  "Prototypes", "SharedHead"])
def test_what_an_inner_loop_learns_it_learns_by_first_order_in_a_loop_too(name, tasks):
    first_order = {"gradient": ml.FirstOrder()}
    found, right = (value_and_gradient(PARTS[name](batching=way, **first_order),
                                       tasks[name in CLASSES]) for way in ("loop", "vmap"))
    for one, other in zip(found, right, strict=True): close(one, other)


OTHER_TASKS = CLASSES | {"WorstCase", "Context", "ActivationInformation"}  # in their own files


@pytest.mark.parametrize("name", [name for name in PARTS if name not in OTHER_TASKS])
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(name, tmp_path):
    check_goes_on(PARTS[name], tmp_path)


@pytest.mark.parametrize("name", PARTS)
def test_what_a_part_is_does_not_change_when_it_is_used(name, tasks):
    "Else a run with it would refuse to go on in the process that began it."
    J = PARTS[name]()
    before = ml.training.identity(J)
    J(tasks[name in CLASSES]).backward()
    assert ml.training.identity(J) == before


def test_every_public_class_of_a_choice_is_here():
    "Bases are not: Term, Sum, Path, Pooling, InnerLoop, Preconditioned, LearnedLoss."
    bases = {"Term", "Sum", "Path", "Pooling", "InnerLoop", "Preconditioned", "LearnedLoss"}
    rooms = (metalit.inner, metalit.terms, metalit.pooling, metalit.gradient)
    public = {name for room in rooms for name in room.__all__ if name in ml.__all__}
    assert public - bases == PARTS.keys()
