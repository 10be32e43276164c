"""Tasks that can be memorised, what changes them, what puts a price on memory, and the question."""
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import close, flat, quick
from torch import nn

import metalit as ml
from metalit import judge
from metalit.inner.masked import Masked
from metalit.judging.judge import QUESTIONS
from metalit.models import Bottleneck, Point, mlp
from metalit.tasks import curvature, half_square
from metalit.terms.information import nats
from metalit.training.whole_run import OuterStep, graph_of
from reproduce.memorised import SETTINGS, Anew, EncoderAnew, summary

DOUBLES = {"dtype": torch.float64}
Waves = ml.tasks.NamedSinusoids


def by_heart(family, x):
    "A predictor without a support set that knows every name."
    return (x[..., 1:] @ family.amplitudes)[..., None] * torch.sin(x[..., :1])


def error(family, task): return F.mse_loss(by_heart(family, task.query.x), task.query.y).item()


# The family


def test_every_name_has_its_amplitude_and_the_last_names_do_not_occur():
    family = Waves(shots=3, queries=2, names=6, used=4, amplitude=(1.0, 2.0), noise=0.0)
    task = family.batch(400, seed=1, step=3)
    for split, count in zip(task, (3, 2), strict=True):
        assert split.x.shape == (400, count, 7) and split.y.shape == (400, count, 1)
        assert (split.x[..., 1:].sum(-1) == 1).all()
        close(by_heart(family, split.x), split.y, 1e-6)
    occur = task.support.x[..., 1:].sum((0, 1)) > 0
    assert occur.tolist() == [True] * 4 + [False] * 2
    assert torch.equal(task.support.x[:, 0, 1:], task.query.x[:, 0, 1:])
    close(family.amplitudes, torch.linspace(1.0, 2.0, 6))


def test_the_defaults_are_those_of_the_authors():
    family = Waves()
    assert (family.shots, family.queries, family.names, family.used) == (10, 10, 20, 16)
    assert family.batch(2).support.x.shape == (2, 10, 21)
    new = family.held_out(50)
    assert new.query.x.shape == (50, 200, 21)
    assert new.query.x[..., 0].aminmax() == (-4.5, 4.5)
    assert new.query.x[..., 17:].sum() == 0


def test_names_of_new_waves_say_nothing_about_them():
    family = Waves(noise=0.0)
    new = family.held_out(4000)
    own = (new.query.y / torch.sin(new.query.x[..., :1])).median(1).values[:, 0]
    told = new.query.x[:, 0, 1:] @ family.amplitudes
    assert abs(torch.corrcoef(torch.stack([own, told]))[0, 1]) < 0.05
    assert own.min() >= 0.1 and family.amplitudes[15] + 0.5 < own.max() <= 4.0


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_errors_of_who_knows_all_by_heart(noise):
    family = Waves(noise=noise)
    close(torch.tensor(error(family, family.batch(4000, seed=2))), noise**2, 0.02 * noise**2 + 1e-9)
    variance = (3.9**2 + (3.9 / 19)**2 * 255) / 12 + (3.9 - 15 * 3.9 / 19)**2 / 4
    expected = variance * (0.5 - math.sin(9) / 18) + noise**2
    assert abs(error(family, family.held_out(4000)) / expected - 1) < 0.05


def test_tasks_depend_on_seed_and_step_alone():
    family = Waves(2)
    many = family.batches(3, 5, range(4))
    assert torch.equal(many[2].query.y, family.batch(3, 5, 2).query.y)
    assert not torch.equal(family.batch(3, 5, 2).query.y, family.batch(3, 6, 2).query.y)
    assert not torch.equal(family.held_out(3).support.x, family.batch(3).support.x)


@pytest.mark.parametrize(("options", "message"), [
    ({"shots": 0}, "shots=0: at least 1"), ({"used": 21}, "used=21, but there are only 20 names"),
    ({"noise": -1.0}, "noise=-1.0: a finite"), ({"noise": math.nan}, "noise=nan"),
    ({"asked": (1.0, 0.0)}, r"asked=\(1.0, 0.0\): the lower limit"), ({"grid": 0}, "grid=0")])
