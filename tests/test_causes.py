"""An error keeps its cause: kind and words of a model's own, with one sentence added; and what is
refused by name instead of being silently wrong."""
import copy
import functools
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from helpers import counting
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import metalit as ml
from metalit.batching.refused import noted, said
from metalit.learner import choice_words
from metalit.terms.term import as_sum

HOWS = ["vmap", "loop"]


def net(*sizes: int) -> nn.Module:
    return ml.models.mlp(*(sizes or (1, 4, 1)), activation=nn.Tanh).double()


def task(tasks: int = 3, shots: int = 4, dtype: torch.dtype = torch.float64) -> ml.Task:
    return ml.tasks.Sinusoids(shots=shots, queries=4).batch(tasks).to(dtype=dtype)


def words(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


class Broken(nn.Module):
    "A forward that raises what it is given."
    def __init__(self, error):
        super().__init__()
        self.layer, self.error = nn.Linear(1, 1).double(), error

    def forward(self, x):
        if isinstance(self.error, Exception): raise self.error
        return self.layer(x) + self.error(x)


class MyError(Exception):
    def __init__(self, code, text): super().__init__(code, text)


OWN = {"KeyError": KeyError("wieght"), "ValueError": ValueError("my own"),
       "RuntimeError": RuntimeError("cannot"), "NotImplementedError": NotImplementedError("later"),
       "MyError": MyError(7, "seven"), "AssertionError": AssertionError()}


NOTE = ("metalit called Broken on the examples of one task, x of shape (4, 1): model(x[0]) is the "
        "same call without metalit")
OR_LOOP = (". Where that works, build the meta-loss with batching='loop', which runs one task "
           "after another")


@pytest.mark.parametrize("batching", HOWS)
@pytest.mark.parametrize("kind", OWN)
def test_an_error_of_the_models_own_is_itself(kind, batching):
    mine = copy.copy(OWN[kind])
    J = ml.MAML(Broken(mine), F.mse_loss, batching=batching)
    with pytest.raises(type(mine)) as found: J(task())
    assert found.value is mine and words(mine).startswith(str(OWN[kind]).rstrip("'"))
    if hasattr(mine, "add_note"):
        assert str(mine) == str(OWN[kind]) and mine.args == OWN[kind].args
        assert mine.__notes__ == [NOTE + OR_LOOP * (batching == "vmap")]


@pytest.mark.parametrize("batching", HOWS)
@pytest.mark.parametrize(("dtype", "mend"), [
    (torch.float32, r"task\.to\(dtype=torch\.float64\)"), (torch.int64, r"x\.to\(torch\.float64\)"),
    (torch.bool, r"x\.to\(torch\.float64\)")])
def test_a_batch_of_another_kind_than_the_model(dtype, mend, batching):
    J, good = ml.MAML(net(), F.mse_loss, batching=batching), task()
    bad = ml.Task(*(ml.Split(part.x.to(dtype), part.y) for part in good))
    message = rf"(?s)dtype.*x is {dtype} and the model's parameters are torch.float64; {mend} makes"
    with pytest.raises(RuntimeError, match=message) as found: J(bad)
    assert "axis" not in words(found.value)
    mended = bad.to(dtype=torch.float64) if dtype == torch.float32 else bad.map(torch.Tensor.double)
    assert J(mended).isfinite()


@pytest.mark.parametrize("batching", HOWS)
def test_only_shapes_that_say_so_make_it_ask_for_the_task_axis(batching):
    def tried(model, *shape):
        x = torch.ones(*shape, dtype=torch.float64)
        split = ml.Split(x, torch.ones(*shape[:2], 1).double())
        with pytest.raises((RuntimeError, ValueError), match=r"metalit called|which says") as found:
            ml.MAML(model, F.mse_loss, batching=batching)(ml.Task(split, split))
        return words(found.value)
    convolution = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3, track_running_stats=False),
                                nn.Flatten(), nn.Linear(3, 1)).double()
    assert "is the task axis missing?" in tried(net(3, 1), 5, 2)       # x of one task is (2,)
    # seen before the model is called
    assert "One task without a task axis" in tried(convolution, 5, 2, 3, 3)
    assert "axis" not in tried(net(3, 1), 5, 4, 1)
    assert "axis" not in tried(convolution, 5, 4, 2, 9, 9)
    assert "axis" not in tried(Broken(lambda x: x @ x), 5, 4, 1)


