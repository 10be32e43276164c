"""J.compile(): value and gradient in one graph are those of the uncompiled J."""
import contextlib
import copy
import pickle
import shutil
import types

import pytest
import torch
import torch.nn.functional as F
from helpers import counting
from torch import nn

import metalit as ml
from metalit.batching.compiled import can_change, one_graph, with_code_of_its_own

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None,
                                    reason="needs a C++ compiler")


class LearnedStep(ml.SGD):
    "A step size that is a meta-parameter."
    def __init__(self, lr: float, steps: int):
        super().__init__(1.0, steps)
        self.step_size = nn.Parameter(torch.tensor(lr))

    def direction(self, gradient):
        return {name: self.step_size * g for name, g in gradient.items()}


def value_and_gradients(J: nn.Module, task: ml.Task) -> list[torch.Tensor]:
    value = J(task)
    return [value.detach(), *torch.autograd.grad(value, list(J.parameters()))]


def assert_agrees(J: ml.MetaLoss, task: ml.Task, rtol: float = 1e-5, atol: float = 1e-5,
                  **options) -> None:
    expected = value_and_gradients(J, task)
    J.compile(**options)
    for found, right in zip(value_and_gradients(J, task), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=rtol, atol=atol)
        assert found.stride() == right.stride()


@pytest.fixture(scope="module")
def waves() -> ml.Task:
    return ml.tasks.Sinusoids(shots=6).batch(5)


@pytest.fixture(scope="module")
def compiled() -> ml.MetaLoss:
    "One meta-loss compiled by the C++ compiler, shared by all tests that change nothing in it."
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.1)
    J.compile()
    return J


