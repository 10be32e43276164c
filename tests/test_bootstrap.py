"""Bootstrap: closed forms, plain loops, the target of inner loops with a memory, its errors."""
import pytest
import torch
import torch.nn.functional as F
from helpers import close, times, value_and_gradient

import metalit as ml
from metalit.models import Point
from metalit.tasks import curvature, half_square

LR = 0.2


def power(A, k): return torch.linalg.matrix_power(torch.eye(4, dtype=A.dtype) - LR * A, k)


@pytest.mark.parametrize("rule", [ml.Exact, ml.FirstOrder, ml.MixedMode])
@pytest.mark.parametrize("on", ["support", "query"])
@pytest.mark.parametrize(("K", "L"), [(1, 1), (3, 4), (0, 2)])
def test_closed_form(K, L, on, rule, bowls, start):
    "Mᴷ (φ_K − φ̃), which is Mᴷ(I − Mᴸ)Mᴷ e where the target goes on with the support set."
    J = ml.MetaLoss(Point(start), half_square, inner=ml.SGD(LR, K), gradient=rule(),
                    terms=ml.Bootstrap(L, on=on))
    (A, s), (C, q) = curvature(bowls.support), curvature(bowls.query)
    end = s + times(power(A, K), start - s)
    off = end - (s + times(power(A, K + L), start - s) if on == "support"
                 else q + times(power(C, L), end - q))
    back = power(A, 0 if rule is ml.FirstOrder else K)
    value, gradient = value_and_gradient(J, bowls)
    close(value, 0.5 * (off**2).sum(-1).mean())
    close(gradient, times(back, off).mean(0))
    if on == "support":
        e = times(power(A, K), start - s)
        close(gradient, times(back, e - times(power(A, L), e)).mean(0))


def judged(loss, net, phi, x, y):
    names = [name for name, _ in net.named_parameters()]
    return loss(torch.func.functional_call(net, dict(zip(names, phi, strict=True)), (x,)), y)


def descended(loss, net, phi, x, y, steps):
    for _ in range(steps):
        slopes = torch.autograd.grad(judged(loss, net, phi, x, y), phi, create_graph=True)
        phi = [p - LR * g for p, g in zip(phi, slopes, strict=True)]
    return phi


def mu(distance, net, phi, target, x):
    if distance == "parameters":
        return sum(((p - t) ** 2).sum() for p, t in zip(phi, target, strict=True)) / 2
    ours, theirs = (judged(lambda answer, _: answer, net, at, x, None) for at in (phi, target))
    if distance == "predictions": return ((ours - theirs) ** 2).sum(1).mean() / 2
    p, q = theirs.softmax(1), ours.softmax(1)
    return (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("on", ["support", "query"])
@pytest.mark.parametrize(("distance", "classes"), [
    ("parameters", False), ("predictions", False), ("predictions", True), ("kl", True)])
def test_a_plain_loop(distance, classes, on, sines):
    net = ml.models.mlp(1, 4, 3 if classes else 1, activation=torch.nn.Tanh, seed=2).double()
    loss = F.cross_entropy if classes else F.mse_loss
    if classes:
        sines = ml.Task(*(ml.Split(part.x, (part.y[..., 0] > 0).long() + (part.x[..., 0] > 2))
                          for part in sines))
    J = ml.MetaLoss(net, loss, inner=ml.SGD(LR, 2), terms=ml.Bootstrap(3, distance, on=on))
    total, theta = 0, list(net.parameters())
    for x, y, x_query, y_query in zip(*sines.support, *sines.query, strict=True):
        phi = descended(loss, net, theta, x, y, 2)
        more = (x, y) if on == "support" else (x_query, y_query)
        target = [p.detach() for p in descended(loss, net, phi, *more, 3)]
        total = total + mu(distance, net, phi, target, x_query) / sines.batch_size
    right = torch.autograd.grad(total, theta)
    value, gradient = value_and_gradient(J, sines)
    close(value, total.detach())
    close(gradient, torch.cat([g.flatten() for g in right]))
    assert gradient.norm() > 1e-4


@pytest.mark.parametrize("on", ["support", "query"])
def test_one_step_ahead_is_maml_times_the_step_size(on, small_net, sines):
    task = sines if on == "query" else ml.Task(sines.support, sines.support)
    maml = value_and_gradient(ml.MAML(small_net, F.mse_loss, lr=LR, steps=3), task)[1]
    bmg = ml.BMG(small_net, F.mse_loss, lr=LR, steps=3, more=1, on=on)
    close(value_and_gradient(bmg, sines)[1], LR * maml, atol=1e-14)


@pytest.mark.parametrize("inner", [
    lambda net: ml.SGD(0.1, 3, momentum=0.9), lambda net: ml.Adam(0.05, 3),
    lambda net: ml.Proximal(0.1, 3, pull=1.0), lambda net: ml.SGD(0.1, 3, batch_size=2),
    lambda net: ml.Masked(net, 0.1, 3, only="2.*")], ids=["momentum", "Adam", "pull", "turns",
                                                          "masked"])
def test_the_target_is_a_later_point_of_the_same_inner_loop(inner, small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, inner=inner(small_net), terms=ml.Bootstrap(2))
    now, later = (J.adapt(sines.support, steps=steps) for steps in (3, 5))
    apart = sum(((now[name] - later[name]) ** 2).sum() for name in now) / 2 / sines.batch_size
    close(J(sines).detach(), apart.detach(), atol=1e-14)


def test_on_the_query_set_a_context_goes_on_and_does_not_begin_anew(sines):
    torch.manual_seed(0)
    net = ml.models.Contextual(ml.models.mlp(3, 4, 1, seed=1), 2).double()
    inner = ml.Context(net, 0.3, 2)
    J = ml.MetaLoss(net, F.mse_loss, inner=inner, terms=ml.Bootstrap(1, on="query"))
    phi = J.adapt(sines.support)
    right = 0
    for b in range(sines.batch_size):
        c = phi["context"][b].detach().requires_grad_()
        answer = torch.func.functional_call(net, {"context": c}, (sines.query.x[b],))
        slope, = torch.autograd.grad(F.mse_loss(answer, sines.query.y[b]), c)
        right = right + (0.3 * slope).square().sum() / 2 / sines.batch_size
    assert right > 1e-6
    close(J(sines).detach(), right, atol=1e-14)


def test_no_graph_of_the_target_is_kept(small_net, sines):
    from metalit.checks import kept_bytes
    kept = [kept_bytes(ml.BMG(small_net, F.mse_loss, steps=2, more=more)(sines))
            for more in (1, 30)]
    assert kept[0] == kept[1]


class Twofold(torch.nn.Linear):
    def forward(self, x): return {"answer": super().forward(x)}


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ml.Bootstrap(0), "steps=0: how many steps the target is ahead"),
    (lambda: ml.Bootstrap(1.5), "steps=1.5: how many steps"),
    (lambda: ml.Bootstrap(2, "cosine"), r"distance='cosine': choose one of 'parameters', 'pred"),
    (lambda: ml.Bootstrap(2, on="both"), r"on='both': .* 'support' or 'query'")])
