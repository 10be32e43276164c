"""Write the tables of README.md and of results/README.md from the files in results/.

    python tools/tables.py [--check]

A table stands between `<!-- table: FILE -->`, or `<!-- table: FILE-PART -->`, and `<!-- end -->`.
With --check nothing is written, and the exit code tells whether both are as the files say.
"""
from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BLOWN_UP = 100.0                             # a loss beyond that is told in words


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A markdown table, its first column left-aligned."""
    lines = [head, [":---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def sinusoids(record: dict[str, Any]) -> str:
    """MAML on sinusoids against the figures of the paper."""
    steps = ["0", "1", "2", "5", "10"]
    paper = ["*paper, 5 shots (appendix C)*", "", "*0.67*", "", "*0.38*", "*0.35*"]
    rows = [[name, *(cell(setting["summary"][k]["mean"], setting["summary"][k]["sd_of_seeds"])
                     for k in steps)]
            for name, setting in record["settings"].items()]
    if there := record.get("without"):
        rows.append(["*blind: the same answer for all*",
                     *[cell(there["loss"], there["sd_of_seeds"])] * len(steps)])
    first = next(iter(record["settings"].values()))
    made = {name: setting["versions"]["metalit"] for name, setting in record["settings"].items()}
    return (markdown(["after inner steps", *steps], [paper, *rows]) + "\n\nMean of "
            f"{len(first['runs'])} seeds ± standard deviation between them; "
            f"{first['meta_steps']:,} meta-steps each. "
            + environment(record["machine"], first["versions"], made))


def sinusoid_step(record: dict[str, Any]) -> str:
    """Milliseconds of one meta-step, and how many times as fast metalit is."""
    names = {"autograd": "per-task autograd loop", "higher": "higher", "torchopt": "TorchOpt",
             "jax": "JAX, jitted",
             "metalit": "**metalit**", "metalit_compiled": "**metalit, compiled**"}
    rows = []
    for key in record["inner_steps"]["1"]["ms"]:
        cells = []
        for k in record["inner_steps"]:
            result = record["inner_steps"][k]
            ms, fast = result["ms"][key], result["times_as_fast"]
            cells += [f"{ms['median']:.2f} ({ms['min']:.2f}–{ms['max']:.2f})",
                      f"{fast['metalit'][key]:.1f}×", f"{fast['metalit_compiled'][key]:.1f}×"]
        rows.append([names.get(key, key), *cells])
    head = ["ms, median (min–max)"]
    for k in record["inner_steps"]:
        head += [f"K = {k}", "eager is faster by", "compiled is faster by"]
    return markdown(head, rows) + "\n\n" + environment(record["machine"], record["versions"])


def whole_run(record: dict[str, Any]) -> str:
    """Milliseconds for a step of a training run, and what the compiler takes first."""
    names = record["labels"] | {"whole": f"**{record['labels']['whole']}**"}
    rows = []
    for way in next(iter(record["inner_steps"].values())):
        cells = []
        for ways in record["inner_steps"].values():
            row = ways[way]
            cells += [f"{row['median']:.2f} ({row['min']:.2f}–{row['max']:.2f})",
                      f"{row['first_call_seconds']:.0f}"]
        rows.append([names[way], *cells])
    head = ["ms a step of a run, median (min–max)"]
    for k in record["inner_steps"]: head += [f"K = {k}", "first call, s"]
    return markdown(head, rows) + "\n\n" + environment(record["machine"], record["versions"])


def whole_run_in_short(record: dict[str, Any]) -> str:
    """The same of three ways, medians alone, in a sentence."""
    one, five = ({way: f"{row['median']:.2f}" for way, row in ways.items()}
                 for ways in record["inner_steps"].values())
    return ("A step of a whole run of MAML on these waves, drawn tasks and Adam included, takes "
            f"{one['eager']} ms on one core ({five['eager']} with five inner steps), "
            f"{one['whole']} ({five['whole']}) with `compile=True`, and {one['jax']} "
            f"({five['jax']}) where all of it is one `lax.scan` of JAX.")


def many_runs(record: dict[str, Any]) -> str:
    """Milliseconds for a step of several runs, one after another, side by side, as one graph."""
    ways, threads = record["labels"], record["threads"]
    rows = []
    for name in threads["1"]:
        cells = [milliseconds(threads["1"][name].get(way)) for way in ways]
        cells += [milliseconds(threads["2"][name].get(way)) for way in ("alone", "many")]
        rows.append([name, *cells])
    head = [f"ms a step of {record['runs']} runs", *ways.values(),
            *(f"{ways[way]}, 2 threads" for way in ("alone", "many"))]
    return markdown(head, rows) + "\n\n" + environment(record["machine"], record["versions"])


def milliseconds(times: dict[str, float] | None) -> str:
    """A median with its spread; nothing where it was not measured."""
    if times is None: return ""
    digits = 2 if times["median"] < 10 else 1 if times["median"] < 100 else 0
    return "{:.{d}f} ({:.{d}f}–{:.{d}f})".format(times["median"], times["min"], times["max"],
                                                 d=digits)


def comparison(record: dict[str, Any]) -> str:
    """The methods of `metalit compare`."""
    lines = record["summary"]
    steps = sorted({line["inner_steps"] for line in lines})
    rows = []
    for name in dict.fromkeys(line["method"] for line in lines):
        mine = {line["inner_steps"]: line for line in lines if line["method"] == name}
        cells = [cell(mine[k]["loss"], mine[k]["ci95"]) for k in steps]
        rows.append([name, *cells, str(round(mine[steps[0]]["relative_time"] or float("nan"), 1))])
    if there := record.get("without"):
        rows.append(["*blind*", *[cell(there["loss"], there["ci95"])] * len(steps), ""])
    return (
        markdown(["method", *(f"{k} step" + "s" * (k != 1) for k in steps), "time, × MAML"], rows)
        + "\n\n" + environment(record["environment"], {}) + told_of_blind(record)
    )


def omniglot(record: dict[str, Any]) -> str:
    """The long MAML runs on Omniglot, judged in several ways."""
    rows = [["*paper, 60,000 meta-steps*", "", "",
             f"*{record['published']['maml']['5-way 1-shot']}*", "", ""]]
    for lr, run in record["long"].items():
        for kind, evaluation in run["evaluation"].items():
            rows.append([f"inner step size {lr}: {kind}", *(percent(row) for row in evaluation)])
    steps = [row["inner_steps"] for row in evaluation]
    for name, row in (record.get("without") or {}).get("5-way 1-shot", {}).items():
        rows.append([f"*without learning: {name}*", *[percent(row)] * len(steps)])
    seconds = " and ".join(f"{run['seconds'] / 60:.0f}" for run in record["long"].values())
    return (markdown(["after inner steps", *map(str, steps)], rows) + "\n\nAccuracy in per cent ± "
            f"95 % over 600 tasks. {run['meta_steps']:,} meta-steps of 32 tasks each, "
            + f"{seconds} minutes on one core each, beside other work. "
            + environment(record["machine"], record["versions"],
                          {lr: run["metalit"] for lr, run in record["long"].items()}))


def omniglot_methods(record: dict[str, Any]) -> str:
    """Ten methods on Omniglot with one small budget, beside what their papers reached.

    The papers had budgets of their own.
    """
    looked_at = {"reptile": 50, "protonet": 0}
    rows = []
    for method in next(iter(record["methods"].values())):
        cells = [str(looked_at.get(method, 3))]
        for setting, runs in record["methods"].items():
            row = next(r for r in runs[method]["evaluation"]
                       if r["inner_steps"] == looked_at.get(method, 3))
            published = record["published"].get(method, {}).get(setting)
            cells += [percent(row), f"*{published}*" if published else ""]
        rows.append([method, *cells])
    rows += without_learning(record)
    head = ["method", "inner steps"]
    for setting in record["methods"]: head += [setting, "published"]
    budget = ", ".join(f"{setting['steps']} meta-steps of {setting['batch_size']} tasks ({name})"
                       for name, setting in record["settings"].items())
    return (markdown(head, rows)
            + f"\n\nAccuracy in per cent ± 95 % over 600 tasks, one seed; {budget}. "
            + environment(record["machine"], record["versions"],
                          {f"{method}, {setting}": run["metalit"]
                           for setting, runs in record["methods"].items()
                           for method, run in runs.items()}))


def without_learning(record: dict[str, Any]) -> list[list[str]]:
    """The rows of who does no meta-learning, in the settings of Omniglot."""
    there = record.get("without") or {}
    names = next(iter(there.values()), {})
    return [[f"*{name}*", "", *(text for setting in record["methods"]
                                for text in (percent(there[setting][name]), ""))]
            for name in names]


def told_of_blind(record: dict[str, Any]) -> str:
    """The version that made the row of the blind constant, where it is another."""
    made = record.get("made")
    same = made == record["environment"].get("metalit")
    if not made or same: return ""
    return f" Blind: metalit {made}, which draws other tasks from a seed."


def natural(record: dict[str, Any]) -> str:
    """Published splits of natural pictures: what was measured, beside what was published."""
    rows, about = [], []
    settings = ["5-way 1-shot", "5-way 5-shot"]
    for protocol, published in record["published"].items():
        mine = record["measured"].get(protocol)
        done: dict[str, Any] = mine["methods"] if mine else {}
        for method in dict.fromkeys([*(name for of in done.values() for name in of), *published]):
            paper = published.get(method, {})
            cells = []
            for setting in settings:
                run = done.get(setting, {}).get(method)
                cells += [of_run(run, record["looked_at"].get(method)),
                          f"*{paper[setting]}*" if setting in paper else ""]
            rows.append([f"{protocol}: {method}", *cells, paper.get("source", "")])
        if mine:
            about.append(f"{protocol}: {mine['steps']:,} meta-steps of {mine['batch_size']} "
                         f"tasks, {mine['filters']} filters, {mine['test_tasks']} unseen tasks; "
                         + environment(mine["machine"], mine["versions"]))
    missing = [name for name in record["published"] if name not in record["measured"]]
    if missing: about.append(f"Not measured: {' and '.join(missing)}.")
    head = ["", *(cell for name in settings for cell in (name, "published")), "source"]
    return markdown(head, rows) + "\n\nAccuracy in per cent ± 95 %. " + " ".join(about)


def of_run(run: dict[str, Any] | None, looked_at: int | None) -> str:
    """What a method reached, or that nobody measured it."""
    if run is None: return "not measured"
    if "evaluation" not in run: return percent(run)
    return percent(next(row for row in run["evaluation"] if row["inner_steps"] == looked_at))


def image_step(record: dict[str, Any]) -> str:
    """Milliseconds of one meta-step on images, against the per-task loop and the machine's peak."""
    names = {"autograd": "per-task autograd loop", "higher": "higher", "torchopt": "TorchOpt",
             "metalit": "**metalit**", "metalit_compiled": "**metalit, compiled**",
             "metalit_half": "**the same, bfloat16**", "jax_vmap": "JAX, `vmap`",
             "jax_map": "JAX, `lax.map`"}
    rows = []
    for tasks, settings in record["tasks"].items():
        for result in settings.values():
            memory = "freed memory kept" if result["kept_freed_memory"] else "as it is"
            rows += [[names.get(key, key), tasks, memory,
                      f"{ms['median']:.0f} ({ms['min']:.0f}–{ms['max']:.0f})",
                      f"{result['times_as_fast_as_loop'][key]:.2g}×",
                      f"{100 * result['share_of_peak'][key]:.2g} %",
                      f"{result['error_as_timed'][key]:.0e}"]
                     for key, ms in result["ms"].items()]
    head = ["", "tasks", "malloc", "ms, median (min–max)", "as fast as the loop",
            "share of the matmul peak", "error as timed"]
    return markdown(head, rows) + "\n\n" + environment(record["machine"], record["versions"])