def test_waves_that_there_cannot_be(options, message):
    with pytest.raises(ValueError, match=message): Waves(**options)


# Augmentation


def both(task): return torch.cat([task.support.y, task.query.y], 1)


@pytest.mark.parametrize(("shift", "stretch"), [(2.0, 0.0), (0.0, 0.5), (1.0, 0.5)])
def test_all_targets_of_a_task_change_by_one_line(shift, stretch):
    family = Waves(3)
    changed = ml.tasks.Augmented(family, shift, stretch)
    before, after = (both(each.batch(300, 7, 2)).double() for each in (family, changed))
    rows = torch.cat([before, torch.ones_like(before)], -1)
    line = torch.linalg.lstsq(rows, after).solution
    close(rows @ line, after, 1e-5)
    factor, added = line[:, 0, 0] - 1, line[:, 1, 0]
    for found, size in ((factor, stretch), (added, shift)):
        if size: assert abs(found.std().item() / size - 1) < 0.15 and found.mean().abs() < size / 4
        else: close(found, torch.zeros_like(found), 1e-4)
    if shift and stretch: assert abs(torch.corrcoef(torch.stack([factor, added]))[0, 1]) < 0.15


def test_inputs_stay_and_so_do_tasks_that_are_held_out():
    family = Waves(3)
    changed = ml.tasks.Augmented(family)
    assert torch.equal(changed.batch(5, 1, 2).query.x, family.batch(5, 1, 2).query.x)
    assert torch.equal(both(changed.held_out(5, 3)), both(family.held_out(5, 3)))


def test_numbers_are_of_seed_and_step_and_no_number_that_made_a_task():
    family = Waves(3, noise=0.0)
    changed = ml.tasks.Augmented(family)
    drawn = changed.batches(4, 9, range(3, 6))
    assert torch.equal(both(drawn[1]), both(changed.batch(4, 9, 4)))
    assert not torch.equal(both(drawn[1]), both(changed.batch(4, 8, 4)))
    # The first number of a task chooses its name, and would be the size of the first change.
    stretched, plain = ml.tasks.Augmented(family, 0.0, 1.0).batch(3000), family.batch(3000)
    size = (both(stretched) / both(plain)).median(1).values[:, 0].sub(1).abs()
    name = plain.support.x[:, 0, 1:].argmax(-1).float()
    assert abs(torch.corrcoef(torch.stack([size, name]))[0, 1]) < 0.06


def test_the_blind_error_and_the_sighted_one():
    family, shift = Waves(4), 2.0
    x, y = (task := ml.tasks.Augmented(family, shift).batch(4000, seed=1)).support
    assert abs(error(family, task) / (shift**2 + 0.01) - 1) < 0.06
    residual = (y - by_heart(family, x)).mean(1, keepdim=True)
    guess = by_heart(family, task.query.x) + residual * shift**2 / (shift**2 + 0.01 / 4)
    expected = 0.01 + shift**2 * 0.0025 / (shift**2 + 0.0025)
    assert abs(F.mse_loss(guess, task.query.y).item() / expected - 1) < 0.05


class Sampled(ml.Family):
    "A family that samples, with two targets in a dictionary."
    def sample(self, batch_size, generator):
        x = torch.rand(batch_size, 3, 1, generator=generator)
        return ml.Task(ml.Split(x, {"a": x, "b": x.expand(-1, -1, 2)}), ml.Split(x, {"a": x,
                       "b": x.expand(-1, -1, 2)}))


def test_any_family_and_trees_of_targets():
    plain, changed = (each.batch(50).query.y for each in (Sampled(),
                                                          ml.tasks.Augmented(Sampled())))
    moved = {name: (changed[name] - plain[name]) for name in plain}
    for each in moved.values(): close(each.std(1).max(), 0.0, 1e-5)
    assert (moved["b"][..., 0] - moved["b"][..., 1]).std() > 0.5


