"""Many processes give what one gives.

The gradient of DistributedDataParallel, and whole runs under torchrun.

Started as a program, this file is such runs: `torchrun test_distributed.py STEPS FOLDER METHOD
EVENT`, with as many of the last three as there are runs, one after the other.
"""
import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import ReduceLROnPlateau

import metalit as ml
from metalit import as_written
from metalit.as_written import AsWritten
from metalit.methods import ProtoNet
from metalit.training import Validation, meta_train, processes
from metalit.training.checkpoints import DivergedError, load_checkpoint, locked
from metalit.training.processes import (
    LostProcessError,
    Team,
    all_tasks_for,
    check_compiled,
    check_divisible,
    joined,
    lost_process,
    parallel,
    share,
    summed,
    team,
)

STEPS = 12


def meta_loss(method: str) -> ml.MetaLoss:
    net = ml.models.Conv4(3, size=8, filters=4)
    if method == "protonet": return ProtoNet(net, F.cross_entropy)
    return ml.MAML(net, F.cross_entropy, lr=0.4)


class Images(ml.tasks.Episodes):
    "A little data set, and an event in it: a process that dies, or sees a value that is none."
    def __init__(self, event: str = "none"):
        images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        super().__init__(images, torch.arange(8).repeat_interleave(5), ways=3, shots=1, queries=2)
        self.event = event

    def having(self, **changes): return self

    def identity(self): return "whatever happens"

    def stream(self, batch_size, steps, seed=0, start=0):
        kind, _, rank = self.event.partition("-")
        for step, task in enumerate(super().stream(batch_size, steps, seed, start), start):
            happens = step == 7 and team().rank == int(rank or -1)
            if kind == "dies" and happens: os.kill(os.getpid(), signal.SIGKILL)
            if kind == "overflow" and step == 7: task.query.x[3] = 3e38  # of the second half
            yield task


def same_for_all(prediction, y): return prediction.sum() * 0
def lower(optimizer): return ReduceLROnPlateau(optimizer, patience=0, factor=0.5)


def run(folder: str, method: str = "maml", event: str = "none", steps: int = STEPS) -> ml.MetaLoss:
    watch = (Validation(Images(), every=3, n_tasks=4, patience=2, metric=same_for_all)
             if event == "patience" else None)
    meta_train(J := meta_loss(method), Images(event), steps=steps, batch_size=4,
               checkpoint=folder, save_every=5, log_every=3, progress=False, device="cpu",
               validation=watch, scheduler=lower if watch else None, clip=0.5,
               ema=0.5 if watch else None)
    return J


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
# PyTorch 2.9 prints a line for each rank, in pieces; later ones print nothing.
GLOO = re.compile(r"(?:\[Gloo\] Rank |\d+ is connected to \d+ peer ranks\. Expected number of "
                  r"connected peer ranks is : \d+|\s)*")
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


def torchrun(*words) -> subprocess.CompletedProcess:
    return forked.run(*LAUNCH, *words, env=ONE_THREAD, timeout=120)


