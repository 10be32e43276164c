"""The comparison of methods: arithmetic, stopping, going on, divergence, files, the command."""
import csv
import json
import math
import os
import signal
import subprocess

import forked
import pytest
import torch
import torch.nn.functional as F
from helpers import metalit
from torch import nn

import metalit as ml
from metalit.judging import comparison
from metalit.judging.comparison import (
    Difference,
    Line,
    Result,
    against,
    as_table,
    compare,
    diverged,
    interval,
    student,
    summarise,
)
from metalit.judging.recipes import RECIPES, Recipe, build, built_as, complete, sine_network


def made_up(method: str, seed: int, losses: dict, seconds: float = 2.0,
            ci95: float = 0.1) -> Result:
    rows = [{"inner_steps": k, "loss": loss, "ci95": ci95} for k, loss in losses.items()]
    return Result(method, seed, "5 steps", seconds, rows, ms=seconds)


RUNS = [made_up("conml", 0, {0: 4.0, 1: 1.0}, 8.0, 0.2), made_up("conml", 1, {0: 4.0, 1: 2.0}, 2.0),
        made_up("conml", 2, {0: 4.0, 1: 3.0}, 3.0), made_up("maml", 0, {0: 4.0, 1: 2.0}),
        made_up("maml", 1, {0: 5.0, 1: 3.0}), made_up("maml", 2, {0: 6.0, 1: 4.0}),
        made_up("reptile", 0, {0: 4.0, 1: None}, 1.0), made_up("reptile", 1, {0: 2.0, 1: 2.0}, 1.0),
        Result("fomaml", 0, "diverged: at step 3", 0.0, [])]


def test_the_summary_is_what_one_computes_by_hand():
    lines = summarise(RUNS)
    assert lines[0] == Line("conml", 0, 4.0, pytest.approx(0.4 / 3), 0.0, 3.0, 1.5, 3)
    assert lines[1] == Line("conml", 1, 2.0, pytest.approx(0.4 / 3), 1.0, 3.0, 1.5, 3)
    assert lines[3] == Line("maml", 1, 3.0, pytest.approx(0.1), 1.0, 2.0, 1.0, 3)
    assert lines[5] == Line("reptile", 1, None, None, None, 1.0, 0.5, 2)
    assert "fomaml" not in {line.method for line in lines}
    assert diverged(RUNS) == ["fomaml, seed 0: diverged: at step 3"]


def test_graphs_are_given_back_after_each_method(tmp_path, monkeypatch):
    "Compiling stands aside here: what is looked at is the order."
    order, one = [], comparison._one

    def run(name, seed, *rest):
        order.append((name, seed))
        assert rest[-3] is True, "compiled"
        return one(name, seed, *rest[:-3], False, *rest[-2:])
    monkeypatch.setattr(comparison, "_one", run)
    monkeypatch.setattr(comparison, "forget_compiled", lambda: order.append("given back"))
    monkeypatch.setattr(comparison, "step_times", lambda methods, task, compile: {})
    compare(ml.tasks.Sinusoids(3), sine_network, F.mse_loss, methods=["maml", "anil"], steps=1,
            seeds=[0, 1], batch_size=2, folder=tmp_path, compile=True, progress=False)
    assert order == [("maml", 0), ("maml", 1), "given back", ("anil", 0), ("anil", 1), "given back"]


def test_seeds_that_are_trained_together_are_those_of_single_runs(tmp_path, monkeypatch):
    "To rounding; a result is kept with the parameters, and is not made again."
    how = {"methods": ["maml", "reptile", "anil", "blind"], "steps": 3, "seeds": [0, 1],
           "batch_size": 2, "progress": False, "inner_steps": (0, 1)}
    waves, begun = ml.tasks.Sinusoids(3), []
    alone = compare(waves, sine_network, F.mse_loss, folder=tmp_path / "alone", **how)
    many = comparison.meta_train_many
    monkeypatch.setattr(comparison, "meta_train_many",
                        lambda several, *rest, **more: (begun.append(len(several)),
                                                        many(several, *rest, **more))[1])
    runs = compare(waves, sine_network, F.mse_loss, folder=tmp_path / "many", together=True, **how)
    assert begun == [2, 2, 2]
    for one, other in zip(runs, alone, strict=True):
        assert one[:3] == other[:3] and other.status == "3 steps"
        for row, like in zip(one.rows, other.rows, strict=True):
            assert row["loss"] == pytest.approx(like["loss"], rel=1e-5)
    J = ml.MAML(sine_network(7), F.mse_loss, 0.01)
    ml.load_checkpoint(tmp_path / "many" / "maml-seed1" / "parameters.pt", J)
    error = ml.evaluate(J, waves, steps=(1,)).mean[0]
    assert error == pytest.approx(runs[1].rows[1]["loss"], rel=1e-5)
    again = compare(waves, sine_network, F.mse_loss, folder=tmp_path / "many", together=True, **how)
    assert again == runs and begun == [2, 2, 2]


