"""What `vmap` cannot run is refused by name, and runs in a loop as `torch.autograd` has it."""
import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from referee import Mean, by_library, by_loop, drawn, off, series
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import metalit as ml
from metalit.batching.refused import check_unchanged, explained, held

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*")


class Gate(nn.Module):
    def forward(self, x): return torch.tanh(x) * torch.sigmoid(x)


@pytest.fixture(scope="module")
def scripted():
    "A scripted module, and a scripted function."
    with warnings.catch_warnings():                          # that it is old, says newer PyTorch
        warnings.simplefilter("ignore")
        return torch.jit.script(Gate()), torch.jit.script(gate)


def gate(x):
    return torch.tanh(x) * torch.sigmoid(x)


class Calling(nn.Module):
    def forward(self, x): return SCRIPTED(x)


SCRIPTED = gate


@pytest.fixture
def models(scripted, monkeypatch):
    monkeypatch.setitem(globals(), "SCRIPTED", scripted[1])
    return {"module": drawn(Mean(lambda layer, x: layer(x), scripted[0])),
            "function": drawn(Mean(lambda layer, x: layer(x), Calling()))}


@pytest.mark.parametrize("name", ["module", "function"])
def test_scripted_parts(name, models):
    model, plain = models[name], drawn(Mean(lambda layer, x: layer(x), Gate()))
    with pytest.raises(ValueError, match=r"torch\.jit, whose second .*batching='loop'"):
        ml.MAML(model, F.mse_loss)
    with pytest.raises(ValueError, match=r"torch\.jit"):
        ml.MAML(plain, F.mse_loss).on(model, F.mse_loss)
    with pytest.raises(ValueError, match=r"torch\.jit"):
        ml.MetaLoss(model, F.mse_loss, terms=ml.GradientNorm(), gradient=ml.FirstOrder())
    for options in ({"batching": "loop"}, {"first_order": True}):
        constant = {"first_order": options.get("first_order", False)}
        expected = by_loop(plain, F.mse_loss, series(), **constant)
        assert off(by_library(model, F.mse_loss, series(), **options), expected) < 1e-12
    assert ml.Reptile(model, F.mse_loss)(series()).isfinite()


def helped(x): return SCRIPTED(x)


class Holding(nn.Module):
    "A scripted function as an attribute, by itself or in a list."
    def __init__(self, found, several):
        super().__init__()
        self.found = [found] if several else found

    def forward(self, x):
        return self.found[0](x) if isinstance(self.found, list) else self.found(x)


class Helped(nn.Module):
    "One that a function, or a method, or a lambda of the forward calls."
    def __init__(self, how):
        super().__init__()
        self.how = how

    def own(self, x): return SCRIPTED(x)

    def forward(self, x):
        if self.how == "function": return helped(x)
        if self.how == "method": return self.own(x)
        return (lambda: SCRIPTED(x))()


def enclosed(found):
    class Enclosed(nn.Module):
        def forward(self, x): return found(x)
    return Enclosed()


HIDDEN = {"attribute": lambda found: Holding(found, False), "closure": enclosed,
          "list": lambda found: Holding(found, True), "function": lambda found: Helped("function"),
          "method": lambda found: Helped("method"), "lambda": lambda found: Helped("lambda")}


@pytest.mark.parametrize("name", HIDDEN)
def test_scripted_functions_are_found_where_they_hide(name, scripted, monkeypatch):
    monkeypatch.setitem(globals(), "SCRIPTED", scripted[1])
    model = drawn(Mean(lambda layer, x: layer(x), HIDDEN[name](scripted[1])))
    with pytest.raises(ValueError, match=r"the function \w+ in layer 'layer' .*torch\.jit"):
        ml.MAML(model, F.mse_loss)
    assert ml.FOMAML(model, F.mse_loss)(series()).isfinite()
    with pytest.raises(ValueError, match=r"torch\.jit"):
        ml.MAML(drawn(Mean(lambda layer, x: layer(x), Gate())), F.mse_loss).on(model, F.mse_loss)


class Asks:
    "A loss that is no function and no module."
    def __init__(self, found): self.found = found
    def __call__(self, prediction, y): return self.found(prediction - y).square().mean()


