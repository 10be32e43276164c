"""The figures in two parameters, and bad input.

Torch against JavaScript on random states, and against the library.
"""
import json
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import in_javascript
from torch.testing import assert_close

import metalit as ml
from metalit.models import Point, mlp
from metalit.tasks import curvature, half_square
from metalit.widgets.explorer import control_words, explore, lowest_of, still
from metalit.widgets.figure import finite
from metalit.widgets.landscape import RATES, REMARKS, best_start, rewards
from metalit.widgets.plane import (
    CHOICES,
    four_bowls,
    frames_of,
    gradient_of,
    grid_of,
    made,
    set_by_sliders,
    two_parameters,
    values_at,
)


@pytest.fixture
def net_loss():
    "A meta-loss that was made for a network on sine waves."
    return ml.MetaLoss(mlp(1, 4, 1), F.mse_loss, inner=ml.Diagonal(mlp(1, 4, 1), lr=0.01),
                       chunk_size=2)


def largest_gap(torch_says, javascript_says):
    """The largest difference of two pictures, relative where numbers are large.

    Infinite where their shapes differ.
    """
    if isinstance(torch_says, dict):
        if torch_says.keys() != javascript_says.keys(): return float("inf")
        return max((largest_gap(torch_says[key], javascript_says[key]) for key in torch_says),
                   default=0.0)
    if isinstance(torch_says, list):
        if len(torch_says) != len(javascript_says): return float("inf")
        return max(map(largest_gap, torch_says, javascript_says), default=0.0)
    if None in (torch_says, javascript_says):
        return 0.0 if torch_says is javascript_says else float("inf")
    return abs(torch_says - javascript_says) / (1 + abs(torch_says))


def drawn(generator, key, names):
    "A random state of the controls; `names` are the meta-losses."
    def between(low, high): return round(generator.uniform(low, high), 3)
    return {"x": between(-3, 3), "y": between(-3, 3), "lr": between(0.02, 1.2),
            "steps": generator.randint(1, 10),
            "weight": between(0, 2), "margin": between(0.1, 3), key: generator.choice(names)}


@pytest.mark.parametrize("shown", CHOICES)
def test_two_parameters_is_the_same_in_both_languages(shown):
    figure, generator, states, pictures = two_parameters(), random.Random(shown), [], []
    for _ in range(4):
        arrows = {f"arrow_{name}": generator.random() < 0.7 for name in CHOICES}
        figure.move(**drawn(generator, "shown", [shown]), **arrows)
        states.append(figure.state)
        pictures.append(figure.picture)
    for state, ours, theirs in zip(states, pictures, in_javascript(figure, *states), strict=True):
        assert largest_gap(ours, theirs) < 1e-8, state


@pytest.mark.parametrize("loss", CHOICES)
def test_rewards_is_the_same_in_both_languages(loss):
    figure, generator, states, pictures = rewards(), random.Random(loss), [], []
    for _ in range(4):
        figure.move(**drawn(generator, "loss", [loss]), count=generator.randint(0, 40),
                    outer=generator.choice([0.1, 0.5, 1.0]))
        states.append(figure.state)
        pictures.append(figure.picture)
    for state, ours, theirs in zip(states, pictures, in_javascript(figure, *states), strict=True):
        assert largest_gap(ours, theirs) < 1e-8, state


def test_other_bowls_are_the_same_in_both_languages():
    task = ml.tasks.Quadratics(2, shift=0.5).batch(3, seed=4)
    for figure in (two_parameters(task=task), rewards(task=task)):
        assert largest_gap(figure.picture, in_javascript(figure, figure.state)[0]) < 1e-8


def test_a_gap_is_seen():
    "The comparison itself: it sees a wrong number, a missing one, a missing key and a missing row."
    picture = finite({"a": [[1.0, float("nan")], [2.0, 3.0]], "b": 5.0})
    assert largest_gap(picture, json.loads(json.dumps(picture))) == 0
    assert largest_gap(picture, picture | {"b": 5.1}) > 0.01
    assert largest_gap(picture, picture | {"a": [[1.0, 0.0], [2.0, 3.0]]}) == float("inf")
    assert (largest_gap(picture, {"b": 5.0}) == largest_gap(picture, picture | {"a": [[1.0, None]]})
            == float("inf"))


def test_many_starts_at_once_are_the_starts_one_by_one():
    task, starts = four_bowls(), grid_of(5)
    for choice in CHOICES.values():
        state = {"lr": 0.3, "steps": 2, "weight": 0.5, "margin": 1.0}
        single = torch.stack([choice.make(Point(start), state)(task).detach() for start in starts])
        assert_close(values_at(choice.make(Point(starts[0]), state), task, starts), single, rtol=0,
                     atol=1e-12)


def test_the_grid_runs_row_by_row_from_below():
    assert grid_of(3).tolist() == [[x, y] for y in (-3.0, 0.0, 3.0) for x in (-3.0, 0.0, 3.0)]