def test_what_cannot_go_together_goes_one_by_one_and_divergence_is_reported(tmp_path, caplog):
    def noisy(seed):
        return nn.Sequential(ml.models.mlp(1, 4, 4, seed=seed), nn.Dropout(0.5), nn.Linear(4, 1))
    how = {"methods": ["maml"], "steps": 2, "seeds": [0, 1], "batch_size": 2, "together": True,
           "progress": False, "inner_steps": (1,)}
    with caplog.at_level("INFO", logger="metalit"):
        runs = compare(ml.tasks.Sinusoids(3), noisy, F.mse_loss, folder=tmp_path / "noisy", **how)
    assert [run.status for run in runs] == ["2 steps"] * 2
    assert "maml: one seed after another, because" in caplog.text
    runs = compare(ml.tasks.Sinusoids(3), sine_network, F.mse_loss, folder=tmp_path / "far",
                   lr=1e30, **how)
    assert all(run.status.startswith("diverged: the meta-loss is") for run in runs)


def test_one_seed_has_no_spread_and_without_maml_there_is_no_relative_time():
    assert summarise([made_up("conml", 0, {1: 2.0})]) == [
        Line("conml", 1, 2.0, 0.1, None, 2.0, None, 1)
    ]


def test_the_table_shows_every_method_and_what_blows_up():
    rows = as_table(summarise(RUNS)).splitlines()
    assert rows[0].split() == ["method", "0", "steps", "1", "step", "seconds", "×", "MAML"]
    assert rows[2].split() == ["maml", "5.000", "±", "0.100", "3.000", "±", "0.100", "2.0", "1.00"]
    assert rows[3].split() == ["reptile", "3.000", "±", "0.100", "blows", "up", "1.0", "0.50"]
    huge = as_table(summarise([made_up("maml", 0, {1: 1e7})]))
    assert "blows up" in huge


def test_differences_are_paired_by_seed():
    assert against(RUNS, 1) == [Difference("conml", -1.0, 0.0, "helped"),
                                Difference("reptile", None, None, "blows up"),
                                Difference("fomaml", None, None, "diverged")]
    unpaired = [made_up("conml", 7, {1: 1.0}), made_up("maml", 8, {1: 1.0})]
    assert against(unpaired, 1) == [Difference("conml", None, None, "cannot tell")]


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == (2.0, pytest.approx(4.302653 / math.sqrt(3)),
                                         "no difference shown")
    assert interval([-2.0, -2.1, -1.9])[2] == "helped"
    assert interval([2.0, 2.1, 1.9])[2] == "hurt"
    assert interval([1.0]) == (1.0, None, "cannot tell")


@pytest.mark.parametrize(("freedom", "printed"),
                         [(1, 12.706), (2, 4.303), (3, 3.182), (10, 2.228), (11, 2.201),
                          (20, 2.086), (30, 2.042), (60, 2.000), (120, 1.980)])
def test_students_quantiles_are_those_of_printed_tables(freedom, printed):
    assert round(student(freedom), 3) == printed


def test_twelve_seeds_have_students_interval_too():
    gaps = [0.0, 2.0] * 6
    expected = pytest.approx(2.200985 * math.sqrt(12 / 11) / math.sqrt(12))
    assert interval(gaps) == (1.0, expected, "hurt")
    with pytest.raises(ValueError, match="1 or more is needed"): student(0)


def net(seed: int):
    return ml.models.mlp(1, 8, 1, seed=seed)


def small(folder, **changes):
    options = {"methods": ["maml", "reptile"], "steps": 6, "seeds": [0, 1], "batch_size": 4,
               "inner_steps": (0, 1), "folder": folder, "progress": False}
    return compare(ml.tasks.Sinusoids(3), net, F.mse_loss, **(options | changes))


def results(runs):
    return [(run.method, run.seed, run.status, run.rows) for run in runs]


def test_every_method_of_the_list_trains(tmp_path):
    runs = compare(ml.tasks.Sinusoids(4), net, F.mse_loss, steps=2, seeds=[0], batch_size=3,
                   inner_steps=(1,), folder=tmp_path, progress=False)
    assert [run.method for run in runs] == list(comparison.METHODS)
    assert all(run.status == "2 steps" and run.rows[0]["loss"] > 0 and run.seconds > 0
               for run in runs)