class Judge(nn.Module):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def forward(self, prediction, y): return self.found(prediction - y).square().mean()


def test_a_scripted_loss_is_refused_where_it_is_differentiated_twice(scripted):
    def squared(a, b): return ((a - b) ** 2).mean()
    loss = torch.jit.script(squared)
    model = drawn(Mean(lambda layer, x: layer(x), Gate()))
    asks = Judge(scripted[0]), Judge(scripted[1]), Asks(scripted[1])
    for bad in (loss, *asks, lambda a, b: loss(a, b)):
        with pytest.raises(ValueError, match=r"task loss.*torch\.jit.*batching='loop'"):
            ml.MAML(model, bad)
        with pytest.raises(ValueError, match=r"torch\.jit"):
            ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(loss=bad))
        ml.MetaLoss(model, bad, inner=ml.SGD(loss=F.mse_loss))      # once is right
        with pytest.raises(ValueError, match=r"torch\.jit"):
            ml.MAML(model, F.mse_loss).on(model, bad)
        assert off(by_library(model, bad, series(), batching="loop"),
                   by_loop(model, bad, series())) < 1e-12
        ml.FOMAML(model, bad)


@pytest.mark.parametrize("register", ["register_full_backward_hook",
                                      "register_full_backward_pre_hook"])
def test_backward_hooks(register):
    model = drawn(Mean(lambda layer, x: layer(x), nn.Linear(4, 4)))
    hook = getattr(model.layer, register)(lambda layer, *gradients: (2 * gradients[0][0],))
    with pytest.raises(ValueError, match=r"layer 'layer' \(Linear\) has a backward hook.*'loop'"):
        ml.MAML(model, F.mse_loss)
    found = by_library(model, F.mse_loss, series(), batching="loop")
    assert off(found, by_loop(model, F.mse_loss, series())) < 1e-12
    hook.remove()
    ml.MAML(model, F.mse_loss)
    model.layer.register_forward_hook(lambda layer, inputs, output: 2 * output)
    found = by_library(model, F.mse_loss, series())
    assert off(found, by_loop(model, F.mse_loss, series())) < 1e-12


class Writes(nn.Module):
    "Writes to itself in one of several ways."
    def __init__(self, how):
        super().__init__()
        self.how, self.log, self.known = how, [], None
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.how == "assigns": self.seen = self.seen + x.mean()
        if self.how == "adds": self.seen += 1.0
        if self.how == "keeps": self.known = x
        if self.how == "new": self.fresh = {"x": [x]}
        if self.how == "appends": self.log.append(x)
        if self.how == "constant" and self.known is None: self.known = torch.ones(4).double()
        if self.how == "number": self.count = 3
        return x


@pytest.mark.parametrize(("how", "message"), [
    ("assigns", r"writes its buffer 'seen'"),
    ("keeps", r"keeps a tensor of the call as 'known'"),
    ("new", r"keeps a tensor of the call as 'fresh'"),
    ("appends", r"keeps a tensor of the call as 'log'")])
@pytest.mark.parametrize("first_order", [False, True])
def test_a_forward_that_writes_to_the_model(how, message, first_order):
    model = drawn(Mean(lambda layer, x: layer(x), Writes(how)))
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"layer 'layer' \(Writes\) {message}.*'loop'"):
            by_library(model, F.mse_loss, series(), first_order=first_order)
    assert not hasattr(model.layer, "fresh") and model.layer.known is None
    copy.deepcopy(model)
    assert ml.MAML(model, F.mse_loss, batching="loop")(series()).isfinite()


def test_a_forward_that_adds_to_a_buffer():
    model = drawn(Mean(lambda layer, x: layer(x), Writes("adds")))
    with pytest.raises(ValueError, match=r"writes to a tensor that it holds.*batching='loop'"):
        by_library(model, F.mse_loss, series())
    phi = {name: torch.stack([p, p]) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="writes its buffer 'seen'"):
        ml.MAML(model, F.mse_loss).predict(phi, torch.ones(2, 4, 5, 4).double())


@pytest.mark.parametrize("how", ["constant", "number", "nothing"])
def test_what_belongs_to_no_task_may_be_kept(how):
    model = drawn(Mean(lambda layer, x: layer(x), Writes(how)))
    expected = by_loop(model, F.mse_loss, series())
    model.layer.known = None
    assert off(by_library(model, F.mse_loss, series()), expected) < 1e-12