def image_kernels(record: dict[str, Any]) -> str:
    """The compiled step on images, kernel by kernel, the costly ones first."""
    def row(kernel: dict[str, Any]) -> list[str]:
        sizes = [" × ".join(map(str, kernel[name])) for name in ("images", "results")]
        alone, best = kernel["ms"]["as in the graph"], kernel["ms"][kernel["best"]]
        times = f"{kernel['times']} × " if kernel["times"] > 1 else ""
        return [times + kernel["what"], *sizes, f"{alone:.1f}", f"{best:.1f}", kernel["best"],
                f"{kernel['gflop'] / best * 1e3:.0f}"]

    ordered = sorted(record["kernels"], key=lambda kernel: -kernel["ms"]["as in the graph"])
    large = [kernel for kernel in ordered if kernel["ms"]["as in the graph"] >= 1]
    head = ["", "images", "results", "ms", "best, ms", "the best way", "GFLOP/s of it"]
    return (markdown(head, [row(kernel) for kernel in large]) + "\n\n" + in_sum(record)
            + f" Another {len(ordered) - len(large)} convolutions take less than 1 ms each. "
            + environment(record["machine"], record["versions"]))


def in_sum(record: dict[str, Any]) -> str:
    """What the kernels of a step on images come to."""
    profiled, sums = record["profiled"], record["sums"]
    return (f"Within a step of {profiled['step']:.0f} ms convolutions took "
            f"{profiled['convolutions']:.0f} and all other kernels "
            f"{profiled['other kernels']:.0f}, {100 * sums['explained']:.0f} % of it. "
            "Alone, the convolutions take "
            f"{sums['convolutions alone']:.0f} ms, each in the best way "
            f"{sums['convolutions at best']:.0f}; what the others read and write takes "
            f"{sums['other kernels at best']:.0f}. Together that is "
            f"{sums['step at best']:.0f} ms.")


