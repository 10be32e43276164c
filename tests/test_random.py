"""Random numbers from a counter: known answers, and what a number depends on and what not.

Bounds are four standard errors, for fixed seeds; a correct generator would pass them with nearly
every other seed, too.
"""
import math

import pytest
import torch

from metalit.tasks import Episodes, Quadratics, Random, Sinusoids, threefry
from metalit.tasks.random import WORD
from metalit.tasks.task import leaves

# Random123's known-answer vectors (Salmon et al. 2011): key, counter, result.
KNOWN = [((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
         ((WORD, WORD), (WORD, WORD), (0x1CB996FC, 0xBB002BE7)),
         ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0))]
DTYPES = (torch.float32, torch.float64)


def of(steps=(0,), batch_size=8, seed=0): return Random.of_steps(seed, list(steps), batch_size)


def pair(words): return tuple(torch.tensor(word) for word in words)


def everything(random, trailing=(3, 2)):
    "Numbers of all kinds, one after another, as one float64 tensor of a row for each task."
    shape = (random.rows, *trailing)
    drawn = [random.uniform(shape, -1.0, 2.0), random.uniform(shape, dtype=torch.float64),
             random.normal(shape), random.normal(shape, torch.float64), random.integers(shape, 7),
             random.order(shape), *random.words(shape)]
    return torch.cat([numbers.double().flatten(1) for numbers in drawn], 1)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1].item()


# The words

@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_known_answers(key, counter, expected):
    assert tuple(word.item() for word in threefry(pair(key), pair(counter))) == expected


def test_known_answers_at_once_and_broadcast():
    keys, counters, expected = (torch.tensor(words).unbind(1)
                                for words in zip(*KNOWN, strict=True))
    assert all(map(torch.equal, threefry(keys, counters), expected))
    of_all = threefry(tuple(k[:, None] for k in keys), counters)
    assert all(torch.equal(words.diagonal(), right)
               for words, right in zip(of_all, expected, strict=True))


def test_words_are_words_and_different_counters_give_different_pairs():
    one, two = threefry(pair((5, 9)), (torch.arange(300)[:, None], torch.arange(300)))
    assert one.dtype == torch.int64 and one.min() >= 0 and one.max() <= WORD
    assert len(torch.stack([one, two], -1).flatten(0, 1).unique(dim=0)) == 90_000


def test_each_bit_of_key_and_counter_changes_half_of_the_bits():
    words = torch.randint(2**32, (4, 500), generator=torch.Generator().manual_seed(0))
    plain = torch.stack(threefry((words[0], words[1]), (words[2], words[3])))
    for part in range(4):
        for bit in range(32):
            other = words.clone()
            other[part] ^= 1 << bit
            changed = plain ^ torch.stack(threefry((other[0], other[1]), (other[2], other[3])))
            share = (changed[..., None] >> torch.arange(32) & 1).double().mean().item()
            assert abs(share - 0.5) < 4.5 * 0.5 / (500 * 64) ** 0.5


# What a number depends on

@pytest.mark.parametrize("trailing", [(3, 2), (1,), (5,), (16,)])
def test_steps_drawn_together_are_the_steps_drawn_alone(trailing):
    together = everything(of(range(12), 5, seed=3), trailing).unflatten(0, (12, 5))
    for step in range(12):
        assert torch.equal(together[step], everything(of([step], 5, seed=3), trailing))
    mixed = everything(of([7, -1, 2], 5, seed=3), trailing).unflatten(0, (3, 5))
    assert torch.equal(mixed[0], together[7]) and torch.equal(mixed[2], together[2])
    assert torch.equal(mixed[1], everything(of([-1], 5, seed=3), trailing))


def test_a_small_batch_is_the_head_of_a_large_one():
    large = everything(of([4], 16))
    for count in (1, 3, 8, 15): assert torch.equal(everything(of([4], count)), large[:count])


def test_rows_may_be_any_tasks_of_any_steps():
    some = Random(3, torch.tensor([4, 0, 4]), torch.tensor([2, 1, 0]))
    rows = everything(some)
    assert torch.equal(rows[[2, 0]], everything(of([4], 3, seed=3))[[0, 2]])
    assert torch.equal(rows[1], everything(of([0], 3, seed=3))[1])


def test_a_smaller_tensor_is_the_head_of_a_larger_one():
    small, large = (of().uniform((8, places)) for places in (5, 9))
    assert torch.equal(small, large[:, :5])