@needs_compiler
def test_maml_agrees(compiled, waves):
    for found, right in zip(value_and_gradients(compiled, waves),
                            value_and_gradients(copy.deepcopy(compiled), waves), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_first_order_with_a_learned_step_size_agrees(waves):
    J = ml.MetaLoss(ml.models.mlp(1, 8, 1), F.mse_loss, inner=LearnedStep(0.1, 2),
                    gradient=ml.FirstOrder())
    assert_agrees(J, waves)
    J(waves).backward()
    assert J.inner.step_size.grad.abs() > 1e-3


class Twice(nn.Module):
    "A layer under two names that shares its weight with a third."
    def __init__(self):
        super().__init__()
        self.a = self.b = nn.Linear(3, 3)
        self.c = nn.Linear(3, 3, bias=False)
        self.c.weight = self.a.weight

    def forward(self, x): return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


@needs_compiler
def test_conv_net_with_a_learned_step_size_agrees_in_float64_to_the_last_digits():
    """In C++: a convolution, linear layers that share a weight, two steps, a learned step size.

    That the uncompiled one is right where weights are shared is tested in test_shared_weights.
    """
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3), Twice()
    net = nn.Sequential(*layers).double()
    x = torch.randn(2, 6, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.arange(6).remainder(3).expand(2, 6)
    task = ml.Task(ml.Split(x, y), ml.Split(x.flip(1), y.flip(1)))
    J = ml.MetaLoss(net, F.cross_entropy, inner=LearnedStep(0.1, 2)).double()
    assert_agrees(J, task, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [ml.MAML, ml.FOMAML])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_the_graph_is_right_whatever_compiles_it(method, steps, waves):
    "The graph without the C++ compiler: only value and gradient in one go are at stake."
    model, graphs = ml.models.mlp(1, 8, 1, activation=nn.Tanh).double(), []
    assert_agrees(method(model, F.mse_loss, lr=0.1, steps=steps), waves.to(dtype=torch.float64),
                  rtol=0, atol=1e-12, backend=counting(graphs))
    assert len(graphs) == 1


def test_tied_and_frozen_parameters(waves):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b, self.last = (nn.Linear(*s)
                                                     for s in ((1, 4), (4, 4), (4, 4), (4, 1)))
            self.b.weight = self.a.weight
        def forward(self, x):
            return self.last(torch.tanh(self.b(torch.tanh(self.a(self.first(x))))))
    J = ml.MetaLoss(Tied(), F.mse_loss, inner=LearnedStep(0.1, 1))
    assert_agrees(J, waves, backend="eager")
    for layer in (J.model.first, J.model.a, J.model.b): layer.requires_grad_(False)
    plain = copy.deepcopy(J)
    found, right = (torch.autograd.grad(which(waves), which.inner.step_size)
                    for which in (J, plain))
    torch.testing.assert_close(found, right)


def test_terms_and_poolings_belong_to_the_graph(waves):
    class Norm(ml.Term):
        def per_task(self, path, task): return sum(p.square().sum() for p in path.final.values())
    class Worst(nn.Module):
        def forward(self, values): return values.max()
    J = ml.MetaLoss(ml.models.mlp(1, 8, 1), F.mse_loss, terms=ml.QueryLoss() + 0.1 * Norm(),
                    pooling=Worst())
    assert_agrees(J, waves, backend=counting(graphs := []))
    assert len(graphs) == 1


def changing(**options) -> ml.MetaLoss:
    "An inner step size and both weights that change with the meta-step."
    terms = (ml.schedule.Cosine(1.0, 0.5) * ml.QueryLoss()
             + ml.schedule.Linear(0.0, 0.3) * ml.GradientNorm())
    return ml.MetaLoss(ml.models.mlp(1, 8, 1, activation=nn.Tanh), F.mse_loss, terms=terms,
                       inner=ml.SGD(lr=ml.schedule.Linear(0.2, 0.01), steps=2), **options)


def test_numbers_that_change_are_inputs_of_one_graph(waves):
    task, J, plain = waves.to(dtype=torch.float64), changing().double(), changing().double()
    J.compile(backend=counting(graphs := []))
    values = set()
    for step in range(25):
        for which in (J, plain): which.at(step, 25)
        found, right = (value_and_gradients(which, task) for which in (J, plain))
        for one, other in zip(found, right, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        assert type(J.inner.lr) is float and all(type(w) is float for w in J.terms.weights)
        assert (J.inner.lr, J.terms.weights) == (plain.inner.lr, plain.terms.weights)
        values.add(found[0].item())
    assert len(graphs) == 1
    assert len(values) == 25


def test_a_number_without_a_schedule_is_built_in(waves):
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.01)
    J.compile(backend=counting(graphs := []))
    for lr in (0.01, 0.02, 0.02):
        J.inner.lr = lr
        torch.testing.assert_close(J(waves), copy.deepcopy(J)(waves))
    assert len(graphs) == 2


SHARPER = 1.0  # a number outside of any function, which a loss of one's own reads


def test_whatever_a_user_changes_is_seen_by_the_next_call(monkeypatch):
    "The compiler looks at fewer of its assumptions than it would, and at all that can change."
    net, w = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.ones(2, requires_grad=True)
    net.factor, about = 1.0, {"rate": 1.0}

    def value(tensors, x):
        return (SHARPER * net.factor * about["rate"] * net(tensors["w"] * x)).sum()
    run = one_graph(value, lambda: [("w", w)], backend=counting(graphs := []),
                    options={"guard_filter_fn": can_change})
    x = torch.rand(3, 2)
    for change in (dict, lambda: monkeypatch.setattr(f"{__name__}.SHARPER", 3.0),
                   lambda: setattr(net, "factor", 2.0), lambda: about.update(rate=5.0),
                   lambda: setattr(net[1], "forward", torch.tanh), lambda: net.append(nn.Tanh())):
        change()
        torch.testing.assert_close(run(x).detach(), value({"w": w.detach()}, x).detach())
    assert len(graphs) == 6


def test_a_module_with_a_name_like_ours_is_the_users():
    kept = can_change([types.SimpleNamespace(name=name) for name in (
        "G['__import_metalit_mine'].FACTOR", "G['FACTOR']", "L['value'].rate",
        "G['__import_metalit_dot_losses'].scalar")])
    assert kept == [True, True, True, False]


@needs_compiler
def test_numbers_that_change_leave_float32_as_it_is(waves):
    "In C++, with the limit at one graph: a second would be an error."
    J = changing()
    J.compile()
    with torch._dynamo.config.patch(recompile_limit=1):
        for step in (0, 3, 9):
            J.at(step, 10)
            found = value_and_gradients(J, waves)
            assert all(tensor.dtype == torch.float32 for tensor in found)
            for one, other in zip(found, value_and_gradients(copy.deepcopy(J), waves),
                                  strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_one_graph_takes_any_scalar_function_and_knows_no_meta_loss():
    weight, fixed = (nn.Parameter(torch.tensor(value)) for value in (3.0, 2.0))
    inside = []

    @contextlib.contextmanager
    def around():
        inside.append("in")
        yield
        inside.append("out")

    def value(parameters, batch):
        return (parameters["w"] * batch["x"]).square().sum() + parameters.get("fixed", fixed)
    fast = one_graph(value, lambda: [("w", weight), ("fixed", fixed)], around,
                     backend=counting(graphs := []))
    x = {"x": torch.tensor([1.0, 2.0])}
    found = fast(x)
    (2 * found).backward()
    assert (found, weight.grad, fixed.grad) == (47, 60, 2)
    assert inside == ["in", "out"]
    fixed.requires_grad_(False)                              # what is wanted is asked at each call
    weight.grad = fixed.grad = None
    fast(x).backward()
    assert weight.grad == 30 and fixed.grad is None
    assert len(graphs) == 2
    with pytest.raises(ValueError, match="requires_grad=True"):
        fast({"x": torch.ones(2, requires_grad=True)})


def test_functions_of_one_source_have_codes_of_their_own():
    def made(number):
        def function(x, more=1): return x + number + more
        return function
    one, two = made(1), made(2)
    assert one.__code__ is two.__code__
    assert with_code_of_its_own(two) is two
    assert one.__code__ != two.__code__ and one.__code__.co_name == "function"
    assert (one(1), two(1), two(1, more=5)) == (3, 4, 8)


@needs_compiler
def test_it_is_an_ordinary_scalar(compiled, waves):
    "Scaled, added to, called twice before backward, kept for a second backward."
    plain = copy.deepcopy(compiled)
    def loss(J):
        return 3 * J(waves) + J(waves.select(slice(0, 5))) ** 2 + sum(p.square().sum()
                                                                      for p in J.parameters())
    found, right = (torch.autograd.grad(loss(J), list(J.parameters())) for J in (compiled, plain))
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    value = compiled(waves)
    first, second = (torch.autograd.grad(value, list(compiled.parameters()), retain_graph=True)
                     for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@needs_compiler
def test_another_number_of_tasks_and_examples(compiled):
    more = ml.tasks.Sinusoids(shots=3).batch(7)
    torch.testing.assert_close(compiled(more), copy.deepcopy(compiled)(more), rtol=1e-5, atol=1e-5)


def test_more_meta_losses_than_pytorch_compiles_one_code_object_are_as_many_graphs(waves):
    "Eight times, by itself; here once, and then it is an error."
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in range(3, 6):
            J = ml.MAML(ml.models.mlp(1, width, 1), F.mse_loss, steps=0)
            J.compile(backend=counting(graphs))
            J(waves)
    assert len(graphs) == 3


def test_too_many_kinds_of_tasks_are_an_error():
    J = ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss, steps=0)
    J.compile(backend=counting(graphs := []), dynamic=False)
    assert torch._dynamo.config.recompile_limit == 8
    with torch._dynamo.config.patch(recompile_limit=2):
        for n in range(2, 4): J(ml.tasks.Sinusoids().batch(n))
        assert len(graphs) == 2
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            J(ml.tasks.Sinusoids().batch(4))


def test_options_go_to_the_compiler(monkeypatch, waves):
    seen = []
    monkeypatch.setattr(torch, "compile",
                        lambda function, **options: seen.append(options) or function)
    J = ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss)
    mine = {"options": {"cpp_wrapper": False}, "fullgraph": False}
    for options in ({}, {"dynamic": True}, {"mode": "default"}, mine): J.compile(**options)
    assert [sorted(options) for options in seen] == [
        ["fullgraph", "options"], ["dynamic", "fullgraph", "options"],
        ["fullgraph", "mode"], ["fullgraph", "options"]
    ]
    assert seen[0]["options"]["cpp_wrapper"]
    assert not seen[3]["options"]["cpp_wrapper"]
    assert not seen[3]["fullgraph"]
    monkeypatch.undo()
    with pytest.raises(TypeError, match="unexpected keyword argument 'optoins'"):
        J.compile(optoins={})


def test_without_gradients_and_under_another_compiler_it_is_the_plain_value(waves):
    J = ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss)
    right = J(waves).detach()
    J.compile(backend=counting(mine := []))
    with torch.no_grad(): value = J(waves)
    assert not mine and torch.equal(value, right)
    theirs = []
    torch.testing.assert_close(torch.compile(J, backend=counting(theirs))(waves).detach(), right)
    assert theirs and not mine