def memory(record: dict[str, Any]) -> str:
    """Peak memory of a meta-step: predicted and measured."""
    def place(point: dict[str, Any]) -> tuple[int, ...]:
        return point["size"], point["tasks"], point["steps"]

    first = {place(point): point["measured_bytes"] for point in record["points"]
             if point["variant"] == "first_order"}
    rows = [[record["labels"][point["variant"]], f"{point['size']} × {point['size']}",
             str(point["tasks"]), str(point["steps"]),
             *(f"{point[name] / 2**20:.0f}"
               for name in ("path_bytes", "predicted_bytes", "measured_bytes")),
             f"{point['measured_bytes'] / first[place(point)]:.2f} ×",
             f"{point['resident_peak_bytes'] / 2**20:.0f}", f"{point['ms']['median']:.0f}"]
            for point in record["points"]]
    head = ["", "pictures", "tasks", "K", "path, MiB", "predicted, MiB", "measured, MiB",
            "of first order", "resident, MiB", "ms"]
    return markdown(head, rows) + "\n\n" + environment(record["machine"], record["versions"])


def long_loops(record: dict[str, Any]) -> str:
    """Time, memory and first call of a meta-step against the number of inner steps."""
    rows = [[f"{point['bed']}: {record['labels'][point['way']]}", str(point["steps"]),
             f"{point['ms']['median']:.2f}", f"{point['peak_bytes'] / 2**20:.1f}",
             f"{point['first_seconds']:.1f}"] for point in record["points"]]
    head = ["", "K", "ms", "peak, MiB", "first call, s"]
    return markdown(head, rows) + "\n\n" + environment(record["machine"], record["versions"])


