"""Learned losses: a learned rate in disguise, plain loops, finite differences, classes, errors."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import backward, close, flat, quick
from torch.func import functional_call

import metalit as ml


def uneven():
    "Weights that differ from example to example, as they are after some training."
    loss = ml.LossWeights(5, seed=1)
    loss.last.data = torch.linspace(-1, 1, 5)
    return loss


LOSSES = {"network": lambda: ml.LossNetwork(5, seed=1), "polynomial": ml.LossPolynomial,
          "library": ml.LossLibrary, "weights": uneven}
D = torch.tensor([-30.0, -1.5, -1.0, -0.2, 0.0, 0.4, 1.0, 2.0, 40.0], dtype=torch.float64)


def test_the_library_is_what_its_names_say():
    d, zero = D.clone().requires_grad_(), torch.zeros(9).double()
    right = [d**2, d.abs(), F.huber_loss(d, zero, reduction="none"),
             torch.where(d.abs() > 20, d.abs() - math.log(2), d.clamp(-20, 20).cosh().log())]
    for i, expected in enumerate(right):
        loss = ml.LossLibrary().double()
        loss.weights.data = torch.eye(4).double()[i]
        found = loss.value(d, zero)
        close(found.detach(), expected.detach(), 1e-13)
        close(torch.autograd.grad(found.sum(), d)[0], torch.autograd.grad(expected.sum(), d)[0],
              1e-13)


def test_weights_example_by_example():
    loss = uneven().double()
    found = loss.value(D[1:4], D[5:8])
    for prediction, truth, value in zip(D[1:4].tolist(), D[5:8].tolist(), found, strict=True):
        hidden = [math.tanh(w[0] * prediction + w[1] * truth + b)
                  for w, b in zip(loss.first.tolist(), loss.bias.tolist(), strict=True)]
        weight = math.exp(sum(h * a for h, a in zip(hidden, loss.last.tolist(), strict=True)))
        assert math.isclose(value.item(), weight * (prediction - truth) ** 2, rel_tol=1e-14)
    assert (loss.weight(D, D.flip(0)) > 0).all()


def test_weights_begin_as_squared_error_and_depend_on_their_seed_alone():
    loss = ml.LossWeights(seed=3).double()
    close(loss.value(D, D.flip(0)).detach(), (D - D.flip(0)) ** 2, 0)
    torch.manual_seed(0)
    again = ml.LossWeights(seed=3).double()
    assert all(torch.equal(*pair) for pair in zip(loss.parameters(), again.parameters(),
                                                  strict=True))
    assert not torch.equal(loss.first, ml.LossWeights(seed=4).first.double())


def test_weights_learn_whom_to_trust():
    """Where readings are wild at times, a step that trusts small ones more is the better one."""
    class Readings(ml.Family):
        "A level between 0 and 1, read six times, at times far too high."
        def sample(self, n_tasks, generator):
            level = torch.rand(n_tasks, 1, 1, generator=generator)
            seen = level + torch.randn(n_tasks, 6, 1, generator=generator).abs() ** 3
            return ml.Task(ml.Split(torch.ones(n_tasks, 6, 1), seen),
                           ml.Split(torch.ones(n_tasks, 1, 1), level))

    def trained(loss):
        J = ml.MetaLoss(ml.models.mlp(1, 1, seed=0), F.mse_loss,
                        inner=ml.SGD(0.2, 1, loss=loss, learn_lr=True))
        ml.meta_train(J, Readings(), steps=300, batch_size=50, seed=0, progress=False,
                      optimizer=lambda p: torch.optim.Adam(p, lr=0.02))
        return J(Readings().batch(1000, seed=9)).item()

    loss = ml.LossWeights()
    assert trained(loss) < 0.5 * trained(ml.LossLibrary())
    near, far = loss.weight(torch.full((2,), 0.5), torch.tensor([0.5, 6.0])).tolist()
    assert near > 10 * far


def test_the_polynomial_term_by_term():
    loss, x, y = ml.LossPolynomial().double(), D[1:4], D[5:8]
    w = torch.tensor([0.3, -0.2, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    loss.omega.data = w
    u, v = x + 0.2, y - 0.3
    close(loss.value(x, y).detach(), u + u**2 + u**3 / 2 + 4 * u * v + 2.5 * u**2 * v
          + 3 * u * v**2, 1e-13)


def test_the_network_layer_by_layer():
    loss, x, y = ml.LossNetwork(4, seed=3).double(), D[1:4], D[5:8]
    a, b, c = loss.weights
    assert [tuple(w.shape) for w in ml.LossNetwork().weights] == [(50, 2), (50, 50), (1, 50)]
    for i in range(3):
        hidden = torch.relu(b @ torch.relu(a @ torch.stack([x[i], y[i]])))
        close(loss.value(x, y)[i].detach(), F.softplus(c @ hidden)[0].detach(), 1e-14)


def by_loop(loss, net, task, lr=0.1, steps=2):
    "Value, and gradients in θ and ω."
    names, theta = zip(*net.named_parameters(), strict=True)
    total = 0
    def answer(phi, x): return functional_call(net, dict(zip(names, phi, strict=True)), (x,))
    for x, y, asked, truth in zip(*task.support, *task.query, strict=True):
        phi = theta
        for _ in range(steps):
            slopes = torch.autograd.grad(loss(answer(phi, x), y), phi, create_graph=True)
            phi = [p - lr * g for p, g in zip(phi, slopes, strict=True)]
        total = total + F.mse_loss(answer(phi, asked), truth) / task.batch_size
    return total.detach(), torch.cat([g.flatten() for g in torch.autograd.grad(
        total, [*theta, *loss.parameters()])])


WAYS = {"plain": {}, "loop": {"batching": "loop"}, "chunks": {"chunk_size": 4},
        "mixed mode": {"gradient": ml.MixedMode()}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_plain_loop(name, way, small_net, sines):
    loss = LOSSES[name]().double()
    right = by_loop(loss, small_net, sines)
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2, loss=loss), **WAYS[way])
    close(backward(J, sines), right[0])
    close(torch.cat([flat(small_net), flat(loss)]), right[1])
    assert flat(loss).norm() > 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_by_finite_differences(name, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2, loss=LOSSES[name]().double()))
    names = list(dict(J.named_parameters()))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(
        lambda *p: functional_call(J, dict(zip(names, p, strict=True)), (sines,)), inputs,
        fast_mode=True)


def test_a_weight_of_squared_error_is_a_learned_rate(small_net, sines):
    loss = ml.LossLibrary().double()
    loss.weights.data[0] = 1.7
    J = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 3, loss=loss))
    rate = ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.17, 3, learn_lr=True))
    close(backward(J, sines), backward(rate, sines), 1e-14)
    close(loss.weights.grad[0], 0.1 * rate.inner.lr.grad, 1e-13)


def test_classes_and_padding(sines):
    net = ml.models.mlp(1, 4, 3, activation=torch.nn.Tanh, seed=2).double()
    task = ml.Task(*(ml.Split(part.x, (part.y[..., 0] > 0).long()) for part in sines))
    loss = ml.LossLibrary().double()
    logits = net(task.support.x[0])
    hot = F.one_hot(task.support.y[0], 3)
    close(loss(logits, task.support.y[0]).detach(),
          ((logits.softmax(1) - hot) ** 2).mean().detach(), 1e-14)
    J = ml.MetaLoss(net, F.cross_entropy, inner=ml.SGD(0.5, 2, loss=loss))
    few = ml.Task(task.support.select((slice(None), slice(3))), task.query)
    ones = [task.select([0]), few.select([1])]
    padded = ml.tasks.padded(ones)
    assert padded.support.mask is not None
    close(J(padded).detach(), torch.stack([J(one) for one in ones]).mean().detach(), 1e-14)


def test_a_run_learns_the_loss_and_goes_on_where_it_was(tmp_path):
    def fresh(): return ml.ML3(ml.models.mlp(1, 4, 1, seed=0), F.mse_loss, lr=0.1, width=4)
    whole, first, second, new = fresh(), fresh(), fresh(), fresh()
    quick(whole, steps=5)
    quick(first, steps=5, checkpoint=tmp_path, max_minutes=1e-9)
    quick(second, steps=5, checkpoint=tmp_path)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True): assert torch.equal(a, b)
    assert not torch.equal(whole.inner.loss.weights[0], new.inner.loss.weights[0])


@pytest.mark.parametrize(("prediction", "y"), [
    (torch.ones(3, 1), torch.ones(3)), (torch.ones(3, 2), torch.ones(3, 2).long()),
    (torch.ones(3), torch.ones(3).long()), ({"a": torch.ones(3)}, torch.ones(3))], ids=str)
def test_what_does_not_go_together(prediction, y):
    with pytest.raises(ValueError, match=r"a learned loss compares outputs .* with y"):
        ml.LossLibrary()(prediction, y)


def test_labels_that_the_model_has_no_output_for(sines):
    net = ml.models.mlp(1, 4, 3, seed=2).double()
    task = ml.Task(*(ml.Split(part.x, (part.y[..., 0] > 0).long()) for part in sines))
    J = ml.MetaLoss(net, F.cross_entropy, inner=ml.SGD(0.5, loss=ml.LossLibrary().double()))
    for wrong in (3, -1):
        y = task.support.y.clone()
        y[1, 0] = wrong                                      # the judge sees the queries only
        with pytest.raises(ValueError, match="3 outputs, so labels are 0 … 2"):
            J(ml.Task(ml.Split(task.support.x, y), task.query))


@pytest.mark.parametrize("width", [0, 2.5])
@pytest.mark.parametrize("kind", [ml.LossNetwork, ml.LossWeights])
def test_a_network_without_units(kind, width):
    with pytest.raises(ValueError, match=r"width=.*1 or more"): kind(width)


def test_a_judge_does_not_learn(small_net):
    with pytest.raises(ValueError, match="would learn to call everything good"):
        ml.MetaLoss(small_net, ml.LossLibrary())
