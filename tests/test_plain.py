"""What `vmap` gets wrong or cannot run, done right: against a loop that shares no code."""
import copy

import pytest
import torch
import torch.nn.functional as F
from referee import Mean, by_library, by_loop, drawn, off, series, slope_by_difference, words
from torch import nn
from torch.func import functional_call, grad, vmap

import metalit as ml
from metalit.batching.plain import PLAIN, PlainOperations

aten = torch.ops.aten
w, b = (torch.linspace(0.5, 2, 4, dtype=torch.float64) for _ in range(2))


def affine(layer): return layer.weight[0], layer.bias


def channels(call, mean=False):
    "A call on channels (4, 5) with a weight and a bias that each task has of its own."
    def function(layer, x):
        moving = (b, w) if mean else (None, None)
        x = x.transpose(1, 2).contiguous()
        return call(x, *affine(layer), *moving).transpose(1, 2)
    return lambda: Mean(function, nn.Linear(4, 4))


def last(call):
    return lambda: Mean(lambda layer, x: call(x, *affine(layer)), nn.Linear(4, 4))


NORMS = {
    "torch.layer_norm": last(lambda x, w, b: torch.layer_norm(x, [4], w, b)),
    "aten.layer_norm": last(lambda x, w, b: aten.layer_norm(x, [4], w, b)),
    "aten.layer_norm.default": last(lambda x, w, b: aten.layer_norm.default(x, [4], w, b)),
    "torch.native_layer_norm": last(lambda x, w, b: torch.native_layer_norm(x, [4], w, b, 0.1)[0]),
    "aten.native_layer_norm": last(lambda x, w, b: aten.native_layer_norm.default(
        x, [4], w, b, 0.1)[0]),
    "torch.batch_norm": channels(lambda x, w, b, *_: torch.batch_norm(
        x, w, b, None, None, True, 0.1, 0.1, False)),
    "aten.batch_norm": channels(lambda x, w, b, *_: aten.batch_norm(
        x, w, b, None, None, True, 0.1, 0.1, False)),
    "torch.batch_norm, constants": channels(lambda x, w, b, m, v: torch.batch_norm(
        x, w, b, m, v, False, 0.1, 0.1, False), mean=True),
    "torch.native_batch_norm": channels(lambda x, w, b, *_: torch.native_batch_norm(
        x, w, b, None, None, True, 0.1, 0.1)[0]),
    "torch.native_batch_norm, constants": channels(lambda x, w, b, m, v: torch.native_batch_norm(
        x, w, b, m, v, False, 0.1, 0.1)[0], mean=True),
    "torch.instance_norm": channels(lambda x, w, b, *_: torch.instance_norm(
        x, w, b, None, None, True, 0.1, 0.1, False)),
    "F.instance_norm, constants": channels(lambda x, w, b, m, v: F.instance_norm(
        x, m, v, w, b, use_input_stats=False), mean=True),
    "torch.instance_norm, constants": channels(lambda x, w, b, m, v: torch.instance_norm(
        x, w, b, m, v, False, 0.1, 0.1, False), mean=True),
    "torch.native_group_norm": channels(lambda x, w, b, *_: torch.native_group_norm(
        x, w, b, len(x), 4, 5, 2, 0.1)[0]),
    "aten.native_group_norm": channels(lambda x, w, b, *_: aten.native_group_norm(
        x, w, b, len(x), 4, 5, 2, 0.1)[0]),
}
EMBEDDINGS = {
    "padding": lambda: Mean(lambda layer, x: layer(x), nn.Embedding(7, 4, padding_idx=2)),
    "padding, from behind": lambda: Mean(lambda layer, x: F.embedding(x, layer.weight, -5),
                                         nn.Embedding(7, 4)),
    "no padding": lambda: Mean(lambda layer, x: layer(x), nn.Embedding(7, 4, sparse=True)),
    "torch.embedding": lambda: Mean(lambda layer, x: torch.embedding(layer.weight, x, 2),
                                    nn.Embedding(7, 4)),
    "aten.embedding": lambda: Mean(lambda layer, x: aten.embedding.default(layer.weight, x, 2),
                                   nn.Embedding(7, 4)),
    "one_hot": lambda: Mean(lambda layer, x: F.one_hot(x, 7).double() @ layer.weight,
                            nn.Embedding(7, 4)),
}


