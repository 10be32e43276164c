"""The meta-training figure: the browser trains as torch does, and computes the same picture."""
import json
import subprocess

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same_picture, in_javascript

import metalit as ml
from metalit.widgets import meta_training
from metalit.widgets.figure import SCRIPTS
from metalit.widgets.meta_training import BATCH, HELD, OUTER, even_waves, initial_theta, network

METHODS = {"exact": ml.MAML, "first": ml.FOMAML, "reptile": ml.Reptile}


@pytest.fixture(scope="module")
def figure(): return meta_training()


def test_the_browser_computes_what_torch_computes(figure):
    states = [figure.state | change for change in (
        {}, {"lr": 0.1, "steps": 5}, {"theta": [v + 0.3 for v in figure.state["theta"]]})]
    for state, found in zip(states, in_javascript(figure, *states), strict=True):
        assert_same_picture(found, figure._picture(state))


def by_torch(rule, count, lr, steps):
    "θ after some meta-steps of the library and of torch's Adam."
    J = METHODS[rule](network(), F.mse_loss, lr=lr, steps=steps)
    adam = torch.optim.Adam(J.parameters(), lr=OUTER)
    for n in range(count):
        adam.zero_grad()
        J(even_waves(HELD + BATCH * n + torch.arange(BATCH))).backward()
        adam.step()
    return torch.nn.utils.parameters_to_vector(J.model.parameters()).detach()


def by_browser(figure, states, count):
    "θ after some meta-steps of the script from each of the states."
    in_javascript(figure)                                    # skips where there is no node
    program = (
        f'import {{ metaStep, newAdam }} from "{(SCRIPTS / figure.name).resolve().as_uri()}.js";\n'
        'import { readFileSync } from "node:fs";\n'
        'const { spec, states, count } = JSON.parse(readFileSync(0, "utf8"));\n'
        'const ends = states.map((state) => {\n'
        '  const memory = newAdam(state.theta.length);\n'
        '  for (let n = 0; n < count; n++)\n'
        '    state = { ...state, ...metaStep(spec, state, memory) };\n'
        '  return state.theta;\n'
        '});\n'
        'process.stdout.write(JSON.stringify(ends));\n')
    run = subprocess.run(["node", "--input-type=module", "-e", program], text=True, timeout=60,
                         input=json.dumps({"spec": figure.spec, "states": states, "count": count}),
                         capture_output=True)
    assert run.returncode == 0, run.stderr
    return torch.tensor(json.loads(run.stdout), dtype=torch.float64)


def test_the_browser_trains_as_torch_does_by_every_rule(figure):
    cases = [("exact", 0.02, 1), ("exact", 0.05, 3), ("first", 0.02, 2), ("reptile", 0.05, 5)]
    states = [figure.state | {"rule": rule, "lr": lr, "steps": steps} for rule, lr, steps in cases]
    for case, found in zip(cases, by_browser(figure, states, count=20), strict=True):
        wanted = by_torch(case[0], 20, *case[1:])
        assert (wanted - torch.tensor(initial_theta()).double()).abs().max() > 0.02
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-7, msg=str(case))


def test_tasks_never_repeat_and_lie_evenly():
    task = even_waves(torch.arange(300))
    amplitudes = task.query.y.abs().amax((1, 2))
    assert len(amplitudes.unique()) == 300
    assert len(torch.cat([task.support.x, task.query.x]).unique()) == 300 * 20
    assert (task.support.x.mean().abs() < 0.05) and task.support.x.abs().max() <= 5


@pytest.mark.parametrize(("change", "words"), [
    ({"rule": "second"}, "exact, first, reptile"), ({"steps": 6}, "1 to 5"),
    ({"theta": [0.0]}, "481")])
def test_a_state_that_is_none_is_refused(figure, change, words):
    assert words in figure._picture(figure.state | change)["message"]