def test_every_other_method_can_be_asked_for(tmp_path):
    others = [name for name, recipe in RECIPES.items() if name not in comparison.METHODS
              and not recipe.classes]
    assert "anil" in others
    runs = compare(ml.tasks.Sinusoids(4), sine_network, F.mse_loss, steps=2, seeds=[0],
                   batch_size=3, inner_steps=(1,), folder=tmp_path, methods=others, progress=False)
    assert [(run.method, run.status) for run in runs] == [(name, "2 steps") for name in others]


@pytest.mark.parametrize(("method", "lr", "steps", "context"),
                         [("maml", 0.03, 1, False), ("anil", 0.03, 1, False),
                          ("reptile", 0.005, 10, False), ("cavia", 1.0, 1, True)])
def test_a_comparison_has_one_step_size_but_for_methods_with_their_own(method, lr, steps, context):
    J = comparison.made_method(method, 1, sine_network, F.mse_loss, 0.03, classes=False)
    assert (J.inner.lr, J.inner.steps) == (lr, steps)
    assert [name for name, _ in J.model.named_buffers()] == ["context"] * context


def test_one_table_serves_training_and_comparison(tmp_path, monkeypatch):
    "MAML as `metalit train` builds it is MAML as compared, to the last bit; so is a new recipe."
    monkeypatch.setitem(RECIPES, "mine",
                        Recipe(built_as(ml.MAML, terms=ml.QueryLoss() + 0.1 * ml.GradientNorm())))
    for method in ("maml", "conml", "mine"):
        J, tasks, *_, optimizer, scheduler, _, _ = build(
            complete({"family": "sinusoids", "method": method, "seed": 3})
        )
        ml.meta_train(J, tasks, steps=3, batch_size=4, seed=3, optimizer=optimizer,
                      scheduler=scheduler, progress=False)
        compare(tasks, sine_network, F.mse_loss, methods=[method], steps=3, seeds=[3], batch_size=4,
                folder=tmp_path / method, progress=False)
        saved = torch.load(tmp_path / method / f"{method}-seed3" / "checkpoint.pt",
                           weights_only=True)["J"]
        assert all(torch.equal(value, saved[name]) for name, value in J.state_dict().items())


def test_images_take_what_recipes_say_for_images(tmp_path):
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    tasks = ml.tasks.Episodes(images, torch.arange(6).repeat_interleave(5), ways=3, shots=1,
                              queries=2)
    def conv(seed, context=0):
        return ml.models.Conv4(3, size=8, filters=4, context=context, seed=seed)
    assert comparison.made_method("cavia", 0, conv, F.cross_entropy, 0.4,
                           classes=True).model.context.shape == (100,)
    runs = compare(tasks, conv, F.cross_entropy, methods=["protonet", "cavia"], steps=1, seeds=[0],
                   batch_size=2, inner_steps=(1,), folder=tmp_path, progress=False)
    assert [run.status for run in runs] == ["1 steps", "1 steps"]


def test_runs_agree_with_training_by_hand(tmp_path):
    J = ml.MAML(net(1), F.mse_loss, lr=0.01)
    ml.meta_train(J, ml.tasks.Sinusoids(3), steps=6, batch_size=4, seed=1, progress=False)
    expected = ml.evaluate(J, ml.tasks.Sinusoids(3), steps=(0, 1)).rows()
    assert small(tmp_path, methods=["maml"], seeds=[1])[0].rows == expected


class Interrupting(ml.tasks.Sinusoids):
    "Presses Ctrl-C before the n-th batch."
    left = 10  # the first looks whether the tasks have classes
    at_once = 1

    def identity(self): return repr(self)

    def batch(self, batch_size, seed=0, step=0):
        type(self).left -= 1
        if self.left == 0: signal.raise_signal(signal.SIGINT)
        return super().batch(batch_size, seed, step)


def test_stopped_and_resumed_gives_the_same(tmp_path):
    "The interruption comes in the third step of the second run."
    options = {"methods": ["maml", "reptile"], "steps": 6, "seeds": [0, 1], "batch_size": 4,
               "inner_steps": (0, 1), "folder": tmp_path / "stopped", "progress": False}
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        compare(Interrupting(3), net, F.mse_loss, **options)
    assert not (tmp_path / "stopped" / "reptile-seed0" / "result.json").exists()
    resumed = compare(Interrupting(3), net, F.mse_loss, **options)
    assert results(resumed) == results(small(tmp_path / "whole"))
    assert compare(Interrupting(3), net, F.mse_loss, **options) == resumed


