"""Runs that are stopped, killed, or go wrong."""
import os
import signal
import subprocess
import time
from functools import partial, partialmethod
from pathlib import Path

import forked
import pytest
import torch
import torch.nn.functional as F
from helpers import maml, quick, same

import metalit as ml
from metalit.judging.baselines import Blind
from metalit.training import accuracy, evaluate, meta_train, pick_device
from metalit.training.checkpoints import (
    CheckpointError,
    DivergedError,
    load_checkpoint,
    save_checkpoint,
    write_whole,
)

# One run as a program of its own, so that it can be killed.
PROGRAM = """
import sys, torch
import torch.nn.functional as F
import metalit as ml
torch.set_num_threads(1)
model = ml.models.mlp(1, 8, 1)
J = ml.MAML(torch.nn.Sequential(model[0], torch.nn.Dropout(0.2), model[1], model[2]), F.mse_loss)
class Tasks(ml.tasks.Sinusoids):
    told = False
    def batch(self, *arguments):
        if not self.told: print("training", flush=True)
        self.told = True
        return super().batch(*arguments)
ml.meta_train(J, Tasks(), steps=int(sys.argv[2]), batch_size=4, checkpoint=sys.argv[1],
              save_every=7, log_every=5, progress=False,
              scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 50))
"""


def program(folder: Path, steps: int) -> subprocess.Popen:
    "Start the run; returns once it trains."
    process = forked.python("-c", PROGRAM, folder, steps, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n", process.stderr.read()
    return process


def contents(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "What a run of 300 steps leaves that nobody stops."
    folder = tmp_path_factory.mktemp("whole")
    program(folder, 300).communicate()
    return contents(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_the_run_goes_on_bit_for_bit(tmp_path, whole, number):
    process = program(tmp_path / "stopped", 300)
    time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt: stopped after step" in errors
    stopped = int(errors.splitlines()[-1].split("after step ")[1])
    assert 0 < stopped < 300
    assert contents(tmp_path / "stopped")["progress"]["step"] == stopped
    program(tmp_path / "stopped", 300).communicate()
    assert same(whole, contents(tmp_path / "stopped"))


def test_same_comparison_can_fail(tmp_path):
    "The comparison above sees a single changed bit."
    quick(maml(), steps=3, checkpoint=tmp_path)
    a, b = contents(tmp_path), contents(tmp_path)
    assert same(a, b)
    b["J"]["model.0.bias"][2] = torch.nextafter(b["J"]["model.0.bias"][2], torch.tensor(9.0))
    assert not same(a, b)
    b = contents(tmp_path)
    b["random"]["cpu"][5] += 1
    assert not same(a, b)


def test_compiled_runs_and_uncompiled_ones_share_checkpoints(tmp_path):
    "What is compiled has the same parameter names; a backend stands for any compiler."
    quick(maml(), steps=3, checkpoint=tmp_path)
    graphs = []
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ml.MetaLoss, "compile", partialmethod(ml.MetaLoss.compile, backend=backend))
        with pytest.warns(UserWarning, match="compiled was False, now True"):
            quick(maml(seed=9), steps=6, checkpoint=tmp_path, compile=True, watch=[].append)
    assert len(graphs) == 1  # value and gradient, once for all steps
    J = maml(seed=9)
    quick(J, steps=6)
    quick(again := maml(), steps=6)
    saved = contents(tmp_path)["J"]
    assert saved.keys() == again.state_dict().keys()
    for name, value in again.state_dict().items(): torch.testing.assert_close(saved[name], value)


def test_training_learns_and_touches_no_global_random_state():
    before = torch.get_rng_state()
    J = ml.MAML(ml.models.mlp(1, 40, 40, 1), F.mse_loss)
    log = meta_train(J, ml.tasks.Sinusoids(shots=10), steps=600, progress=False, log_every=100)
    assert [row["step"] for row in log] == [100, 200, 300, 400, 500, 600]
    assert log[-1]["meta_loss"] < 0.75 * log[0]["meta_loss"]
    table = evaluate(J, ml.tasks.Sinusoids(shots=10), n_tasks=100)
    assert table.mean[1] + table.ci95[1] < table.mean[0]
    assert torch.equal(before, torch.get_rng_state())


def test_seed_decides_the_tasks():
    logs = [quick(maml(), steps=5, seed=seed, log_every=1) for seed in (0, 0, 1)]
    losses = [[row["meta_loss"] for row in log] for log in logs]
    assert losses[0] == losses[1] != losses[2]


def test_optimizer_in_three_spellings():
    sgd = partial(torch.optim.SGD, lr=0.1)
    J, K, default = maml(), maml(), maml()
    quick(J, steps=2, optimizer=sgd)
    quick(K, steps=2, optimizer=sgd(K.parameters()))
    quick(default, steps=2)
    assert torch.equal(J.model[0].weight, K.model[0].weight)
    assert not torch.equal(J.model[0].weight, default.model[0].weight)
    with pytest.raises(TypeError, match="optimizer='adam': give a torch optimizer"):
        quick(J, steps=1, optimizer="adam")


def test_scheduler_steps_once_per_meta_step():
    J = maml()
    optimizer = torch.optim.SGD(J.parameters(), lr=1.0)
    quick(J, steps=4, optimizer=optimizer,
          scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=8))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5)


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match=r"the meta-loss is (inf|nan) at step \d+"):
        quick(maml(), steps=100, optimizer=partial(torch.optim.SGD, lr=1e4), checkpoint=tmp_path,
              save_every=1)
    state = load_checkpoint(tmp_path / "checkpoint.pt", maml())
    assert 0 < state["progress"]["step"] < 100
    assert all(torch.isfinite(value).all() for value in state["J"].values())


