"""The convolutional network of the few-shot literature.

Its shapes, its gradient, and who may change an answer.
"""
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

import metalit as ml
from metalit.models import Contextual, Conv4

POOLS = ("stride", "max")


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def episode(tasks: int = 3, ways: int = 3, queries: int = 2, size: int = 16, seed: int = 0,
            dtype: torch.dtype = torch.float64) -> ml.Task:
    "Random images in turn: (tasks, ways · n, 1, size, size)."
    x = images(tasks, ways * (2 + queries), 1, size, size, seed=seed, dtype=dtype)
    y = torch.arange(ways).repeat(tasks, 2 + queries)
    return ml.Task(*(ml.Split(x[:, part], y[:, part])
                     for part in (slice(2 * ways), slice(2 * ways, None))))


def generic(net: nn.Module, seed: int = 0) -> nn.Module:
    "Away from ones and zeros, so that no ReLU is at its corner; float64."
    net, g = net.double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters(): p += 0.2 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return net


def error_of_gradient(J: ml.MetaLoss, task: ml.Task, seed: int, h: float = 1e-7) -> float:
    "The relative error of the gradient along a random direction, by a central difference."
    J.zero_grad()
    J(task).backward()
    theta = {name: p.detach() for name, p in J.named_parameters()}
    g = torch.Generator().manual_seed(seed)
    direction = {name: torch.randn(p.shape, generator=g, dtype=p.dtype)
                 for name, p in theta.items()}
    def at(t):
        return functional_call(J, {name: p + t * direction[name] for name, p in theta.items()},
                               (task,)).item()
    slope = sum((p.grad * direction[name]).sum() for name, p in J.named_parameters()).item()
    return abs((at(h) - at(-h)) / (2 * h) - slope) / abs(slope)


def first_loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(prediction[:1], y[:1])


# Shapes and weights

@pytest.mark.parametrize(("pool", "size", "channels", "features"),
                         [("stride", 28, 1, 8), ("stride", 84, 3, 8), ("stride", 5, 1, 8),
                          ("max", 28, 1, 8),
                          ("max", 84, 3, 8 * 25), ("max", 16, 2, 8), ("max", 47, 1, 8 * 4)])
def test_shapes(pool, size, channels, features):
    net = Conv4(7, channels=channels, size=size, filters=8, pool=pool)
    x = images(4, channels, size, size)
    assert net.features(x).shape == (4, features)
    assert net(x).shape == (4, 7)
    assert net.head.weight.shape == (7, features)


@pytest.mark.parametrize("pool", POOLS)
def test_parameters_of_the_full_network(pool):
    assert (sum(p.numel() for p in Conv4(5, pool=pool).parameters()) == 576 + 3 * 36864 + 4 * 128
            + 5 * 65)


@pytest.mark.parametrize("pool", POOLS)
def test_it_is_a_plain_sequential_with_the_same_weights(pool):
    net = generic(Conv4(5, channels=2, size=32, filters=6, pool=pool))
    layers = []
    for fan_in in (2, 6, 6, 6):
        layers += [nn.Conv2d(fan_in, 6, 3, stride=2 if pool == "stride" else 1, padding=1,
                             bias=False),
                   nn.BatchNorm2d(6, track_running_stats=False), nn.ReLU()]
        if pool == "max": layers.append(nn.MaxPool2d(2))
    if pool == "stride": layers.append(nn.AdaptiveAvgPool2d(1))
    plain = nn.Sequential(*layers, nn.Flatten(), nn.Linear(net.head.in_features, 5)).double()
    ours = [p for pair in zip(net.convolutions, net.norms, strict=True) for layer in pair
            for p in layer.parameters()]
    with torch.no_grad():
        for to, p in zip(plain.parameters(), [*ours, *net.head.parameters()], strict=True):
            to.copy_(p)
    x = images(9, 2, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-12)


def test_weights_depend_on_the_seed_alone_and_no_global_random_state_is_touched():
    before = torch.get_rng_state()
    a, b, other = (Conv4(5, filters=8, seed=3), Conv4(5, filters=8, seed=3),
                   Conv4(5, filters=8, seed=4))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    for name in ("convolutions.0.weight", "convolutions.3.weight", "head.weight", "head.bias"):
        assert not torch.equal(a.get_parameter(name), other.get_parameter(name))


def test_weights_fill_the_range_that_pytorch_draws_from():
    net = Conv4(20, context=50)
    for layer, fan_in in ((net.convolutions[0], 9), (net.convolutions[2], 576), (net.head, 64),
                          (net.film, 50)):
        assert 0.97 < layer.weight.abs().max().item() * fan_in ** 0.5 <= 1
    for norm in net.norms:
        assert torch.equal(norm.weight, torch.ones(64)) and torch.equal(norm.bias, torch.zeros(64))


# Batch normalisation