def test_what_is_no_setting(make, message):
    with pytest.raises(ValueError, match=message): make()


def test_what_cannot_be_compared(small_net, sines):
    J = ml.MetaLoss(small_net, F.mse_loss, terms=ml.Bootstrap(1, "kl"))
    with pytest.raises(ValueError, match=r"two classes or more.*\(3, 1\): take distance='pred"):
        J(sines)
    J = ml.MetaLoss(Twofold(1, 1).double(), lambda answer, y: F.mse_loss(answer["answer"], y),
                    terms=ml.Bootstrap(1, "predictions"))
    with pytest.raises(ValueError, match=r"output is \{'answer': \(3, 1\)\}.*'parameters'"):
        J(sines)


def twofold(sines, y=None):
    "Tasks whose y are two numbers, or what a function makes of them."
    def split(part):
        both = torch.cat([part.y, 2 * part.y], -1)
        return ml.Split(part.x, both if y is None else y(both))
    return ml.Task(*map(split, sines))


TERMS = {"kl": (lambda: ml.Bootstrap(1, "kl"), "'kl'.*{}.*take distance='predictions'"),
         "entropy": (ml.EntropyReduction, "EntropyReduction.*{}.*take ml.Inequality")}


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("term", TERMS)
def test_numbers_are_no_logits(term, batching, sines):
    make, words = TERMS[term]
    net = ml.models.mlp(1, 4, 2, activation=torch.nn.Tanh, seed=2).double()
    J = ml.MetaLoss(net, F.mse_loss, terms=make(), batching=batching)
    said = words.format(r"\(3, 2\) that are no probabilities")
    with pytest.raises(ValueError, match=said):
        J(twofold(sines))
    ones = [twofold(sines).select([0]), ml.Task(*(part.select((slice(None), slice(2)))
                                                  for part in twofold(sines))).select([1])]
    with pytest.raises(ValueError, match="no probabilities"): J(ml.tasks.padded(ones))


@pytest.mark.parametrize("batching", ["vmap", "loop"])
@pytest.mark.parametrize("term", TERMS)
def test_probabilities_and_labels_beside_logits_are_welcome(term, batching, sines):
    "Padded, too, and in a graph; where a program is traced there is nothing to look at."
    net = ml.models.mlp(1, 4, 2, activation=torch.nn.Tanh, seed=2).double()
    J = ml.MetaLoss(net, F.cross_entropy, terms=TERMS[term][0](), batching=batching)
    for y in (lambda both: both.softmax(-1), lambda both: (both[..., 0] > 0).long()):
        tasks = twofold(sines, y)
        assert J(tasks).isfinite()
        short = ml.Task(*(part.select((slice(None), slice(2))) for part in tasks))
        assert J(ml.tasks.padded([tasks.select([0]), short.select([1])])).isfinite()
    if batching == "vmap":
        from torch.fx.experimental.proxy_tensor import make_fx
        make_fx(J)(tasks)


def test_its_line():
    assert repr(ml.Bootstrap(3, "kl")) == "Bootstrap(steps=3, distance='kl', on='support')"
