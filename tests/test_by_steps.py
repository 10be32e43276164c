"""Long inner loops as programs that do not know the number of steps: MixedMode, compiled."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import metalit as ml
from metalit.batching import by_steps
from metalit.batching.by_steps import MissingPointError, Points
from metalit.training.memory import measured_memory

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own


@pytest.fixture
def plain(monkeypatch):
    "The programs as they are written: what is at stake is their mathematics."
    monkeypatch.setattr(by_steps, "compiled_as", lambda function, **options: function)


def value_and_gradients(J, task):
    value = J(task)
    return [value.detach(), *torch.autograd.grad(value, list(J.parameters()), allow_unused=True)]


def close(one, other, atol=1e-12):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None: torch.testing.assert_close(a, b, rtol=0, atol=atol)


def both(model, **choices):
    "J by steps, and exact and uncompiled, of the same parameters."
    J = ml.MetaLoss(model, F.mse_loss, **choices, gradient=ml.MixedMode())
    exact = ml.MetaLoss(model, F.mse_loss, **choices)
    J.compile()
    return J, exact


def rate(): return nn.Parameter(torch.tensor(0.05, dtype=torch.float64))


INNER = {"descent": lambda net: ml.SGD(0.1, 3),
         "momentum and decay": lambda net: ml.SGD(0.1, 3, momentum=0.9, nesterov=True,
                                                  weight_decay=0.1, clip=2.0),
         "a learned rate": lambda net: ml.SGD(rate(), 3),
         "Adam": lambda net: ml.Adam(0.05, 3),
         "examples in turn": lambda net: ml.SGD(0.1, 3, batch_size=3),
         "rates of steps": lambda net: ml.inner.LSLR(net, 0.1, 3),
         "factors": lambda net: ml.inner.Diagonal(net, 0.1, 3),
         "a spring": lambda net: ml.inner.Proximal(0.1, 3, pull=0.5),
         "ALFA": lambda net: ml.inner.ALFA(net, 0.1, 3),
         "L2F": lambda net: ml.inner.Forget(net, 0.1, 3),
         "a learned loss": lambda net: ml.SGD(0.1, 3, loss=ml.inner.LossPolynomial().double()),
         "the head alone": lambda net: ml.inner.Masked(net, 0.1, 3, only="2.*")}


@pytest.mark.parametrize("name", INNER)
def test_every_inner_loop_has_the_exact_gradient(plain, small_net, sines, name):
    J, exact = both(small_net, inner=INNER[name](small_net))
    exact.inner = J.inner
    close(value_and_gradients(J, sines), value_and_gradients(exact, sines))


TERMS = {"the end": lambda: ml.QueryLoss(),
         "both ends": lambda: ml.QueryLoss() + 0.3 * ml.ParameterDistance(),
         "every step": lambda: ml.EveryStep([0.2, 0.3, 0.5]),
         "the path": lambda: ml.QueryLoss() + 0.1 * ml.PathLength(),
         "another path": lambda: ml.Bootstrap(2),
         "across tasks": lambda: ml.QueryLoss() + 0.1 * ml.Inequality()}


def test_a_step_may_depend_on_its_number(sines, small_net):
    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward
    graphs, inner = [], ml.inner.LSLR(small_net, 0.1, 10)
    with torch.no_grad(): inner.scale += torch.arange(10)[:, None] / 10
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner, gradient=ml.MixedMode())
    J.compile(backend=counting)
    close(value_and_gradients(J, sines),
          value_and_gradients(ml.MetaLoss(small_net, F.mse_loss, inner=inner), sines))
    assert len(graphs) == 5


@pytest.mark.parametrize("name", TERMS)
def test_every_term_has_the_exact_gradient(plain, small_net, sines, name):
    J, exact = both(small_net, inner=ml.SGD(0.1, 3), terms=TERMS[name](), pooling=ml.Tilted(0.5))
    close(value_and_gradients(J, sines), value_and_gradients(exact, sines))


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_any_number_of_steps_with_the_same_programs(plain, small_net, sines, steps):
    J, exact = both(small_net, inner=ml.SGD(0.1, 3, momentum=0.9), terms=ml.EveryStep(1.0))
    J(sines)
    J.inner.steps = exact.inner.steps = steps
    close(value_and_gradients(J, sines), value_and_gradients(exact, sines))


def test_a_path_that_had_nothing_between_its_ends_gets_longer(plain, small_net, sines):
    J, exact = both(small_net, inner=ml.SGD(0.1, 1), terms=ml.EveryStep(1.0))
    for steps in (1, 3, 0, 2):
        J.inner.steps = exact.inner.steps = steps
        close(value_and_gradients(J, sines), value_and_gradients(exact, sines))


def test_heads_of_tasks_and_frozen_parts(plain):
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tasks = ml.tasks.Episodes(x, torch.arange(40) // 8, ways=3, shots=2, queries=2).batch(2, seed=0)
    model = ml.models.mlp(2, 6, 3, activation=nn.Tanh, seed=1).double()
    model[0].bias.requires_grad_(False)
    J = ml.ProtoMAML(model, F.cross_entropy, lr=0.1, steps=2, gradient=ml.MixedMode())
    exact = ml.ProtoMAML(model, F.cross_entropy, lr=0.1, steps=2)
    J.compile()
    found, right = ([v.detach(), *torch.autograd.grad(
        v, [p for p in model.parameters() if p.requires_grad], allow_unused=True)]
        for v in (J(tasks), exact(tasks)))
    close(found, right)


def test_padded_tasks(plain, small_net):
    tasks = ml.tasks.padded([ml.tasks.one(*(torch.randn(n, 1, dtype=torch.float64)
                                            for n in (a, a, b, b))) for a, b in ((3, 4), (2, 3))])
    J, exact = both(small_net, inner=ml.SGD(0.1, 3, batch_size=2))
    close(value_and_gradients(J, tasks), value_and_gradients(exact, tasks))


def test_one_set_of_programs_for_all_numbers_of_steps(small_net, sines):
    "With the compiler's front, and no C++ behind it."
    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward
    graphs, inner = [], ml.SGD(0.1, 3)
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner, gradient=ml.MixedMode())
    exact = ml.MetaLoss(small_net, F.mse_loss, inner=inner)
    J.compile(backend=counting)
    for inner.steps in (3, 1, 7, 2):
        close(value_and_gradients(J, sines), value_and_gradients(exact, sines))
        assert len(graphs) == 5
    for inner.lr in (0.2, 0.3, 0.05):                        # no constant any more, but an input
        close(value_and_gradients(J, sines), value_and_gradients(exact, sines))
        assert len(graphs) == 9                              # start and step, and back


def test_a_step_keeps_one_copy_of_phi(plain, small_net):
    tasks = ml.tasks.Sinusoids(shots=50, queries=5).batch(8, seed=0).to(dtype=torch.float64)
    J, exact = both(small_net, inner=ml.SGD(0.01, 2))
    copy = 8 * sum(p.numel() * p.element_size() for p in small_net.parameters())
    def kept(J, steps):
        J.inner.steps = steps
        J(tasks)
        return measured_memory(lambda: J(tasks))
    of_a_step = [(kept(which, 12) - kept(which, 4)) / 8 / copy for which in (J, exact)]
    assert of_a_step[0] < 1.1 < 3 < of_a_step[1]


def test_what_a_path_has_at_hand():
    ends = Points({"w": 1}, {"w": 4}, None, lambda: 3)
    assert (len(ends), ends[0], ends[-1], ends[3]) == (4, {"w": 1}, {"w": 4}, {"w": 4})
    for place in (1, 2, -2, slice(1, None)):
        with pytest.raises(MissingPointError): ends[place]
    for place in (4, -5):
        with pytest.raises(IndexError, match="no point"): ends[place]
    whole = Points({"w": 1}, {"w": 4}, [{"w": 2}, {"w": 3}], lambda: 3)
    assert [point["w"] for point in whole] == [1, 2, 3, 4] and whole[-3] == {"w": 2}
    assert [point["w"] for point in whole[1:]] == [2, 3, 4] and whole[-4] == {"w": 1}


def test_what_draws_by_chance_is_refused_and_runs_in_eval_mode(plain, sines):
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    J, exact = both(model, inner=ml.SGD(0.1, 2))
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"draws random numbers.*model.eval\(\).*Exact"): J(sines)
    assert torch.equal(before, torch.get_rng_state())
    for which in (J, exact): which.eval()
    close(value_and_gradients(J, sines), value_and_gradients(exact, sines))
    J.train()
    with pytest.raises(ValueError, match="draws random numbers"): J(sines)


def test_a_state_that_is_no_tensor_is_refused(plain, small_net, sines):
    class Remembering(ml.SGD):
        def init(self, predict, theta, support): return theta, ("a word",)
        def step(self, loss, phi, state, k): return self.taken(loss, phi, phi, ())[0], state
    J, _ = both(small_net, inner=Remembering(0.1, 2))
    with pytest.raises(ValueError, match=r"Remembering remembers 'a word'.*no tensor.*Exact"):
        J(sines)


def test_a_run_takes_its_steps_one_by_one_and_is_the_exact_one(plain, sines, caplog):
    caplog.set_level("INFO", logger="metalit")
    found = []
    for rule in (ml.MixedMode(), ml.Exact()):
        J = ml.MetaLoss(ml.models.mlp(1, 5, 1, seed=0).double(), F.mse_loss, inner=ml.SGD(0.1, 2),
                        gradient=rule)
        ml.meta_train(J, [sines] * 5, steps=5, progress=False,
                      compile=isinstance(rule, ml.MixedMode))
        found.append([p.detach() for p in J.parameters()])
    close(*found)