def processes(record: dict[str, Any]) -> str:
    """Tasks per second as processes are added."""
    alone = record["measured"][0]["tasks_per_second"]
    rows = [[str(row["processes"]), f"{row['tasks_per_second']:.0f}",
             f"{row['tasks_per_second'] / alone:.2f}×"] for row in record["measured"]]
    message = (f"The gradient is {record['gradient_bytes'] / 1e6:.2f} MB, and averaging it takes "
               f"{1e3 * record['allreduce_seconds']:.1f} ms. ")
    message += " ".join(
        f"{words}, whose gradient is {found['gradient_bytes'] / 1e6:.1f} MB, two processes "
        f"take {1e3 * found['measured_seconds']:.0f} ms a step, which the model of that chapter "
        f"says to be {1e3 * found['predicted_seconds']:.0f}." for words, found in (
            ("On these images", record["model"]["images"]),
            ("On two tasks and two layers of 4,096 units", record["model"]["wide"]))) + " "
    return (markdown(["processes of one thread", "tasks per second", ""], rows) + "\n\n" + message
            + environment(record["machine"], record["versions"]))


def pages(record: dict[str, Any]) -> str:
    """Weight and speed of the site's pages: the five figures', the middle and worst of all."""
    def row(name: str, page: dict[str, Any]) -> list[str]:
        move = page["move_ms"]
        return [name, f"{page['bytes'] / 1e3:.0f}", f"{page['gzipped'] / 1e3:.0f}",
                f"{page['first_picture_ms']:.0f}",
                f"{move['median']:.0f} ({move['max']:.0f})" if move else ""]

    def over_all(name: str, pick: Callable[[list[float]], float]) -> list[str]:
        moves = [page["move_ms"] for page in record["pages"].values() if page["move_ms"]]
        numbers = [pick([page[key] for page in record["pages"].values()])
                   for key in ("bytes", "gzipped", "first_picture_ms")]
        scaled = zip(numbers, (1e3, 1e3, 1), strict=True)
        middle, longest = (pick([move[key] for move in moves]) for key in ("median", "max"))
        return [name, *(f"{number / scale:.0f}" for number, scale in scaled),
                f"{middle:.0f} ({longest:.0f})"]

    rows = [row(name, page) for name, page in record["pages"].items()
            if name.endswith(("_figure", "two_parameters"))]
    rows += [over_all(f"*median of {len(record['pages'])} pages*", statistics.median),
             over_all("*worst*", max)]
    head = ["page", "kB", "kB gzipped", "first picture, ms", "a move, ms: median (worst of 20)"]
    return markdown(head, rows) + "\n\n" + environment(record["machine"], record["versions"])


