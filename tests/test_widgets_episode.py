"""The episode figure without a browser: the library's numbers and the browser's.

Also what a reader may put in.
"""
import base64
import copy
import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import in_javascript
from torch import nn

import metalit as ml
from metalit.models import Conv4
from metalit.widgets.episodes import (
    LABELS,
    LRS,
    as_conv,
    as_image,
    as_text,
    built_in,
    episode,
    scenes,
    trained,
)


@pytest.fixture(scope="module")
def figure():
    "The figure as the book shows it."
    return episode()


@pytest.fixture(scope="module")
def shown():
    "The episodes that come with it."
    return built_in()


def sketch(draw, size=28):
    "Some strokes of grey and black, as the state keeps them."
    ink = torch.zeros(size, size, dtype=torch.uint8)
    for _ in range(3):
        row, column = draw.randint(4, size - 8), draw.randint(4, size - 8)
        ink[row:row + draw.randint(1, 8), column:column + draw.randint(1, 8)] = draw.randint(60,
                                                                                             255)
    return as_text(ink)


def random_states(figure, count, seed):
    "States that a reader can reach, all controls moved."
    draw = random.Random(seed)
    for i in range(count):
        yield figure.state | {"episode": draw.randrange(5), "start": draw.choice(list(LABELS)),
                              "lr": draw.choice(LRS),
                              "step": draw.randint(0, 5), "together": draw.random() < 0.5,
                              "drawing": sketch(draw) if i % 3 else ""}


def assert_same(found, expected, atol=1e-8):
    "Two pictures, equal."
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, list):
            torch.testing.assert_close(torch.tensor(found[key], dtype=torch.float64),
                                       torch.tensor(value, dtype=torch.float64), rtol=0, atol=atol)
        else: assert found[key] == value


def test_the_browser_computes_what_torch_computes(figure):
    states = list(random_states(figure, 16, seed=1))
    for found, state in zip(in_javascript(figure, *states), states, strict=True):
        expected = figure._picture(state)
        assert (expected["drawn"] is None) == (state["drawing"] == "")
        assert_same(found, expected)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", list(LABELS))