def test_a_run_that_diverges_is_reported_and_ends_nothing(tmp_path):
    runs = small(tmp_path, lr=1e20, seeds=[0])
    assert [bool(run.rows) for run in runs] == [False, True]
    assert diverged(runs)[0].startswith("maml, seed 0: diverged: the meta-loss is ")
    assert small(tmp_path, lr=1e20, seeds=[0]) == runs


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch):
    runs = small(tmp_path)
    monkeypatch.setattr(comparison, "meta_train", None)
    assert small(tmp_path) == runs


@pytest.mark.parametrize(("changes", "message"), [
    ({"methods": ["maml", "mammal"]}, r"'mammal' \(did you mean maml\?\); there are maml, fomaml"),
    ({"methods": ["maml", "protonet"]}, "protonet needs classes, and sinusoids"),
    ({"methods": ["maml", "cavia"]}, "cavia needs a model with a context: give a function"),
    ({"lr": -1.0}, "lr=-1.0: the inner step size"),
    ({"steps": 7}, r"is of another run:\n  steps was 6, now 7\nUse the old values, or another"),
    ({"lr": 0.1}, r"is of another run:\n  lr was 0.01, now 0.1\n")])
def test_what_is_refused_is_refused_before_training(changes, message, tmp_path):
    small(tmp_path, methods=["maml"], seeds=[0])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message): small(tmp_path, **({"seeds": [5]} | changes))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("other", [
    {"tasks": ml.tasks.Sinusoids(3, phase=(0.0, 3.0))}, {"loss": F.l1_loss},
    {"model": lambda seed: ml.models.mlp(1, 8, 1, seed=seed, activation=torch.nn.Tanh)},
    {"model": lambda seed: ml.models.mlp(1, 8, 1, seed=seed + 1)}],
    ids=["tasks", "loss", "model", "weights"])
def test_what_differs_in_one_number_never_shares_a_result(tmp_path, other):
    given = {"tasks": ml.tasks.Sinusoids(3), "model": net, "loss": F.mse_loss}
    options = {"methods": ["maml"], "steps": 2, "seeds": [0], "batch_size": 3, "inner_steps": (1,),
               "folder": tmp_path, "progress": False}
    compare(**given, **options)
    with pytest.raises(ValueError, match=r"is of another run"): compare(**given | other, **options)
    (tmp_path / "settings.json").unlink()                    # each result says it, too
    with pytest.raises(ValueError, match=r"result.json is of another run"):
        compare(**given | other, **options)


def test_results_of_an_older_version_and_broken_ones_are_refused_by_name(tmp_path):
    (tmp_path / "settings.json").write_text('{"tasks": "Sinusoids", "steps": 6}')
    with pytest.raises(ValueError, match=r"by an older metalit.*: choose another folder"):
        small(tmp_path)
    (tmp_path / "settings.json").unlink()
    small(tmp_path, methods=["maml"], seeds=[0])
    result = tmp_path / "maml-seed0" / "result.json"
    for content, message in (("{", "result.json cannot be read"), ("[]", "names with their"),
                             ("{}", "is not the result of maml with seed 0")):
        result.write_text(content)
        with pytest.raises(ValueError, match=message): small(tmp_path, methods=["maml"], seeds=[0])


def test_a_result_that_cannot_be_written_is_printed(tmp_path, monkeypatch, capsys):
    def full(path, content):
        if path.name == "result.json": raise OSError(28, "No space left on device")
    monkeypatch.setattr(comparison, "write_whole", full)
    with pytest.raises(OSError, match="No space left"): small(tmp_path, methods=["maml"], seeds=[0])
    assert "maml " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["comparison.csv", "comparison.json", "run.json", "checkpoint.pt"])
def test_what_a_comparison_did_not_make_is_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"holds {name}, but no settings\.json"): small(tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "mine")]