def test_copies_are_not_compiled_and_state_is_as_before(waves):
    J = ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss)
    before = repr(J), list(J.state_dict()), list(J.modules())
    J.compile(backend=counting(graphs := []))
    assert (repr(J), list(J.state_dict()), list(J.modules())) == before
    for other in (copy.deepcopy(J), copy.copy(J), pickle.loads(pickle.dumps(J))):
        torch.testing.assert_close(value_and_gradients(other, waves),
                                   value_and_gradients(copy.deepcopy(J), waves))
    assert not graphs
    J(waves)
    J.load_state_dict(ml.MAML(ml.models.mlp(1, 3, 1, seed=5), F.mse_loss).state_dict())
    torch.testing.assert_close(J(waves), copy.deepcopy(J)(waves))
    assert len(graphs) == 1                                  # new values are no new graph


def test_dropout_depends_on_the_seed_and_on_the_mode(waves):
    J = ml.MAML(nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.5), nn.Linear(8, 1)), F.mse_loss)
    J.compile(backend="aot_eager")
    def drawn(seed: int) -> float:
        torch.manual_seed(seed)
        return J(waves).item()
    with torch.random.fork_rng():
        assert drawn(0) == drawn(0) != drawn(1)
        J.eval()
        assert drawn(0) == drawn(1)
        torch.testing.assert_close(drawn(0), copy.deepcopy(J)(waves).item())