def test_parameters_that_are_not_finite_are_not_saved(tmp_path):
    J = maml()
    save_checkpoint(tmp_path / "good.pt", J)
    before = (tmp_path / "good.pt").read_bytes()
    J.model[0].bias.data[1] = float("nan")
    with pytest.raises(DivergedError,
                       match=r"'model.0.bias' is no longer finite; an older good.pt is kept"):
        save_checkpoint(tmp_path / "good.pt", J)
    assert (tmp_path / "good.pt").read_bytes() == before


class BadData(ml.tasks.Sinusoids):
    def batch(self, batch_size, seed=0, step=0):
        task = super().batch(batch_size, seed, step)
        if step == 3: task.query.y[2, 0] = float("nan")
        return task


def test_nan_in_the_data_is_said_to_be_in_the_data(tmp_path):
    with pytest.raises(ValueError,
                       match=r"query.y holds values that are not finite .* first in task 2"):
        quick(maml(), tasks=BadData(), steps=10, checkpoint=tmp_path, save_every=1)
    assert contents(tmp_path)["progress"]["step"] == 3


def test_checkpoint_of_another_model_names_the_first_parameter_that_differs(tmp_path):
    quick(maml(width=8), steps=2, checkpoint=tmp_path)
    J = maml(width=9)
    before = [p.clone() for p in J.parameters()]
    with pytest.raises(CheckpointError, match=r"another model: at 'model.0.weight' it holds \(8, "
                       r"1\), .* has \(9, 1\)"):
        load_checkpoint(tmp_path / "checkpoint.pt", J)
    assert all(map(torch.equal, before, J.parameters()))
    with pytest.raises(CheckpointError, match=r"at 'model.4.weight' it holds nothing"):
        load_checkpoint(tmp_path / "checkpoint.pt", ml.MAML(ml.models.mlp(1, 8, 1, 1), F.mse_loss))
    with pytest.raises(CheckpointError, match=r"at 'model.2.weight' it holds \(1, 8\), and this "
                       r"meta-loss has nothing"):
        load_checkpoint(tmp_path / "checkpoint.pt",
                        ml.MAML(torch.nn.Sequential(torch.nn.Linear(1, 8)), F.mse_loss))


def test_checkpoint_cut_short_anywhere(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, maml())
    whole = path.read_bytes()
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"checkpoint.pt cannot be read as a checkpoint"):
            load_checkpoint(path, maml())


def test_checkpoint_with_one_flipped_bit(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, J := maml())
    content = bytearray(path.read_bytes())
    content[content.index(J.model[0].weight.detach().numpy().tobytes())] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="cut short or altered"): load_checkpoint(path, maml())


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_text("a shopping list")
    with pytest.raises(CheckpointError, match="is something else"): load_checkpoint(path, maml())
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="no checkpoint of metalit"):
        load_checkpoint(path, maml())
    torch.save({"metalit": 1, "J": print}, path)  # a file that wants to run code
    with pytest.raises(CheckpointError, match="no checkpoint of metalit"):
        load_checkpoint(path, maml())
    with pytest.raises(FileNotFoundError): load_checkpoint(tmp_path / "none.pt", maml())