def stored(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_close(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a: torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-5)


def table(path: Path) -> list[dict]:
    return list(csv.DictReader(path.read_text().splitlines()))


RUNS = {"maml": "none", "protonet": "patience"}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    "The folder of two runs and of one that diverges, each made by two processes."
    folder = tmp_path_factory.mktemp("two")
    words = [word for method, event in RUNS.items() for word in (folder / method, method, event)]
    done = torchrun(STEPS, *words, folder / "diverged", "maml", "overflow")
    assert (done.returncode, done.stderr) == (0, "")
    (folder / "said.txt").write_text(done.stdout)
    return folder


@pytest.mark.parametrize("method", RUNS)
def test_two_processes_end_where_one_ends(tmp_path, two_runs, method):
    "ProtoNet has parameters that nobody uses; both stop by patience, which only rank 0 looks at."
    (tmp_path / "two").symlink_to(two_runs / method)
    J = run(tmp_path / "one", method, RUNS[method])
    two, one = stored(tmp_path / "two"), stored(tmp_path / "one")
    assert two["progress"]["step"] == one["progress"]["step"] == (
        9 if method == "protonet" else STEPS
    )
    assert_close(two["J"], J.state_dict())
    assert two["settings"] == one["settings"] | {"processes": 2}
    for a, b in zip(*(table(tmp_path / name / "log.csv") for name in ("one", "two")), strict=True):
        assert (a["step"], float(a["meta_loss"])) == (
            b["step"], pytest.approx(float(b["meta_loss"]), rel=1e-5)
        )
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == \
        sorted(path.name for path in (tmp_path / "one").iterdir())


@pytest.mark.parametrize(("rank", "saved"), [(1, 7), pytest.param(0, 5, marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_run_with_a_message_and_it_goes_on_with_one(tmp_path, rank,
                                                                                 saved):
    "Where rank 0 is left, it saves the step that all had done; else the last checkpoint stands."
    done = torchrun(STEPS, tmp_path / "run", "maml", f"dies-{rank}")
    assert done.returncode == 1
    message = (r"LostProcessError: another process of this run has ended \(.*\)\. The last "
               r"checkpoint is whole: "
               r"the same command goes on from there, with any number of processes")
    assert re.search(message, done.stderr)
    assert stored(tmp_path / "run")["progress"]["step"] == saved
    with pytest.warns(UserWarning, match="processes was 2, now 1"): run(tmp_path / "run")
    assert stored(tmp_path / "run")["progress"]["step"] == STEPS
    assert_close(stored(tmp_path / "run")["J"], run(tmp_path / "one").state_dict())


def test_sigterm_stops_all_after_the_same_step_and_saves(tmp_path):
    process = forked.python(*LAUNCH, 100_000, tmp_path / "run", "maml", "none",
                            stderr=subprocess.PIPE, text=True, env=ONE_THREAD)
    while (not (tmp_path / "run" / "log.csv").exists()
           or len(table(tmp_path / "run" / "log.csv")) < 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    stopped = {int(step)
               for step in re.findall(r"KeyboardInterrupt: stopped after step (\d+)", errors)}
    assert stopped == {stored(tmp_path / "run")["progress"]["step"]}


def alive(number: int) -> bool:
    "Whether a process runs; one that nobody has waited for does not."
    try: return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError: return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
def test_a_launcher_that_is_killed_leaves_no_process_that_trains_on(tmp_path):
    process = forked.python(*LAUNCH, 100_000, tmp_path / "run", "maml", "none",
                            stderr=subprocess.DEVNULL, env=ONE_THREAD)
    while not (tmp_path / "run" / "log.csv").exists(): time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [int(number) for number in children]
    assert len(ranks) == 2
    process.kill()
    process.wait()
    for _ in range(300):
        if not any(map(alive, ranks)): break
        time.sleep(0.1)
    assert not any(map(alive, ranks))
    with locked(tmp_path / "run"): assert stored(tmp_path / "run")["progress"]["step"] > 0


def test_a_process_that_cannot_end_is_ended():
    program = """
import os, signal, time
from metalit.training.processes import launched
if os.fork():                                                # this is the launcher, until it goes
    time.sleep(0.5)
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: print("told", flush=True))
with launched(every=0.05, patience=0.2): time.sleep(60)
"""
    begin = time.monotonic()
    done = forked.run("-c", program, timeout=50)
    assert done.stdout == "told\n"
    assert time.monotonic() - begin < 45


def test_a_loss_that_is_infinite_on_one_process_alone_ends_all(two_runs):
    "And nothing else is printed by any run."
    said = (two_runs / "said.txt").read_text()
    diverged = r"DivergedError: the meta-loss is (?:nan|inf) at step 7[^\n]*\n"
    assert len(re.findall(diverged, said)) == 2
    assert GLOO.fullmatch(re.sub(diverged, "", said))
    saved = load_checkpoint(two_runs / "diverged/checkpoint.pt", meta_loss("maml"))
    assert all(torch.isfinite(value).all() for value in saved["J"].values())


GRADIENTS = """
import sys, torch
import torch.distributed as dist
import torch.nn.functional as F
import metalit as ml
torch.set_num_threads(1)
rank, store, out = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
shard = ml.tasks.Sinusoids().batch(8, seed=0).select(slice(4 * rank, 4 * rank + 4))
for kind in ("plain", "chunked", "compiled"):
    chunk_size = 2 if kind == "chunked" else None
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.1, steps=2, chunk_size=chunk_size)
    if kind == "compiled": J.compile(backend="eager")
    parallel = torch.nn.parallel.DistributedDataParallel(J)
    parallel(shard).backward()
    torch.save([p.grad for p in J.parameters()], f"{out}.{kind}.{rank}")
dist.destroy_process_group()
"""


def test_two_processes_give_the_gradient_of_one(tmp_path):
    processes = [
        forked.python("-c", GRADIENTS, rank, tmp_path / "store", tmp_path / "grads",
                      stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.1, steps=2)
    J(ml.tasks.Sinusoids().batch(8, seed=0)).backward()
    for file in (f"grads.{kind}.{rank}" for kind in ("plain", "chunked", "compiled")
                 for rank in (0, 1)):
        for found, p in zip(torch.load(tmp_path / file, weights_only=True), J.parameters(),
                            strict=True):
            torch.testing.assert_close(found, p.grad, rtol=1e-5, atol=1e-6)


def test_without_a_team_nothing_happens(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    J, task = meta_loss("maml"), Images().batch(4)
    assert team() == Team(0, 1)
    assert parallel(J) is J
    assert share(task, team()) is task
    assert summed(2.0, 3) == [2.0, 3]
    with joined("cpu") as device: assert device == "cpu"
    with pytest.raises(RuntimeError, match="closed by peer"), lost_process():
        raise RuntimeError("closed by peer")


def test_shares_are_the_batch_cut_in_order():
    task = Images().batch(6)
    shares = [share(task, Team(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([part.query.x for part in shares]), task.query.x)
    assert [part.batch_size for part in shares] == [2, 2, 2]


def test_batches_that_cannot_be_divided():
    with pytest.raises(ValueError, match="batch_size=9 cannot be divided evenly over 2 processes: "
                       "use a multiple of 2"):
        check_divisible(meta_loss("maml"), 9, 2)
    check_divisible(meta_loss("maml"), 9, 1)
    check_divisible(meta_loss("maml"), 9, 3)


WHOLE = """
import sys, torch
import torch.distributed as dist
import torch.nn.functional as F
from dataclasses import replace
import metalit as ml
from metalit.training.processes import parallel, share, team

class Learned(ml.Pooling):
    "A soft maximum whose sharpness is a meta-parameter."
    def __init__(self):
        super().__init__()
        self.sharpness = torch.nn.Parameter(torch.tensor(0.7))
    def forward(self, values): return (values * (self.sharpness * values).softmax(0)).sum()

class OfEach(ml.Pooling):
    "A weight for each task of a list, which is told apart by its number; of 8 query examples."
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.linspace(-1, 1, 20))
    def forward(self, values, *, ids, sizes):
        return (sizes * values * self.weights[ids].softmax(0)).sum()

def cases(chunk_size=None):
    tail = {"terms": ml.QueryLoss() + 0.3 * ml.Triplet(margin=9.0), "pooling": ml.Tail(0.3)}
    choices = {"worst": {"pooling": ml.Worst()}, "tilted": {"pooling": ml.Tilted(0.4)},
               "learned": {"pooling": Learned()}, "ids": {"pooling": OfEach()},
               "triplet": {"terms": ml.QueryLoss() + 0.5 * ml.Triplet(margin=9.0)},
               "contrast": {"terms": ml.QueryLoss() + 0.5 * ml.Contrast("parameters")},
               "worst case": {"pooling": ml.WorstCase(20)},
               "inequality": {"terms": ml.QueryLoss() + 0.5 * ml.Inequality("gini")},
               "triplet and tail": tail}
    for name, options in choices.items():
        yield name, ml.MetaLoss(ml.models.mlp(1, 8, 1), F.mse_loss, inner=ml.SGD(0.1, steps=2),
                                chunk_size=chunk_size, **options)

batch = ml.tasks.Sinusoids(shots=4).batch(8, seed=0)
batch = replace(batch, ids=torch.tensor([3, 1, 4, 15, 9, 2, 6, 5]))
real = torch.arange(4) < torch.tensor([[2], [4], [3], [3], [4], [2], [4], [4]])
padded = ml.Task(ml.Split(*batch.support, real.flip(0)),
                 ml.Split(*batch.query, real), batch.ids)

def found(around, task):
    record, masked = {}, task.query.mask is not None
    for chunk_size in (2,) if masked else (None, 2):
        for name, J in cases(chunk_size):
            if masked and name not in ("ids", "triplet and tail"): continue
            together = around(J)
            value = together(task)
            value.backward()
            record[name, chunk_size, masked] = value.detach(), [p.grad for p in J.parameters()]
    return record

if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, store, out = int(sys.argv[1]), *sys.argv[2:]
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
    mine = [share(task, team()) for task in (batch, padded)]
    torch.save(found(parallel, mine[0]) | found(parallel, mine[1]), f"{out}.{rank}")
    for name, J in cases():
        try: torch.nn.parallel.DistributedDataParallel(J)(mine[0])
        except ValueError as error: print(f"{name}: {error}")
    J = dict(cases())["triplet and tail"]
    J.compile(backend="aot_eager")
    try: parallel(J)
    except ValueError as error: print(error)
    dist.destroy_process_group()
"""


def test_what_looks_at_all_tasks_is_in_two_processes_what_it_is_in_one(tmp_path):
    "Poolings and terms across tasks, eager and chunked; a parameter of a pooling has its gradient."
    (tmp_path / "whole.py").write_text(WHOLE)
    both = [forked.python(tmp_path / "whole.py", rank, tmp_path / "store", tmp_path / "found",
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for rank in (0, 1)]
    heard = [process.communicate(timeout=120) for process in both]
    for process, (said, errors) in zip(both, heard, strict=True):
        assert process.returncode == 0, errors
        assert ("what looks at all tasks of a batch (Triplet, Tail) does not go with compiling in "
                "a team") in said
        for name in ("worst", "tilted", "learned", "ids", "worst case", "inequality", "triplet"):
            assert re.search(rf"{name}: \w+ looks at all tasks .*processes.parallel\(J\)", said)
    program = {"__name__": "program"}
    exec(compile(WHOLE, "whole.py", "exec"), program)
    right = {key: value for task in (program["batch"], program["padded"])
             for key, value in program["found"](lambda J: J, task).items()}
    shares = [torch.load(tmp_path / f"found.{rank}", weights_only=True) for rank in (0, 1)]
    assert len(right) == 20
    for name, (value, gradients) in right.items():
        # what is compared is more than the mean of two shares
        assert any(gradient.abs().max() > 1e-3 for gradient in gradients), name
        for of_one in shares:
            torch.testing.assert_close(of_one[name][0], value, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(of_one[name][1], gradients, rtol=1e-4, atol=1e-6)
    for name in ("learned", "ids", "worst case"):
        assert right[name, None, False][1][-1].abs().max() > 1e-3


class Worst(ml.Pooling):
    def forward(self, values): return values.max()


class Spread(ml.Term):
    across_tasks = True
    def per_task(self, path, task): return path.loss(path.final, task.query)
    def pool(self, values): return values.var()


def test_only_a_class_that_says_so_is_refused_in_a_team():
    net, loss = ml.models.mlp(1, 8, 1), F.mse_loss
    refused = {"SharpMAML": ml.SharpMAML(net, loss),
               "AsWritten": AsWritten(net, loss, as_written.contrastive)}
    for name, J in refused.items():
        check_divisible(J, 4, 1)
        with pytest.raises(
            ValueError, match=f"{name} needs all tasks of a batch in one place, and 2 processes"
        ):
            check_divisible(J, 4, 2)
    for J in (ml.MAML(net, loss), ml.Reptile(net, loss), ml.SharpMAML(net, loss, rho_outer=0),
              AsWritten(net, loss, as_written.reptile)):
        check_divisible(J, 4, 2)
        check_compiled(J, True, 2)
        assert all_tasks_for(J) == []


def test_what_looks_at_all_tasks_is_refused_only_where_it_is_compiled():
    net, loss = ml.models.mlp(1, 8, 1), F.mse_loss
    named = {"Contrast": ml.ConML(net, loss), "Triplet": ml.TripletMAML(net, loss),
             "Worst": ml.MetaLoss(net, loss, pooling=Worst()),
             "Spread, Worst": ml.MetaLoss(net, loss, terms=ml.QueryLoss() + Spread(),
                                          pooling=Worst())}
    for names, J in named.items():
        check_divisible(J, 4, 2)
        check_compiled(J, False, 2)
        check_compiled(J, True, 1)
        with pytest.raises(ValueError, match=rf"\({names}\) does not go with compiling in a team: "
                           "the graph of each of the 2 processes knows its own tasks only"):
            check_compiled(J, True, 2)


def test_a_run_that_cannot_be_compiled_is_refused_before_anything_is_removed(monkeypatch, tmp_path):
    tasks = ml.tasks.Sinusoids()
    J = ml.TripletMAML(ml.models.mlp(1, 8, 1), F.mse_loss)
    meta_train(J, tasks, steps=1, batch_size=4, checkpoint=tmp_path, progress=False)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    monkeypatch.setattr("metalit.training.loop.team", lambda: Team(0, 2))
    with pytest.raises(ValueError, match="does not go with compiling in a team"):
        meta_train(J, tasks, steps=2, batch_size=4, checkpoint=tmp_path, progress=False,
                   compile=True, resume=False)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not J.is_compiled


def test_more_processes_than_gpus_is_a_clear_error(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (pytest.raises(ValueError,
                        match=r"process 1 of this machine finds 1 GPUs, .* use --nproc-per-node 1"),
          joined()):
        pytest.fail("there is no second GPU")


def test_a_broken_connection_is_a_lost_process_and_other_errors_are_themselves(monkeypatch):
    monkeypatch.setattr(processes, "team", lambda: Team(0, 2))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with (pytest.raises(LostProcessError,
                            match=r"has ended \(Connection closed by peer \[1.2.3.4\]:5\)\. The"),
              lost_process()):
            raise RuntimeError("[pair.cc:5] Connection closed by peer [1.2.3.4]:5. Look.\nMore")
        # the launcher's signal must not cut the words off
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally: signal.signal(signal.SIGTERM, before)
    with pytest.raises(RuntimeError, match="shapes"), lost_process():
        raise RuntimeError("shapes do not fit")


if __name__ == "__main__":
    torch.set_num_threads(1)
    words = iter(sys.argv[2:])
    with joined("cpu"):
        for of_one in zip(words, words, words, strict=True):
            try: run(*of_one, steps=int(sys.argv[1]))
            except DivergedError as error: print(f"DivergedError: {error}\n", end="", flush=True)