def test_a_finite_set_keeps_its_masks_and_numbers():
    def some(n): return torch.arange(float(n))[:, None], torch.arange(float(n))[:, None]
    given = ml.tasks.Given({"a": some(5), "b": some(7)}, {"c": some(6)}, shots=2)
    changed = ml.tasks.Augmented(given)
    task = changed.batch(2, seed=1)
    assert task.query.mask is not None
    assert torch.equal(task.query.mask, given.batch(2, seed=1).query.mask)
    assert torch.equal(task.ids, given.batch(2, seed=1).ids) and changed.n_held_out == 1
    assert torch.equal(changed.held_out().query.y, given.held_out().query.y)


class Coins(ml.Family):
    def draw(self, n_tasks, random):
        part = ml.Split(random.uniform((n_tasks, 2, 1)), random.integers((n_tasks, 2), 2))
        return ml.Task(part, part)


@pytest.mark.parametrize(("make", "kind", "message"), [
    (lambda: ml.tasks.Augmented(Waves(), 0.0), ValueError, "shift and stretch are both 0"),
    (lambda: ml.tasks.Augmented(Waves(), -1.0), ValueError, "shift=-1.0: a finite number"),
    (lambda: ml.tasks.Augmented(Waves(), stretch=math.inf), ValueError, "stretch=inf"),
    (lambda: ml.tasks.Augmented(Waves), TypeError, "changes the tasks of a family; found"),
    (lambda: ml.tasks.Augmented(Coins()).batch(2), ValueError, "drawn by Episodes already")])
def test_what_is_not_augmented(make, kind, message):
    with pytest.raises(kind, match=message): make()


# Prices


def test_nats_are_the_divergence_of_two_normals():
    generator = torch.Generator().manual_seed(0)
    mean, log = torch.randn(2, 9, generator=generator, **DOUBLES).requires_grad_()
    normal = torch.distributions.Normal
    right = torch.distributions.kl_divergence(normal(mean, log.exp()), normal(0.0, 1.0)).sum()
    close(nats(mean, log.exp()).detach(), right.detach(), 1e-13)
    assert torch.autograd.gradcheck(lambda m, s: nats(m, s.exp()), (mean, log))
    assert nats(torch.zeros(4), torch.ones(4)) == 0


def net(): return mlp(4, 3, 1, activation=nn.Tanh, seed=1).double()


def narrow():
    return Bottleneck(mlp(4, 3, 4, activation=nn.Tanh, seed=1), mlp(2, 3, 1, seed=2)).double()


def made(kind, **choices):
    "A small MR-MAML of either kind, with a factor that is felt."
    if kind == "weights":
        return ml.MRMAML(net(), F.mse_loss, 0.1, 2, weight=0.01, sigma=0.3, **choices)
    return ml.MRMAML(narrow(), F.mse_loss, 0.1, 2, information=kind, weight=0.1, **choices)


KINDS = pytest.mark.parametrize("kind", ["weights", "activations"])


@pytest.fixture
def named():
    return Waves(4, names=3, used=3).batch(5, seed=2).to(dtype=torch.float64)


def with_seed(J, task, seed=5):
    "Value and all gradients, with these random numbers."
    torch.manual_seed(seed)
    J.zero_grad()
    J(task).backward()
    return torch.cat([p.grad.flatten() for p in J.parameters()])


@KINDS
def test_finite_differences_in_all_that_learns(kind, named):
    J = made(kind)
    names = [name for name, _ in J.named_parameters()]
    assert any("log_sigma" in name for name in names) == (kind == "weights")

    def value(*tensors):
        torch.manual_seed(5)
        return torch.func.functional_call(J, dict(zip(names, tensors, strict=True)), (named,))
    at = tuple(p.detach().clone().requires_grad_() for p in J.parameters())
    assert torch.autograd.gradcheck(value, at, fast_mode=True)


@KINDS
@pytest.mark.parametrize("choices", [{"batching": "loop"}, {"chunk_size": 2}],
                         ids=["loop", "chunks"])