@pytest.mark.parametrize(("name", "new"), [("seed", 1), ("batch_size", 5)])
def test_a_folder_holds_one_run(tmp_path, name, new):
    quick(maml(), steps=2, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match=f"is of another run:\n  {name} was"):
        quick(maml(), steps=4, checkpoint=tmp_path, **{name: new})
    quick(maml(), steps=4, checkpoint=tmp_path, **{name: new}, resume=False)
    assert contents(tmp_path)["settings"][name] == new


def test_a_run_beyond_its_end_is_an_error(tmp_path):
    quick(maml(), steps=4, checkpoint=tmp_path)
    quick(maml(), steps=4, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="already at step 4, beyond steps=3"):
        quick(maml(), steps=3, checkpoint=tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    class NoTasks(ml.tasks.Family):
        def batch(self, *arguments): pytest.fail("training began")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="file"):
            quick(maml(), tasks=NoTasks(), steps=5, checkpoint=folder)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    "The kernel refuses to write past a size, as it does on a full disk, in a program of its own."
    program = """
import resource, signal, sys
from pathlib import Path
from metalit.training.checkpoints import write_whole
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1]) / "checkpoint.pt"
write_whole(path, b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
write_whole(path, bytes(200_000))
"""
    result = forked.run("-c", program, tmp_path)
    assert "could not write" in result.stderr.splitlines()[-1]
    assert "An older checkpoint.pt is untouched" in result.stderr
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_write_whole_replaces(tmp_path):
    for content in (b"first", b"second"):
        write_whole(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path, monkeypatch):
    "The second writes the whole file while the first is half-way; then the first goes on."
    path, real = tmp_path / "file", os.fsync

    def meanwhile(descriptor):
        monkeypatch.setattr(os, "fsync", real)
        write_whole(path, b"second")
        assert path.read_bytes() == b"second"
        real(descriptor)

    monkeypatch.setattr(os, "fsync", meanwhile)
    write_whole(path, b"first, and longer")
    assert path.read_bytes() == b"first, and longer"
    assert os.listdir(tmp_path) == ["file"]


def test_processes_that_write_one_file_at_once_leave_it_whole_and_nothing_else(tmp_path):
    program = """
import sys
from pathlib import Path
from metalit.training.checkpoints import write_whole
for i in range(300): write_whole(Path(sys.argv[1]) / "file", sys.argv[2].encode() * 50_000)
"""
    writers = [forked.python("-c", program, tmp_path, letter, stderr=subprocess.PIPE, text=True)
               for letter in "ab"]
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "file").exists():
            assert (tmp_path / "file").read_bytes() in (b"a" * 50_000, b"b" * 50_000)
    assert [writer.communicate()[1] for writer in writers] == ["", ""]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, error):
    write_whole(tmp_path / "file", b"old")
    def fail(descriptor): raise error
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(error)): write_whole(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": -1}, "steps=-1"), ({"steps": 1, "batch_size": 0}, "batch_size=0"),
    ({"steps": 1, "save_every": 0}, "save_every=0"), ({"steps": 1, "log_every": 0}, "log_every=0"),
    ({"steps": 1, "max_minutes": -1}, "max_minutes=-1"),
    ({"steps": 1, "device": "toaster"}, "device 'toaster' cannot be used here")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message): quick(maml(), **options)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="cuda:99"): pick_device("cuda:99")


def test_evaluation_is_a_mean_over_tasks_with_an_interval():
    J, tasks = maml(), ml.tasks.Sinusoids()
    table = evaluate(J, tasks, n_tasks=50, steps=(0, 3), seed=4, batch_size=7)
    losses = J.curve(tasks.held_out(50, seed=4), steps=(0, 3))
    assert table.steps == [0, 3]
    assert table.mean == pytest.approx(losses.mean(0).tolist(), rel=1e-5)
    assert table.ci95 == pytest.approx((1.96 * losses.std(0) / 50**0.5).tolist(), rel=1e-5)
    assert "50 unseen tasks, seed 4" in str(table)
    assert f"{table.mean[1]:.4f} ± {table.ci95[1]:.4f}" in table._repr_markdown_()
    errors = evaluate(J, tasks, n_tasks=50, steps=(0,), metric=F.l1_loss)
    assert errors.mean[0] == pytest.approx(
        J.curve(tasks.held_out(50), (0,), F.l1_loss).mean().item(), rel=1e-5
    )
    assert [row["l1_loss"] for row in errors.rows()] == errors.mean
    assert "query l1_loss" in str(errors) and "query l1_loss" in errors._repr_markdown_()
    with pytest.raises(ValueError, match="n_tasks=1"): evaluate(J, tasks, n_tasks=1)
    with pytest.raises(ValueError, match="whole number"): evaluate(J, tasks, n_tasks=2, steps=(-1,))