def test_what_is_not_possible_is_an_error(waves):
    J = ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss)
    J.compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"differentiated once only.* copy.deepcopy\(J\)"):
        torch.autograd.grad(J(waves), list(J.parameters()), create_graph=True)
    with pytest.raises(ValueError, match="requires_grad=True, but a compiled J gives gradients of "
                       "its parameters"):
        J(ml.Task(waves.support, ml.Split(waves.query.x.clone().requires_grad_(), waves.query.y)))
    with pytest.raises(ValueError, match="not finite"):
        J(ml.Task(waves.support, ml.Split(waves.query.x, waves.query.y / 0)))
    with pytest.raises(ValueError, match="chunk_size=2 computes gradients chunk by chunk"):
        ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss, chunk_size=2).compile()
    with pytest.raises(ValueError, match=r"batching='loop' .*one task after another"):
        ml.MAML(ml.models.mlp(1, 3, 1), F.mse_loss, batching="loop").compile()


def test_what_is_not_one_graph_is_an_error(waves):
    def loss(prediction, y):
        torch._dynamo.graph_break()
        return F.mse_loss(prediction, y)
    J = ml.MAML(ml.models.mlp(1, 3, 1), loss)
    J.compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"(?i)graph.break"): J(waves)


def test_a_parameter_that_is_not_used_has_no_gradient():
    "With one of 0, weight decay would shrink it."
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.idle = ml.models.mlp(1, 4, 1), nn.Parameter(torch.ones(3))

        def forward(self, x): return self.net(x)
    J = ml.MAML(Idle(), F.mse_loss)
    J.compile(backend="eager")
    before = torch.get_rng_state()
    J(ml.tasks.Sinusoids(shots=3).batch(2)).backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert J.model.idle.grad is None
    assert all(p.grad is not None for p in J.model.net.parameters())


def test_an_error_of_the_graph_is_said_as_without_it(monkeypatch):
    "The graph knows of an index; without it, the error names the labels and the outputs."
    J = ml.MAML(ml.models.mlp(1, 4, 2, seed=0), torch.nn.functional.cross_entropy)
    family = ml.tasks.Sinusoids(shots=3)
    task = ml.Task(*(ml.Split(part.x, (part.y[..., 0] > 0).long()) for part in family.batch(2)))

    def graph(batch): raise RuntimeError("index out of bounds: 0 <= tmp6 < 3L")
    monkeypatch.setattr("metalit.batching.compiled.one_graph", lambda *args, **options: graph)
    J.compile()
    with pytest.raises(RuntimeError, match="tmp6"): J(task)  # the tasks are not at fault
    task.query.y[0, 0] = 7
    with pytest.raises(ValueError, match="2 outputs, so labels are 0 … 1"): J(task)