def net(layer, states=None, out=3):
    def function(layer, x):
        state = states(x) if states else None
        outputs, ends = layer(x, state)
        ends = ends if isinstance(ends, tuple) else (ends,)
        return outputs + sum(end.mean(0).mean(-1)[:, None, None] for end in ends)
    model = lambda: Mean(function, layer(), out=out)  # noqa: E731
    return model


def cell(layer, pair=False):
    def function(layer, x):
        h = x[:, 0, :3]
        state = (h, 2 * h) if pair else h
        for t in range(3): state = layer(x[:, t], state)
        return (state[0] + state[1] if pair else state)[:, None]
    return lambda: Mean(function, layer(4, 3), out=3)


def two(x): return x[:, :1, :3].transpose(0, 1).contiguous()


first = {"batch_first": True}
NETS = {
    "LSTM": net(lambda: nn.LSTM(4, 3, **first)),
    "LSTM, two layers, both ways, projected": net(lambda: nn.LSTM(
        4, 3, 2, bidirectional=True, proj_size=2, **first), out=4),
    "LSTM, no bias, projected": net(lambda: nn.LSTM(4, 3, bias=False, proj_size=2, **first), out=2),
    "LSTM, a state to start from": net(lambda: nn.LSTM(4, 3, **first),
                                       lambda x: (two(x), 2 * two(x))),
    "LSTM, time first": lambda: Mean(lambda layer, x: layer(x)[0], nn.LSTM(4, 3), out=3),
    "LSTM, one series": lambda: Mean(lambda layer, x: torch.stack(
        [layer(one)[0] for one in x]), nn.LSTM(4, 3), out=3),
    "GRU, two layers, both ways": net(lambda: nn.GRU(4, 3, 2, bidirectional=True, **first), out=6),
    "GRU, no bias": net(lambda: nn.GRU(4, 3, bias=False, **first)),
    "GRU, a state to start from": net(lambda: nn.GRU(4, 3, **first), two),
    "RNN": net(lambda: nn.RNN(4, 3, 2, **first)),
    "RNN, ReLU": net(lambda: nn.RNN(4, 3, nonlinearity="relu", bidirectional=True, **first), out=6),
    "LSTMCell": cell(nn.LSTMCell, pair=True), "GRUCell": cell(nn.GRUCell),
    "RNNCell": cell(nn.RNNCell),
    "RNNCell, ReLU": cell(lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu")),
}


def heads(x): return x.reshape(*x.shape[:-1], 2, 2).transpose(1, 2)


def direct(**options):
    def function(layer, x):
        q, k, v = (heads(part) for part in layer(x).chunk(3, -1))
        return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(-2)
    return lambda: Mean(function, nn.Linear(4, 12))


def grouped(layer, x):
    q, k, v = heads(x), *(part[:, None] for part in layer(x).chunk(2, -1))
    answer = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return answer.transpose(1, 2).flatten(-2)


def encoder(evaluating=False, **options):
    def make():
        layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True, **options)
        model = Mean(lambda layer, x: layer(x), nn.TransformerEncoder(
            layer, 2, enable_nested_tensor=not options))
        return model.eval() if evaluating else model
    return make


def many(call, **options):
    return lambda: Mean(call, nn.MultiheadAttention(4, 2, batch_first=True, **options))


blind = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], *[[1, 1, 1, 0, 1]] * 3], dtype=torch.bool)
added = torch.linspace(-1, 1, 25, dtype=torch.float64).reshape(5, 5)
ATTENTION = {
    "attention": direct(), "attention, mask": direct(attn_mask=blind),
    "attention, added mask": direct(attn_mask=added),
    "attention, causal": direct(is_causal=True), "attention, scale": direct(scale=0.3),
    "attention, few keys": lambda: Mean(grouped, nn.Linear(4, 4)),
    "heads": many(lambda layer, x: layer(x, x, x, need_weights=False)[0]),
    "heads with weights": many(lambda layer, x: layer(x, x, x)[0]),
    "heads, evaluating": lambda: many(lambda layer, x: layer(x, x, x, need_weights=False)[0])()
    .eval(),
    "heads, mask": many(lambda layer, x: layer(x, x, x, need_weights=False, attn_mask=~blind)[0]),
    "heads, padding": many(lambda layer, x: layer(x, x, x, need_weights=False, key_padding_mask=(
        torch.arange(5) > 2).expand(len(x), 5))[0], add_bias_kv=True, add_zero_attn=True),
    "heads, other keys": many(lambda layer, x: layer(
        x, x[..., :3], x[..., :2], need_weights=False)[0], kdim=3, vdim=2),
    "encoder": encoder(), "encoder, evaluating": encoder(True),
    "one layer, evaluating": lambda: Mean(lambda layer, x: layer(x), nn.TransformerEncoderLayer(
        4, 2, 6, batch_first=True)).eval(),
    "encoder, norm first, GELU": encoder(norm_first=True, activation="gelu"),
    "decoder": lambda: Mean(lambda layer, x: layer(x, x.flip(1)), nn.TransformerDecoderLayer(
        4, 2, 6, dropout=0.0, batch_first=True)),
}
ALL = NORMS | EMBEDDINGS | NETS | ATTENTION