def test_accuracy_counts_the_largest_logit():
    logits = torch.tensor([[0.1, 0.9], [2.0, -1.0], [0.3, 0.2], [0.0, 1.0]], dtype=torch.float64)
    found = accuracy(logits, torch.tensor([1, 0, 1, 0]))
    assert found.dtype == torch.float64
    assert found == 0.5
    tasks = ml.tasks.Episodes(torch.rand(12, 1, 4, 4), torch.arange(4).repeat_interleave(3), ways=2)
    J = ml.MAML(torch.nn.Sequential(torch.nn.Flatten(), ml.models.mlp(16, 2)), F.cross_entropy)
    table = evaluate(J, tasks, n_tasks=5, steps=(0, 2), metric=accuracy)
    assert table.metric == "accuracy"
    assert table.mean == pytest.approx(
        J.curve(tasks.held_out(5), (0, 2), accuracy).mean(0).tolist()
    )


def test_one_query_at_a_time_reaches_the_evaluation():
    tasks = ml.tasks.Episodes(torch.rand(12, 1, 8, 8), torch.arange(4).repeat_interleave(3), ways=2,
                              queries=2)
    J = ml.MAML(ml.models.Conv4(2, size=8, filters=3), F.cross_entropy)
    both = [evaluate(J, tasks, n_tasks=5, steps=(1,), transductive=together).mean[0]
            for together in (True, False)]
    assert both[1] == pytest.approx(
        J.curve(tasks.held_out(5), (1,), transductive=False).mean().item()
    )
    assert both[0] != both[1]


def test_tasks_at_hand_and_several_metrics_at_once():
    J, tasks = maml(), ml.tasks.Sinusoids()
    mine = [tasks.held_out(5, seed=1), ml.tasks.Sinusoids(shots=3, queries=4).batch(2)]
    found = evaluate(J, mine, steps=(0, 2), metric={"mse": F.mse_loss, "mae": F.l1_loss},
                     batch_size=2)
    for name, metric in (("mse", F.mse_loss), ("mae", F.l1_loss)):
        one = found[name]
        expected = torch.cat([J.curve(task, (0, 2), metric) for task in mine]).double()
        torch.testing.assert_close(one.per_task, expected, rtol=1e-5, atol=1e-6)
        assert one.n_tasks == 7 and one.rows()[1][name] == one.mean[1]
        assert "7 tasks at hand" in str(one) and "7 tasks at hand" in one._repr_markdown_()
    assert list(evaluate(J, mine[0], metric=[F.mse_loss, F.l1_loss])) == ["mse_loss", "l1_loss"]
    alone = evaluate(J, mine, steps=(0, 2))
    torch.testing.assert_close(alone.per_task, found["mse"].per_task, rtol=1e-5, atol=1e-6)
    assert alone.minus(evaluate(J, mine, steps=(0, 2))).mean == [0.0, 0.0]
    other = [mine[0].map(lambda t: t + 1), mine[1]]
    for tasks, options, message in (
        (mine, {"n_tasks": 5}, "n_tasks=5 is how many tasks to draw from a family"),
        (mine[0].select(0), {}, r"1 tasks are given.*J\.curve\(task, steps\)"),
        (mine, {"metric": [F.mse_loss, F.mse_loss]}, "two of the metrics have one name"),
        (mine, {"metric": {}}, "there is no metric in it"),
        ([mine[0].support], {}, "a task is Task")):
        with pytest.raises(ValueError, match=message): evaluate(J, tasks, **options)
    with pytest.raises(ValueError, match="their tasks are '7 tasks at hand"):
        alone.minus(evaluate(J, other, steps=(0, 2)))