def test_ways_of_computing_agree_without_noise(kind, choices, named):
    J, other = made(kind).eval(), made(kind, **choices).eval()
    right, found = ((J(named).detach(), with_seed(J, named)) for J in (J, other))
    for a, b in zip(found, right, strict=True): close(a, b, 1e-13)


@KINDS
def test_chunks_have_the_same_noise_when_they_are_computed_again(kind, named):
    J = made(kind, chunk_size=2)
    slope = with_seed(J, named)
    along = torch.randn(len(slope), generator=torch.Generator().manual_seed(1), **DOUBLES)
    start, values = nn.utils.parameters_to_vector(J.parameters()).detach(), []
    for h in (1e-5, -1e-5):
        nn.utils.vector_to_parameters(start + h * along, J.parameters())
        torch.manual_seed(5)
        with torch.no_grad(): values.append(J(named))
    close((values[0] - values[1]) / 2e-5, slope @ along, 1e-7)


@KINDS
def test_one_task_has_the_same_noise_at_once_and_in_turn(kind, named):
    one = named.select(slice(0, 1))
    at_once, in_turn = (with_seed(made(kind, batching=way), one) for way in ("vmap", "loop"))
    close(at_once, in_turn, 1e-12)
    assert (with_seed(made(kind), one, 6) - at_once).norm() > 1e-3


@KINDS
@pytest.mark.parametrize("rule", [ml.MixedMode(), ml.Truncated(2)], ids=["mixed", "truncated"])
def test_rules_that_are_exact_have_the_same_noise(kind, rule, named):
    close(with_seed(made(kind, gradient=rule), named), with_seed(made(kind), named), 1e-12)


def test_compiled_noise_is_new_at_each_call_and_as_large_as_before(named):
    J = made("weights")
    torch.manual_seed(0)
    eager = torch.stack([J(named).detach() for _ in range(40)])
    J.compile(backend="eager")
    found = torch.stack([J(named).detach() for _ in range(40)])
    assert len(found.unique()) == 40
    close(found.mean(), eager.mean(), 4 * (eager.std() / 40**0.5).item())
    assert 0.6 < found.std() / eager.std() < 1.6


@KINDS
def test_padding_has_no_say(kind, named):
    J = made(kind).eval()
    shorter = ml.Task(named.support, named.query.select((slice(None), slice(2)))).select([1])
    ones = [named.select([0]), shorter]
    padded = ml.tasks.padded(ones)
    assert padded.query.mask is not None
    close(J(padded).detach(), torch.stack([J(one) for one in ones]).mean().detach(), 1e-13)


@KINDS
def test_tasks_of_a_batch_have_noise_of_their_own(kind, named):
    alike = named.select([0, 0, 0])
    J = made(kind)
    assert J.per_task(alike)[0].std() > 1e-3
    assert J.eval().per_task(alike)[0].std() < 1e-12


def test_a_task_keeps_its_weights_from_the_first_step_to_the_query_set(named):
    "With nothing to adapt and one set for both, each loss along the way is that of one network."
    model = net()
    J = ml.MetaLoss(model, F.mse_loss, inner=ml.Noisy(model, steps=3, sigma=0.5, only="2.bias"),
                    terms=ml.QueryLoss())
    points = J.walk()(J.theta())(named.map(lambda tensor: tensor[0]).support)
    for name in ("0.weight", "0.bias", "2.weight"):
        assert (points[0][name] - J.theta()[name]).norm() > 0.1
        assert all(torch.equal(phi[name], points[0][name]) for phi in points)
    assert torch.equal(points[0]["2.bias"], J.theta()["2.bias"])


class Spare(Point):
    "A point, and one number that does nothing but adapt."
    def __init__(self, theta):
        super().__init__(theta)
        self.spare = nn.Parameter(torch.zeros(1, **DOUBLES))

    def forward(self, x): return super().forward(x) + 0 * self.spare