def test_the_picture_is_what_the_library_computes(figure, shown, name, together):
    J = ml.MAML(trained(name).double(), F.cross_entropy, lr=0.2)
    picture = figure._picture(figure.state
                              | {"start": name, "episode": 3, "lr": 0.2, "together": together})
    task = shown.task.select(3)
    for k in range(6):
        phi = J.adapt(task.support, steps=k)
        support = J.predict(phi, task.support.x)[0].softmax(-1)
        torch.testing.assert_close(torch.tensor(picture["support"][k], dtype=torch.float64),
                                   support.detach())
    query = torch.tensor(picture["query"], dtype=torch.float64)
    loss = -query[:, range(10), task.query.y[0]].log().mean(-1)
    torch.testing.assert_close(loss[None], J.curve(task, range(6), transductive=together),
                               rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("together", [False, True])
def test_a_drawing_is_judged_alone_or_beside_all_queries(figure, shown, together):
    task, J = shown.task.select(2), ml.MAML(trained("maml").double(), F.cross_entropy, lr=0.4)
    drawing = as_text(shown.pictures[4, 11, 0])
    state = figure.state | {"episode": 2, "together": together}
    empty, picture = (figure._picture(state | {"drawing": text}) for text in ("", drawing))
    # no query sees the drawing
    assert empty["drawn"] is None and picture["query"] == empty["query"]
    image = shown.task.query.x[4, 6:7]
    company = (task.query if together else task.support).x[0]
    for k in (0, 1, 5):
        expected = J.predict(J.adapt(task.support, steps=k),
                             torch.cat([company, image])[None])[0, -1].softmax(-1)
        torch.testing.assert_close(torch.tensor(picture["drawn"][k], dtype=torch.float64),
                                   expected.detach())


def test_maml_tells_most_characters_apart_after_a_step_and_none_before(figure, shown):
    def right(**changes):
        rows = [figure._picture(figure.state | changes | {"episode": e})["query"] for e in range(5)]
        return [int((torch.tensor(rows)[:, k].argmax(-1) == shown.task.query.y).sum())
                for k in range(6)]
    assert right()[0] < 20 and right()[1] > 40
    assert right(start="random")[5] < right()[1]


def test_the_episodes_are_of_classes_that_training_never_saw(shown):
    record = json.loads((Path(__file__).parents[1] / "results" / "episode_start.json").read_text())
    learned, _, unseen = ml.glyphs().split((0.7, 0.1, 0.2), seed=record["seed"])
    for e, names in enumerate(shown.names):
        assert set(names) <= set(unseen.names) and not set(names) & set(learned.names)
        for i in range(15):
            of_class = unseen.images[unseen.labels == unseen.names.index(names[i % 5])]
            assert (of_class == shown.pictures[e, i]).flatten(1).all(1).any()
        assert len(shown.pictures[e].flatten(1).unique(dim=0)) == 15  # no query is a support image


def test_the_record_speaks_of_these_weights():
    record = json.loads((Path(__file__).parents[1] / "results" / "episode_start.json").read_text())
    _, _, unseen = ml.glyphs().split((0.7, 0.1, 0.2), seed=record["seed"])
    for name in LABELS:
        J = ml.MAML(trained(name), F.cross_entropy, lr=record["inner_step_size"])
        found = ml.evaluate(J, unseen.episodes(5, 1, 3), n_tasks=50, steps=(0, 1, 3, 5),
                            metric=ml.accuracy)
        rows = record["evaluation"][name]["all queries together"]
        for mean, ci, row in zip(found.mean, found.ci95, rows, strict=True):
            assert abs(100 * mean - row["accuracy"]) < 2 * (100 * ci + row["ci95"])
    fresh = Conv4(5, filters=16, seed=record["seed"])
    assert all(torch.equal(a, b)
               for a, b in zip(trained("random").parameters(), fresh.parameters(), strict=True))


def test_weights_are_small(figure):
    weights = sum(len(part["b64"]) for one in figure.spec["starts"].values()
                  for part in one["net"].values())
    assert weights < 160_000 and len(figure.html()) < 700_000


def test_an_empty_drawing_is_none(shown):
    assert as_text(torch.zeros(28, 28, dtype=torch.uint8)) == ""
    for text in ("", base64.b64encode(bytes(784)).decode()): assert len(as_image(text, shown)) == 0


def test_a_drawing_of_another_size_is_told(figure):
    picture = figure._picture(figure.state
                              | {"drawing": base64.b64encode(bytes(range(9))).decode()})
    assert picture == {"message": "ValueError: the drawing has 9 pixels; the images have 28 × 28"}


def test_a_path_of_no_numbers_is_told_with_its_step_and_earlier_steps_are_shown(shown):
    class Explodes(ml.SGD):
        "Steps into the void at the third step."
        def step(self, loss, phi, state, k):
            phi, state = super().step(loss, phi, state, k)
            far = torch.nan if k >= 2 else 1
            return {name: value * far for name, value in phi.items()}, state
    figure = episode(ml.MetaLoss(trained("maml"), F.cross_entropy, inner=Explodes()), step=2)
    assert figure.picture["blown"] == 3 and len(figure.picture["query"]) == 3
    figure.move(step=3)
    assert "not finite after inner step 3" in figure.picture["message"]
    assert figure.still().startswith(b"\x89PNG")


def test_weights_that_are_no_numbers_are_told_by_both_in_the_same_words():
    model = trained("maml")
    with torch.no_grad(): model.norms[1].weight[3] = torch.nan
    figure = episode(ml.MAML(model, F.cross_entropy, lr=0.4))
    assert "before the first inner step" in figure.picture["message"]
    assert in_javascript(figure, figure.state) == [figure.picture]


def test_a_step_size_beyond_all_bounds_is_told_by_both_in_the_same_words(figure):
    states = [figure.state | {"lr": 1e160, "step": step} for step in range(6)]
    expected = [figure._picture(state) for state in states]
    assert "message" in expected[5] and "message" not in expected[0]
    for found, picture in zip(in_javascript(figure, *states), expected, strict=True):
        if "message" in picture: assert found == picture
        else: assert_same(found, picture)


def test_the_browser_computes_a_network_and_episodes_of_the_reader():
    images = torch.randint(0, 256, (40, 3, 20, 22), dtype=torch.uint8,
                           generator=torch.Generator().manual_seed(0))
    tasks = ml.tasks.Episodes(images, torch.arange(40) // 10, ways=3, shots=2, queries=4)
    model = Conv4(3, channels=3, filters=6, seed=2)
    figure = episode(ml.MAML(model, F.cross_entropy, lr=0.3), tasks, episodes=2)
    assert list(figure.spec["starts"]) == ["yours"] and figure.frames == []
    assert figure.state["lr"] == 0.3 and len(figure.picture["query"][0]) == 6
    drawing = base64.b64encode(bytes(i % 251 for i in range(20 * 22))).decode()
    states = [figure.state | {"episode": e, "together": t, "drawing": drawing} for e in (0, 1)
              for t in (False, True)]
    for found, state in zip(in_javascript(figure, *states), states, strict=True):
        assert_same(found, figure._picture(state))


def test_dark_ink_on_white_is_drawn_as_dark_ink_on_white(shown):
    images = 255 - shown.pictures[0]
    tasks = ml.tasks.Episodes(images, torch.arange(5).repeat(3), ways=5, shots=1, queries=2)
    made = scenes(tasks, 1)
    assert (made.paper, made.ink) == (1.0, 0.0)
    drawn = as_image(as_text(shown.pictures[0, 7, 0]), made)[0]
    torch.testing.assert_close(drawn, images[7].double() / 255, rtol=0, atol=1e-15)
    figure = episode(tasks=tasks, drawing=shown.pictures[0, 7, 0])
    assert_same(in_javascript(figure, figure.state)[0], figure.picture)


def test_images_that_are_no_bytes_are_shown_as_bytes_and_judged_as_they_are():
    images = torch.randn(30, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    tasks = ml.tasks.Episodes(images, torch.arange(30) // 10, ways=3, shots=1, queries=1)
    made = scenes(tasks, 2)
    assert not made.exact and made.pictures.max() == 255 and made.pictures.min() == 0
    J = ml.MAML(Conv4(3, filters=4), F.cross_entropy)
    figure = episode(J, tasks, episodes=2)
    assert len(figure.frames) == 12 and in_javascript(figure, figure.state) == [None]
    J, support = J.double(), made.task.select(0).support
    expected = J.predict(J.adapt(support, steps=1), support.x)[0].softmax(-1).detach()
    torch.testing.assert_close(torch.tensor(figure.picture["support"][1], dtype=torch.float64),
                               expected)


@pytest.mark.parametrize("together", [False, True])
def test_one_task_after_another_gives_the_same_answers(together):
    pictures = [episode(ml.MAML(trained("maml"), F.cross_entropy, batching=batching),
                        together=together).picture for batching in ("vmap", "loop")]
    assert_same(*pictures)


def test_what_only_torch_can_compute_has_frames(figure):
    mine = episode(ml.ProtoMAML(trained("maml"), F.cross_entropy, lr=0.1))
    assert in_javascript(mine, mine.state) == [None]
    assert in_javascript(mine, mine.state | {"start": "maml"})[0]["query"]
    assert len(mine.frames) == 30 and mine.frames[1]["picture"] == mine.picture
    assert mine.spec["starts"]["yours"]["own"] == "Prototypes"
    assert as_conv(Conv4(5, context=3)) is None and as_conv(Conv4(5, pool="max")) is None


def test_the_slider_moves_plain_starts_and_leaves_the_readers_meta_loss_as_it_is():
    J = ml.MAML(Conv4(5, filters=4, seed=1), F.cross_entropy, lr=0.07).train()
    before = copy.deepcopy(J.state_dict())
    figure = episode(J)
    assert figure.state["lr"] == 0.07 and 0.07 in figure.spec["lrs"]
    first = figure.picture
    figure.move(lr=0.4)
    assert figure.picture["query"][1] != first["query"][1]
    assert figure.picture["query"][0] == first["query"][0]
    assert J.inner.lr == 0.07 and J.training and next(J.parameters()).dtype == torch.float32
    assert all(torch.equal(before[name], value) for name, value in J.state_dict().items())


def glyph_episodes(**options):
    "Episodes of a few characters."
    found = built_in()
    number = torch.arange(75)
    return ml.tasks.Episodes(found.pictures.flatten(0, 1), number % 5 + 5 * (number // 15),
                             **options)


def missing():
    "A data set that is not there."
    return torch.load("no/such/file.pt")


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: episode(ml.MAML(Conv4(3, filters=4), F.cross_entropy)),
      "The model has 3 outputs, so labels are 0 … 2"),
     (lambda: episode(ml.MAML(Conv4(7, filters=4), F.cross_entropy)),
      "shape (5, 7), and (5, 5) is needed"),
     (lambda: episode(tasks=glyph_episodes(ways=10, queries=1)),
      "does not fit this episode of 10 classes"),
     (lambda: episode(tasks=glyph_episodes(ways=3, queries=1)),
      "shape (3, 5), and (3, 3) is needed"),
     (lambda: episode(ml.MAML(nn.Sequential(nn.Flatten(), nn.Linear(400, 5)), F.cross_entropy)),
      "images of 1×28×28"),
     (lambda: episode(tasks=missing), "FileNotFoundError: the images are not there: "),
     (lambda: episode(tasks=ml.tasks.Sinusoids()),
      "images (tasks, examples, 1 or 3, height, width)"),
     (lambda: episode(tasks=lambda: 3), "tasks is a int; episodes are needed")]
)
def test_what_does_not_fit_says_so_in_place_of_the_figure(make, words):
    figure = make()
    assert list(figure.picture) == ["message"] and words in figure.picture["message"]
    assert figure.still().startswith(b"\x89PNG") and "metalit" in figure.html()
    assert in_javascript(figure, figure.state) in ([None], [{"message": figure.picture["message"]}])


@pytest.mark.parametrize(("change", "words"), [
    ({"episode": 5}, "episode=5: choose one of 0, 1, 2, 3, 4"), ({"step": 6}, "step=6"),
    ({"start": "mamml"}, "random, maml"), ({"lr": 0.0}, "must be a finite number above 0"),
    ({"device": "toaster"}, "no device 'toaster'"),
])
def test_a_state_out_of_bounds_is_told(figure, change, words):
    assert words in figure._picture(figure.state | change)["message"]


def test_what_is_no_start_is_refused_at_once():
    with pytest.raises(TypeError, match="J is a Conv4; a MetaLoss is needed"): episode(Conv4(5))
    with pytest.raises(ValueError,
                       match="start_from='yours': no such start; there are random, maml"):
        episode(start_from="yours")


def test_the_still_picture_has_words(figure):
    assert 'alt="An episode of 5 classes' in figure.html() and figure.still().startswith(b"\x89PNG")


@pytest.mark.gpu
def test_the_device_is_honoured(figure):
    assert_same(figure._picture(figure.state | {"device": "cuda:0"}), figure._picture(figure.state),
                atol=1e-6)
