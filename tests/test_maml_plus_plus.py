"""MAML++: the order of the derivative over a run, normalisation step by step, and the whole."""
import signal
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import close, counting, quick, same, value_and_gradient
from torch import nn
from torch.func import functional_call
from ways import in_one_way

import metalit as ml
from metalit.judging.recipes import schedule
from metalit.training.checkpoints import CheckpointError

PARTS = ("multi_step", "step_rates", "step_norms", "annealed")


def net(layer=nn.LayerNorm, width=4):
    "A network with a normalisation in it."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, width), layer(width), nn.Tanh(), nn.Linear(width, 1)).double()


def small_plus_plus(model, step=0, **options):
    "MAML++ on either side of its border, with moves and rates that are learned already."
    J = ml.MAMLPlusPlus(model, F.mse_loss, 0.1, 3, **options)
    J.at(step, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in J.inner.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return J


@pytest.mark.filterwarnings("ignore::DeprecationWarning")    # the compiler's own
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("way", ["loop", "chunks", "chunks in a loop", "processes", "torch.func",
                                 "twice", "a list", "padded", "traced"])
def test_the_whole_in_a_way(way, step, sines):
    model = net()
    found = in_one_way(way, partial(small_plus_plus, model, step), sines)
    right = value_and_gradient(small_plus_plus(model, step), sines)
    close(found[0], right[0])
    close(found[1], right[1][:len(found[1])])                # some ways give θ's part alone


@pytest.mark.parametrize(("until", "of_four", "compiled"), [
    (0, "eeee", False), (0.25, "feee", False), (0.5, "ffee", False), (0.6, "fffe", False),
    (1, "ffff", False), (0.5, "ffee", True)])
def test_the_gradient_is_first_order_until_its_share_of_the_run_and_then_exact(until, of_four,
                                                                               compiled, sines):
    def of(gradient): return ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(0.1, 2), gradient=gradient)
    right = {"f": value_and_gradient(of(ml.FirstOrder()), sines),
             "e": value_and_gradient(of(ml.Exact()), sines)}
    assert (right["f"][1] - right["e"][1]).norm() > 1e-3
    J = of(ml.AnnealedOrder(until))
    if compiled: J.compile(backend="eager")
    for step, order in enumerate(of_four):
        J.at(step, 4)
        for one, other in zip(value_and_gradient(J, sines), right[order], strict=True):
            close(one, other)


def test_a_compiled_one_has_two_graphs_however_often_it_goes_over_the_border(sines):
    J, graphs = small_plus_plus(net()), []
    J.compile(backend=counting(graphs))
    for step in (0, 1, 2, 3, 1, 2, 0, 3):
        J.at(step, 4)
        found = value_and_gradient(J, sines)
        right = small_plus_plus(net(), step)
        for one, other in zip(found, value_and_gradient(right, sines), strict=True):
            close(one, other)
    assert len(graphs) == 2


def test_a_run_in_one_graph_is_the_run_step_by_step():
    "A run of many steps as one call passes no border: it is taken step by step."
    def fresh(): return ml.MAMLPlusPlus(ml.models.mlp(1, 4, 1).double(), F.mse_loss, 0.01, 2)
    plain, fast = fresh(), fresh()
    quick(plain, steps=6)
    fast.compile(backend="eager")
    quick(fast, steps=6)
    assert plain.gradient.exact == fast.gradient.exact == 1.0
    for one, other in zip(plain.parameters(), fast.parameters(), strict=True):
        close(one.detach(), other.detach(), 1e-9)


@pytest.mark.parametrize("first", [2, 3, 4])                 # of six steps, the border is at 3
def test_a_run_that_was_stopped_goes_on_to_the_last_bit(first, tmp_path):
    class Stops(ml.Watcher):
        left = first
        def step(self, loss):
            self.left -= 1
            if not self.left: signal.raise_signal(signal.SIGINT)

    def fresh():
        return ml.MAMLPlusPlus(ml.models.mlp(1, 4, 1), F.mse_loss, 0.05, 3)

    def run(J, **options): return quick(J, steps=6, scheduler=J.scheduler(6), **options)
    whole, broken, again = fresh(), fresh(), fresh()
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(broken, checkpoint=tmp_path, save_every=1, watch=Stops())
    run(again, checkpoint=tmp_path)
    assert same(whole.state_dict(), again.state_dict())
    other = ml.MAMLPlusPlus(ml.models.mlp(1, 4, 1), F.mse_loss, 0.05, 3, annealed=False)
    with pytest.raises(CheckpointError, match=r"J.gradient was AnnealedOrder.*, now Exact"):
        run(other, checkpoint=tmp_path)


def test_a_checkpoint_keeps_the_side(tmp_path, sines):
    J = small_plus_plus(net(), 3)
    ml.save_checkpoint(tmp_path / "a.pt", J)
    other = small_plus_plus(net())
    assert other.gradient.exact == 0.0
    ml.load_checkpoint(tmp_path / "a.pt", other)
    assert other.gradient.exact == 1.0