def test_noise_feels_the_trace_of_the_curvature(bowls, start):
    C, q = curvature(bowls.query)
    point = Spare(start)
    J = ml.MetaLoss(point, half_square, inner=ml.Noisy(point, steps=0, only="spare", sigma=0.5))
    many = ml.Task(*(ml.Split(part.x.repeat(4000, 1, 1), part.y.repeat(4000, 1))
                     for part in bowls))
    sharp = ((start - q)[:, None] @ C @ (start - q)[..., None]).mean() / 2
    torch.manual_seed(0)
    with torch.no_grad(): found = J(many)
    expected = sharp + 0.25 * C.diagonal(dim1=1, dim2=2).sum(-1).mean() / 2
    assert abs(found / expected - 1) < 0.01 and expected / sharp > 1.05
    close(J.eval()(bowls).detach(), sharp, 1e-13)


def test_the_price_of_weights_in_closed_form(bowls, start):
    point = Spare(start)
    inner = ml.Noisy(point, 0.2, 3, only="spare", sigma=0.5)
    J = ml.MetaLoss(point, half_square, inner=inner, terms=ml.WeightInformation())
    value = J(bowls)
    value.backward()
    close(value.detach(), (start**2 / 2 + (0.25 - 1) / 2 - math.log(0.5)).sum(), 1e-13)
    close(point.theta.grad, start, 1e-13)
    close(inner.log_sigma[0].grad, torch.full_like(start, 0.25 - 1), 1e-13)


def test_the_price_of_activations_in_closed_form(named):
    "A linear encoder: the slope for its weights is the mean of (μ, σ's slope) times the input."
    encoder = nn.Linear(4, 2, bias=False, **DOUBLES)
    nn.init.constant_(encoder.weight, 0.3)
    J = ml.MetaLoss(model := Bottleneck(encoder, mlp(1, 1).double()), F.mse_loss,
                    inner=Masked(model, only="head"), terms=ml.ActivationInformation())
    value = J(named)
    value.backward()
    x = named.query.x.flatten(0, 1)
    mean, width = (x @ encoder.weight.detach().T).T
    sigma = F.softplus(width)
    close(value.detach(), (mean**2 / 2 + sigma**2 / 2 - 0.5 - sigma.log()).mean(), 1e-13)
    close(encoder.weight.grad[0], (mean[:, None] * x).mean(0), 1e-13)
    slope = (sigma - 1 / sigma) * width.sigmoid()
    close(encoder.weight.grad[1], (slope[:, None] * x).mean(0), 1e-13)
    assert model.head[0].weight.grad is None or model.head[0].weight.grad.norm() == 0


def test_the_price_of_activations_is_that_of_the_start(named):
    "Also where the encoder adapts: what it has from the support set is free."
    prices = [ml.MetaLoss(narrow(), F.mse_loss, inner=ml.SGD(0.1, steps),
                          terms=ml.ActivationInformation())(named).item() for steps in (0, 3)]
    assert prices[0] == prices[1]


def test_limits(named):
    free = ml.MRMAML(net(), F.mse_loss, 0.1, 2, weight=0.0, sigma=1e-12)
    anil = ml.ANIL(net(), F.mse_loss, 0.1, 2)
    close(free(named).detach(), anil(named).detach(), 1e-9)
    for J in (free.eval(), anil): J(named).backward()
    close(flat(free.model), flat(anil.model), 1e-13)
    small = narrow().eval()
    J = ml.MetaLoss(small, F.mse_loss, inner=Masked(small, 0.1, 2, only="head"))
    close(made("activations").eval().per_task(named)[0].mean().detach(), J(named).detach(), 1e-13)


def test_what_was_learned_of_widths_goes_along_where_it_fits():
    J = made("weights")
    wide = mlp(9, 3, 1).double()
    J.on(wide, F.mse_loss)                                   # nothing was learned, nor lost
    with torch.no_grad(): J.inner.log_sigma[1].fill_(-7.0)
    with pytest.warns(UserWarning, match="Noisy starts anew at '0.weight': what it has learned"):
        twin = J.on(wide, F.mse_loss)
    kept = twin.inner.sigmas()
    close(kept["0.bias"], torch.full((3,), math.exp(-7.0), **DOUBLES), 1e-15)
    close(kept["0.weight"], torch.full((3, 9), 0.3, **DOUBLES), 1e-15)