def test_normalisation_uses_the_images_of_the_call_then_scale_and_offset():
    net, x = generic(Conv4(5, filters=4)), 5 + 2 * images(4, 1, 28, 28, dtype=torch.float64)
    made = net.convolutions[0](x)
    variance, mean = torch.var_mean(made, (0, 2, 3), correction=0, keepdim=True)
    scale, offset = (p.view(-1, 1, 1) for p in net.norms[0].parameters())
    expected = (made - mean) / (variance + 1e-5).sqrt() * scale + offset
    torch.testing.assert_close(net.norms[0](made), expected, rtol=0, atol=1e-12)


def test_no_running_statistics_so_evaluation_is_as_training_and_a_call_leaves_no_trace():
    net, x = Conv4(5, filters=4), images(6, 1, 28, 28)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert not list(net.buffers())
    first = net(x)
    assert torch.equal(first, net.eval()(x))
    assert torch.equal(first, net.train()(x))
    assert set(before) == set(net.state_dict())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize("transductive", [True, False])
@pytest.mark.parametrize("pool", POOLS)
def test_another_task_never_changes_an_answer(pool, transductive):
    J = ml.MAML(generic(Conv4(3, size=16, filters=4, pool=pool)), F.cross_entropy, lr=0.3, steps=2)
    task, other = episode(3, seed=0), episode(3, seed=1)
    mixed = ml.Task(*(ml.Split(torch.cat([a.x[:1], b.x[1:]]), a.y)
                      for a, b in zip(task, other, strict=True)))
    answers = [J.curve(t, (0, 2), transductive=transductive) for t in (task, mixed)]
    assert torch.equal(answers[0][0], answers[1][0])
    assert not torch.isclose(answers[0][1:], answers[1][1:]).any()


@pytest.mark.parametrize("pool", POOLS)
def test_another_query_changes_an_answer_only_where_queries_are_seen_together(pool):
    J = ml.MAML(generic(Conv4(3, size=16, filters=4, pool=pool)), F.cross_entropy, lr=0.3)
    task, other = episode(2, seed=0), episode(2, seed=1)
    x = torch.cat([task.query.x[:, :1], other.query.x[:, 1:]], 1)
    changed = ml.Task(task.support, ml.Split(x, task.query.y))
    together, alone = ([J.curve(t, (0, 1), first_loss, transductive=kind) for t in (task, changed)]
                       for kind in (True, False))
    assert (together[0] - together[1]).abs().min() > 1e-3
    torch.testing.assert_close(alone[0], alone[1], rtol=0, atol=1e-6)
    assert (together[0] - alone[0]).abs().min() > 1e-3


def test_a_query_alone_is_answered_beside_the_support_set():
    net, task = generic(Conv4(3, size=16, filters=4)), episode(2)
    J = ml.MAML(net, F.cross_entropy, lr=0.3)
    phi = J.adapt(task.support)
    expected = []
    for b in range(2):
        of_task = {name: p[b] for name, p in phi.items()}
        support = task.support.x[b]
        logits = [functional_call(net, of_task, (torch.cat([support, x[None]]),))[-1]
                  for x in task.query.x[b]]
        expected.append(F.cross_entropy(torch.stack(logits), task.query.y[b]))
    found = J.curve(task, (1,), transductive=False)[:, 0]
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=0, atol=1e-10)