def test_nobody_who_reads_does_not_stop_a_comparison(tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)
    process = forked.python("-m", "metalit", "compare", "--methods", "maml", "--steps", 2,
                            "--seeds", 0, "--batch-size", 2, "--out", tmp_path, stdout=theirs,
                            stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    errors = process.communicate(timeout=100)[1]
    assert process.returncode == 0 and "Error" not in errors
    assert (tmp_path / "comparison.csv").exists()


def test_the_environment_names_what_was_used():
    found = comparison.environment()
    assert found["metalit"] == ml.__version__
    assert all(found[name]
               for name in ("torch", "python", "system", "cpu", "cores", "torch_threads"))


COMMAND = ("compare", "--methods", "maml,reptile", "--steps", 6, "--seeds", "0,1", "--batch-size",
           4, "--quiet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "both"
    output = metalit(*COMMAND, "--out", folder, "--results",
                     folder.parent / "results" / "comparison.json")
    return folder, output


def test_the_command_writes_table_record_and_picture(run):
    folder, output = run
    record = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert set(record) == {"what", "command", "budget", "environment", "runs", "summary",
                           "diverged"}
    assert record["command"] == ("metalit compare --methods maml,reptile --shots 5 --steps 6 "
                                 "--seeds 0,1 --inner-lr 0.01 --batch-size 4")
    assert ((folder.parent / "results" / "comparison.json").read_text()
            == (folder / "comparison.json").read_text())
    runs, _ = comparison.read_record(folder / "comparison.json")
    assert [line._asdict() for line in summarise(runs)] == record["summary"]
    assert as_table(summarise(runs)) in output
    rows = list(csv.DictReader((folder / "comparison.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == ["maml"] * 5 + ["reptile"] * 5
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in record["summary"]]
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_printed_before_a_file_that_cannot_be_written(run, monkeypatch):
    folder, output = run
    def full(path, content): raise OSError(28, f"could not write {path}: No space left")
    monkeypatch.setattr(comparison, "write_whole", full)
    monkeypatch.setattr(comparison, "same_settings", lambda folder, settings: None)
    again = metalit(*COMMAND, "--out", folder, code=1)
    assert output.split("\nTable: ")[0] in again
    assert again.index("seconds of training") < again.index("comparison.csv: No space left")


@pytest.mark.parametrize("content", ["mine", "[]", "{}", '{"runs": [1]}', None])
def test_a_file_that_is_no_comparison_is_not_replaced_by_one(run, tmp_path, content):
    path = tmp_path / "results.json"
    if content is None: os.mkfifo(path)
    else: path.write_text(content)
    output = metalit(*COMMAND, "--out", run[0], "--results", path, code=1)
    assert "is there already, and no comparison.json: choose another name" in output
    assert path.is_fifo() if content is None else path.read_text() == content
    metalit(*COMMAND, "--out", run[0], "--results", run[0].parent / "results" / "comparison.json")


def test_the_command_stopped_and_resumed_gives_the_same_table(run, tmp_path, monkeypatch):
    Interrupting.left = 12
    monkeypatch.setattr("metalit.cli.Sinusoids", Interrupting)
    assert "stopped, and saved" in metalit(*COMMAND, "--out", tmp_path, code=1)
    assert not (tmp_path / "comparison.json").exists()
    metalit(*COMMAND, "--out", tmp_path)
    resumed, whole = (comparison.read_record(folder / "comparison.json")[0]
                      for folder in (tmp_path, run[0]))
    assert results(resumed) == results(whole)


def test_the_command_reports_divergence_in_strict_json(tmp_path):
    output = metalit(*COMMAND, "--inner-lr", "1e20", "--out", tmp_path)
    assert "maml, seed 1: diverged" in output
    def refuse(name): raise AssertionError(name)
    record = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=refuse)
    assert len(record["diverged"]) == 2
    assert {line["method"] for line in record["summary"]} == {"reptile"}
    nothing = metalit("compare", "--methods", "maml", "--steps", 2, "--seeds", 0, "--inner-lr",
                      "1e20", "--quiet", "--out", tmp_path / "none")
    assert "Picture" not in nothing


def test_losses_that_are_not_finite_become_null(tmp_path):
    comparison.save(comparison.record(RUNS, {}, "by hand"), tmp_path / "c.json")
    assert comparison.read_record(tmp_path / "c.json")[0] == RUNS
    with pytest.raises(ValueError, match="not JSON compliant"):
        comparison.save({"loss": math.inf}, tmp_path / "c.json")
    assert comparison.read_record(tmp_path / "c.json")[0] == RUNS
    assert comparison.number(math.nan) is comparison.number(math.inf) is None


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--methods", "maml,mammal"], 1, "Error: no method 'mammal' (did you mean maml?); there are"),
    (["--methods", "maml,protomaml"], 1, "Error: protomaml needs classes, and sinusoids"),
    (["--methods", ","], 2, "at least one name is needed"),
    (["--seeds", "a"], 2, "is not a list of whole numbers"),
    (["--inner-lr", "0"], 2, "'0' is not a finite number above 0"),
    (["--steps", "0"], 2, "0 is not in the range")])
def test_errors_of_the_command_are_one_line(arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = metalit("compare", *arguments, "--quiet", code=code)
    assert message in output
    assert "Traceback" not in output
    assert not list(tmp_path.iterdir())