@pytest.mark.parametrize("batching", HOWS)
def test_an_error_of_the_loss_says_what_it_was_given(batching):
    def loss(prediction, y): return {}["weight"]
    message = (r"(?s)'weight'.*metalit called the task loss for one task, on the model's output, "
               r"\(4, 1\) torch.float64, and y, \(4, 1\) torch.float64")
    with pytest.raises(KeyError, match=message):
        ml.MAML(net(), loss, batching=batching)(task())


@pytest.mark.parametrize("x", [{"first": 1, "second": 2}, (1, 2)], ids=type)
def test_the_call_to_try_without_the_library_is_the_call_that_failed(x):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1).double()

        def forward(self, first, second): return self.layer(first) + second.missing

    part = torch.ones(3, 4, 1, dtype=torch.float64)
    x = dict.fromkeys(x, part) if isinstance(x, dict) else (part, part)
    split, model = ml.Split(x, part), Two()
    with pytest.raises(AttributeError, match="missing") as found:
        ml.MAML(model, F.mse_loss)(ml.Task(split, split))
    line = words(found.value).rpartition(": model(")[2].rpartition(" is the same")[0]
    with pytest.raises(AttributeError, match="missing"):
        eval(f"model({line}", {"model": model, "x": x})


def test_nobody_is_sent_to_pytorch():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1).double()

        def forward(self, x): return self.layer(x) if x.mean().item() > 0 else self.layer(2 * x)

    with pytest.raises(ValueError, match=r"looks at a number \(\.item\(\)") as found:
        ml.MAML(Looks(), F.mse_loss)(task())
    assert "file an issue" in str(found.value.__cause__)
    for word in ("issue", "shout", "github"): assert word not in str(found.value)

    internal = RuntimeError('x > 0 INTERNAL ASSERT FAILED at "a.cpp":4, please report a bug to '
                            "PyTorch. Too bad.")
    assert said(internal) == 'x > 0 INTERNAL ASSERT FAILED at "a.cpp":4'
    with pytest.raises(RuntimeError, match="INTERNAL ASSERT") as found:
        ml.MAML(Broken(internal), F.mse_loss, batching="loop")(task())
    assert "report" not in words(found.value)
    assert said(ValueError("One. Two, three. Please file an issue.")) == "One. Two, three."
    assert said(KeyError("x")) == "'x'"


def test_what_fails_in_a_derivative_is_explained_too():
    class NoBatch(torch.autograd.Function):
        generate_vmap_rule = False
        @staticmethod
        def forward(x): return x.clone()
        @staticmethod
        def setup_context(ctx, inputs, output): pass
        @staticmethod
        def backward(ctx, slope): raise RuntimeError("Batching rule not implemented for this")
        @staticmethod
        def vmap(info, in_dims, x): return NoBatch.apply(x), in_dims[0]

    model = nn.Sequential(nn.Linear(1, 1).double(), Broken(NoBatch.apply))
    with pytest.raises(ValueError, match=r"PyTorch cannot batch.*batching='loop'"):
        ml.MAML(model, F.mse_loss)(task())


def test_before_python_3_11_the_sentence_is_a_line_of_the_message():
    class Old(KeyError):
        add_note = None

    error = noted(Old("a"), "more")                          # whose words are its repr
    assert str(error) == "'a'\nmore" and type(error) is Old
    assert noted(Old("a", "b"), "more").args == ("a", "b")


# ---------------------------------------------------------------- what prints


