"""The sinusoid figure without a browser: the library's numbers and the browser's.

Also what a reader may put in.
"""
import copy
import json
import math
import random

import pytest
import torch
import torch.nn.functional as F
from helpers import in_javascript
from torch import nn

import metalit as ml
from metalit.widgets.sinusoids import (
    GRID,
    LABELS,
    LRS,
    MOST_POINTS,
    POINTS,
    as_net,
    scene,
    sinusoid,
    start,
    trained,
)


@pytest.fixture(scope="module")
def figure():
    "The figure as the book shows it."
    return sinusoid()


def random_states(figure, count, seed):
    "States that a reader can reach, all controls moved."
    draw = random.Random(seed)
    for _ in range(count):
        points = [[round(draw.uniform(-5, 5), 3), round(draw.gauss(0, 1), 3)]
                  for _ in range(draw.randint(1, MOST_POINTS))]
        yield figure.state | {"amplitude": round(draw.uniform(0.1, 5), 1),
                              "phase": round(draw.uniform(0, 3.14), 2), "points": points,
                              "steps": draw.randint(0, 10), "lr": draw.choice(LRS),
                              "left": draw.choice(list(figure.spec["starts"])),
                              "right": draw.choice(list(figure.spec["starts"]))}


def assert_same(found, expected, where=""):
    "Nested lists and numbers, equal to 1e-8."
    assert type(found) is type(expected) or {type(found), type(expected)} == {int, float}, where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected: assert_same(found[key], expected[key], f"{where} {key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where} {i}")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-8, abs_tol=1e-8), (
            f"{where}: {found} and {expected}"
        )
    else:
        assert found == expected, where


def test_the_browser_computes_what_torch_computes(figure):
    states = list(random_states(figure, 40, seed=1))
    expected = [figure._picture(state) for state in states]
    blown = [picture[which]["blown"] is not None for picture in expected
             for which in ("left", "right")]
    assert 5 < sum(blown) < len(blown) - 20                  # both kinds of path are among them
    for i, found in enumerate(in_javascript(figure, *states)):
        assert_same(found, expected[i], f"state {i}")


def test_the_browser_computes_a_tanh_network_of_the_reader_as_torch_does():
    model = ml.models.mlp(1, 7, 5, 1, activation=nn.Tanh, seed=4).double()
    figure = sinusoid({"mine": ml.MAML(model, F.mse_loss)}, left="random", steps=4, lr=0.02)
    assert figure.frames == []
    assert_same(in_javascript(figure, figure.state)[0], figure.picture)


def test_what_only_torch_can_compute_the_browser_leaves_to_it():
    figure = sinusoid({"mine": ml.MetaLoss(trained("maml"), F.mse_loss, inner=ml.Adam())})
    assert in_javascript(figure, figure.state, figure.state | {"right": "maml"})[0] is None
    assert [frame["state"]["steps"] for frame in figure.frames] == list(range(11))
    assert_same(figure.frames[figure.state["steps"]]["picture"], figure.picture)


@pytest.mark.parametrize("name", list(LABELS))
def test_the_picture_is_what_the_library_computes(figure, name):
    state = figure.state | {"left": name, "steps": 3, "lr": 0.02,
                            "points": [[-2.0, 0.3], [1.0, 0.0], [4.0, -1.0]]}
    J, (support, query) = ml.MAML(trained(name).double(), F.mse_loss, lr=0.02), scene(state)
    picture = figure._picture(state)["left"]
    for k in range(4):
        curve = J.predict(J.adapt(support, steps=k), query.x)[0, :, 0]
        torch.testing.assert_close(torch.tensor(picture["curves"][k], dtype=torch.float64),
                                   curve.detach())
    assert_same(picture["query"], J.curve(ml.Task(support, query), range(4))[0].tolist())
    assert_same(picture["support"], J.curve(ml.Task(support, support), range(4))[0].tolist())


def test_points_ride_along_with_the_wave(figure):
    for amplitude in (1.0, 4.0):
        picture = figure._picture(figure.state
                                  | {"amplitude": amplitude, "phase": 0.0, "points": [[0.5, 0.25]]})
        assert_same(picture["points"], [[0.5, amplitude * math.sin(0.5) + 0.25]])


def test_a_path_that_blows_up_ends_and_leaves_a_picture(figure):
    picture = figure._picture(figure.state | {"steps": 10, "lr": 0.2})
    side = picture["right"]
    assert 0 < side["blown"] <= 10
    assert len(side["curves"]) == len(side["query"]) == len(side["support"]) == side["blown"]
    assert max(side["query"]) <= 1e6
    json.dumps(picture, allow_nan=False)


def test_parameters_that_are_not_numbers_blow_up_before_the_first_step():
    model = ml.models.mlp(1, 4, 1)
    with torch.no_grad(): model[0].weight[0, 0] = torch.nan
    J = ml.MAML(model, F.mse_loss)
    figure = sinusoid({"broken": J})
    assert figure.picture["right"] == {"curves": [], "query": [], "support": [], "blown": 0}
    assert figure.still().startswith(b"\x89PNG")
    assert_same(in_javascript(figure, figure.state)[0], figure.picture)


def test_the_slider_moves_plain_starts_and_no_others():
    plain = ml.MAML(trained("maml"), F.mse_loss, lr=0.3)
    own = ml.MetaLoss(trained("maml"), F.mse_loss, inner=ml.Diagonal(trained("maml"), lr=0.02))
    figure = sinusoid({"plain": plain, "own": own}, left="plain", right="own", lr=0.01)
    first = figure.picture
    figure.move(lr=0.02)
    assert figure.picture["left"]["query"][1] != first["left"]["query"][1]
    assert_same(figure.picture["right"], first["right"])
    # Meta-SGD starts as SGD
    assert_same(figure.picture["left"]["query"], figure.picture["right"]["query"])
    assert figure.spec["starts"]["own"]["own"] == "Diagonal, step size 0.02"
    assert plain.inner.lr == 0.3