def case(name): return drawn(ALL[name]()), words() if name in EMBEDDINGS else series()


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_value_and_gradient_equal_those_of_a_loop(name, first_order):
    model, task = case(name)
    expected = by_loop(model, F.mse_loss, task, first_order=first_order)
    found = by_library(model, F.mse_loss, task, first_order=first_order)
    assert off(found, expected) < 1e-12
    looped = by_library(model, F.mse_loss, task, first_order=first_order, batching="loop")
    assert off(looped, expected) < 1e-12


COMPILED = ["torch.native_batch_norm", "F.instance_norm, constants", "padding", "LSTM",
            "RNNCell, ReLU", "attention, mask", "heads", "one layer, evaluating"]
ALL_THE_WAY = {"torch.native_batch_norm", "heads"}  # for the others tracing is what may go wrong


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_the_same(name):
    model, task = case(name)
    expected = by_library(model, F.mse_loss, task, steps=1)
    fast = torch.backends.mha.get_fastpath_enabled()
    backend = "aot_eager" if name in ALL_THE_WAY else "eager"
    assert off(by_library(model, F.mse_loss, task, steps=1, compiled=backend), expected) < 1e-13
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert not torch._dynamo.config.allow_rnn
    assert "_flat_weights" not in vars(nn.RNNBase)
    torch.testing.assert_close(by_library(model, F.mse_loss, task, steps=1), expected)


@pytest.mark.parametrize("name", ["LSTM", "heads", "padding", "torch.layer_norm"])
def test_prediction_and_report_take_the_same_way(name):
    model, task = case(name)
    J = ml.MAML(model, F.mse_loss, lr=0.3)
    phi = J.adapt(task.support)
    for b in range(3):
        one = {key: value[b] for key, value in phi.items()}
        torch.testing.assert_close(J.predict(phi, task.query.x)[b],
                                   functional_call(model, one, (task.query.x[b],)))


def test_as_written_calls_the_model_in_the_mode():
    model, task = case("torch.layer_norm")
    found = torch.autograd.grad(ml.as_written.maml(model, F.mse_loss, task, lr=0.3),
                                list(model.parameters()))
    expected = by_loop(model, F.mse_loss, task, steps=1)[1:]
    assert off(found, expected) < 1e-12


# Values


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(4, track_running_stats=False),
                                  lambda: nn.InstanceNorm1d(4, affine=True),
                                  lambda: nn.LayerNorm([4, 50])])
def test_half_precision_is_the_rounded_answer_of_float32(make, kind):
    x = (30 + torch.randn(20, 4, 50, generator=torch.Generator().manual_seed(0))).to(kind)
    layer = make()
    with torch.no_grad(): expected = layer(x.float())
    with PlainOperations(), torch.no_grad(): found = layer.to(kind)(x)
    assert found.dtype == kind
    torch.testing.assert_close(found.float(), expected, rtol=torch.finfo(kind).eps / 2, atol=1e-4)


@pytest.mark.parametrize("native", [
    lambda x: torch.native_layer_norm(x, [3, 5], None, None, 0.1),
    lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 0.1),
    lambda x: torch.native_group_norm(x, None, None, 6, 4, 15, 2, 0.1)])
def test_statistics_of_native_operations_are_those_of_pytorch(native):
    x = torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = native(x)
    with PlainOperations(): found = native(x)
    for a, b in zip(found, expected, strict=True): torch.testing.assert_close(a, b)


BAGS = {
    "mean": {}, "sum": {"mode": "sum"}, "max": {"mode": "max"},
    "padding": {"padding_idx": 2}, "padding, max": {"padding_idx": -5, "mode": "max"},
    "weights": {"mode": "sum", "per_sample_weights": torch.linspace(-1, 1, 20).reshape(4, 5)},
}