def test_a_meta_loss_prints_every_choice():
    model = net()
    model[0].requires_grad_(False)
    terms = ml.QueryLoss() + 0.1 * ml.GradientNorm(at="init") - ml.Triplet(2.0, "change") / 2
    J = ml.MetaLoss(model, nn.HuberLoss(delta=0.5), inner=ml.Adam(0.1, 3, batch_size=2, beta2=0.9),
                    terms=terms, gradient=ml.FirstOrder(), chunk_size=2)
    assert repr(J) == """MetaLoss(
  model=Sequential of 13 numbers, 8 of them frozen,
  loss=HuberLoss(reduction='mean', delta=0.5),
  inner=Adam(lr=0.1, steps=3, batch_size=2, beta2=0.9, eps=1e-08),
  terms=1·QueryLoss + 0.1·GradientNorm(at='init') - 0.5·Triplet(margin=2, embedding='change'),
  pooling=Mean(),
  gradient=FirstOrder(),
  batching='vmap',
  chunk_size=2
)"""
    assert "inner=Diagonal(lr=0.01, steps=1) with 13 learned numbers" in repr(
        ml.MetaSGD(net(), F.mse_loss))
    assert "rho_outer=0.3" in repr(ml.SharpMAML(net(), F.mse_loss, rho_outer=0.3))
    inside = ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(0.1, loss=nn.L1Loss()))
    assert "inner.loss=L1Loss(reduction='mean')" in repr(inside)
    learner = repr(ml.Learner(net(), F.mse_loss, batching="loop"))
    assert learner.startswith("Learner(\n  model=") and "batching='loop'" in learner
    assert "terms" not in learner


def test_choices_in_words():
    assert choice_words(F.mse_loss) == "mse_loss"
    smooth = functools.partial(F.cross_entropy, label_smoothing=0.1)
    assert choice_words(smooth) == "functools.partial(cross_entropy, label_smoothing=0.1)"
    assert choice_words(nn.CrossEntropyLoss(label_smoothing=0.1)).endswith("label_smoothing=0.1)")
    faded = ml.schedule.Linear(1.0, 0.0) * ml.GradientNorm() + ml.QueryLoss()
    assert repr(as_sum(faded)) == "Linear(1.0, 0.0, until=1.0)·GradientNorm + 1·QueryLoss"


# ---------------------------------------------------------------- the arithmetic of terms

A, B = ml.QueryLoss(), ml.GradientNorm()
LINEAR = ml.schedule.Linear(1.0, 0.0)


@pytest.mark.parametrize(("made", "weights"), [
    (-A, [-1]), (A / 4, [0.25]), (A * 2, [2]), (A - B, [1, -1]), (A - 0.5 * B, [1, -0.5]),
    (-(A + B), [-1, -1]), ((A + 2 * B) / 2, [0.5, 1]), (A - (A - B), [1, -1, 1]),
    (sum([A, B]), [1, 1]), (sum([A + B, 3 * A]), [1, 1, 3]), ((LINEAR * A) / 2, [0.5])])
def test_terms_add_up(made, weights):
    assert isinstance(made, ml.Sum) and made.weights == weights


def test_the_arithmetic_is_that_of_the_values():
    model, batch = net(), task()
    def J(terms): return ml.MetaLoss(model, F.mse_loss, inner=ml.SGD(0.1), terms=terms)(batch)
    a, b = J(A), J(B)
    for made, right in ((A - B / 4, a - b / 4), (-A, -a), (sum([A, B, A]), 2 * a + b)):
        torch.testing.assert_close(J(made), right, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: A + 1, "found int: write terms="), (lambda: 1 + A, "found int"),
    (lambda: A - 1.0, "found float"), (lambda: A + ml.QueryLoss, "found the class QueryLoss"),
    (lambda: A - None, "found NoneType"),
    (lambda: ml.Sum(A), r"a pair \(weight, term\); found QueryLoss\(\)"),
    (lambda: ml.Sum((1.0, A + B)), "sum of terms; found Sum"),
    *((lambda wrong=wrong: ml.MetaLoss(net(), F.mse_loss, terms=wrong), message) for wrong, message
      in (([A, B], "found list: write terms="), ((A, B), "found tuple"), ({}, "found dict"),
          (ml.QueryLoss, "found the class QueryLoss"), (F.mse_loss, "found function"),
          (1.0, "found float")))])
def test_what_is_no_sum_of_terms(make, message):
    with pytest.raises(TypeError, match=message): make()


def test_weights_and_sums_that_are_none():
    for wrong in (B, torch.tensor(2.0), None, "2"):
        with pytest.raises(ValueError, match=r"the weight of QueryLoss is .* a finite number"):
            A * wrong
    with pytest.raises(ValueError, match="a sum of no terms measures nothing: write terms="):
        ml.Sum()
    class Number(ml.Term):
        def per_task(self, path, task): return 1.0
    with pytest.raises(ValueError, match=r"Number\.per_task returned float; a term returns one"):
        ml.MetaLoss(net(), F.mse_loss, terms=Number())(task())