def over_seeds(bed: str, at: int) -> Callable[[dict[str, Any]], str]:
    """A table of rows that were trained with several seeds, beside the first of them."""
    def table(record: dict[str, Any]) -> str:
        found = record["beds"][bed]
        settings, steps = found["settings"], found["settings"]["inner_steps"]
        accuracy = "accuracy" in settings["measured"]
        rows = [[title, *(mean_of(row["summary"][steps.index(k)], accuracy) for k in steps[1:]),
                 difference(row["minus_first"]["mean"][steps.index(at)], accuracy)]
                for title, row in found["rows"].items()]
        head = [f"{settings['measured']} after inner steps", *map(str, steps[1:]),
                f"beside the first, after {at}"]
        budget = (f"Mean of {len(settings['seeds'])} seeds ± standard deviation between them; last "
                  "column: mean of the differences seed by seed ± half a 95 % interval, bold where "
                  f"it leaves out zero. {settings['meta_steps']:,} meta-steps of "
                  f"{settings['batch_size']} tasks. ")
        return (markdown(head, rows) + "\n\n" + budget
                + environment(record["machine"], settings["versions"]))
    return table


def measurement(suite: str) -> Callable[[dict[str, Any]], str]:
    """All methods on a frozen suite, as far as they are measured: the best first."""
    def table(record: dict[str, Any]) -> str:
        if (found := record["suites"].get(suite)) is None: return "*Not measured yet.*"
        done = sorted(found["rows"].items(), key=lambda pair: of_own(pair[1]))
        rows = [[name, str(len(line["seeds"])), *measured_cells(line),
                 published_cell(found["published"].get(name))] for name, line in done]
        head = ["method", "seeds", "inner rate", "after 1", "after 10", "after its own steps",
                "worst 5 %", "beside MAML", "ms a step", "MiB", "s at test", "published"]
        return markdown(head, rows) + "\n\n" + told_of_measurement(record, found)
    return table


# Who stands in the short table, where they are measured; those in italics learn nothing from tasks
# about learning.
SHORT = ("ridge", "meta-curvature", "meta-sgd", "alfa", "boil", "maml", "conml", "gradient-norm",
         "sharp-maml", "triplet-maml", "taml", "bmg", "maml++", "l2f", "fomaml", "reptile", "anil",
         "as-written-reptile", "as-written-contrastive", "as-written-meta-curvature")
WITHOUT = ("gaussian-process", "joint", "blind")


def in_short(record: dict[str, Any]) -> str:
    """What methods reach on the first suite and how far that is from MAML; the best first."""
    rows = record["suites"]["sinusoids-5-shot"]["rows"]
    there = sorted((name for name in (*SHORT, *WITHOUT) if name in rows),
                   key=lambda name: of_own(rows[name]))
    table = []
    for name in there:
        line, cells = rows[name], measured_cells(rows[name])
        time = "" if line.get("ms") is None else f"{line['ms']:.1f}"
        table.append([f"*{name}*" if name in WITHOUT else name, cells[3], cells[5], time])
    return markdown(["method", "error", "beside MAML", "ms a meta-step"], table)