def test_frozen_weights_have_no_noise_and_no_price(named):
    model = net()
    inner = ml.Noisy(model)
    J = ml.MetaLoss(model, F.mse_loss, inner=inner, terms=ml.WeightInformation())
    whole = J(named).item()
    model[0].weight.requires_grad_(False)
    only = nats(model[0].bias, inner.sigmas()["0.bias"]).item()
    close(J(named).detach(), only, 1e-12)
    assert whole > only


def test_with_nothing_noisy_the_price_is_nothing(bowls, start):
    J = ml.MRMAML(Point(start), half_square, 0.2, 3)
    close(J(bowls).detach(), ml.MAML(Point(start), half_square, 0.2, 3)(bowls).detach(), 1e-13)


class Backwards(nn.Module):
    "Uses its layers in the other order than it registers them."
    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(3, 1), nn.Linear(4, 3)

    def forward(self, x): return self.second(self.first(x))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ml.MRMAML(net(), F.mse_loss, information="activations"), "needs a ml.models.Bottle"),
    (lambda: ml.MRMAML(net(), F.mse_loss, information="both"), "information='both': choose one of"),
    (lambda: ml.MRMAML(net(), F.mse_loss, weight=-1.0), "weight=-1.0"),
    (lambda: ml.MRMAML(net(), F.mse_loss, only="tail"), "'tail' matches no parameter"),
    (lambda: ml.Noisy(net(), sigma=0.0), "sigma=0.0: a finite number, above 0"),
    (lambda: ml.Noisy(net(), sigma=ml.schedule.Linear(1.0, 0.1)), "a number is needed, and no"),
    (lambda: Bottleneck(nn.Linear(4, 3), nn.Linear(1, 1))(torch.ones(2, 4)), "gives 3 numbers")])
def test_what_has_no_price(make, message):
    with pytest.raises(ValueError, match=message): make()


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ml.MAML(net(), F.mse_loss, terms=ml.WeightInformation()), r"take inner=ml.Noisy"),
    (lambda: ml.MAML(net(), F.mse_loss, terms=ml.ActivationInformation()), "take ml.models.Bottle"),
    (lambda: ml.MRMAML(Backwards().double(), F.mse_loss), "would adapt and be noisy, too"),
    (lambda: made("weights", gradient=ml.Implicit()), "Noisy has no such place")])
def test_what_does_not_go_together(make, message, named):
    with pytest.raises(ValueError, match=message): make()(named)


@KINDS
def test_a_run_in_one_graph_says_why_it_is_none(kind, named):
    J = made(kind)
    with pytest.raises(ValueError, match="J draws random numbers"):
        graph_of(OuterStep(J, torch.optim.Adam(J.parameters())), named)


@KINDS
def test_a_training_is_the_same_again(kind):
    def trained():
        J = made(kind).float()
        quick(J, tasks=Waves(4, names=3, used=3), steps=5, seed=3)
        return torch.cat([p.detach().flatten() for p in J.parameters()])
    assert torch.equal(trained(), trained())


def test_their_lines():
    assert "Noisy(lr=0.1, steps=2, only='{head}', sigma=0.3)" in repr(made("weights"))
    assert "+ 0.01·WeightInformation" in repr(made("weights"))
    assert "+ 0.1·ActivationInformation" in repr(made("activations"))
    assert repr(Waves(3)) == "NamedSinusoids(shots=3, queries=3)"
    assert repr(ml.tasks.Augmented(Waves(3))).endswith("queries=3), shift=1.0, stretch=0.0)")


# The judge's question


def says(J, seed=0): return QUESTIONS["solves without support?"](J, seed)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("weight", [5e-5, 0.01])
def test_a_price_forgets_at_its_own_rate(seed, weight):
    verdict, evidence = says(ml.MRMAML(mlp(1, 5, 1), F.mse_loss, weight=weight), seed)
    assert verdict == "no" and evidence.endswith(f"at the rate {weight:.2g}")