@pytest.mark.parametrize(("choice", "message"), [
    ({"pooling": ml.Mean}, r"pooling is the class Mean; .* ml\.Mean\(\)"),
    ({"pooling": "mean"}, "pooling is 'mean'"),
    ({"gradient": ml.FirstOrder}, r"gradient is the class FirstOrder; .*ml\.FirstOrder\(\)"),
    ({"gradient": "first"}, "gradient is 'first'")])
def test_what_is_no_pooling_and_no_rule(choice, message):
    with pytest.raises(TypeError, match=message): ml.MetaLoss(net(), F.mse_loss, **choice)


def test_a_function_of_pytorch_may_pool():
    model, batch = net(), task()
    values = ml.MAML(model, F.mse_loss).per_task(batch)[0]
    found = ml.MetaLoss(model, F.mse_loss, pooling=torch.max)(batch)
    torch.testing.assert_close(found, values.max())


# ---------------------------------------------------------------- an inner loop that blows up


@pytest.mark.parametrize("term", [ml.Triplet(), ml.Triplet(embedding="parameters"),
                                  ml.Triplet(embedding="change"), ml.Contrast(),
                                  ml.Contrast("predictions"), ml.GradientNorm(),
                                  ml.ParameterDistance()], ids=repr)
@pytest.mark.parametrize(("lr", "steps"), [(1e3, 40), (1e180, 1), (1e180, 4)])
def test_a_diverged_inner_loop_is_no_finite_J(term, lr, steps):
    "One step of 1e180 leaves the parameters finite, and their squares not; four leave NaN."
    J = ml.MetaLoss(net(), F.mse_loss, inner=ml.SGD(lr, steps), terms=term)
    ends = J.adapt(task().support)
    at_end = torch.cat([p.flatten() for p in ends.values()])
    if steps == 1: assert at_end.isfinite().all()
    if steps == 4: assert at_end.isnan().any() and not at_end.isinf().any()
    assert not J(task()).isfinite()


def test_one_diverged_task_among_others():
    x = torch.linspace(-1, 1, 4, dtype=torch.float64).reshape(1, 4, 1).repeat(3, 1, 1)
    x[1] = 1e80                                                  # equal halves: no distance within
    batch = ml.Task(ml.Split(x, x), ml.Split(x, x))
    for term in (ml.Triplet(embedding="parameters"), ml.Contrast()):
        J = ml.MetaLoss(nn.Linear(1, 1).double(), F.mse_loss, inner=ml.SGD(0.1), terms=term)
        assert not J(batch).isfinite()


# ---------------------------------------------------------------- halves of a classification task


def labelled(*labels):
    y = torch.tensor(labels)
    x = F.one_hot(y, 3).double() + 0.01 * torch.arange(y.shape[1]).double()[:, None]
    return ml.Task(ml.Split(x, y), ml.Split(x, y))


@pytest.mark.parametrize("batching", HOWS)
def test_halves_show_the_same_classes(batching):
    "Sorted by class or mixed, the two halves are the same sets, so J is the same number."
    model = net(3, 3)
    def J(batch): return ml.MetaLoss(model, F.cross_entropy, inner=ml.SGD(0.5), terms=ml.Triplet(),
                                     batching=batching)(batch)
    in_order = labelled([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2])
    mixed = in_order.map(lambda t: t)
    order = torch.tensor([4, 0, 2, 1, 5, 3])
    mixed = ml.Task(ml.Split(*(t[:, order] for t in in_order.support)), in_order.query)
    torch.testing.assert_close(J(in_order), J(mixed), rtol=0, atol=1e-14)
    from metalit.terms.contrast import halves
    for row in range(2):
        one, other = halves(ml.Split(mixed.support.x[row], mixed.support.y[row]))
        assert sorted(one.y.tolist()) == sorted(other.y.tolist()) == [0, 1, 2]


