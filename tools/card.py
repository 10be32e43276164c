"""Draw what others show of a page beside its title: a picture of 1200 × 630 pixels.

    python tools/card.py [--steps N] [--out FILE]

The network is meta-trained by the program of README.md, as in tools/moving_picture.py. The picture
has its start and three unseen waves after one step on ten points each, in the book's colours, and
the question that the book asks. It is kept as site/static/card.png; once the project is published,
every page names it as its `og:image` (site/conf.py).
"""

import argparse
import io
from pathlib import Path

import matplotlib.pyplot as plt
from moving_picture import ROOT, WAVES, trained
from PIL import Image

from metalit.plots import COLOURS

SIZE = (1200, 630)  # what those who show such pictures ask for
INK, QUIET = "#222222", "#595959"


def waves_drawn(ax, waves, last):
    """The start, and each wave: the truth, the points that are known, and what was learned."""
    grid = waves.query.x[0, :, 0]
    ax.plot(grid, last.start, color=INK, lw=2, ls=(0, (4, 2.5)))
    for number, name in enumerate(WAVES):
        colour = COLOURS[name]
        ax.plot(grid, waves.query.y[number, :, 0], color=colour, lw=2.5, ls=":", alpha=0.6)
        ax.plot(grid, last.adapted[number], color=colour, lw=4)
        ax.plot(waves.support.x[number], waves.support.y[number], "o", color=colour, ms=9)
    ax.set(xlim=(-5.1, 5.1), ylim=(-5.4, 5.4))
    ax.axis("off")


def card(waves, last):
    """The picture, as a matplotlib figure."""
    figure = plt.figure(figsize=(SIZE[0] / 100, SIZE[1] / 100), dpi=100, facecolor="white")
    waves_drawn(figure.add_axes((0.04, 0.06, 0.51, 0.88)), waves, last)
    for y, size, colour, words in (
            (0.74, 50, INK, "metalit"),
            (0.50, 24, INK, "How do you measure\nthat a model learned fast?"),
            (0.28, 15, QUIET, "A book that runs,\nand the PyTorch library that comes out of it"),
            (0.09, 12, QUIET, ("dotted: three waves; dashed: the start;\n"
                               "solid: after one step on ten points of each"))):
        weight = "bold" if words == "metalit" else "normal"
        figure.text(0.585, y, words, size=size, color=colour, weight=weight, linespacing=1.4,
                    va="bottom")
    return figure


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "site/static/card.png")
    args = parser.parse_args(arguments)
    waves, frames = trained(args.steps)
    figure = card(waves, frames[-1])
    buffer = io.BytesIO()
    figure.savefig(buffer)
    plt.close(figure)
    # A few colours are enough, and a third of the bytes.
    Image.open(buffer).convert("RGB").quantize(128).save(args.out, optimize=True)
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
