"""Which term works in which way of computing, as `test_rules.py` says it of gradient rules.

What works gives the value and the gradient that a plain call gives.
"""
from functools import partial

import pytest
import torch.nn.functional as F
from helpers import close, value_and_gradient
from ways import check_goes_on, in_one_way

import metalit as ml

TERMS = {"path length": ml.PathLength, "alignment": ml.GradientAlignment,
         "inequality": ml.Inequality, "bootstrap": lambda: ml.Bootstrap(1),
         "bootstrap of predictions": lambda: ml.Bootstrap(1, "predictions", on="query")}
WAYS = ("loop", "chunks", "chunks in a loop", "processes", "torch.func", "twice", "a list",
        "padded")


def meta_loss(term, net, **options):
    measured = sum(make() for make in TERMS.values()) if term == "all" else TERMS[term]()
    return ml.MetaLoss(net, F.mse_loss, inner=ml.SGD(0.1, 2, momentum=0.5), **options,
                       terms=ml.QueryLoss() + 0.7 * measured)


@pytest.mark.parametrize("way", WAYS)
def test_a_term_of_predictions_in_a_way(way, small_net, sines):
    "The others, and this one of parameters, are in `test_all_ways.py`."
    term = "bootstrap of predictions"
    found = in_one_way(way, partial(meta_loss, term, small_net), sines)
    right = value_and_gradient(meta_loss(term, small_net), sines)
    for one, other in zip(found, right, strict=True): close(one, other)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
def test_all_terms_in_one_graph(small_net, sines):
    make = partial(meta_loss, "all", small_net)
    right = value_and_gradient(make(), sines)
    for way in ("compiled", "traced"):
        for one, other in zip(in_one_way(way, make, sines), right, strict=True): close(one, other)


def test_a_run_that_was_stopped_goes_on_to_the_last_bit(tmp_path):
    check_goes_on(lambda: meta_loss("all", ml.models.mlp(1, 4, 1, seed=0)), tmp_path)


@pytest.mark.parametrize("term", [name for name in TERMS if TERMS[name]().holds_constant])
def test_what_holds_something_constant_is_refused_where_values_are_all_there_is(term, small_net):
    with pytest.raises(ValueError, match=r"holds a part of its value constant.*ml.FirstOrder"):
        meta_loss(term, small_net, gradient=ml.Evolution())
