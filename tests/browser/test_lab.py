"""The live figures in a real JupyterLab.

Sliders reach the kernel, torch answers, and a dead kernel is told apart.
"""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing

import nbformat
import pytest
import torch
from helpers import assert_same_picture

pytestmark = pytest.mark.xdist_group("lab")                  # one JupyterLab for all
TOKEN = "metalit"

BUILT_IN = """
from metalit import widgets
figure = widgets.sinusoid()
figure
"""

# The other figures that a function makes by itself.
OTHERS = ("two_parameters", "rewards", "episode")

THREADS = "import threading; print(threading.active_count(), 'threads')"

OWN = """
import torch.nn.functional as F, metalit as ml
from metalit import widgets
import metalit.widgets.figure as base
base.devices = lambda: ["cpu", "cpu:0"]          # two names of one device: is the choice passed on?
model = ml.models.mlp(1, 8, 1, seed=3)
mine = ml.MetaLoss(model, F.mse_loss, inner=ml.Adam(lr=0.05, steps=3))
figure = widgets.sinusoid({"mine": mine}, left="random", right="mine")
figure
"""

TRAINING = """
import os, metalit as ml, torch.nn.functional as F
from metalit import widgets
J = ml.MAML(ml.models.mlp(1, 8, 1, seed=0), F.mse_loss)
tasks = ml.tasks.Sinusoids()
run = widgets.training_run(J, tasks, every=10, n_tasks=10)
print("kernel", os.getpid())
run
"""

TRAIN = (
    "log = ml.meta_train(J, tasks, steps={steps}, batch_size=4, seed=0, progress=False, watch=run)"
)

WRONG = """
widgets.sinusoid({"wide": ml.MAML(ml.models.mlp(3, 8, 1), F.mse_loss)}, left="wide")
"""


def free_port():
    "A port that nobody listens to."
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab with its own settings and a notebook for each figure; its server's address."
    folder = tmp_path_factory.mktemp("lab")
    texts = {"built_in": (BUILT_IN, THREADS), "own": (OWN, WRONG),
             "others": tuple(BUILT_IN.replace("sinusoid", name) for name in OTHERS)}
    texts |= {f"training_{steps}": (TRAINING, TRAIN.format(steps=steps)) for steps in (50, 10**7)}
    for name, of_cells in texts.items():
        cells = [nbformat.v4.new_code_cell(text.strip()) for text in of_cells]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "python3",
                                        "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
    port = free_port()
    homes = {name: str(folder / name.lower())
             for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR",
                          "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR",
                          "JUPYTERLAB_SETTINGS_DIR")}
    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    log = (folder / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}",
         "--ServerApp.ip=127.0.0.1", *root, f"--IdentityProvider.token={TOKEN}",
         "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.news_url=",
         "--LabApp.expose_app_in_browser=True", f"--ServerApp.root_dir={folder}"],
        env=os.environ | homes | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        if server.poll() is not None: break
        try:
            urllib.request.urlopen(f"{address}/api/status?token={TOKEN}", timeout=2).close()
            break
        except OSError:
            time.sleep(0.5)
    try:
        assert server.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        log.close()


@pytest.fixture(scope="module")
def opened(lab, kept_page):
    "A page in which JupyterLab is open."
    kept_page.goto(f"{lab}/lab?token={TOKEN}&reset")
    kept_page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.isAttached",
                                timeout=90_000)
    kept_page.evaluate("() => window.jupyterapp.restored")
    return kept_page


@pytest.fixture
def lab_page(opened):
    """JupyterLab with nothing open; what it logs is no fault of a figure.

    A notebook that an earlier test opened finds its kernel again, as when a tab was closed.
    """
    opened.evaluate("() => [...window.jupyterapp.shell.widgets('main')].forEach(w => w.dispose())")
    yield opened
    assert not opened.watch.requests
    opened.watch.errors.clear()