def test_numbers_asked_for_next_are_new_and_their_shape_does_not_move_the_rest():
    first, second = of(), of()
    a, b = first.words((8, 4))[0], first.words((8, 4))[0]
    second.words((8, 100))
    assert not (a == b).any()
    assert torch.equal(second.words((8, 4))[0], b)


def test_numbers_on_another_device_are_the_same_and_go_on_where_they_were():
    first = of()
    first.uniform((8, 2))
    second = first.to("cpu")
    assert type(second) is Random and (second.rows, second.asked) == (8, 1)
    assert torch.equal(everything(first), everything(second))


def test_seeds_steps_and_tasks_differ():
    "Also seeds beyond 32 bits, and negative ones."
    seeds = (0, 1, -1, -2, 2**31, 2**32, 2**32 + 1, 2**63)
    words = torch.stack([of(range(-1, 4), 4, seed).words((20, 3))[0] for seed in seeds])
    assert len(words.unique()) == words.numel() == 480


def test_held_out_numbers_are_those_of_no_training_step():
    for seed in range(3):
        held_out = of([-1], 100, seed).words((100, 1))[0]
        trained = of(range(2000), 10, seed).words((20_000, 1))[0]
        assert not torch.isin(held_out, trained).any()


def test_of_generator_takes_one_number_of_the_generator():
    draws = [Random.of_generator(torch.Generator().manual_seed(seed), 4) for seed in (0, 0, 1)]
    a, b, c = (random.words((4, 3))[0] for random in draws)
    assert torch.equal(a, b) and not (a == c).any()
    generator, again = (torch.Generator().manual_seed(0) for _ in range(2))
    Random.of_generator(generator, 4)
    torch.randint(2**62, (), generator=again)
    assert torch.equal(generator.get_state(), again.get_state())


def test_no_global_random_state_is_touched():
    before = torch.get_rng_state()
    everything(of())
    assert torch.equal(before, torch.get_rng_state())


# How numbers are distributed

@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_moments(kind, dtype):
    expected = {"uniform": ((1 / 2, 1 / 12), (1 / 3, 4 / 45), (1 / 4, 9 / 112), (1 / 5, 16 / 225)),
                "normal": ((0, 1), (1, 2), (0, 15), (3, 96))}[kind]  # mean and variance of xᵖ
    random = of(range(100), 50, seed=1)
    x = getattr(random, kind)((5000, 200), dtype=dtype)
    assert x.dtype == dtype
    for power, (mean, variance) in enumerate(expected, 1):
        assert abs((x.double() ** power).mean().item() - mean) < 4 * (variance / x.numel()) ** 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_distribution_functions(dtype):
    "The largest gap between counted and true distribution function (Kolmogorov & Smirnov)."
    random = of(range(20), 50, seed=2)
    uniform = random.uniform((1000, 100), dtype=dtype).double().flatten().sort().values
    normal = random.normal((1000, 100), dtype=dtype).double().flatten().sort().values
    through = 0.5 * (1 + torch.erf(normal / math.sqrt(2)))
    steps = torch.arange(1, 100_001, dtype=torch.float64) / 100_000
    for values in (uniform, through):
        assert (values - steps).abs().max() < 2.3 / 100_000 ** 0.5  # exceeded once in 20,000 times


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.float64, 53)])
def test_uniform_numbers_have_all_the_bits_that_they_say(dtype, bits):
    u = of(range(20), 50).uniform((1000, 20), dtype=dtype)
    assert u.min() >= 0 and u.max() < 1
    whole = u.double() * 2.0**bits
    assert torch.equal(whole, whole.floor())
    for bit in range(bits):
        assert abs((whole.long() >> bit & 1).double().mean().item() - 0.5) < 4.5 * 0.5 / 20_000**0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_words_give_finite_numbers(dtype, monkeypatch):
    for word in (0, WORD):
        monkeypatch.setattr(Random, "words",
                            lambda self, shape, word=word: (torch.full(shape, word),) * 2)
        assert of().normal((8, 2), dtype).isfinite().all()
        assert 0 <= of().uniform((8, 2), dtype=dtype).max() < 1