def test_sliders_set_step_size_and_steps_of_any_inner_loop(net_loss):
    J = set_by_sliders(net_loss, Point(torch.zeros(2).double()), {"lr": 0.25, "steps": 4})
    assert (J.inner.lr, J.inner.steps, J.chunk_size) == (0.25, 4, None)
    # the reader's is untouched
    assert (net_loss.inner.lr, net_loss.inner.steps, net_loss.chunk_size) == (0.01, 1, 2)
    task = four_bowls()
    expected = ml.MAML(Point(torch.zeros(2).double()), half_square, lr=0.25, steps=4)
    # at its start, Meta-SGD is gradient descent
    assert_close(J(task), expected(task), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("make", "key"), [(two_parameters, "shown"), (rewards, "loss")])
def test_a_readers_own_meta_loss_moves_and_has_its_frames(net_loss, make, key):
    figure = make({"mine": net_loss})
    assert figure.state[key] == "mine" and "message" not in figure.picture
    assert {"key": "mine", "name": "mine", "short": "mine",
            "colour": "currentColor"} in figure.spec["choices"]
    states = [frame["state"] for frame in figure.frames]
    assert len(states) == 9
    assert figure.state in states
    assert not any("message" in f["picture"] for f in figure.frames)
    before = figure.picture["surface"]
    figure.move(lr=0.8)
    assert figure.picture["surface"] != before
    assert next(f["picture"] for f in figure.frames if f["state"] == figure.state) == figure.picture


@pytest.mark.parametrize(("make", "key"), [(two_parameters, "shown"), (rewards, "loss")])
def test_the_browser_leaves_a_readers_own_meta_loss_to_torch(net_loss, make, key):
    figure = make({"mine": net_loss})
    assert in_javascript(figure, figure.state) == [None]


def test_without_own_meta_losses_there_are_no_frames():
    assert frames_of({}, "shown", {}) == []
    assert two_parameters().frames == rewards().frames == []


class Broken(ml.Term):
    "Not a number, wherever it is asked."
    def per_task(self, path, task): return path.loss(path.final, task.query) * torch.nan


@pytest.mark.parametrize("make", [two_parameters, rewards])
@pytest.mark.parametrize(("own", "message"), [
    (ml.ProtoNet(mlp(1, 4, 1), F.cross_entropy), "cannot be shown on quadratic bowls"),
    (ml.MetaLoss(mlp(1, 4, 1), F.mse_loss, terms=Broken()), "its value at"),
    (mlp(1, 4, 1), "a MetaLoss is needed, such as ml.MAML(model, loss); found Sequential")])
def test_what_cannot_be_shown_says_so_in_place_of_the_figure(make, own, message):
    figure = make({"mine": own})
    assert "“mine”" in figure.picture["message"] and message in figure.picture["message"]
    assert figure.still().startswith(b"\x89PNG")


@pytest.mark.parametrize("make", [two_parameters, rewards])
def test_tasks_that_are_no_bowls_and_names_that_are_taken_are_refused(make, net_loss):
    with pytest.raises(ValueError,
                       match=r"x of shape \(3, 4, 1\); two or more bowls in two dimensions"):
        make(task=ml.tasks.Sinusoids(shots=4).batch(3, seed=0))
    with pytest.raises(ValueError, match="two or more bowls"):
        make(task=ml.tasks.Quadratics(2).batch(1, seed=0))
    with pytest.raises(ValueError, match="'maml' is taken"):
        make({"maml": net_loss})


def test_the_best_start_of_a_readers_own_inner_loop_is_as_good_as_any_point_of_the_grid():
    task, starts = four_bowls(), grid_of(21)
    J = ml.MetaLoss(Point(2), half_square, inner=ml.Adam(lr=0.3, steps=2))
    errors = values_at(J, task, starts)
    best = best_start(J, task, starts, errors)
    assert values_at(J, task, best[None])[0] <= errors.min()


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_has_a_rate_under_which_descent_goes_down_and_a_remark(name):
    figure = rewards()
    figure.move(loss=name)
    assert figure.picture["value_along"][-1] < figure.picture["value_along"][0]
    assert RATES.keys() == REMARKS.keys() == CHOICES.keys()


def test_the_printed_reptile_formula_ends_at_the_mean_weighted_with_squared_steepness():
    A, s = curvature(four_bowls().support)
    end = torch.linalg.solve((A @ A).sum(0), (A @ A @ s[..., None]).sum(0))[:, 0]
    figure = rewards()
    figure.move(count=40)
    assert_close(torch.tensor(figure.picture["path"][-1], dtype=torch.float64), end, rtol=0,
                 atol=1e-3)
    assert figure.picture["error_along"][-1] > 2 * figure.picture["best_error"]


@pytest.mark.parametrize("make", [two_parameters, rewards])
def test_a_page_has_its_picture_its_script_and_no_request(make):
    page = make().html()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert len(page) < 400_000


def offered(figure):
    "The keys that a reader can choose, and those with an arrow at first."
    arrows = [key for key in CHOICES if figure.state.get(f"arrow_{key}")]
    return [choice["key"] for choice in figure.spec["choices"]], arrows