def run_all(page, lab, name):
    "Open a notebook, run its first cell, and wait for its figure."
    page.evaluate("path => { window.jupyterapp.commands.execute('docmanager:open', { path }); }",
                  f"{name}.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=90_000)
    # The indicator says "idle" before there is a kernel, and a key that is pressed then is lost.
    page.evaluate("""async () => {
        const context = window.jupyterapp.shell.currentWidget.sessionContext;
        await context.ready;
        await context.session.kernel.info;
    }""")
    run_cell(page)
    page.wait_for_selector(".metalit-figure", timeout=90_000)


def start_cell(page, which):
    "Begin to run a cell; it, and its prompt before."
    cell = page.locator(".jp-CodeCell").nth(which)
    before = cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")
    return cell, before


def wait_for_end(page, which, before):
    """Wait until a cell that has begun shows a new number.

    After an error, one that is started earlier is forgotten.
    """
    page.wait_for_function("([which, before]) => { const prompt = "
                           "document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')[which];"
                           " return prompt.innerText !== before && /\\d/.test(prompt.innerText); }",
                           arg=[which, before], timeout=90_000)


def run_cell(page, which=0):
    "Run a cell, and wait for its end."
    cell, before = start_cell(page, which)
    wait_for_end(page, which, before)
    return cell


def threads(page):
    "How many threads the kernel has, as its second cell prints it."
    text = run_cell(page, 1).locator(".jp-OutputArea-output").inner_text()
    return int(re.search(r"(\d+) threads", text)[1])


def to_kernels(lab, method, action=""):
    "Ask the server to do something to all its kernels."
    headers = {"Authorization": f"token {TOKEN}"}
    with urllib.request.urlopen(urllib.request.Request(f"{lab}/api/kernels",
                                                       headers=headers)) as answer:
        kernels = json.load(answer)
    for kernel in kernels:
        address = f"{lab}/api/kernels/{kernel['id']}{action}"
        urllib.request.urlopen(urllib.request.Request(address, headers=headers,
                                                      method=method)).close()


def live(page, which=0):
    "What a figure shows: its state, the numbers it drew, and who computed them."
    return page.evaluate("n => document.querySelectorAll('.metalit-figure')[n].live", which)


def wait_for_torch(page, key, value, which=0):
    "Wait until torch has answered for a state."
    page.wait_for_function(
        "([key, value, which]) => {"
        " const { state, by } = document.querySelectorAll('.metalit-figure')[which].live;"
        " return JSON.stringify(state[key]) === JSON.stringify(value) && by.startsWith('torch'); }",
        arg=[key, value, which], timeout=30_000
    )
    return live(page, which)


def test_a_slider_and_a_dragged_point_reach_the_kernel_and_torch_agrees(lab, lab_page):
    run_all(lab_page, lab, "built_in")
    assert live(lab_page)["by"].startswith(f"torch {torch.__version__} on cpu")
    slider = lab_page.locator(".metalit-figure input[data-key=amplitude]")
    before = live(lab_page)["state"]["amplitude"]
    slider.focus()
    lab_page.keyboard.press("ArrowRight")
    after = wait_for_torch(lab_page, "amplitude", round(before + 0.1, 10))
    from metalit import widgets
    twin = widgets.sinusoid()
    twin.move(**after["state"])
    assert_same_picture(after["picture"], twin.picture)
    drag_a_point(lab_page)


def drag_a_point(page):
    "A point is dragged by the pointer, and torch follows."
    before = live(page)["state"]["points"]
    handle = page.locator(".metalit-figure .m-handle").first
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y - 20, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    moved = live(page)["state"]["points"]
    assert moved != before
    wait_for_torch(page, "points", moved)


def test_the_other_figures_reach_the_kernel_and_torch_agrees_with_the_library(lab, lab_page):
    run_all(lab_page, lab, "others")
    from metalit import widgets
    for which, name in enumerate(OTHERS):
        if which: run_cell(lab_page, which)
        figure = lab_page.locator(".metalit-figure").nth(which)
        figure.wait_for()
        slider = figure.locator("input[type=range]").first
        key, before = slider.get_attribute("data-key"), live(lab_page, which)["state"]
        slider.focus()
        lab_page.keyboard.press("ArrowRight")
        changed = ("([which, key, before]) => "
                   "document.querySelectorAll('.metalit-figure')[which].live.state[key] !== before")
        lab_page.wait_for_function(changed, arg=[which, key, before[key]])
        after = wait_for_torch(lab_page, key, live(lab_page, which)["state"][key], which)
        twin = getattr(widgets, name)()
        twin.move(**after["state"])
        assert_same_picture(after["picture"], twin.picture)


def says_what_is_wrong(page):
    "The next cell's model does not fit its tasks: words, not a frozen picture."
    run_cell(page, 1)
    words = page.locator(".metalit-figure .m-message").last.inner_text()
    assert re.search(r"wide", words) and re.search(r"one number", words)


def test_a_meta_loss_of_the_readers_own_is_computed_by_torch_on_the_device_they_pick(lab, lab_page):
    run_all(lab_page, lab, "own")
    lab_page.locator(".metalit-figure select[data-key=device]").select_option(label="cpu:0")
    picked = wait_for_torch(lab_page, "device", "cpu:0")
    assert "on cpu:0" in picked["by"]
    slider, before = lab_page.locator(".metalit-figure input[data-key=lr]"), picked["state"]["lr"]
    slider.focus()
    lab_page.keyboard.press("ArrowRight")
    lab_page.wait_for_timeout(200)
    after = wait_for_torch(lab_page, "lr", live(lab_page)["state"]["lr"])
    assert after["state"]["lr"] != before
    import torch.nn.functional as F

    import metalit as ml
    from metalit import widgets
    mine = ml.MetaLoss(ml.models.mlp(1, 8, 1, seed=3), F.mse_loss, inner=ml.Adam(lr=0.05, steps=3))
    twin = widgets.sinusoid({"mine": mine}, left="random", right="mine")
    twin.move(**after["state"] | {"device": "cpu"})
    assert_same_picture(after["picture"], twin.picture)
    says_what_is_wrong(lab_page)


def test_a_cell_run_again_leaves_one_figure_and_no_thread_more(lab, lab_page):
    run_all(lab_page, lab, "built_in")
    before = threads(lab_page)
    for _ in range(2):
        run_cell(lab_page)
    assert lab_page.locator(".metalit-figure").count() == 1
    wait_for_torch(lab_page, "device", "cpu")
    assert threads(lab_page) == before


def test_a_stopped_kernel_leaves_a_picture_that_still_moves_and_says_so(lab, lab_page):
    run_all(lab_page, lab, "built_in")
    to_kernels(lab, "DELETE")
    lab_page.wait_for_timeout(1000)
    slider = lab_page.locator(".metalit-figure input[data-key=amplitude]")
    slider.focus()
    lab_page.keyboard.press("ArrowRight")
    lab_page.wait_for_function("document.querySelector('.metalit-figure "
                               ".m-status').textContent.startsWith('No answer from the kernel')",
                               timeout=15_000)
    shown = live(lab_page)
    assert shown["by"] == "browser"
    from metalit import widgets
    twin = widgets.sinusoid()
    twin.move(**shown["state"])
    assert_same_picture(shown["picture"], twin.picture)


# ------------------------------------------------------------------------------------------ a
# training run

STEP = "document.querySelector('.metalit-figure').live.picture.step"


def assert_shows(page, twin):
    "The training figure shows what its twin in this process does, trained with the same seed."
    picture = live(page)["picture"]
    assert_same_picture({key: picture[key] for key in twin.picture}, twin.picture)


def test_a_training_run_shows_what_torch_measured_now_and_at_any_step_before(lab, lab_page):
    run_all(lab_page, lab, "training_50")
    run_cell(lab_page, 1)
    lab_page.wait_for_function(f"{STEP} === 50")
    here = {}
    exec(f"{TRAINING}\n{TRAIN.format(steps=50)}", here)
    assert_shows(lab_page, here["run"])
    slider = lab_page.locator(".metalit-figure input[data-key=at]")
    slider.focus()
    lab_page.keyboard.press("ArrowLeft")
    lab_page.wait_for_function("document.querySelector('.metalit-figure').live.state.at === 4")
    here["run"].move(at=4)
    assert live(lab_page)["picture"]["now"]["step"] == 40
    assert_shows(lab_page, here["run"])


def test_a_training_run_is_followed_while_the_kernel_is_busy_and_its_end_is_told(lab, lab_page):
    run_all(lab_page, lab, f"training_{10**7}")
    note = lab_page.locator(".metalit-figure .m-note")
    def begins(words):
        said = "document.querySelector('.metalit-figure .m-note').textContent"
        lab_page.wait_for_function(f"(words) => {said}.startsWith(words)", arg=words,
                                   timeout=30_000)
    def followed():
        _, before = start_cell(lab_page, 1)
        begins("Training: meta-step ")
        seen = lab_page.evaluate(STEP)
        lab_page.wait_for_function(f"{STEP} > {seen}")
        return before
    before = followed()
    lab_page.locator(".metalit-figure input[data-key=at]").focus()
    lab_page.keyboard.press("Home")                            # looks back while the kernel is busy
    lab_page.wait_for_function(
        "document.querySelector('.metalit-figure').live.picture.now.step === 0"
    )
    to_kernels(lab, "POST", "/interrupt")
    begins("Stopped after meta-step ")
    assert "it was interrupted" in note.inner_text()
    wait_for_end(lab_page, 1, before)
    followed()
    words = lab_page.locator(".jp-OutputArea-output", has_text="kernel").first.inner_text()
    os.kill(int(words.split()[1]), signal.SIGKILL)  # to be told to end would be an interrupt
    begins("No news for 10 s, since meta-step ")
    assert live(lab_page)["picture"]["count"] > 0