def by_loop(model, inner, task):
    "Plain loops over tasks and steps."
    total, own = 0, dict(model.named_parameters())
    for x, y, x_query, y_query in zip(*task.support[:2], *task.query[:2], strict=True):
        phi = dict(own)
        for k in range(len(inner.scale)):
            value = F.mse_loss(functional_call(model, phi, (x,)), y)
            slopes = torch.autograd.grad(value, [phi[n] for n in inner.names], create_graph=True)
            after = {n: phi[n] - 0.1 * inner.scale[k, i] * g
                     for i, (n, g) in enumerate(zip(inner.names, slopes, strict=True))}
            phi |= after | {n: phi[n] + move[k]
                            for n, move in zip(inner.norms, inner.moves, strict=True)}
        query = functional_call(model, phi, (x_query,))
        total = total + F.mse_loss(query, y_query) / task.batch_size
    return total


@pytest.mark.parametrize("layer", [
    nn.LayerNorm, lambda width: nn.GroupNorm(2, width), nn.RMSNorm,
    lambda width: nn.BatchNorm1d(width, track_running_stats=False)])
def test_normalisation_step_by_step(layer, sines):
    model = net(layer)
    J = small_plus_plus(model, multi_step=False, annealed=False)
    assert J.inner.norms[0] == "1.weight" and "1.weight" not in J.inner.names
    slopes = (torch.autograd.grad(value, list(J.parameters()))
              for value in (J(sines), by_loop(model, J.inner, sines)))
    for one, other in zip(*slopes, strict=True): close(one, other, 1e-9)


def test_moves_under_the_first_order_rule_reach_the_end_once(sines):
    "The output is a bias that only moves, so the exact gradient is the same for all moves."
    model = nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(1)).double()

    def gradients(rule):
        inner = ml.StepNorms(model, 0.1, 3)
        J = ml.MetaLoss(model, F.mse_loss, inner=inner, gradient=rule)
        return torch.autograd.grad(J(sines), list(inner.moves))
    (_, first), (_, exact) = gradients(ml.FirstOrder()), gradients(ml.Exact())
    close(first, exact)
    close(first, first[:1].expand(3, 1))
    assert first.abs().min() > 1e-3


def test_after_more_steps_than_it_was_made_for_nothing_moves(sines):
    J = small_plus_plus(net())
    three, five = (J.adapt(sines.support, steps=k) for k in (3, 5))
    assert torch.equal(three["1.weight"], five["1.weight"])
    assert not torch.equal(three["0.weight"], five["0.weight"])


def test_conv4_and_an_adapted_model():
    torch.manual_seed(0)
    model = ml.models.Conv4(ways=3, filters=4, size=16, seed=0)
    J = ml.MAMLPlusPlus(model, F.cross_entropy, 0.1, 2)
    task = ml.tasks.Episodes(torch.rand(40, 1, 16, 16), torch.arange(8).repeat(5), 3, 1, 2).batch(2)
    J(task).backward()
    assert all(p.grad is not None for p in J.parameters())
    assert len(J.inner.norms) == 8
    x, y = task.support.x[0], task.support.y[0]
    adapted = J.adapted(x, y)
    ends = J.adapt(task.support)
    for name, p in adapted.named_parameters(): close(p, ends[name][0], 1e-6)


def test_each_part_is_a_part():
    J = ml.MAMLPlusPlus(net(), F.mse_loss)
    assert (type(J.inner), type(J.gradient)) == (ml.StepNorms, ml.AnnealedOrder)
    off = ml.MAMLPlusPlus(net(), F.mse_loss, **dict.fromkeys(PARTS, False))
    assert type(off.inner) is ml.LSLR and type(off.gradient) is ml.Exact
    assert not any(p.requires_grad for p in off.inner.parameters())
    scheduler = J.scheduler(10, least=0.001)(torch.optim.SGD(J.parameters(), lr=0.1))
    for _ in range(10):
        scheduler.optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [pytest.approx(0.001)]
    assert schedule("cosine", 10) is not None                # what the recipe has


def test_a_row_of_a_comparison(tmp_path):
    runs = ml.compare(ml.tasks.Sinusoids(), lambda seed: ml.models.mlp(1, 4, 1, seed=seed),
                      F.mse_loss, methods=["maml++", "alfa", "l2f"], steps=2, seeds=(0,),
                      batch_size=2, folder=tmp_path, inner_steps=(0, 6), progress=False)
    assert [run.method for run in runs] == ["maml++", "alfa", "l2f"]
    assert all(run.status == "2 steps" for run in runs)


def test_what_step_norms_have_learned_goes_along_where_it_fits():
    J = ml.MetaLoss(net(), F.mse_loss, inner=ml.StepNorms(net(), steps=2))
    with torch.no_grad():
        for p in J.inner.parameters(): p += 1.0
    same_size = J.on(net(), F.mse_loss).inner
    for one, other in zip(same_size.parameters(), J.inner.parameters(), strict=True):
        assert torch.equal(one, other) and one is not other
    with pytest.warns(UserWarning, match="StepNorms starts anew at '1.weight' and '1.bias'|"
                                         "StepNorms starts anew at '1.weight', '1.bias'"):
        wide = J.on(net(width=6), F.mse_loss).inner
    assert (wide.scale == 2).all() and (wide.moves[0] == 0).all()