def test_a_figure_offers_what_its_chapter_has_introduced_and_no_more(net_loss):
    assert offered(two_parameters(only=("fomaml", "maml"))) == (["fomaml", "maml"],
                                                                ["maml", "fomaml"])
    assert two_parameters(only=("fomaml", "maml")).state["shown"] == "fomaml"
    assert offered(two_parameters({"mine": net_loss}, only=()))[0] == ["mine"]
    assert rewards(only=("norm", "maml")).state["loss"] == "norm"
    mine = rewards({"mine": net_loss}, only=("maml",))
    assert (offered(mine)[0], mine.state["loss"]) == (["maml", "mine"], "mine")
    assert len(offered(two_parameters())[0]) == len(CHOICES) == len(offered(rewards())[0])


@pytest.mark.parametrize("figure", [two_parameters, rewards])
def test_what_is_not_there_cannot_be_offered(figure):
    with pytest.raises(ValueError, match="only='mamal': no such meta-loss; there are maml, fomaml"):
        figure(only=("maml", "mamal"))
    with pytest.raises(ValueError, match=r"only=\(\) leaves nothing to choose from"):
        figure(only=())


@pytest.mark.parametrize(("key", "place"), [("maml", (0.95, -0.19)), ("fomaml", (0.88, 0.33)),
                                            ("reptile", (-0.26, 0.02))])
def test_a_played_theta_rests_where_the_chapters_say(key, place):
    state, task = two_parameters().state, four_bowls()
    def length(theta):
        theta = torch.tensor(theta, dtype=torch.float64)
        return gradient_of(made(key, theta, state, {}), task).norm()
    x, y = place
    assert length(place) < 0.01
    assert all(length(near) > 2 * length(place) for near in ((x - 0.1, y), (x, y + 0.1)))


@pytest.mark.parametrize(("figure", "name"), [(two_parameters, "steps"), (rewards, "steps"),
                                              (rewards, "count")])
def test_a_million_steps_are_refused_and_not_waited_for(figure, name):
    shown = figure()
    shown.move(**{name: 10**6})
    assert shown.picture["message"] == f"ValueError: {name}=1000000: 0 to 1000 steps are drawn"


def test_a_caption_of_its_own_stands_on_the_page():
    figure = rewards(only=("maml",))
    assert figure.captioned("Choose MAML.") is figure
    assert figure.spec["caption"] == "Choose MAML." and '"caption":"Choose MAML."' in figure.html()
    assert "main" not in figure.spec
    assert '"main":"loss"' in figure.captioned("Choose MAML.", moves="loss").html()
    with pytest.raises(ValueError, match=r"moves='lambda': the state has device, loss"):
        figure.captioned("Slide λ.", moves="lambda")


def test_the_lowest_places_of_lines_are_marked_where_there_are_any():
    assert lowest_of([0.0, 1.0, 2.0], [2.0, None, 1.0]) == ([], [])
    assert lowest_of([0.0, 1.0, 2.0], [2.0, 1.0, None]) == ([1.0], [1.0])
    assert lowest_of([0.0, 1.0], [None, None]) == ([], [])
    def bowl(lr): return [0, 1, 2], {"a": [2, lr, 2], "b": [0, 1, 2]}
    figure = explore(bowl, {"lr": [0.5, 1.0]}, title="", xlabel="", ylabel="", caption="",
                     lowest=True)
    drawn = still(figure.spec, figure.picture).axes[0].lines
    assert [line.get_xydata().tolist() for line in drawn if line.get_marker() == "o"] == [
        [[1.0, 0.5]], []]


def test_controls_are_called_by_the_symbols_of_the_book():
    assert [control_words(key) for key in ("lr", "steps", "beta", "my_own")] == [
        "step size α", "inner steps K", "β", "my own"]


def test_a_value_that_stands_twice_is_no_list_of_positions():
    def nothing(n): return [0], {}
    with pytest.raises(ValueError, match=r"n has a value twice: \(1, 20, 1, 5\)"):
        explore(nothing, {"n": (1, 20, 1, 5)}, title="", xlabel="", ylabel="", caption="")


def test_a_handle_stands_on_the_first_line_and_asks_for_numbers():
    def line(at, word): return [0, 1, 2], {"a": [5, 6, 7], "b": [0, 0, 0]}
    words = {"title": "", "xlabel": "", "ylabel": "", "caption": ""}
    controls = {"at": [0.0, 0.9, 2.0], "word": ["x", "y"]}
    figure = explore(line, controls, drag="at", at=0.9, **words)
    assert figure.spec["drag"] == "at" and explore(line, controls, **words).spec["drag"] is None
    drawn = still(figure.spec, figure.picture, 0.9).axes[0].lines
    assert [dot.get_xydata().tolist() for dot in drawn if dot.get_marker() == "o"] == [[[0.9, 6.0]]]
    for wrong in ("word", "gone"):
        with pytest.raises(ValueError, match=f"drag='{wrong}': a control whose values are numbers"):
            explore(line, controls, drag=wrong, **words)