def test_by_hand_the_halves_are_dealt_out_by_class():
    model, batch = net(3, 3), labelled([2, 0, 1, 0, 1, 2], [0, 1, 2, 2, 1, 0])
    J = ml.MetaLoss(model, F.cross_entropy, inner=ml.SGD(0.5), terms=ml.Triplet(9.0))
    def learned(x, y):
        p = dict(model.named_parameters())
        slopes = torch.autograd.grad(F.cross_entropy(model(x), y), list(p.values()))
        phi = {name: value - 0.5 * s for (name, value), s in zip(p.items(), slopes, strict=True)}
        return torch.func.functional_call(model, phi, (batch.query.x[0],)).flatten()
    def apart(a, b): return ((a - b) ** 2).mean().sqrt()
    parts = [([1, 2, 0], [3, 4, 5]), ([0, 1, 2], [5, 4, 3])]
    near = [apart(*(learned(x[i], y[i]) for i in part))
            for x, y, part in zip(*batch.support, parts, strict=True)]
    far = apart(*(learned(x, y) for x, y in zip(*batch.support, strict=True)))
    torch.testing.assert_close(J(batch), 9.0 + sum(near) / 2 - far, rtol=0, atol=1e-12)


def test_a_class_with_one_example_is_refused():
    one_shot = labelled([0, 1, 2], [2, 1, 0])
    J = ml.TripletMAML(net(3, 3), F.cross_entropy)
    for batch in (one_shot, labelled([0, 0, 1, 1], [0, 0, 1, 2])):
        with pytest.raises(ValueError, match=r"class \d has one example.*2 or more.*y\.float"):
            J(batch)
    assert J.curve(one_shot).isfinite().all()                    # nothing is cut in halves here
    counts = ml.Task(*(ml.Split(part.x, part.y.double()) for part in one_shot))
    assert ml.TripletMAML(net(3, 1), lambda p, y: F.mse_loss(p[:, 0], y))(counts).isfinite()


# ---------------------------------------------------------------- threads


def together(*functions):
    "Run in threads at once, switching as often as can be; raise what they raised."
    raised, start = [], threading.Barrier(len(functions))
    def run(function):
        try:
            start.wait()
            function()
        except BaseException as error: raised.append(error)
    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    finally: sys.setswitchinterval(before)
    if raised: raise raised[0]


@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 2}], ids=str)
def test_threads_share_a_meta_loss(options):
    model = net()
    batches = [task(), ml.tasks.Sinusoids(shots=4).batch(4, seed=1).to(dtype=torch.float64)]
    Js = [ml.MAML(model, F.mse_loss, lr=0.1, steps=3, **options), ml.FOMAML(model, F.mse_loss)]
    own, right = list(model.parameters()), [(J(b).item(), J.curve(b)) for J in Js for b in batches]
    def work():
        for _ in range(6):
            pairs = [(J, b) for J in Js for b in batches]
            for (J, b), (value, curve) in zip(pairs, right, strict=True):
                found = J(b)
                torch.autograd.grad(found, own)
                assert found.item() == value and torch.equal(J.curve(b), curve)
    together(work, work, work)
    assert all(one is other for one, other in zip(own, model.parameters(), strict=True))


def test_a_copy_and_a_pickle_of_a_locked_meta_loss(tmp_path):
    J = ml.MAML(net(), F.mse_loss)
    value = J(task())
    torch.save(J, tmp_path / "J.pt")
    for twin in (copy.deepcopy(J), torch.load(tmp_path / "J.pt", weights_only=False)):
        assert twin(task()) == value


# ---------------------------------------------------------------- compiled


def test_rates_and_numbers_of_steps_have_no_limit():
    J = ml.MAML(net(1, 2, 1), F.mse_loss, lr=0.1)
    J.compile(backend=counting(graphs := []))
    def agrees():
        torch.testing.assert_close(J(task()), copy.deepcopy(J)(task()), rtol=0, atol=1e-14)
    with torch._dynamo.config.patch(recompile_limit=2):
        for i in range(20):
            J.inner.lr = 0.1 + 0.01 * i
            agrees()
        assert len(graphs) == 2 and type(J.inner.lr) is float    # one with 0.1, one for all others
        J.inner.lr = 0.1
        for J.inner.steps in (0, 1, 0): agrees()                 # a third graph would be an error
    assert len(graphs) == 3


class Breaks(nn.Module):
    def forward(self, x):
        torch._dynamo.graph_break()
        return x


def breaking(prediction, y):
    torch._dynamo.graph_break()
    return F.mse_loss(prediction, y)