def shifted(suite: str) -> Callable[[dict[str, Any]], str]:
    """The same methods on tasks of another kind than they were trained for."""
    def table(record: dict[str, Any]) -> str:
        if (found := record["suites"].get(suite)) is None: return "*Not measured yet.*"
        good = [(name, line) for name, line in found["rows"].items() if "loss" in line]
        kinds = list(good[0][1]["shifts"]) if good else []
        rows = [[name, cell(**as_cell(line["loss"][str(line["own_steps"])])),
                 *(cell(**as_cell(line["shifts"][kind])) for kind in kinds)]
                for name, line in sorted(good, key=lambda pair: of_own(pair[1]))]
        return markdown(["after its own steps", "as trained", *kinds], rows)
    return table


def of_own(line: dict[str, Any]) -> float:
    """The mean after a method's own inner steps, to sort by; infinite where there is none."""
    if "loss" not in line: return float("inf")
    mean = line["loss"][str(line["own_steps"])]["mean"]
    return float("inf") if mean is None else mean


def as_cell(found: dict[str, Any]) -> dict[str, Any]:
    """Mean and deviation of seeds, as `cell` wants them."""
    return {"mean": found["mean"], "spread": found["sd_of_seeds"]}


def measured_cells(line: dict[str, Any]) -> list[str]:
    """What a method was set to, reaches and costs; a run that diverged is told."""
    gone, chosen = len(line["diverged"]), line["chosen"]
    rate = "" if chosen["rate"] is None else f"{chosen['rate']:g}" + "*" * chosen["at_the_end"]
    if "loss" not in line: return [rate, *["diverged"] * 3, *[""] * 5]
    own = line["own_steps"]
    losses = [cell(**as_cell(line["loss"][str(k)])) for k in (1, 10, own)]
    if not own: losses = ["", "", losses[2]]
    if own > 1: losses[2] += f" ({own})"
    if gone: losses[2] += f", {gone} diverged"
    costs = [f"{line[name]:.{digits}f}" if line[name] is not None else ""
             for name, digits in (("ms", 2), ("mib", 2), ("seconds_at_test", 2))]
    return [rate, *losses, cell(**as_cell(line["worst"])), beside_of(line["beside_maml"]), *costs]


def beside_of(gap: dict[str, Any] | None) -> str:
    """A method less MAML, bold where the interval leaves out zero."""
    if gap is None: return ""
    if gap["mean"] is None: return "not finite"
    if abs(gap["mean"]) > BLOWN_UP: return ("MAML " if gap["mean"] < 0 else "") + "blows up"
    if gap["half"] is None: return f"{gap['mean']:+.2f}"
    words = f"{gap['mean']:+.2f} ± {gap['half']:.2f}"
    return words if gap["verdict"] == "no difference shown" else f"**{words}**"


def published_cell(found: dict[str, str] | None) -> str:
    """A published figure with its source, in italics."""
    return f"*{found['figure']} ({found['source']})*" if found else ""


def told_of_measurement(record: dict[str, Any], found: dict[str, Any]) -> str:
    """What was measured and what not, and how, in some sentences."""
    settings, rows = found["settings"], found["rows"]
    whole = [name for name, line in rows.items() if len(line["seeds"]) == settings["seeds"]]
    missing = [name for name in found["planned"] if name not in rows]
    count = f"{len(whole)} of {len(found['planned'])} methods"
    told = [how_measured(settings), f"Measured with all {settings['seeds']} seeds: {count}."]
    if missing: told.append(f"Not measured yet: {', '.join(missing)}.")
    if found["left_out"]:
        told.append("Not for these tasks: " + "; ".join(
            f"{name} ({why})" for name, why in found["left_out"].items()) + ".")
    told.append(environment(record["machine"], settings["versions"]))
    return " ".join(told)


def how_measured(settings: dict[str, Any]) -> str:
    """The suite, the budget, and what the intervals are."""
    level, count = 100 * settings["level"], settings["comparisons"]
    return (f"Suite `{settings['suite']}`, {settings['tasks']:,} tasks, checksum "
            f"{settings['checksum'][:16]}. {settings['meta_steps']:,} meta-steps of "
            f"{settings['batch_size']} tasks; mean ± standard deviation of seeds; a rate with a * "
            "is the smallest or largest that was tried; worst 5 %: of the tasks, after the "
            "method's own inner steps. Beside MAML: after as many, tasks and seeds paired, ± half "
            f"an interval of {level:.2f} %, which is 95 % for all {count} comparisons together; "
            "bold where it leaves out zero.")