@pytest.mark.parametrize("offsets", [None, [0, 3, 3, 12], [0, 3, 12, 20]])
@pytest.mark.parametrize("name", BAGS)
def test_values_of_bags_are_those_of_pytorch(name, offsets):
    x, weight, options = words().support.x[0], torch.randn(7, 3), dict(BAGS[name])
    if offsets:
        x = x.flatten()
        options |= {"offsets": torch.tensor(offsets), "include_last_offset": offsets[-1] == 20}
        if "per_sample_weights" in options:
            options["per_sample_weights"] = options["per_sample_weights"].flatten()
    expected = F.embedding_bag(x, weight, **options)
    with PlainOperations(): found = F.embedding_bag(x, weight, **options)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("mode", ["mean", "sum", "max"])
def test_a_bag_is_differentiated_twice(mode):
    "PyTorch has no second derivative of it, so a difference decides; padding does not move."
    model = drawn(Mean(lambda layer, x: layer(x)[:, None], nn.EmbeddingBag(7, 4, mode=mode)))
    task, parameters = words(), list(model.parameters())
    first = by_loop(model, F.mse_loss, task, first_order=True)
    assert off(by_library(model, F.mse_loss, task, first_order=True), first) < 1e-12
    J = ml.MAML(model, F.mse_loss, lr=0.1)
    slopes = torch.autograd.grad(J(task), parameters, allow_unused=True, materialize_grads=True)
    direction = [torch.randn_like(p) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(slopes, direction, strict=True)).item()
    assert slope_by_difference(lambda: J(task), parameters, direction) == pytest.approx(slope, 1e-6)


def test_the_row_of_the_padding_stays_where_it_is():
    model, task = case("padding")
    J = ml.MAML(model, F.mse_loss, lr=0.3, steps=3)
    J(task).backward()
    assert (model.layer.weight.grad[2] == 0).all() and model.layer.weight.grad.abs().sum() > 0
    assert torch.equal(J.adapt(task.support)["layer.weight"][:, 2],
                       model.layer.weight[2].expand(3, 4))


class Rare(nn.Module):
    "An embedding whose gradient is divided by how often a word was read, by a hook."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(7, 4))

    def forward(self, x):
        rows, often = self.weight[x], (x.flatten() == x[..., None]).sum(-1, keepdim=True)
        if rows.requires_grad: rows.register_hook(lambda g: g / often)
        return rows


@pytest.mark.parametrize("first_order", [False, True])
def test_a_gradient_scaled_by_frequency(first_order):
    by_hook = drawn(Mean(lambda layer, x: layer(x), Rare()))
    model = drawn(Mean(lambda layer, x: layer(x), nn.Embedding(7, 4, scale_grad_by_freq=True)))
    found = by_library(model, F.mse_loss, words(), first_order=first_order)
    assert off(found, by_loop(by_hook, F.mse_loss, words(), first_order=first_order)) < 1e-12
    if first_order:
        assert off(found, by_loop(model, F.mse_loss, words(), first_order=True)) < 1e-12


@pytest.mark.parametrize(("make", "message"), [
    (lambda: nn.Embedding(7, 4, max_norm=1.0), "max_norm"),
    (lambda: nn.EmbeddingBag(7, 4, max_norm=1.0), "max_norm")])
def test_weights_that_change_while_read_are_refused(make, message):
    model = drawn(Mean(lambda layer, x: layer(x).reshape(len(x), -1, 4), make()))
    with pytest.raises(ValueError, match=rf"{message}.*batching='loop'"):
        by_library(model, F.mse_loss, words())


def test_one_hot_of_numbers_that_are_no_class():
    x = torch.tensor([[0, 1], [2, 5]])
    with pytest.raises(ValueError, match=r"classes 0 … 4; x holds 0 … 5"), PlainOperations():
        vmap(lambda x: F.one_hot(x, 5))(x)
    with pytest.raises(ValueError, match=r"say how many"), PlainOperations():
        vmap(F.one_hot)(x)
    with PlainOperations(): assert torch.equal(F.one_hot(x), F.one_hot(x, 6))


def test_packed_sequences_need_a_loop():
    def packed(layer, x):
        x = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 2, 1]), batch_first=True)
        return layer(x)[1][0].transpose(0, 1)
    model = drawn(Mean(packed, nn.LSTM(4, 3), out=3))
    with pytest.raises(ValueError, match=r"packed sequence .* batching='loop'"):
        by_library(model, F.mse_loss, series())
    found = by_library(model, F.mse_loss, series(), batching="loop")
    assert off(found, by_loop(model, F.mse_loss, series())) < 1e-12


