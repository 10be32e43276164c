"""What several test modules need and no fixture can be.

Small functions for closed forms, runs, and the command.
"""
import json
import math
import os
import shutil
import subprocess
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import metalit as ml
from metalit.checks import times as times  # for the test modules
from metalit.cli import main
from metalit.widgets.figure import SCRIPTS


def close(actual, expected, atol=1e-10):
    "Equal but for `atol`; numbers count as tensors."
    if not isinstance(expected, torch.Tensor):
        expected = torch.as_tensor(expected, dtype=actual.dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def backward(J, task):
    "The value of J, and gradients in all parameters."
    J.zero_grad()
    value = J(task)
    value.backward()
    return value.detach()


def flat(model):
    "All gradients as one vector."
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def value_and_gradient(J, task):
    return backward(J, task), flat(J)


def counting(graphs: list):
    "A backend that compiles nothing and remembers what it was given."
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    return backend


def same(a, b) -> bool:
    "Equal to the last bit, through dictionaries and lists; wall time is left out."
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b


def maml(seed: int = 0, width: int = 8, **options) -> ml.MetaLoss:
    "A MAML that trains in no time."
    return ml.MAML(ml.models.mlp(1, width, 1, seed=seed), F.mse_loss, **options)


quick = partial(ml.meta_train, tasks=ml.tasks.Sinusoids(), batch_size=4, progress=False)


def metalit(*arguments, code: int = 0) -> str:
    "What the command prints; it must end with this exit code."
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="metalit")
    assert result.exit_code == code, result.output
    return result.output


def numbers(picture):
    "All numbers of a live figure's picture in one row; NaN where there is none."
    if isinstance(picture, dict):
        return [n for key in sorted(picture) for n in numbers(picture[key])]
    if isinstance(picture, list | tuple): return [n for part in picture for n in numbers(part)]
    if picture is None: return [math.nan]
    return [float(picture)] if isinstance(picture, int | float) else []


def assert_same_picture(shown, computed):
    "A picture that a page shows holds the numbers that the library computes, to 1e-5."
    assert "message" not in computed, computed
    ours, theirs = (torch.tensor(numbers(picture), dtype=torch.float64)
                    for picture in (shown, computed))
    assert len(ours) > 10
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, equal_nan=True)


def in_javascript(figure, *states):
    """The pictures that a figure's script computes for some states.

    Without node the test skips, or fails in CI.
    """
    if shutil.which("node") is None:
        if os.environ.get("METALIT_NEED_BROWSER") == "1":
            pytest.fail("node is not installed, and it is needed here")
        pytest.skip("node is not installed: the figure's script cannot be run")
    program = (
        f'import {{ compute }} from "{(SCRIPTS / figure.name).resolve().as_uri()}.js";\n'
        'import { readFileSync } from "node:fs";\n'
        'const { spec, states } = JSON.parse(readFileSync(0, "utf8"));\n'
        'process.stdout.write(JSON.stringify(states.map((state) => compute(spec, state))));\n'
    )
    run = subprocess.run(["node", "--input-type=module", "-e", program], text=True,
                         capture_output=True, timeout=60,
                         input=json.dumps({"spec": figure.spec, "states": states}, allow_nan=False))
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