def test_the_mode_of_the_model_counts_and_later_calls_are_free():
    model = drawn(Mean(lambda layer, x: layer(x), Writes("nothing")))
    by_library(model.eval(), F.mse_loss, series())
    model.layer.how = "keeps"
    by_library(model, F.mse_loss, series())  # tried in this mode: it is not looked at again
    model.layer.known = None
    with pytest.raises(ValueError, match="known"): by_library(model.train(), F.mse_loss, series())


def test_what_was_there_is_put_back():
    layer = nn.BatchNorm1d(4)
    before, mean = held(layer), layer.running_mean
    layer.running_mean = torch.ones(4)
    with pytest.raises(ValueError, match="running_mean"): check_unchanged(layer, before)
    assert layer.running_mean is mean
    check_unchanged(layer, before)


class Again(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.part, self.reentrant = nn.Linear(4, 4), reentrant

    def forward(self, x): return checkpoint(self.part, x, use_reentrant=self.reentrant)


class Impatient(nn.Module):
    def forward(self, x): return x if x.mean().item() > 0 else 2 * x


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.sign()

    @staticmethod
    def backward(ctx, weight): return weight.clone()


class Signs(nn.Module):
    def forward(self, x): return Straight.apply(x) + x


class Does(nn.Module):
    "What a function does to its inputs."
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x): return self.function(x)


def slope_of(x):
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad((x ** 3).sum(), x)[0]


WRITTEN = {"keep its gradient": slope_of,
           "makes a new tensor of one": lambda x: x + torch.tensor(x),
           "detaches it in place": lambda x: (x * 1).detach_(),
           "PyTorch cannot batch": lambda x: x * torch.allclose(x, x),
           "picks out entries": lambda x: x + torch.masked_select(x, x > 0).sum()}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("message", WRITTEN)
def test_what_vmap_does_not_run_names_the_loop(message):
    model = drawn(Mean(lambda layer, x: layer(x), Does(WRITTEN[message])))
    with pytest.raises(ValueError, match=rf"{message}.*batching='loop'"):
        ml.MAML(model, F.mse_loss)(series())
    found = by_library(model, F.mse_loss, series(), batching="loop")
    assert off(found, by_loop(model, F.mse_loss, series())) < 1e-12


@pytest.mark.parametrize(("layer", "message"), [
    (lambda: Again(False), "computes a part of itself anew"), (Impatient, "looks at a number"),
    (Signs, "function of the old style")])
def test_errors_of_pytorch_say_what_they_mean(layer, message):
    model = drawn(Mean(lambda layer, x: layer(x), layer()))
    with pytest.raises(ValueError, match=rf"{message}.*batching='loop'.*PyTorch says"):
        by_library(model, F.mse_loss, series())
    found = by_library(model, F.mse_loss, series(), batching="loop")
    assert off(found, by_loop(model, F.mse_loss, series())) < 1e-12


def test_other_errors_are_left_alone():
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    with pytest.raises(RuntimeError, match=r"x of shape"):
        ml.MAML(nn.Linear(3, 1), F.mse_loss)(ml.tasks.Sinusoids().batch(2))


class Cube(torch.autograd.Function):
    "x³, whose backward is marked, or not: PyTorch could follow it."
    generate_vmap_rule = True

    @staticmethod
    def forward(x): return x**3

    @staticmethod
    def setup_context(ctx, inputs, output): ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, weight): return 3 * ctx.saved_tensors[0] ** 2 * weight


class OnceCube(Cube):
    backward = staticmethod(once_differentiable(Cube.backward))