def test_evaluate_takes_queries_alone_too():
    "Each kind is that of `curve`, to digits in which the two kinds differ on every task."
    x = images(60, 1, 16, 16, dtype=torch.float64)
    tasks = ml.tasks.Episodes(x, torch.arange(60) // 6, ways=3, shots=1, queries=2)
    J = ml.MAML(generic(Conv4(3, size=16, filters=4)), F.cross_entropy, lr=0.3)
    curves = {kind: J.curve(tasks.held_out(8), (0, 1), transductive=kind) for kind in (True, False)}
    for kind, curve in curves.items():
        found = ml.evaluate(J, tasks, n_tasks=8, steps=(0, 1), batch_size=3, transductive=kind).mean
        assert found == pytest.approx(curve.mean(0).tolist(), abs=1e-10)
    assert (curves[True] - curves[False]).abs().min() > 1e-6
    assert (curves[True].mean(0) - curves[False].mean(0)).abs().min() > 1e-6


# The gradient

@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_meta_gradient_agrees_with_finite_differences(pool, steps):
    J = ml.MAML(generic(Conv4(3, size=16, filters=4, pool=pool)), F.cross_entropy, lr=0.1,
                steps=steps)
    for seed in range(3): assert error_of_gradient(J, episode(2), seed) < 1e-5


def test_the_meta_gradient_is_that_of_a_loop_over_tasks():
    net, task = generic(Conv4(3, size=16, filters=4)), episode(3)
    J = ml.MAML(net, F.cross_entropy, lr=0.3, steps=2)
    J(task).backward()
    theta, total = dict(net.named_parameters()), 0
    for b in range(3):
        phi = theta
        for _ in range(2):
            loss = F.cross_entropy(functional_call(net, phi, (task.support.x[b],)),
                                   task.support.y[b])
            slope = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
            phi = {name: p - 0.3 * g for (name, p), g in zip(phi.items(), slope, strict=True)}
        total = total + F.cross_entropy(functional_call(net, phi, (task.query.x[b],)),
                                        task.query.y[b]) / 3
    for p, g in zip(theta.values(), torch.autograd.grad(total, list(theta.values())), strict=True):
        torch.testing.assert_close(p.grad, g, rtol=0, atol=1e-10)


@pytest.mark.parametrize("pool", POOLS)
def test_in_chunks_value_and_gradient_are_the_same(pool):
    found = []
    for chunk_size in (None, 2):
        J = ml.MAML(generic(Conv4(3, size=16, filters=4, pool=pool)), F.cross_entropy, lr=0.3,
                    chunk_size=chunk_size)
        value = J(episode(3))
        value.backward()
        found.append([value.detach(), *(p.grad for p in J.parameters())])
    for plain, chunked in zip(*found, strict=True):
        torch.testing.assert_close(plain, chunked, rtol=0, atol=1e-12)


# A context

def test_a_context_of_zeros_leaves_the_constant_of_its_layer_alone():
    plain, net, x = (Conv4(5, filters=4), Conv4(5, filters=4, context=6), images(7, 1, 28, 28))
    plain, net, x = plain.double(), net.double(), x.double()
    with torch.no_grad(): net.film.bias.zero_()
    for name, p in plain.named_parameters(): assert torch.equal(p, net.get_parameter(name))
    assert torch.equal(net(x), plain(x))
    with torch.no_grad(): net.film.weight.mul_(100)
    assert torch.equal(net(x), plain(x))                      # whatever the matrix is
    with torch.no_grad(): net.film.bias.fill_(0.3)
    assert not torch.allclose(net(x), plain(x))


def test_a_context_scales_and_moves_the_third_map():
    net, x = generic(Conv4(5, filters=4, context=6)), images(7, 1, 28, 28, dtype=torch.float64)
    net.context = images(6, dtype=torch.float64)
    scale, offset = (net.film.weight @ net.context + net.film.bias).reshape(2, 4, 1, 1)
    y = x
    for i, (convolution, norm) in enumerate(zip(net.convolutions, net.norms, strict=True)):
        y = norm(convolution(y))
        if i == 2: y = (1 + scale) * y + offset
        y = y.clamp(min=0)
    torch.testing.assert_close(net(x), net.head(y.mean((2, 3))), rtol=0, atol=1e-12)


def test_a_context_is_no_meta_parameter_and_the_head_is_the_last_layer():
    net = Conv4(5, filters=4, context=6)
    assert "context" not in dict(net.named_parameters())
    assert "context" not in net.state_dict()
    assert net.context.tolist() == [0.0] * 6
    assert [name for name, _ in net.named_parameters()][-2:] == ["head.weight", "head.bias"]
    assert "context" not in dict(Conv4(5, filters=4).named_buffers())


def test_contextual_appends_the_context_to_every_input():
    inner = ml.models.mlp(2 + 3, 6, 1).double()
    net, x = Contextual(inner, 3), images(4, 2, dtype=torch.float64)
    assert net.context.dtype == torch.float64
    assert not [name for name, _ in net.named_parameters() if "context" in name]
    torch.testing.assert_close(net(x), inner(torch.cat([x, torch.zeros(4, 3)], 1)), rtol=0, atol=0)
    net.context = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(net(x), inner(torch.cat([x, net.context.expand(4, 3)], 1)), rtol=0,
                               atol=0)
    assert net(x[None]).shape == (1, 4, 1)


# Errors

MISTAKES = {
    "no ways": (lambda: Conv4(0), "ways=0: at least 1"),
    "no channels": (lambda: Conv4(5, channels=0), "channels=0: at least 1"),
    "no size": (lambda: Conv4(5, size=0), "size=0: at least 1"),
    "no filters": (lambda: Conv4(5, filters=0), "filters=0: at least 1"),
    "another pooling": (lambda: Conv4(5, pool="mean"), "pool='mean': choose 'stride' or 'max'"),
    "too small": (lambda: Conv4(5, pool="max", size=15), "size=15: .* 16 pixels or more"),
    "a negative context": (lambda: Conv4(5, context=-1), "context=-1: .* 0 or more"),
    "no context": (lambda: Contextual(ml.models.mlp(1, 1), 0), "size=0: a context of at least 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message): make()


def test_images_of_other_channels_or_size_are_refused_in_a_meta_loss():
    with pytest.raises(RuntimeError, match=r"x of shape \(6, 1, 16, 16\)"):
        ml.MAML(Conv4(3, channels=3, size=16, filters=4), F.cross_entropy)(
            episode(2, dtype=torch.float32)
        )
    with pytest.raises(RuntimeError, match=r"x of shape \(6, 1, 48, 48\)"):
        ml.MAML(Conv4(3, size=16, filters=4, pool="max"), F.cross_entropy)(
            episode(2, size=48, dtype=torch.float32)
        )


def test_running_statistics_are_refused():
    net = Conv4(3, filters=4)
    net.norms[1] = nn.BatchNorm2d(4)
    with pytest.raises(ValueError,
                       match=r"layer 'norms.1' \(BatchNorm2d\) keeps running statistics"):
        ml.MAML(net, F.cross_entropy)(episode(3, dtype=torch.float32))