def mean_of(cell_: dict[str, float | None], accuracy: bool) -> str:
    """Mean and deviation of seeds, of an accuracy in per cent or a loss."""
    mean, spread = cell_["mean"], cell_["sd_of_seeds"]
    if not accuracy or mean is None or spread is None: return cell(mean, spread)
    return f"{mean:.1f} ± {spread:.1f}"


def difference(gap: dict[str, Any], accuracy: bool) -> str:
    """A difference and half its interval, bold where zero is not in it."""
    if gap["mean"] is None: return "not finite"
    if not gap["mean"] and not gap["ci95"]: return ""
    digits = 1 if accuracy else 2
    words = f"{gap['mean']:+.{digits}f} ± {gap['ci95']:.{digits}f}"
    return f"**{words}**" if gap["shown"] else words


def percent(row: dict[str, Any]) -> str:
    """An accuracy and its interval."""
    return f"{row['accuracy']:.1f} ± {row['ci95']:.1f}"


def beyond(name: str) -> Callable[[dict[str, Any]], str]:
    """One of the experiments with a single long task, over seeds, beside one of its rows."""
    def table(record: dict[str, Any]) -> str:
        experiment = record["experiments"][name]
        rows = []
        for title, row in experiment["rows"].items():
            gap, half = row["less"]["mean"], row["less"]["ci95"]
            beside = "" if gap == half == 0 else f"{gap:+.2f} ± {half:.2f}"
            shown = f"**{beside}**" if abs(gap) > half else beside
            rows.append([title, f"{row['mean']:.2f} ± {row['sd_of_seeds']:.2f}", shown])
        first = next(title for title, row in experiment["rows"].items()
                     if row["less"]["ci95"] == 0)
        seeds = len(experiment["rows"][first]["seeds"])
        return (markdown(["", experiment["measured"], f"beside “{first}”"], rows)
                + f"\n\nMean of {seeds} seeds ± standard deviation between them; last column: mean "
                "of the differences seed by seed ± half a 95 % interval, bold where it leaves out "
                f"zero. {experiment['outer_steps']} outer steps. "
                + environment(record["machine"], record["versions"]))
    return table


def cell(mean: float | None, spread: float | None) -> str:
    """Mean and spread; a mean that is not finite, or beyond that: a few tasks went astray."""
    if mean is None or mean > BLOWN_UP: return "blows up"
    return f"{mean:.2f}" if spread is None else f"{mean:.2f} ± {spread:.2f}"


def designs(record: dict[str, Any]) -> str:
    """What searches found, beside methods tuned as long, as published, and a random search."""
    rows = [[suite, *cells] for suite, found in record["suites"].items()
            for cells in finalists(found)]
    head = ["tasks", "who", "error anew", "the search thought", "less the best tuned",
            "ms a meta-step", "ms a task at test"]
    note = ("Mean of the fresh seeds ± standard deviation between them, after one inner step or a "
            "head in closed form. Less the best tuned: mean over seeds ± half an interval that is "
            "corrected for the number of finalists, bold where it leaves out zero. ")
    asked = "; ".join(searches(suite, found) for suite, found in record["suites"].items())
    versions = next(iter(record["suites"].values()))["versions"]
    return (markdown(head, rows) + "\n\n" + note + f"Of each search: {asked}. "
            + environment(record["machine"], versions))


def searches(suite: str, found: dict[str, Any]) -> str:
    """How many candidates, meta-steps and seeds the searches of a suite had, and what space."""
    asked, then = found["asked"], found.get("then")
    end = ", all trained to their end" if asked.get("to_the_end") else ""
    kind = asked.get("schedule", "constant")
    shrinks = "" if kind == "constant" else f" ({kind})"
    return (f"{suite} {asked['trials']} candidates of {asked['steps']:,} meta-steps{shrinks}{end}, "
            f"{len(asked['seeds'])} seeds" + (f", {then}" if then else ""))


KINDS = {"found": "found", "tuned": "tuned as long", "published": "as published",
         "random": "found at random"}