@pytest.mark.parametrize(("model", "loss", "where"), [
    (nn.Sequential(net(), nn.Sequential(Breaks())), F.mse_loss, r"layer '1\.0' \(Breaks\)"),
    (net(), breaking, "breaking")])
def test_what_cannot_be_compiled_is_named(model, loss, where):
    J = ml.MAML(model, loss)
    J.compile(backend="eager")
    message = rf"J cannot be one graph: {where} has the line 'torch\._dynamo\.graph_break\(\)'"
    with pytest.raises(RuntimeError, match=message) as found: J(task())
    assert "issue" not in str(found.value)


def test_a_compiled_J_has_the_errors_of_a_plain_one():
    J = ml.MAML(Broken(KeyError("mine")), F.mse_loss)
    J.compile(backend="eager")
    with pytest.raises(KeyError, match=r"(?s)mine.*metalit called Broken"): J(task())
    J = ml.MAML(net(), F.mse_loss)
    J.compile(backend="eager")
    with pytest.raises(RuntimeError, match=r"task\.to\(dtype=torch\.float64\)"):
        J(task(dtype=torch.float32))


# ---------------------------------------------------------------- between forward and backward


@pytest.mark.parametrize("change", ["lr", "steps", "weight", "eval", "dropout"])
@pytest.mark.parametrize("batching", HOWS)
def test_a_chunk_is_recomputed_as_it_was(change, batching):
    model = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1)).double()
    J = ml.MAML(model, F.mse_loss, lr=0.1, chunk_size=2, batching=batching)
    changes = {"lr": lambda: setattr(J.inner, "lr", 3.0),
               "steps": lambda: setattr(J.inner, "steps", 4),
               "weight": lambda: setattr(J.terms, "weight_0", 7.0), "eval": J.eval,
               "dropout": lambda: setattr(model[1], "p", 0.1)}
    def gradients(then=lambda: None):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            value = J(task(4))
            then()
            return torch.autograd.grad(value, list(J.parameters()))
    expected = gradients()
    found = gradients(changes[change])
    assert all(map(torch.equal, found, expected))
    now = {"lr": J.inner.lr == 3.0, "steps": J.inner.steps == 4, "eval": not model[1].training,
           "weight": J.terms.weights == [7.0], "dropout": model[1].p == 0.1}
    assert now[change]                                           # what was set last stays


@pytest.mark.parametrize("batching", HOWS)
def test_a_chunk_is_recomputed_in_the_precision_of_its_forward_pass(batching):
    "The backward pass stands outside of autocast, as PyTorch advises."
    J = ml.MAML(net().float(), F.mse_loss, lr=0.1, chunk_size=2, batching=batching)
    batch, found = task(4, dtype=torch.float32), {}
    for where in ("outside", "inside", "nowhere"):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=where != "nowhere"):
            value = J(batch)
            if where == "inside": found[where] = torch.autograd.grad(value, list(J.parameters()))
        if where != "inside": found[where] = torch.autograd.grad(value, list(J.parameters()))
    assert all(map(torch.equal, found["outside"], found["inside"]))
    assert not any(map(torch.equal, found["outside"], found["nowhere"]))


# ---------------------------------------------------------------- hooks


@pytest.mark.parametrize("batching", HOWS)
def test_hooks_of_parameters_are_refused(batching):
    model = net()
    J = ml.MAML(model, F.mse_loss, batching=batching)
    handle = model[0].weight.register_hook(lambda slope: 2 * slope)
    for call in (lambda: J(task()), lambda: J.adapt(task().support), lambda: J.curve(task())):
        with pytest.raises(ValueError, match=r"parameter '0\.weight' has a hook.*the inner loop"):
            call()
    handle.remove()
    def erase(p): p.grad.zero_()
    model[0].weight.register_post_accumulate_grad_hook(erase)
    J(task()).backward()
    assert not model[0].weight.grad.any() and model[2].weight.grad.any()