def test_limits_of_uniform_numbers():
    x = of(range(100), 50).uniform((5000, 20), -5.0, 3.0)
    assert -5 <= x.min() < -4.999 and 2.999 < x.max() <= 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_are_uncorrelated(dtype):
    random = of(range(100), 50, seed=5)
    first, second = (random.normal((5000, 100), dtype).unflatten(0, (100, 50)) for _ in range(2))
    other_seed = of(range(100), 50, seed=6).normal((5000, 100), dtype).unflatten(0, (100, 50))
    held_out = of([-1], 50, seed=5).normal((50, 100), dtype)[None]
    pairs = [(first[1:], first[:-1]), (first[:, 1:], first[:, :-1]),
             (first[..., 1:], first[..., :-1]), (first, second), (first, other_seed),
             (first[:1], held_out)]
    for a, b in pairs:
        for change in (lambda x: x, torch.abs, torch.square):
            assert abs(correlation(change(a), change(b))) < 4 * a.numel() ** -0.5


@pytest.mark.parametrize("high", [1, 2, 7, 1000, 2**31])
def test_whole_numbers(high):
    x = of(range(40), 50).integers((2000, 50), high)
    assert x.dtype == torch.int64 and x.min() >= 0 and x.max() < high
    if high > 1: assert abs((x.double() / (high - 1)).mean().item() - 0.5) < 4 * 0.5 / 100_000**0.5
    if high <= 7:
        expected = 100_000 / high
        counts = torch.bincount(x.flatten(), minlength=high).double()
        assert ((counts - expected).square() / expected).sum() < 30  # at most 6 degrees of freedom


def test_orders_are_permutations_each_equally_often():
    order = of(range(40), 600).order((24_000, 4)).argsort(1)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(24_000, -1))
    counts = torch.bincount((order * torch.tensor([64, 16, 4, 1])).sum(1), minlength=256)
    counts = counts[counts > 0].double()
    assert len(counts) == 24
    assert ((counts - 1000).square() / 1000).sum() < 60              # 23 degrees of freedom


def test_equal_scores_have_an_order_too(monkeypatch):
    monkeypatch.setattr(Random, "words", lambda self, shape: (torch.full(shape, WORD),) * 2)
    assert of().order((8, 5))[0].diff().tolist() == [1, 1, 1, 1]


# Compiled

def test_words_are_equal_compiled_and_other_numbers_to_the_last_bit():
    def words(steps): return torch.stack(Random(1, steps, torch.arange(8)).words((8, 5)))

    def floats(steps):
        random = Random(1, steps, torch.arange(8))
        return random.uniform((8, 5), -5.0, 5.0), random.normal((8, 5), torch.float64)

    for step in (3, -1):
        steps = torch.full((8,), step)
        run = torch.compile(words, backend="aot_eager", fullgraph=True)
        assert torch.equal(run(steps), words(steps))
        (u, z), (u2, z2) = torch.compile(floats, backend="aot_eager", fullgraph=True)(steps), \
            floats(steps)
        torch.testing.assert_close(u, u2, rtol=0, atol=5 * 2**-23)
        torch.testing.assert_close(z, z2, rtol=2**-51, atol=2**-52)


# Families: a stream is its steps, to the last bit

@pytest.mark.parametrize("family", [
    Sinusoids(shots=1, queries=2), Sinusoids(shots=5), Quadratics(dim=2), Quadratics(dim=5),
    Quadratics(dim=3, shared_curvature=True),
    Episodes(torch.rand(40, 1, 3, 3), torch.arange(40) // 4, ways=3, rotations=(0, 90))],
    ids=lambda family: type(family).__name__)
@pytest.mark.parametrize("batch_size", [1, 3, 25])
def test_a_stream_is_its_steps_wherever_it_starts(family, batch_size):
    for start in (0, 5):
        stream = list(family.stream(batch_size, 13, seed=2, start=start))
        assert len(stream) == 13 - start
        for step, task in enumerate(stream, start):
            alone = family.batch(batch_size, seed=2, step=step)
            assert all(map(torch.equal, leaves(task), leaves(alone)))


# Mistakes

@pytest.mark.parametrize(("ask", "message"), [
    (lambda: of([0, 1], 4).uniform((4, 3)), r"shape \(4, 3\): .* of the 8 tasks"),
    (lambda: of().integers((8, 2), 0), "high=0"),
    (lambda: of().integers((8, 2), 2**31 + 1), "high=2147483649"),
    (lambda: of().uniform((8, 2), dtype=torch.float16), "dtype=torch.float16"),
    (lambda: of().normal((8, 2), torch.bfloat16), "dtype=torch.bfloat16")])
def test_mistakes_are_named(ask, message):
    with pytest.raises(ValueError, match=message): ask()