@pytest.mark.parametrize("make", [
    ml.MAML, ml.FOMAML, ml.Reptile, ml.ANIL, ml.ConML, ml.Leap, ml.MetaCurvature,
    lambda model, loss: ml.MRMAML(model, loss, weight=0.0),
    lambda model, loss: ml.MAML(model, loss, terms=ml.QueryLoss() + 0.1 * ml.GradientNorm())])
def test_all_others_are_content(make):
    assert says(make(mlp(1, 5, 1), F.mse_loss))[0] == "yes"


class Loud(ml.Term):
    "Rewards weights that are far from zero."
    def per_task(self, path, task): return -sum((p**2).sum() for p in path.theta.values())


class Idle(ml.Term):
    "Depends on nothing."
    def per_task(self, path, task): return task.query.y.sum()


def test_other_verdicts():
    def J(terms): return ml.MAML(mlp(1, 5, 1), F.mse_loss, terms=terms)
    assert says(J(ml.QueryLoss() + 0.1 * Loud()))[0] == "moves on"
    assert says(J(ml.QueryLoss() - 0.1 * Loud()))[0] == "no"
    assert says(J(Idle()))[0] == "no gradient at all"


def test_the_judge_asks_it_last_and_a_model_with_a_bottleneck_cannot_come_along():
    answers = judge(ml.MRMAML(mlp(1, 5, 1), F.mse_loss))
    assert answers[9][:2] == ("solves without support?", "no") and len(answers) == 12
    J = ml.MRMAML(Bottleneck(mlp(1, 4, 4), mlp(2, 1)), F.mse_loss, information="activations")
    with pytest.raises(ValueError, match="'head' matches no parameter of Chain"): judge(J)


# The command


def test_adam_made_anew_is_the_first_step_of_adam():
    start = torch.tensor([1.0, -2.0, 3.0, 0.5], **DOUBLES)
    slope = torch.tensor([1e-8, -3.0, 1e-5, 0.0], **DOUBLES)
    ends = []
    for kind in (Anew, lambda p, lr: torch.optim.Adam(p, lr=lr, eps=1e-7 / 0.001**0.5)):
        p = start.clone().requires_grad_()
        optimizer = kind([p], lr=0.01)
        p.grad = slope.clone()
        optimizer.step()
        ends.append(p.detach())
    close(*ends, 1e-15)


def test_the_encoder_alone_has_an_adam_made_anew():
    J = SETTINGS["MR-MAML(A)"].build(0)
    named = [(name, p) for name, p in J.named_parameters() if p.requires_grad]
    assert [name.split(".")[1] for name, _ in named] == ["encoder"] * 4 + ["head"] * 6
    start = [p.detach().clone() for _, p in named]
    ends = []
    for kinds in ([(EncoderAnew, named)], [(Anew, named[:4]), (torch.optim.Adam, named[4:])]):
        with torch.no_grad():
            for (_, p), value in zip(named, start, strict=True): p.copy_(value)
        optimizers = [kind([p for _, p in those], lr=0.01) for kind, those in kinds]
        for factor in (1.0, -3.0):
            for _, p in named: p.grad = factor * torch.ones_like(p)
            for optimizer in optimizers: optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for _, p in named]))
    close(*ends, 1e-7)
    assert (ends[0] - torch.cat([p.flatten() for p in start])).norm() > 0.1


def test_a_summary_is_mean_and_deviation_of_seeds():
    runs = [{"new": [1.0, 0, 0, 2.0], "of_training": [0.0, 0, 0, None],
             "new_with_noise": [x, 0, 0, x]} for x in (1.0, 3.0)]
    found = summary(runs)
    assert found["new"]["100"] == {"mean": 2.0, "sd_of_seeds": 0.0}
    assert found["new_with_noise"]["0"] == {"mean": 2.0, "sd_of_seeds": 2**0.5}
    assert found["of_training"]["100"] == {"mean": None, "sd_of_seeds": None}