def test_hooks_of_tensors_act_in_a_loop_and_are_refused_at_once():
    class Hooked(nn.Module):
        hook = staticmethod(lambda slope: 3 * slope)

        def forward(self, x):
            if x.requires_grad: x.register_hook(self.hook)
            return x

    def by_hand(model, batch, lr):
        values = []
        for x, y, x_query, y_query in zip(*batch.support, *batch.query, strict=True):
            p = dict(model.named_parameters())
            loss = F.mse_loss(torch.func.functional_call(model, p, (x,)), y)
            slopes = torch.autograd.grad(loss, list(p.values()), create_graph=True)
            phi = {n: v - lr * s for (n, v), s in zip(p.items(), slopes, strict=True)}
            values.append(F.mse_loss(torch.func.functional_call(model, phi, (x_query,)), y_query))
        return torch.autograd.grad(torch.stack(values).mean(), list(model.parameters()))

    model = nn.Sequential(nn.Linear(1, 3), Hooked(), nn.Tanh(), nn.Linear(3, 1)).double()
    J = ml.MAML(model, F.mse_loss, lr=0.1, batching="loop")
    found = torch.autograd.grad(J(task()), list(J.parameters()))
    for one, other in zip(found, by_hand(model, task(), 0.1), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    for hook in (lambda slope: 3 * slope, F.relu, torch.neg, functools.partial(torch.mul, 3)):
        Hooked.hook = staticmethod(hook)
        with pytest.raises(ValueError, match=r"a hook on a tensor \(register_hook\).*='loop'"):
            ml.MAML(model, F.mse_loss)(task())


# ---------------------------------------------------------------- refused by name


def test_a_model_is_not_swapped_behind_an_optimizer():
    model = net()
    J = ml.MAML(model, F.mse_loss)
    torch.optim.SGD(J.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"in the place of J\.model.*J\.on\(model, loss\)"):
        J.model = net()
    assert J.model is model
    J.model = nn.Sequential(model)                               # of the same parameters
    assert J(task()).isfinite()
    other = ml.MetaSGD(model, F.mse_loss).on(net(1, 3, 1), F.mse_loss)
    assert other(task()).isfinite()
    assert next(iter(other.state_dict())) == "model.0.weight"    # in the place of the first one


@pytest.mark.parametrize("change", [lambda p: {}, lambda p: {"0.weight": p["0.weight"]},
                                    lambda p: p | {"0.bias": p["0.bias"][:1]}])
def test_other_parameters_have_to_be_all_of_them(change):
    J = ml.MAML(net(), F.mse_loss)
    with pytest.raises(ValueError, match=r"theta has .* for '0\.\w+', whose shape is .*J\.theta"):
        J.per_task(task(), theta=change(J.theta()))
    twice = {name: 2 * p for name, p in J.theta().items()}
    assert (J.per_task(task(), theta=twice)[0] != J.per_task(task())[0]).all()


@pytest.mark.parametrize("size", [0, 2.5, -1, True, "3"])
def test_numbers_of_tasks(size):
    tasks, J = ml.tasks.Sinusoids(), ml.MAML(net(), F.mse_loss)
    for call in (lambda: tasks.batch(size), lambda: list(tasks.stream(size, 2)),
                 lambda: ml.evaluate(J, tasks, n_tasks=4, batch_size=size)):
        with pytest.raises(ValueError, match=rf"batch_size={size!r}: the number of tasks is a"):
            call()
    with pytest.raises(ValueError, match=r"n_tasks=.*whole number"): tasks.held_out(size)
    with pytest.raises(ValueError, match=rf"batch_size={size!r}: a whole number, 1 or more"):
        ml.meta_train(J, tasks, steps=2, batch_size=size)
    with pytest.raises(ValueError, match=r"steps=\(\): a whole number, 0 or more"):
        ml.meta_train(J, tasks, steps=())


@pytest.mark.filterwarnings("ignore:.*nested.*")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged, torch.sparse_coo])
def test_tensors_that_are_not_plain(layout):
    rows = [torch.ones(3, 1), torch.ones(2, 1)]
    sparse = layout == torch.sparse_coo
    x = (torch.ones(2, 3, 1).to_sparse() if sparse
         else torch.nested.nested_tensor(rows, layout=layout))
    message = (r"layout torch.sparse_coo; a plain tensor is needed: to_dense\(\)" if sparse
               else "support.x is a nested tensor; a plain one is needed: give the tasks of each")
    with pytest.raises(ValueError, match=message):
        ml.MAML(net(), F.mse_loss)(ml.Task(ml.Split(x, x), ml.Split(x, x)))


