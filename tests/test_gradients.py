"""Networks: gradcheck, and the same gradient by every road."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

import metalit as ml


def gradient(J: ml.MetaLoss, task: ml.Task, call=None) -> torch.Tensor:
    J.zero_grad()
    (J if call is None else call)(task).backward()
    return torch.cat([p.grad.flatten() for p in J.parameters()])


def plain_loop(J: ml.MetaLoss, task: ml.Task, steps: int, create_graph: bool) -> torch.Tensor:
    "MAML by hand: one task after another, autograd.grad inside, no vmap."
    losses = []
    for i in range(task.batch_size):
        phi = dict(J.model.named_parameters())
        for _ in range(steps):
            loss = F.mse_loss(functional_call(J.model, phi, (task.support.x[i],)),
                              task.support.y[i])
            slopes = torch.autograd.grad(loss, list(phi.values()), create_graph=create_graph)
            phi = {name: p - 0.1 * g for (name, p), g in zip(phi.items(), slopes, strict=True)}
        losses.append(F.mse_loss(functional_call(J.model, phi, (task.query.x[i],)),
                                 task.query.y[i]))
    return torch.stack(losses).mean()


def test_gradcheck_two_steps(small_net, sines):
    J = ml.MAML(small_net, F.mse_loss, lr=0.1, steps=2)
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, inputs, atol=1e-8)
    assert torch.autograd.gradgradcheck(value, inputs, atol=1e-6)


def test_gradcheck_fails_for_first_order(small_net, sines):
    "The check above can fail: first order is not the gradient of the value."
    J = ml.FOMAML(small_net, F.mse_loss, lr=0.1, steps=2)
    names = list(dict(J.named_parameters()))

    def value(*parameters):
        return functional_call(J, dict(zip(names, parameters, strict=True)), (sines,))
    inputs = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert not torch.autograd.gradcheck(value, inputs, atol=1e-8, raise_exception=False)


@pytest.mark.parametrize(("method", "second_order"), [(ml.MAML, True), (ml.FOMAML, False)])
@pytest.mark.parametrize("steps", [1, 2])
def test_loop_vmap_and_chunks_agree(method, second_order, steps, small_net, sines):
    J = method(small_net, F.mse_loss, lr=0.1, steps=steps)
    expected = gradient(J, sines, lambda task: plain_loop(J, task, steps, second_order))
    for chunk_size in (None, 1, 4):
        J.chunk_size = chunk_size
        torch.testing.assert_close(J(sines), plain_loop(J, sines, steps, second_order), rtol=0,
                                   atol=1e-12)
        torch.testing.assert_close(gradient(J, sines), expected, rtol=0, atol=1e-12)


def test_first_order_and_exact_have_one_value_and_two_gradients(small_net, sines):
    exact, first = (method(small_net, F.mse_loss, lr=0.1, steps=2)
                    for method in (ml.MAML, ml.FOMAML))
    torch.testing.assert_close(exact(sines), first(sines), rtol=0, atol=1e-14)
    assert (gradient(exact, sines) - gradient(first, sines)).abs().max() > 1e-3


def test_chunks_keep_the_random_numbers_of_dropout(sines):
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5),
                              torch.nn.Linear(8, 1)).double()
    J = ml.MAML(net, F.mse_loss, lr=0.1, chunk_size=2)
    torch.manual_seed(0)
    value = J(sines)
    first = torch.autograd.grad(value, list(J.parameters()), retain_graph=True)
    again = torch.autograd.grad(value, list(J.parameters()))
    for a, b in zip(first, again, strict=True): assert torch.equal(a, b)
    h, weight = 1e-6, net[0].weight
    values = []
    for sign in (1, -1):
        weight.data[3, 0] += sign * h
        torch.manual_seed(0)
        values.append(J(sines).item())
        weight.data[3, 0] -= sign * h
    assert first[0][3, 0].item() == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-6)


def test_one_task_never_changes_the_answer_of_another(small_net, sines):
    J = ml.MAML(small_net, F.mse_loss, lr=0.1, steps=3)
    together = J.predict(J.adapt(sines.support), sines.query.x)
    alone = J.predict(J.adapt(sines.select(2).support), sines.query.x[2:3])
    torch.testing.assert_close(together[2:3], alone, rtol=0, atol=1e-12)


def test_any_module_as_model():
    "Convolutions, group norm, buffers, a loss that is a module, class labels."
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.ReLU(),
                              torch.nn.BatchNorm2d(4, track_running_stats=False),
                              torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3)).double()
    x, y = (torch.randn(2, 6, 1, 8, 8, dtype=torch.float64,
                        generator=torch.Generator().manual_seed(0)),
            torch.arange(6).remainder(3).expand(2, 6))
    task = ml.Task(ml.Split(x, y), ml.Split(x.flip(1), y.flip(1)))
    J = ml.MAML(net, torch.nn.CrossEntropyLoss(), lr=0.1, steps=2)
    before, after = J.curve(task, (0, 10)).mean(0)
    assert after < before
    exact = gradient(J, task)
    J.chunk_size = 1
    torch.testing.assert_close(gradient(J, task), exact, rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own
def test_compiled_agrees_with_eager():
    "Two halves, by PyTorch's own way to compile a module; in C++: benchmarks.one_graph."
    J = ml.MAML(ml.models.mlp(1, 16, 1), F.mse_loss, lr=0.1, steps=1)
    task = ml.tasks.Sinusoids().batch(4)
    eager_value, eager = J(task).item(), gradient(J, task)
    compiled = torch.compile(J, backend="aot_eager")
    torch.testing.assert_close(compiled(task).item(), eager_value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(J, task, compiled), eager, rtol=1e-4, atol=1e-5)


def test_terms_add_up(small_net, sines):
    class Distance(ml.Term):
        def per_task(self, path, task):
            return sum(((path.final[k] - path.theta[k]) ** 2).sum() for k in path.theta)
    query, distance, both = (ml.MetaLoss(small_net, F.mse_loss, inner=ml.SGD(0.1, 2), terms=terms)
                             for terms in (ml.QueryLoss(), Distance(),
                                           ml.QueryLoss() + 0.25 * Distance() * 2))
    torch.testing.assert_close(both(sines), query(sines) + 0.5 * distance(sines), rtol=0,
                               atol=1e-12)
    torch.testing.assert_close(gradient(both, sines), gradient(query, sines)
                               + 0.5 * gradient(distance, sines), rtol=0, atol=1e-12)
    report = both.report(sines)
    assert report["Distance"] == pytest.approx(distance(sines).item(), abs=1e-12)
    assert report["meta_loss"] == pytest.approx(both(sines).item(), abs=1e-12)