def test_a_model_is_asked_once_for_all_metrics():
    "With dropout, two metrics of one answer agree; and a task loss stands beside them."
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    J, task = ml.MAML(model, F.mse_loss), ml.tasks.Sinusoids().batch(4)

    class Norm(ml.TaskLoss):
        def forward(self, predict, split, phi): return phi["0.bias"].square().sum()
    found = evaluate(J, task, steps=(0,), train=True, metric={
        "one": F.mse_loss, "two": lambda p, y: 2 * F.mse_loss(p, y), "norm": Norm()})
    torch.testing.assert_close(found["two"].per_task, 2 * found["one"].per_task)
    assert found["norm"].mean == pytest.approx([model[0].bias.square().sum().item()], rel=1e-5)


def shifted():
    "A model, its family, and two others."
    J = ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss, lr=0.01)
    return J, ml.tasks.Sinusoids(shots=5), {"two": ml.tasks.Sinusoids(shots=2),
                                            "far": ml.tasks.Sinusoids(shots=5, x=(5.0, 9.0))}


def test_a_shift_is_what_evaluating_each_family_alone_finds():
    J, home, shift = shifted()
    asked = {"n_tasks": 12, "steps": (0, 2), "seed": 3, "batch_size": 5}
    found = evaluate(J, home, shift=shift, **asked)
    assert list(found) == ["as trained", "two", "far"]
    for name, family in {"as trained": home, **shift}.items():
        torch.testing.assert_close(found[name].per_task, evaluate(J, family, **asked).per_task,
                                   rtol=0, atol=0)
    assert not torch.equal(found["far"].per_task, found["as trained"].per_task)
    rows = found.rows()
    assert len(rows) == 6 and rows[3] == {"tasks": "two"} | found["two"].rows()[1]
    assert str(found).count("±") == 7 and "n  " in str(found)
    lines = found._repr_markdown_().splitlines()
    assert len(lines) == 5 and len({line.count("|") for line in lines}) == 1


def test_tasks_at_hand_metrics_and_baselines_may_be_shifted():
    J, home, shift = shifted()
    hand = shift["far"].held_out(4)
    metrics = {"mse": F.mse_loss, "mae": F.l1_loss}
    found = evaluate(J, home, n_tasks=6, steps=(1,), shift={"hand": hand}, metric=metrics)
    assert set(found) == {"mse", "mae"}
    assert found["mae"]["hand"].n_tasks == 4 and found["mae"]["as trained"].n_tasks == 6
    assert found["mae"]["hand"].mean == evaluate(J, hand, steps=(1,), metric=F.l1_loss).mean
    back = evaluate(J, hand, steps=(1,), shift={"home": home}, metric=[F.mse_loss])
    assert back["mse_loss"]["home"].n_tasks == 600
    zero = Blind(F.mse_loss).fit(home)
    assert evaluate(zero, home, n_tasks=4, steps=(0,), shift=shift)["two"].n_tasks == 4


def test_differences_of_shifts_are_taken_kind_by_kind():
    J, home, shift = shifted()
    one = evaluate(J, home, n_tasks=4, steps=(0, 1), shift=shift)
    fresh = ml.MAML(ml.models.mlp(1, 8, 1, seed=5), F.mse_loss)
    other = evaluate(fresh, home, n_tasks=4, steps=(0, 1), shift=shift)
    apart = one.minus(other)
    assert apart["far"].mean == one["far"].minus(other["far"]).mean
    fewer = evaluate(J, home, n_tasks=4, steps=(0, 1), shift={"two": shift["two"]})
    with pytest.raises(ValueError, match="other kinds"): one.minus(fewer)


@pytest.mark.parametrize(("wrong", "message"), [
    ({}, "a name"), (ml.tasks.Sinusoids(), "a name"), ({"noise": 0.5}, "make it anew"),
    ({"as trained": ml.tasks.Sinusoids(shots=2)}, "call the shift"),
    ({"same": ml.tasks.Sinusoids(shots=5)}, "'same' has the same tasks as 'as trained'"),
    ({"a": ml.tasks.Sinusoids(shots=1), "b": ml.tasks.Sinusoids(shots=1)},
     "'b' has the same tasks as 'a'"),
    ({"patients": ml.Patients()}, "the shift 'patients': "),
    ({"one": ml.tasks.Sinusoids().held_out(1)}, "at least 2")])
def test_a_shift_that_makes_no_sense_says_so(wrong, message):
    J, home, _ = shifted()
    with pytest.raises(ValueError, match=message): evaluate(J, home, n_tasks=4, shift=wrong)
