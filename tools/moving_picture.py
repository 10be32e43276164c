"""Draw the moving picture of README.md: θ while it is meta-trained, and waves learned from it.

    python tools/moving_picture.py [--steps N] [--out FILE]

The training is the program of README.md. At some of its meta-steps we look at the network as it
stands, at three unseen waves after one inner step, and at the loss of a hundred waves. What was
seen becomes the frames of one SVG file (results/learning.svg), which moves by itself, without a
script, and reads on light and dark pages. Where nothing moves, its last frame stands.
"""

import argparse
from dataclasses import dataclass
from math import log10
from pathlib import Path

import torch
import torch.nn.functional as F

import metalit as ml
from metalit.plots import COLOURS

ROOT = Path(__file__).parent.parent
WAVES = {"blue": 29, "orange": 8, "green": 1}  # held-out tasks that differ well, and their colours
SECONDS, HOLD = 9.0, 0.25  # how long a round takes, and which share of it the last frame stands
STYLE = """text { font: 13px system-ui, sans-serif; fill: #555; } .ink { stroke: #767676; }
.start { stroke: #222; } .still { opacity: .55; stroke-dasharray: 2 5; }
@media (prefers-color-scheme: dark) { text { fill: #bbb; } .start { stroke: #eee; } }"""


@dataclass
class Frame:
    """What is seen at one meta-step."""

    step: int
    start: torch.Tensor  # (grid,): what θ predicts before it has seen an example
    adapted: torch.Tensor  # (waves, grid): after one inner step
    loss: float  # of a hundred unseen waves, after one inner step


def looked_at(steps):
    """The meta-steps that become frames: close at first, and further apart by and by."""
    return sorted({0, steps, *(round(1.4**k) for k in range(40) if 1.4**k < steps)})


def frame(J, step, waves, many):
    """What J's model predicts at this moment."""
    grid = waves.query.x[0]
    models = [J.adapted(*pair) for pair in zip(waves.support.x, waves.support.y, strict=True)]
    with torch.no_grad():
        adapted = torch.stack([model(grid)[:, 0] for model in models])
        return Frame(step, J.model(grid)[:, 0], adapted, J.curve(many, (1,)).mean().item())


def trained(steps):
    """The waves, and the frames of the program of README.md."""
    J = ml.MAML(ml.models.mlp(1, 40, 40, 1), F.mse_loss, lr=0.02, steps=1)
    tasks = ml.tasks.Sinusoids(shots=10)
    many = tasks.held_out(100)
    waves = many.map(lambda tensor: tensor[list(WAVES.values())])
    optimizer, seen = torch.optim.Adam(J.parameters(), lr=3e-3), looked_at(steps)
    frames = [frame(J, 0, waves, many)]
    for step, task in enumerate(tasks.stream(batch_size=25, steps=steps, seed=0), 1):
        optimizer.zero_grad()
        J(task).backward()
        optimizer.step()
        if step in seen: frames.append(frame(J, step, waves, many))
    return waves, frames


def across(x):
    """Where x, from −5 to 5, lies in the left panel."""
    return 40 + 40 * (float(x) + 5)


def down(y):
    """Where y, from −5 to 5, lies in the left panel; what is beyond stays at the edge."""
    return 155 - 24 * min(max(float(y), -5.4), 5.4)


def line(xs, ys):
    """The path of a curve in the left panel."""
    points = (f"{across(x):.0f} {down(y):.1f}" for x, y in zip(xs, ys, strict=True))
    return "M" + "L".join(points)


def on_step(step, steps):
    """Where a meta-step lies in the right panel, whose axis is logarithmic from 1 on."""
    return 500 + 200 * log10(step + 1) / log10(steps + 1)


def on_loss(loss):
    """Where a loss, from 0 to 4, lies in the right panel."""
    return 275 - 58 * min(loss, 4.2)


def moving(attribute, values):
    """An attribute that goes through all frames, again and again, and rests on the last one."""
    times = [k / (len(values) - 1) * (1 - HOLD) for k in range(len(values))] + [1]
    keys = ";".join(f"{time:.4f}" for time in times)
    return (f'<animate attributeName="{attribute}" dur="{SECONDS:g}s" repeatCount="indefinite" '
            f'keyTimes="{keys}" values="{";".join([*values, values[-1]])}"/>')


def curve(paths, look):
    """A curve of the left panel that moves from frame to frame."""
    return f'<path d="{paths[-1]}" fill="none" {look}>{moving("d", paths)}</path>'


def task_parts(number, colour, waves, frames):
    """One wave: the truth, what is known of it, and what the adapted network says."""
    grid, truth = waves.query.x[number, ::2, 0], waves.query.y[number, ::2, 0]
    known = zip(waves.support.x[number, :, 0], waves.support.y[number, :, 0], strict=True)
    look = f'stroke="{COLOURS[colour]}" stroke-width="2.5"'
    dots = "".join(f'<circle cx="{across(x):.0f}" cy="{down(y):.1f}" r="4" '
                   f'fill="{COLOURS[colour]}"/>' for x, y in known)
    still = f'<path class="still" d="{line(grid, truth)}" fill="none" {look}/>'
    return [still, dots, curve([line(grid, f.adapted[number, ::2]) for f in frames], look)]


def loss_parts(frames):
    """The right panel: the loss over meta-steps, and a dot that goes along."""
    steps = frames[-1].step
    places = [(on_step(f.step, steps), on_loss(f.loss)) for f in frames]
    path = "M" + "L".join(f"{x:.0f} {y:.1f}" for x, y in places)
    marks = [step for step in (0, 1, 10, 100, 1000) if step <= steps]
    ticks = [f'<text x="{on_step(s, steps):.0f}" y="292" text-anchor="middle">{s}</text>'
             for s in marks]
    levels = [f'<text x="492" y="{on_loss(v) + 4:.0f}" text-anchor="end">{v}</text>'
              for v in range(5)]
    x, y = places[-1]
    dot = (f'<circle class="start" fill="none" stroke-width="3" cx="{x:.0f}" cy="{y:.1f}" r="6">'
           + moving("cx", [f"{x:.0f}" for x, _ in places])
           + moving("cy", [f"{y:.1f}" for _, y in places]) + "</circle>")
    return ['<path class="ink" d="M500 30V275H705" fill="none"/>', *ticks, *levels,
            f'<path class="ink" d="{path}" fill="none" stroke-width="2"/>', dot,
            '<text x="602" y="312" text-anchor="middle">meta-steps</text>',
            '<text x="500" y="18">loss on a hundred unseen waves</text>']


def picture(waves, frames):
    """All frames as one SVG text."""
    grid = waves.query.x[0, ::2, 0]
    start = curve([line(grid, f.start[::2]) for f in frames],
                  'class="start" stroke-width="2" stroke-dasharray="7 4"')
    tasks = [part for number, colour in enumerate(WAVES)
             for part in task_parts(number, colour, waves, frames)]
    said = ("Left: one network before it has seen a wave, and after one step of gradient descent "
            "on ten points of each of three waves, while it is meta-trained. Right: the loss on "
            "unseen waves falls.")
    return "\n".join([
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 320" role="img">',
        f"<title>{said}</title><desc>Made by: python tools/moving_picture.py</desc>",
        f"<style>{STYLE}</style>",
        '<text x="40" y="18">dashed: the start θ; solid: after one step on ten points</text>',
        '<path class="ink" d="M40 30V280H440" fill="none"/>', *tasks, start,
        *loss_parts(frames), "</svg>", ""])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "results/learning.svg")
    args = parser.parse_args(arguments)
    args.out.write_text(picture(*trained(args.steps)), encoding="utf-8")
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