class Cubes(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(1, 1), function
        with torch.no_grad():
            self.layer.weight.fill_(0.3)
            self.layer.bias.fill_(0.1)

    def forward(self, x): return self.function.apply(self.layer(x / 5))


def cubes(function, batching="vmap", **choices):
    choices = {"inner": ml.SGD(0.1, 2)} | choices
    return ml.MetaLoss(Cubes(function).double(), F.mse_loss, batching=batching, **choices)


def slopes_of(J, task):
    return torch.cat([g.flatten() for g in torch.autograd.grad(J(task), list(J.parameters()))])


TWICE = {"exact": lambda: {"gradient": ml.Exact()},
         "truncated": lambda: {"gradient": ml.Truncated(1)},
         "implicit": lambda: {"gradient": ml.Implicit(), "inner": ml.Proximal(0.01, 2, pull=50.0)}}


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("rule", TWICE)
def test_what_can_be_differentiated_once_is_refused_where_it_is_twice(batching, rule, sines):
    J = cubes(OnceCube, batching, **TWICE[rule]())
    for _ in range(2):                                       # a second call is no way around it
        with pytest.raises(ValueError, match="function OnceCube is marked with once_differenti"):
            J(sines)
    assert slopes_of(cubes(Cube, batching, **TWICE[rule]()), sines).isfinite().all()


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("rule", [ml.FirstOrder, lambda: ml.Truncated(0)])
def test_what_can_be_differentiated_once_is_right_where_it_is_once(batching, rule, sines):
    marked, plain = (slopes_of(cubes(function, batching, gradient=rule()), sines)
                     for function in (OnceCube, Cube))
    torch.testing.assert_close(marked, plain, rtol=1e-13, atol=0)
    with torch.no_grad(): assert cubes(OnceCube, batching)(sines).isfinite()
    J = cubes(OnceCube, batching, terms=ml.QueryLoss(), inner=ml.SGD(0.1, 0))
    assert slopes_of(J, sines).isfinite().all()              # no inner gradient, none twice


def test_a_plain_loop_drops_the_second_order_in_silence(sines):
    "That is why: torch.autograd.grad does not meet the error that PyTorch puts there."
    first, exact = (slopes_of(cubes(Cube, gradient=rule()), sines)
                    for rule in (ml.FirstOrder, ml.Exact))
    J, dropped = cubes(OnceCube), 0
    names, theta = zip(*J.model.named_parameters(), strict=True)
    for x, y, x_query, y_query in zip(*sines.support, *sines.query, strict=True):
        phi = list(theta)
        def loss(phi, x, y):
            named = dict(zip(names, phi, strict=True))
            return F.mse_loss(torch.func.functional_call(J.model, named, (x,)), y)
        for _ in range(2):
            slope = torch.autograd.grad(loss(phi, x, y), phi, create_graph=True)
            phi = [p - 0.1 * g for p, g in zip(phi, slope, strict=True)]
        dropped = dropped + loss(phi, x_query, y_query) / sines.batch_size
    found = torch.cat([g.flatten() for g in torch.autograd.grad(dropped, theta)])
    torch.testing.assert_close(found, first, rtol=1e-12, atol=0)
    assert (found - exact).norm() > 1e-3 * exact.norm()


def test_the_graph_is_looked_at_once(sines, monkeypatch):
    from metalit.batching import refused
    calls, real = [], refused.check_twice_differentiable
    monkeypatch.setattr(refused, "check_twice_differentiable",
                        lambda value: (calls.append(1), real(value)))
    J = cubes(Cube, "loop")
    for _ in range(3): J(sines)
    assert len(calls) == 1
    J.eval()
    J(sines)
    assert len(calls) == 2


def test_a_checkpoint_that_passes_no_gradient_on_is_refused_in_a_loop_too():
    J = ml.MetaLoss(nn.Sequential(Again(True), nn.Linear(4, 1)), F.mse_loss, batching="loop")
    x, y = torch.rand(2, 5, 4), torch.rand(2, 5, 1)
    for _ in range(2):                                       # the second call is no other
        with pytest.raises(ValueError, match="use_reentrant=False"): J(((x, y), (x, y)))


def test_such_a_checkpoint_is_found_in_training_after_a_call_in_evaluation():
    class OnlyInTraining(Again):
        def forward(self, x): return super().forward(x) if self.training else self.part(x)
    J = ml.MetaLoss(nn.Sequential(OnlyInTraining(True), nn.Linear(4, 1)), F.mse_loss,
                    batching="loop")
    x, y = torch.rand(2, 5, 4), torch.rand(2, 5, 1)
    J.adapted(x[0], y[0])
    with pytest.raises(ValueError, match="use_reentrant=False"): J(((x, y), (x, y)))
