"""What the live figure of an episode holds: a small network, and unseen episodes.

It is meta-trained on characters; the episodes it never saw.

    python -m reproduce.episode_start

Strided conv4 with 16 filters, 5-way 1-shot, on letters that are drawn from fonts: no download.
Weights and images go to metalit/widgets/data/, and how well the starts adapt to classes that no
training saw, to results/episode_start.json. One core needs a few minutes.
"""
from __future__ import annotations

import argparse
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import metalit as ml
from benchmarks.measure import machine, versions, write_json

WEIGHTS = Path("metalit/widgets/data/episode_start.npz")
SEED, FILTERS, WAYS, SHOTS, QUERIES, BATCH_SIZE = 0, 16, 5, 1, 3, 16
LR, INNER_STEPS, META_STEPS = 0.4, 3, 1500
LOOKS = (0, 1, 3, 5)
# The episodes of the figure: from all scripts, or from one. `None` is all of them.
SHOWN = {"five scripts": None, "Latin": "LATIN", "Cyrillic": "CYRILLIC", "Georgian": "GEORGIAN",
         "Canadian syllabics": "CANADIAN"}
QUERIES_SHOWN = 2


def network() -> ml.models.Conv4:
    """The network before any training: the figure's start "random", made by its seed alone."""
    return ml.models.Conv4(WAYS, filters=FILTERS, seed=SEED)


def meta_loss(model: torch.nn.Module) -> ml.MetaLoss:
    """MAML, exact gradient; every task learns by plain gradient descent."""
    return ml.MAML(model, F.cross_entropy, lr=LR, steps=INNER_STEPS)


def train(images: ml.Images, steps: int, compile: bool) -> tuple[torch.nn.Module, float]:
    """The trained network, and the seconds it took.

    Its outer step size falls to zero along a cosine.
    """
    model, begin = network(), time.perf_counter()
    ml.meta_train(meta_loss(model), images.episodes(WAYS, SHOTS, QUERIES), steps=steps,
                  batch_size=BATCH_SIZE, seed=SEED, device="cpu", compile=compile,
                  optimizer=partial(torch.optim.Adam, lr=3e-3), scheduler=lambda adam:
                  torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1)))
    return model, time.perf_counter() - begin


def judged(model: torch.nn.Module, images: ml.Images) -> dict[str, list[dict[str, float]]]:
    """Accuracy in per cent on 600 episodes of unseen classes, queries alone and together."""
    tasks = images.episodes(WAYS, SHOTS, QUERIES)
    def rows(transductive: bool) -> list[dict[str, float]]:
        found = ml.evaluate(meta_loss(model), tasks, n_tasks=600, steps=LOOKS, metric=ml.accuracy,
                            seed=0, batch_size=50, transductive=transductive)
        return [{"inner_steps": row["inner_steps"], "accuracy": round(100 * row["accuracy"], 2),
                 "ci95": round(100 * row["ci95"], 2)} for row in found.rows()]
    return {"each query alone": rows(False), "all queries together": rows(True)}


def of_script(images: ml.Images, script: str | None, random: np.random.Generator) -> list[int]:
    """The classes of one episode: of one script, or each of another script."""
    scripts = [name.split(" ")[0] for name in images.names]
    order = random.permutation(len(scripts)).tolist()
    if script: return [c for c in order if scripts[c] == script][:WAYS]
    first = {scripts[c]: c for c in reversed(order)}
    return list(first.values())[:WAYS]


def shown(images: ml.Images, seed: int = 0) -> dict[str, np.ndarray]:
    """The episodes of the figure: bytes, classes in turn, and their names.

    The bytes are (episodes, ways · (1 + queries), 28, 28).
    """
    random, pictures, names = np.random.default_rng(seed), [], []
    for script in SHOWN.values():
        classes = of_script(images, script, random)
        chosen = [random.choice(np.flatnonzero(images.labels.numpy() == c), 1 + QUERIES_SHOWN,
                                replace=False) for c in classes]
        pictures.append(images.images[np.stack(chosen, 1).ravel(), 0].numpy())
        names.append([images.names[c] for c in classes])
    return {"episodes": np.stack(pictures), "names": np.array(names),
            "titles": np.array(list(SHOWN))}


def save(models: dict[str, torch.nn.Module], episodes: dict[str, np.ndarray], path: Path) -> None:
    """Weights by the names "maml/head.weight", and episodes; same content, same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {f"{name}/{parameter}": value.detach().numpy()
               for name, model in models.items() for parameter, value in model.named_parameters()}
    np.savez_compressed(path, **weights, **episodes)


def main() -> None:
    """Train, write weights and episodes, then the record."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=META_STEPS, help="meta-steps, for a trial")
    parser.add_argument("--eager", action="store_true",
                        help="do not compile, even where a C++ compiler is found")
    parser.add_argument("--weights", type=Path, default=WEIGHTS,
                        help="where weights and episodes go")
    parser.add_argument("--file", default="episode_start", help="name of the file in results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compile = not options.eager and shutil.which("c++") is not None
    learned, _, unseen = ml.glyphs().split((0.7, 0.1, 0.2), seed=SEED)
    models: dict[str, torch.nn.Module] = {"random": network()}
    models["maml"], seconds = train(learned, options.steps, compile)
    record: dict[str, Any] = {
        "what": f"starts of the live figure of an episode: strided conv4, {FILTERS} filters, "
        f"{WAYS}-way {SHOTS}-shot on glyphs, {QUERIES} queries per class; accuracy in per cent on "
        f"600 episodes of {len(unseen.names)} unseen classes",
        "command": "python -m reproduce.episode_start", "seed": SEED, "filters": FILTERS,
        "inner_step_size": LR, "inner_steps_in_training": INNER_STEPS, "batch_size": BATCH_SIZE,
        "meta_steps": options.steps, "outer_step_size": "Adam 3e-3, cosine to zero",
        "seconds": round(seconds), "threads": 1, "compiled": compile,
        "classes": {"training": len(learned.names), "test": len(unseen.names)},
        "machine": machine(), "versions": versions("metalit", "torch", "matplotlib"),
        "evaluation": {name: judged(model, unseen) for name, model in models.items()}
    }
    save(models, shown(unseen), options.weights)
    print(f"{seconds:.0f} s", *(f"{name}: {rows}" for name, rows in record["evaluation"].items()),
          sep="\n")
    write_json(options.file, record)


if __name__ == "__main__":
    main()