def test_dropout_between_layers_has_its_distribution():
    torch.manual_seed(0)
    net = nn.LSTM(4, 3, 2, dropout=0.4)
    x = torch.randn(6, 400, 4)
    def spread(): return torch.stack([net(x)[0].std(), net(x)[0].mean()])
    outside = spread()
    with PlainOperations(): inside = spread()
    torch.testing.assert_close(inside, outside, rtol=0.1, atol=0.02)
    with PlainOperations(): assert not torch.equal(net(x)[0], net(x)[0])
    with PlainOperations(): found = net.eval()(x)[0]
    torch.testing.assert_close(found, net(x)[0])


def test_dropout_of_attention_has_its_distribution():
    torch.manual_seed(0)
    q = torch.randn(500, 4, 5, 8)
    expected = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    with PlainOperations(): found = F.scaled_dot_product_attention(q, q, q, dropout_p=0.5)
    torch.testing.assert_close(found.std(), expected.std(), rtol=0.05, atol=0)


def test_a_query_that_sees_nothing_has_finite_derivatives():
    model, task = case("attention, mask")
    assert all(torch.isfinite(part).all() for part in by_library(model, F.mse_loss, task))
    q = torch.randn(1, 2, 5, 4)
    with PlainOperations(): found = F.scaled_dot_product_attention(q, q, q, attn_mask=blind)
    assert (found[:, :, 1] == 0).all()
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, q, q, attn_mask=blind))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_attention_in_half_precision(kind):
    q = torch.randn(2, 4, 5, 8, generator=torch.Generator().manual_seed(0)).to(kind)
    with PlainOperations(): found = F.scaled_dot_product_attention(q, q, q)
    expected = F.scaled_dot_product_attention(*[q.float()] * 3).to(kind)
    assert found.dtype == kind
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(kind).eps, atol=1e-6)


def test_mask_and_causal_at_once_is_an_error_as_in_pytorch():
    q = torch.randn(1, 2, 5, 4)
    with pytest.raises(RuntimeError, match="one of the two"), PlainOperations():
        F.scaled_dot_product_attention(q, q, q, attn_mask=added.float(), is_causal=True)


def test_numbers_without_history():
    model = drawn(Mean(lambda layer, x: x * x.data + layer(x.data), nn.Linear(4, 4)))
    for first_order in (False, True):
        expected = by_loop(model, F.mse_loss, series(), first_order=first_order)
        found = by_library(model, F.mse_loss, series(), first_order=first_order)
        assert off(found, expected) < 1e-12


def exports_it(reason):
    "Not with PyTorch 2.9.1; with 2.13 it was tried again."
    return pytest.mark.skipif(torch.__version__ < "2.13", reason=f"PyTorch 2.9.1: {reason}")


@pytest.mark.filterwarnings("ignore:The tensor attributes self._flat_weights")
@pytest.mark.parametrize("make", [
    lambda: nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()),
    pytest.param(lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
                 marks=exports_it("a program of it fails by itself, without metalit")),
    lambda: nn.MultiheadAttention(4, 2, batch_first=True),
    pytest.param(lambda: nn.LSTM(4, 4, batch_first=True),
                 marks=exports_it("torch.export refuses it"))])
def test_an_exported_module_inside_a_model(make):
    inner, x = drawn(make()), torch.randn(4, 5, 4, dtype=torch.float64)
    inputs = (x, x, x) if isinstance(inner, nn.MultiheadAttention) else (x,)
    part = torch.export.export(inner, inputs).module()
    def call(layer, x):
        answer = layer(*[x] * len(inputs))
        return answer[0] if isinstance(answer, tuple) else answer
    model = drawn(Mean(call, part))
    expected = by_loop(model, F.mse_loss, series())
    assert off(by_library(model, F.mse_loss, series()), expected) < 1e-12


def test_the_mode_by_itself_and_what_it_leaves_alone():
    net, x = nn.LSTM(4, 3).double(), torch.randn(2, 5, 6, 4, dtype=torch.float64)
    before = net(x[0])[0]
    own = {name: torch.stack([p, 2 * p]).detach() for name, p in net.named_parameters()}
    def mean(phi, x):
        with PlainOperations(): return functional_call(net, phi, (x,))[0].mean()
    slopes = vmap(grad(mean))(own, x)
    at = {name: (2 * p).detach().requires_grad_() for name, p in net.named_parameters()}
    expected = torch.autograd.grad(functional_call(net, at, (x[1],))[0].mean(), list(at.values()))
    for a, b in zip(slopes.values(), expected, strict=True): torch.testing.assert_close(a[1], b)
    for twin in (net, copy.deepcopy(net)): torch.testing.assert_close(twin(x[0])[0], before)
    assert not {torch.add, F.linear, F.conv2d, F.group_norm} & PLAIN.keys()


