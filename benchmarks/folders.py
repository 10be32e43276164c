"""Runs that are killed, damaged, confused or started twice, counted: a part of `benchmarks.faults`.

Each function makes one kind of fault as often as it is told, and returns how many were met as they
should be: a killed run goes on bit for bit, a damaged file is refused, another run is noticed, and
of two processes that start at the same moment in one folder one trains and one is refused.
"""

import os
import random
import signal
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import metalit as ml
from metalit.training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint

TRAINED, REFUSED, FAILED = 0, 3, 1


def maml(**choices):
    return ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, **choices)


def train(folder, steps=2, J=None, tasks=None, **options):
    "A short run; of a model without a seed of its own the first weights are always the same."
    given = {"batch_size": 4, "progress": False} | options
    return ml.meta_train(J or maml(), tasks or ml.tasks.Sinusoids(), steps=steps, checkpoint=folder,
                         device="cpu", **given)


def in_a_process(work):
    "Fork, do the work, and end with what it returns; gives the number of the process."
    child = os.fork()
    if child: return child
    code = FAILED
    try: code = work()
    finally: os._exit(code)


def contents(folder):
    "What a checkpoint holds, without wall time."
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["progress"]["seconds"]
    for row in state["progress"]["log"]: del row["seconds"]
    return state


def same(one, other):
    "Equal to the last bit, through dictionaries and lists."
    if isinstance(one, torch.Tensor): return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def kills(count, seed=0):
    "Of so many kills at a random moment, how many were survived: the run ended bit for bit."
    chance, survived = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        options = {"save_every": 1, "log_every": 3}
        steps = 12
        train(Path(place) / "whole", steps, **options)
        whole = contents(Path(place) / "whole")
        while survived < count:
            run, met = Path(place) / f"run{survived}", 0
            for _ in range(min(10, count - survived)):
                child = in_a_process(lambda run=run: train(run, steps, **options) and TRAINED)
                time.sleep(chance.uniform(0, 0.06))
                os.kill(child, signal.SIGKILL)
                met += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            train(run, steps, **options)
            if not same(contents(run), whole): return survived
            survived += met
    return survived


def damage(count, seed=0):
    "Of so many files with one byte changed, or cut short, how many were refused, or loaded whole."
    chance, met = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as place:
        path, J = Path(place) / "checkpoint.pt", maml()
        save_checkpoint(path, J)
        whole = path.read_bytes()
        for i in range(count):
            content, at = bytearray(whole), chance.randrange(len(whole))
            if i % 4: content[at] ^= chance.randrange(1, 256)
            else: del content[at:]
            path.write_bytes(bytes(content))
            K = ml.MAML(ml.models.mlp(1, 8, 1, seed=1), F.mse_loss)
            try: load_checkpoint(path, K)
            except CheckpointError: met += 1
            else: met += same(J.state_dict(), K.state_dict())
    return met


def scale(by):
    "A loss that caught a number."
    def scaled(prediction, y): return by * F.mse_loss(prediction, y)
    return scaled


def others():
    "Runs that differ from `maml()` on sine waves in one thing: what `train` is given."
    tanh, other = ml.models.mlp(1, 8, 1, activation=nn.Tanh), ml.tasks.Sinusoids
    frozen = maml()
    frozen.model[0].requires_grad_(False)
    Js = [maml(lr=0.02), maml(steps=2), maml(pooling=ml.Pooling()), maml(gradient=ml.FirstOrder()),
          maml(terms=ml.QueryLoss() + 1e-9 * ml.GradientNorm()), maml(terms=0.5 * ml.QueryLoss()),
          ml.MAML(tanh, F.mse_loss), ml.MAML(ml.models.mlp(1, 8, 1), F.l1_loss), frozen,
          ml.MAML(ml.models.mlp(1, 8, 1), scale(1.0)), maml(lr=ml.schedule.Linear(0.01, 0.01)),
          ml.MAML(ml.models.mlp(1, 8, 1), partial(F.huber_loss, delta=0.5)), maml().double(),
          ml.MetaLoss(ml.models.mlp(1, 8, 1), F.mse_loss, inner=ml.SAM()),
          ml.FOMAML(tanh, F.mse_loss),
          ml.TripletMAML(ml.models.mlp(1, 8, 1), F.mse_loss), ml.Reptile(tanh, F.mse_loss)]
    families = [other(shots=6), other(queries=6), other(amplitude=(0.1, 4.0)), other(grid=99),
                other(phase=(0.0, 3.0)), other(x=(-5.0, 4.0))]
    adam, sgd, decay = torch.optim.Adam, torch.optim.SGD, torch.optim.lr_scheduler.StepLR
    optimizers = [partial(adam, lr=2e-3), partial(adam, betas=(0.8, 0.999)),
                  partial(adam, eps=1e-7), partial(adam, weight_decay=0.1),
                  partial(adam, amsgrad=True), torch.optim.AdamW,
                  sgd, partial(sgd, momentum=0.9)]
    watch = ml.Validation(other(), every=9, n_tasks=2)
    return [*({"J": J} for J in Js), *({"tasks": family} for family in families),
            *({"optimizer": optimizer} for optimizer in optimizers), {"seed": 1}, {"batch_size": 5},
            {"scheduler": partial(decay, step_size=5)}, {"validation": watch}]


def others_noticed():
    "How many other runs were refused in the folder of one, and how many were tried."
    noticed, changes = 0, others()
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("error")
        train(place)
        before = (Path(place) / "checkpoint.pt").read_bytes()
        for change in changes:
            try: train(place, steps=3, **change)
            except CheckpointError: noticed += 1
        noticed -= (Path(place) / "checkpoint.pt").read_bytes() != before
    return noticed, len(changes)


class Waits(ml.Watcher):
    "Holds a run, and with it its folder, until it is told to go on."
    def __init__(self, gate): self.gate = gate

    def step(self, loss): os.read(self.gate, 1)


def starts_at_once(folder, start, gate, seed):
    "Wait for the start, then train; says how it went."
    os.read(start, 1)
    try: train(folder, 1, batch_size=4 + seed, watch=Waits(gate))
    except CheckpointError: return REFUSED
    return TRAINED


def pairs(count):
    "Of so many pairs that start at the same moment in one empty folder: one trained, one refused."
    met = 0
    with tempfile.TemporaryDirectory() as place:
        train(Path(place) / "warm")                          # what is imported late, is imported
        for i in range(count):
            (start, go), (gate, release) = os.pipe(), os.pipe()
            folder = Path(place) / str(i)
            children = [in_a_process(partial(starts_at_once, folder, start, gate, seed))
                        for seed in (0, 1)]
            os.write(go, b"12")
            first, status = os.wait()                        # who is refused ends, the other waits
            os.write(release, b"1")
            other = os.waitstatus_to_exitcode(os.waitpid(sum(children) - first, 0)[1])
            codes = [os.waitstatus_to_exitcode(status), other]
            seed = children.index(sum(children) - first)
            settings = torch.load(folder / "checkpoint.pt", weights_only=True)["settings"]
            met += codes == [REFUSED, TRAINED] and settings["batch_size"] == 4 + seed
            for end in (start, go, gate, release): os.close(end)
    return met


def counted(kill=613, damaged=1000, started=100):
    "All counts, for a results file: what was done, and how often it went as it should."
    noticed, tried = others_noticed()
    return {"kills survived": kills(kill), "of kills": kill,
            "damaged files refused or harmless": damage(damaged), "of damaged files": damaged,
            "other runs noticed": noticed, "of other runs": tried,
            "pairs of which one trained": pairs(started), "of pairs": started}