def finalists(found: dict[str, Any]) -> list[list[str]]:
    """A row for each who was in the final, the best first; those that diverged say so."""
    gaps = {gap["method"]: gap for gap in found["gaps"]}
    rows = []
    for final in found["finals"]:
        gap, by_seed = gaps.get(final["name"]), list(final["by seed"].values())
        error = (f"{final['error']:.3g} ± {statistics.stdev(by_seed):.2g}" if by_seed
                 else "diverged")
        less = "" if gap is None or gap["mean"] is None else (
            f"{gap['mean']:+.3g} ± {gap['ci95']:.2g}")
        if gap and gap["verdict"] in ("helped", "hurt"): less = f"**{less}**"
        thought = "" if final["thought"] is None else f"{final['thought']:.3g}"
        name = final["name"].split("-")[0] if final["kind"] in ("found", "random") else (
            final["name"].rpartition("-tuned")[0] or final["name"].removesuffix("-published"))
        who = KINDS[final["kind"]] if name in ("found", "random") else (
            f"{name}, {KINDS[final['kind']]}")
        rows.append([who, error, thought, less, f"{final['ms']:.2f}" if final["ms"] else "",
                     f"{final['ms at test']:.2f}"])
    return rows


def environment(machine: dict[str, Any], versions: dict[str, str],
                made: dict[str, str] | None = None) -> str:
    """The machine and the versions, in a sentence; `made` says which metalit made which rows."""
    known = {"python": machine["python"], "torch": machine.get("torch")} | versions
    if made: known["metalit"] = of_rows(made)
    releases = ", ".join(f"{name} {version}" for name, version in known.items() if version)
    return (f"{machine['cpu']}, {machine['cores']} cores, {machine['torch_threads']} torch "
            f"threads; {releases}.")


def of_rows(made: dict[str, str]) -> str:
    """The version that made all rows, or the newest with the rows that it made, and the others."""
    older, newest = min(made.values()), max(made.values())
    rows = "; ".join(name for name, version in made.items() if version == newest)
    return newest if older == newest else f"{newest} (rows: {rows}) and {older} (all others)"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "sinusoids": sinusoids, "sinusoid_step": sinusoid_step, "whole_run": whole_run,
    "many_runs": many_runs, "design": designs,
    "comparison": comparison,
    "image_step": image_step, "image_kernels": image_kernels, "memory": memory,
    "long_loops": long_loops,
    "maml_plus_plus-waves": over_seeds("sine waves", 5),
    "maml_plus_plus-characters": over_seeds("characters", 5),
    "inner_state": over_seeds("characters", 5), "bootstrap": over_seeds("sine waves", 1),
    "processes": processes, "omniglot": omniglot, "omniglot-methods": omniglot_methods,
    "beyond-weights": beyond("weights"), "beyond-augmentation": beyond("augmentation"),
    "beyond-distillation": beyond("distillation"), "natural": natural, "pages": pages}
TABLES |= {"measurement-short": in_short, "whole_run-short": whole_run_in_short}
SUITES = ("sinusoids-5-shot", "sinusoids-10-shot", "bowls", "amplitude-bins", "patients-3-samples")
TABLES |= {f"measurement-{suite}": measurement(suite) for suite in SUITES}
TABLES |= {f"measurement-{suite}-shifted": shifted(suite) for suite in SUITES}


def beside(file: Path) -> dict[str, Any]:
    """What a file holds, and, as `without`, who does no meta-learning: from results/blind.json."""
    record, blind = json.loads(file.read_text(encoding="utf-8")), file.parent / "blind.json"
    if not blind.exists(): return record
    there = json.loads(blind.read_text(encoding="utf-8"))
    return record | {"without": there.get(file.stem), "made": there["versions"]["metalit"]}


def filled(text: str, results: Path) -> str:
    """The text with every table as its file says; a table without a file says so."""
    def table(match: re.Match[str]) -> str:
        name, file = match[1], results / f"{match[1].partition('-')[0]}.json"
        body = TABLES[name](beside(file)) if file.exists() else "*Not measured yet.*"
        return f"<!-- table: {name} -->\n{body}\n<!-- end -->"
    return re.sub(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    """Read the command line."""
    results, stale = ROOT / "results", []
    for readme in (ROOT / "README.md", results / "README.md"):
        before = readme.read_text(encoding="utf-8")
        after = filled(before, results)
        if before != after: stale.append(readme.relative_to(ROOT).as_posix())
        if "--check" not in sys.argv: readme.write_text(after, encoding="utf-8")
    if "--check" in sys.argv and stale:
        sys.exit(f"{' and '.join(stale)}: not as results/ says: run python tools/tables.py")


if __name__ == "__main__":
    main()