@pytest.mark.parametrize("make", [
    lambda model: ml.MAML(model, F.mse_loss), lambda model: ml.ANIL(model, F.mse_loss),
    lambda model: ml.MetaSGD(model, F.mse_loss), lambda model: ml.Learner(model, F.mse_loss),
    lambda model: ml.MAML(net(), F.mse_loss).on(model, F.mse_loss)])
def test_lazy_layers(make):
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.LazyLinear(1)).double()
    with pytest.raises(ValueError, match=r"layer '2' \(LazyLinear\) has no shape yet: call"):
        make(model)
    model(task().support.x[0])
    assert make(model).adapt(task().support)["2.weight"].shape == (3, 1, 4)


@pytest.mark.parametrize("method", [ml.ProtoNet, ml.ProtoMAML])
def test_prototypes_are_for_classes(method):
    with pytest.raises(ValueError, match=r"whose y is torch.float64 of shape \(4, 1\): .*"
                       r"ml\.MAML, or ml\.ANIL"):
        method(net(), F.mse_loss)(task())


def test_hooks_of_tools_that_look_on_are_let_through():
    J = ml.MAML(net(), F.mse_loss)
    with FlopCounterMode(display=False) as counter: value = J(task())
    assert counter.get_total_flops() > 0
    torch.testing.assert_close(value, ml.MAML(J.model, F.mse_loss)(task()))


@pytest.mark.parametrize("batching", HOWS)
def test_whole_numbers_are_no_mistake_unless_the_error_speaks_of_kinds(batching):
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(5, 2))

        def forward(self, x): return self.table[x]
    x = torch.tensor([[0, 1], [2, 7]])
    split = ml.Split(x, torch.zeros(2, 2, 2))
    with pytest.raises(IndexError, match="index 7 is out of bounds") as found:
        ml.MAML(Rows(), F.mse_loss, batching=batching)(ml.Task(split, split))
    assert "makes them agree" not in words(found.value)
    assert "model(x[0]) is the same call without metalit" in words(found.value)


class Through(nn.Module):
    "A model that does something with its layer."
    def __init__(self, does):
        super().__init__()
        self.layer, self.does = nn.Linear(1, 3).double(), does

    def forward(self, x): return self.does(self.layer, x)


def sparsely(layer, x): return torch.sparse.mm(x.to_sparse(), layer.weight.t()) + layer.bias


def by_condition(layer, x): return torch.cond(x.sum() > 0, layer, lambda x: -layer(x), (x,))


def of_one(p, y): return (p.sum(-1) - y[..., 0]).square().mean()


@pytest.mark.filterwarnings("ignore::UserWarning")           # PyTorch's, of its compiler
@pytest.mark.parametrize("does", [by_condition, sparsely])
def test_what_vmap_cannot_run_names_the_loop_whatever_pytorch_says(does):
    J, kinds = ml.MAML(Through(does), of_one, lr=0.1), (AssertionError, NotImplementedError)
    with pytest.raises(kinds) as raised: J(task())
    assert OR_LOOP in words(raised.value)
    values = [ml.MetaLoss(Through(way), of_one, inner=J.inner, batching="loop")
              for way in (does, lambda layer, x: layer(x) * (x.sum().sign() if does is by_condition
                                                             else 1))]
    values[1].model.layer = values[0].model.layer
    torch.testing.assert_close(*(one(task()) for one in values), rtol=1e-12, atol=0)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("change", "hint"), [
    (lambda y: y.double(), "y.long()"), (lambda y: y[..., None], "y.squeeze(-1)")])
def test_labels_of_another_kind_are_told_where_a_lambda_hides_the_loss(how, change, hint):
    x, y = torch.rand(3, 5, 2), torch.arange(15).reshape(3, 5) % 3
    J = ml.MAML(nn.Linear(2, 3), lambda p, y: F.cross_entropy(p, y), lr=0.1)
    J = ml.MetaLoss(J.model, J.loss, inner=J.inner, batching=how)
    assert J(((x, y), (x, y))).isfinite()
    kinds = (RuntimeError, AssertionError, ValueError)
    with pytest.raises(kinds) as raised: J(((x, change(y)), (x, change(y))))
    assert hint in words(raised.value)
