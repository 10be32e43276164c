"""The base of the live figures, without a browser: questions, answers, what a page gets."""
import base64
import json
import math
import re
import subprocess
import sys

import pytest
import torch

from metalit import widgets
from metalit.plots import figure as new_figure
from metalit.widgets.figure import LiveFigure, bundle, devices, finite, modules, pack


def half(state):
    "A function with an edge: it blows up at 0 and refuses negative numbers."
    if state["x"] < 0: raise ValueError("x is negative: move it to the right")
    return {"half": torch.tensor([state["x"] / 2, 1 / torch.tensor(state["x"])])}


def still(state, picture):
    "One point."
    fig, ax = new_figure()
    ax.plot(picture["half"][:1], "o")
    return fig


@pytest.fixture
def live():
    "A figure with one control."
    return LiveFigure("smallest", spec={"note": "</script> & <b>"}, state={"x": 4.0}, compute=half,
                      draw=still, alt='A "half" of x < 9', frames=[{"x": 0.0}, {"x": 1.0}])


def test_the_picture_is_there_before_anybody_asks(live):
    assert live.picture == {"half": [2.0, 0.25]}
    assert live.state == {"device": "cpu", "x": 4.0}


def test_a_question_of_the_browser_is_answered_under_its_number(live):
    live.set_state({"state": {"device": "cpu", "x": 6.0}, "asked": 7})
    assert live.answer["asked"] == 7
    assert live.picture["half"][0] == 3.0
    assert f"torch {torch.__version__} on cpu" in live.answer["by"]


def test_python_moves_one_control_and_knows_them_all(live):
    live.move(x=10.0)
    assert live.picture["half"][0] == 5.0
    with pytest.raises(KeyError, match="no control 'y'; it has device, x"):
        live.move(y=1.0)


def test_an_error_stands_in_place_of_the_figure_and_goes_away(live):
    live.move(x=-1.0)
    assert live.picture == {"message": "ValueError: x is negative: move it to the right"}
    assert live.still().startswith(b"\x89PNG")
    live.move(x=2.0)
    assert live.picture["half"][0] == 1.0


def test_a_device_that_is_not_there_is_named(live):
    live.move(device="cuda:99")
    assert "there is no device 'cuda:99' here: cpu" in live.picture["message"]
    assert devices()[0] == "cpu"


def test_frames_are_computed_beforehand_and_hold_no_infinity(live):
    assert [frame["picture"]["half"] for frame in live.frames] == [[0.0, None], [0.5, 1.0]]
    assert live.frames[0]["state"] == {"device": "cpu", "x": 0.0}


def test_a_page_gets_all_it_needs_and_asks_nobody(live):
    page = live.html()
    assert not re.search(r'(src|href)\s*=\s*["\'](?!data:)', page)
    assert not re.search(r"\bimport\s*[({\"']|\bfetch\(|https?:(?!//www\.w3\.org/2000/svg)", page)
    (inline,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    data = json.loads(inline)
    assert data["spec"]["note"] == "</script> & <b>" and data["answer"]["picture"] == live.picture
    assert 'alt="A &quot;half&quot; of x &lt; 9"' in page
    (image,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(image).startswith(b"\x89PNG")


@pytest.mark.parametrize("note", ["<!--<script>", "</script>", "\ud800", "$\\frac12$"])
def test_any_text_comes_through_to_the_page(note):
    figure = LiveFigure("smallest", spec={"note": note}, state={"x": 4.0}, draw=still, alt=note,
                        compute=half)
    page = figure.html()
    page.encode()                                            # it can be written
    inline = page.partition("-data\">")[2].partition("</script>")[0]
    assert "<" not in inline and json.loads(inline)["spec"]["note"] == note


def test_two_showings_of_one_figure_have_two_places(live):
    places = [re.search(r'<div id="([^"]+)"', live.html())[1] for _ in range(2)]
    assert places[0] != places[1]


def test_a_notebook_gets_the_widget_the_page_and_the_picture(live):
    bundled, _ = live._repr_mimebundle_()
    assert bundled["application/vnd.jupyter.widget-view+json"]["model_id"] == live.model_id
    assert bundled["text/html"].startswith("<div")
    assert base64.b64decode(bundled["image/png"]).startswith(b"\x89PNG")
    assert bundled["text/plain"] == 'A "half" of x < 9'


def test_drawing_leaves_no_figure_open(live):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    live.html()
    assert plt.get_fignums() == before


def test_a_bundle_has_each_module_once_before_its_users():
    assert modules("smallest") == ["core", "smallest"]
    assert modules("explore") == ["core", "explore"]         # though it imports nothing
    text = bundle("smallest")
    assert not re.search(r"^(import|export) ", text, re.MULTILINE)
    assert text.count("function linspace(") == 1
    assert text.index("function linspace(") < text.index("function compute(")


def test_finite_goes_into_everything_and_keeps_what_is_no_float():
    values = {"a": (torch.tensor([1.0, torch.nan]), [float("inf"), 2, "x", None, True])}
    assert finite(values) == {"a": [[1.0, None], [None, 2, "x", None, True]]}


def test_pack_keeps_every_bit_and_refuses_what_it_cannot_name():
    for dtype, name in ((torch.float32, "f4"), (torch.float64, "f8")):
        tensor = torch.rand(3, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
        packed = pack(tensor.t())
        back = torch.frombuffer(bytearray(base64.b64decode(packed["b64"])),
                                dtype=dtype).reshape(packed["shape"])
        assert packed["dtype"] == name and torch.equal(back, tensor.t())
    with pytest.raises(TypeError, match="int64 cannot be packed"):
        pack(torch.tensor([1]))


def test_the_library_does_not_need_anywidget_and_the_figures_say_so():
    code = ("import sys; sys.modules['anywidget'] = None\n"
            "import metalit\n"
            "try:\n    import metalit.widgets.figure\n"
            "except ImportError as error:\n    print(error)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout
            == "live figures need the package anywidget: pip install 'metalit[widgets]'\n")


@pytest.mark.parametrize("name", ["<!--<script>alert(1)", r"$\frac$", "half a letter \ud83d"])
def test_a_strange_name_is_shown_as_text(name):
    figure = widgets.explore(lambda lr: (range(3), {name: [lr, 1, 2]}), {"lr": [0.1, 0.2]},
                             title=name, xlabel=name, ylabel=name, caption=name)
    page = figure.html()
    assert "<!--<script" not in page and figure.still().startswith(b"\x89PNG")
    page.encode("utf-8")


@pytest.mark.parametrize("y", [[-1.0, -2.0, 0.0], [float("nan")] * 3, [1e308, -1e308, 1.0]])
def test_numbers_that_an_axis_cannot_show_leave_a_window_that_it_can(y):
    for log in (False, True):
        figure = widgets.explore(lambda lr: (range(3), {"a": y}), {"lr": [0.1, 0.2]}, title="",
                                 xlabel="", ylabel="", caption="", log=log)
        low, high = figure.spec["y"]
        assert math.isfinite(high - low) and high > low and (low > 0 or not log)
        assert figure.still().startswith(b"\x89PNG")