class Reads(nn.Module):
    "Words, in one of the ways to look them up."
    def __init__(self, look):
        super().__init__()
        self.table, self.look = nn.Parameter(torch.randn(5, 4, dtype=torch.float64)), look

    def forward(self, x): return self.look(self.table, x).mean(1)


LOOKS = {"embedding": lambda table, x: F.embedding(x, table, 1),
         "torch.embedding": torch.embedding,
         "bag": lambda table, x: F.embedding_bag(x, table)[:, None]}


@pytest.mark.parametrize("word", [-1, 5, 7])
@pytest.mark.parametrize("place", ["support", "query"])
@pytest.mark.parametrize("name", LOOKS)
def test_a_word_that_is_not_in_the_table_is_an_error(name, place, word):
    "After a step each task has its table, and one stands below the other: no row of another's."
    def split(): return ml.Split(torch.randint(0, 5, (3, 2, 2)), torch.randn(3, 2, 4).double())
    J, task = ml.MAML(Reads(LOOKS[name]), F.mse_loss, steps=2), ml.Task(split(), split())
    assert J(task).isfinite()
    getattr(task, place).x[1, 0, 0] = word
    with pytest.raises(IndexError, match=r"5 rows knows the words 0 … 4"): J(task)


def test_in_a_graph_such_a_word_is_no_number():
    def split(): return ml.Split(torch.randint(0, 5, (3, 2, 2)), torch.randn(3, 2, 4).double())
    J, task = ml.MAML(Reads(LOOKS["embedding"]), F.mse_loss, steps=2), ml.Task(split(), split())
    J.compile(backend="aot_eager")
    assert J(task).isfinite()
    task.query.x[1, 0, 0] = 7
    assert J(task).isnan()


class Padded(nn.Module):
    "An encoder of texts, of which the last word is padding."
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        padding = (torch.arange(x.shape[1]) == x.shape[1] - 1).expand(x.shape[:2])
        return self.encoder(x, src_key_padding_mask=padding)[:, 0]


@pytest.mark.filterwarnings("ignore:.*nested tensors")
@pytest.mark.parametrize("training", [False, True])
def test_an_encoder_with_a_padding_mask(training):
    generator = torch.Generator().manual_seed(0)
    def numbers(*shape): return torch.randn(*shape, generator=generator, dtype=torch.float64)
    task = ml.Task(*(ml.Split(numbers(3, 2, 5, 4), numbers(3, 2, 4)) for _ in range(2)))
    model = Padded().double().train(training)
    found = [ml.MAML(model, F.mse_loss, lr=0.1, steps=2, batching=how) for how in ("vmap", "loop")]
    values = [J(task) for J in found]
    slopes = [torch.autograd.grad(value, list(model.parameters())) for value in values]
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-12)
    for one, other in zip(*slopes, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0].curve(task, (0, 2)), found[1].curve(task, (0, 2)))
    assert ml.evaluate(found[0], task, steps=(2,)).mean == pytest.approx([values[0].item()])


class Heads(nn.Module):
    "Attention with a padding mask."
    def __init__(self):
        super().__init__()
        self.heads = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        padding = (torch.arange(x.shape[1]) == x.shape[1] - 1).expand(x.shape[:2])
        return self.heads(x, x, x, key_padding_mask=padding)[0][:, 0]


def test_attention_with_a_padding_mask_compiles():
    x, y = torch.randn(3, 2, 5, 4).double(), torch.randn(3, 2, 4).double()
    task = ml.Task(ml.Split(x, y), ml.Split(x + 1, y))
    J = ml.MAML(Heads().double(), F.mse_loss, lr=0.1)
    expected = J(task)
    J.compile(backend="aot_eager")
    torch.testing.assert_close(J(task), expected, rtol=0, atol=1e-12)
    layer, words = nn.MultiheadAttention(4, 2).double(), x[:, 0]
    with PlainOperations(), pytest.raises(AssertionError, match="key_padding_mask has shape"):
        layer(words, words, words, key_padding_mask=torch.zeros(2, 3).bool())