def test_the_readers_meta_loss_stays_as_it_is():
    J = ml.MAML(ml.models.mlp(1, 6, 1, seed=1), F.mse_loss, lr=0.1, steps=2).train()
    before = copy.deepcopy(J.state_dict())
    figure = sinusoid({"mine": J}, steps=3)
    assert all(torch.equal(before[key], value) for key, value in J.state_dict().items())
    assert next(J.parameters()).dtype == torch.float32
    assert J.training
    with torch.no_grad(): next(J.parameters()).zero_()       # nor does the figure change with it
    picture = figure.picture
    figure.move(steps=2)
    figure.move(steps=3)
    assert_same(figure.picture, picture)


@pytest.mark.parametrize(("model", "words"), [
    (ml.models.mlp(2, 4, 1), "one number in, one number out"),
    (ml.models.mlp(1, 4, 2), r"its output has shape \(100, 2\)"),
    (nn.Sequential(nn.Linear(1, 1), nn.Flatten(0)), r"its output has shape \(100,\)"),
])
def test_a_model_that_does_not_fit_says_so_in_place_of_the_figure(model, words):
    figure = sinusoid({"mine": ml.MAML(model, F.mse_loss)})
    assert list(figure.picture) == ["message"]
    with pytest.raises(ValueError, match=words): raise ValueError(figure.picture["message"])
    assert "'mine' does not fit here" in figure.picture["message"]
    figure.move(right="maml")
    assert "message" not in figure.picture


@pytest.mark.parametrize(("change", "words"), [
    ({"points": []}, "1 to 20 pairs"), ({"points": [[0.0, 0.0]] * 21}, "1 to 20 pairs"),
    ({"points": [[math.inf, 0.0]]}, "1 to 20 pairs"), ({"steps": 11}, "0 to 10 inner steps"),
    ({"lr": 0.0}, "must be a finite number above 0"),
    ({"device": "toaster"}, "no device 'toaster'"),
])
def test_a_state_out_of_bounds_is_told(figure, change, words):
    assert words in figure._picture(figure.state | change)["message"]


def test_what_is_no_start_is_refused_at_once():
    with pytest.raises(TypeError, match="'mine' is a Sequential; a MetaLoss is needed"):
        sinusoid({"mine": ml.models.mlp(1, 4, 1)})
    with pytest.raises(ValueError,
                       match="left='mamml': no such start; there are random, joint, maml, reptile"):
        sinusoid(left="mamml")
    with pytest.raises(ValueError, match="the name 'maml' is taken by a start of the book"):
        sinusoid({"maml": ml.MAML(ml.models.mlp(1, 4, 1), F.mse_loss)})


def test_only_plain_perceptrons_go_to_the_browser():
    line = nn.Linear(1, 1)
    assert as_net(nn.Sequential(line))["activation"] == "relu"
    for model in (
        nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1, bias=False)), nn.Sequential(line, nn.ReLU()),
        nn.Sequential(line, nn.ReLU(), line, nn.Tanh(), line), nn.Sequential(line, nn.GELU(), line)
    ):
        assert as_net(model) is None
    plain = ml.models.mlp(1, 4, 1)
    assert start("a", ml.MAML(plain, F.mse_loss)).net
    for J in (ml.MAML(plain, F.l1_loss), ml.MetaLoss(plain, F.mse_loss, inner=ml.SGD(batch_size=2)),
              ml.MetaLoss(plain, F.mse_loss, inner=ml.SAM())):
        assert start("a", J).net is None


class Frozen(ml.InnerLoop):
    "An inner loop without a step size, which does nothing."
    def step(self, loss, phi, state, k): return phi, state


class Elsewhere(ml.MAML):
    "A meta-loss whose tasks are learned in a way of its own."
    def adapt(self, support, steps=None): return super().adapt(support, 0)


def test_an_inner_loop_of_another_kind_keeps_its_own_way():
    plain = ml.models.mlp(1, 4, 1)
    figure = sinusoid({"frozen": ml.MetaLoss(plain, F.mse_loss, inner=Frozen()),
                       "elsewhere": Elsewhere(plain, F.mse_loss)}, steps=2)
    said = figure.spec["starts"]
    assert said["frozen"]["own"] == "Frozen" and said["frozen"]["lr"] is None
    assert said["elsewhere"]["net"] is None
    for name in ("frozen", "elsewhere"):
        figure.move(right=name)
        first, _, last = figure.picture["right"]["curves"]
        assert first == last


def test_the_default_state_is_one_of_the_sliders(figure):
    state, spec = figure.state, figure.spec
    assert state["lr"] in spec["lrs"]
    assert len(state["points"]) == 10
    assert spec["grid"] == [-5.0, 5.0, GRID]
    assert sinusoid(lr=0.042).spec["lrs"] == sorted([*LRS, 0.042])
    assert sinusoid(points=[[1.0, 2.0]]).state["points"] == [[1.0, 2.0]] and len(POINTS) == 10


def test_the_page_has_a_still_picture_with_words(figure):
    page = figure.html()
    assert 'alt="A sine wave with 10 support points' in page
    assert "Trained on all tasks jointly and Trained by MAML" in page


@pytest.mark.gpu
def test_the_device_is_honoured(figure):
    on_cpu = figure._picture(figure.state)
    assert_same(figure._picture(figure.state | {"device": "cuda:0"}), on_cpu)
