"""Budget: the solved rate against the number of denoising steps and their shift, on the same puzzles and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from numpy.typing import NDArray

from minicos.experiments.base import (
    TOLD,
    Experiment,
    Scale,
    Verdict,
    bars,
    chunked,
    joined,
    judged,
    labels_of,
    means,
    of_all,
    puzzles_for,
    tasks_of,
    with_lengths,
)
from minicos.measures import leans
from minicos.model import Reasoner
from minicos.runs import Run
from minicos.sampling import Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("maze", "rotation-open")
STEPS = {False: (1, 2, 4, 8, 16, 64), True: (1, 4, 12)}  # if quick
OTHER_SHIFTS = {False: (1.0, 5.0), True: (1.0,)}  # beside the model's own, at few steps only: they cost as much
SHIFTED_STEPS = (4, 16)
GAIN = 0.10
GAINS = {"solved": "gain", "answer": "answer_gain", "leans": "leaning_gain"}


class Budget(Experiment):
    name = "budget"
    finding = "Reasoning takes denoising steps: with fewer of them, fewer puzzles are solved."
    paper = "Not varied: 50 steps, shift 5."
    picture = (
        "Solved rate against the number of denoising steps, a line for each shift of the schedule, a panel "
        "for each task."
    )
    criterion = (
        f"On puzzles with one right answer the most steps solve over {100 * GAIN:g} points more than a single one, and "
        f"over {100 * GAIN:g} points more last frames lean to the right route (its cells are more like the path than "
        "any other)."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        found = []
        for task in tasks_of(reasoner, TASKS):
            network = reasoner.for_task(task)
            own = network.settings.shift
            budgets = [(steps, own) for steps in STEPS[scale.quick]]
            budgets += [(s, shift) for shift in OTHER_SHIFTS[scale.quick] if shift != own for s in SHIFTED_STEPS]
            puzzles = puzzles_for(reasoner, task, scale)
            for steps, shift in budgets:
                labels = {"steps": steps, "shift": shift, "own": shift == own}
                trials = [Trial(Run(puzzle), labels_of(puzzle, i) | labels) for i, puzzle in enumerate(puzzles)]
                name = f"{task}-{steps}-{shift:g}"
                found.append(Sweep(name, network, chunked(network, trials), network.schedule(steps, shift), scored))
        return found

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        table = pd.concat(tables.values(), ignore_index=True)
        single = table[table["own"] & (table["steps"] == 1)].set_index(["task", "puzzle"])
        keys = pd.MultiIndex.from_frame(table[["task", "puzzle"]])
        for column, gain in GAINS.items():
            table[gain] = table[column].astype(float) - single[column].loc[keys].to_numpy().astype(float)
        by = ["task", "size", "length", "own", "shift", "steps"]
        return means(with_lengths(table), by, [*GAINS, *GAINS.values()])

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        own = of_all(summary[summary["own"]])
        most = own[own["steps"] == own["steps"].max()]
        parts, beside = [], []
        for _, row in most.iterrows():
            task = row["task"]
            if task in TOLD:  # and a single step cannot show one of two right answers
                beside.append((f"gain on {task}", row, "gain"))
            else:
                parts.append((f"gain on {task}", *judged(row, "gain", GAIN)))
                # The solved rate asks for frames that can be read: of its gain a part is legibility.
                parts.append((f"gain on {task}, leaning", *judged(row, "leaning_gain", GAIN)))
            beside.append((f"gain on {task}, right last frames", row, "answer_gain"))
        return joined(parts, beside)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.6), layout="constrained", dpi=150)
        tasks = list(summary["task"].unique())
        for axis, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            of_task = of_all(summary[summary["task"] == task])
            styles = zip(sorted(of_task["shift"].unique()), ("#0072B2", "#E69F00", "#009E73"), "sov", strict=False)
            for shift, colour, mark in styles:
                rows = of_task[of_task["shift"] == shift].sort_values("steps")
                errors = 100 * bars(rows, "solved")
                line = "-" if rows["own"].all() else ":"
                axis.errorbar(
                    rows["steps"],
                    100 * rows["solved"],
                    errors,
                    fmt=mark + line,
                    color=colour,
                    capsize=2,
                    label=f"{shift:g}",
                )
            axis.set(xscale="log", xlabel="denoising steps", ylabel="solved, %", ylim=(-3, 103))
            axis.set_xticks(sorted(of_task["steps"].unique()), labels=sorted(of_task["steps"].unique()))
            axis.minorticks_off()
            axis.set_title(f"{task} {of_task['size'].iloc[0]}, n = {of_task['n'].iloc[0]}", fontsize=9)
            axis.legend(title="shift", fontsize=7)
        figure.suptitle(f"{title}; bars: 95 %", fontsize=9)
        return figure


def scored(trajectory: Trajectory) -> list[list[dict[str, object]]]:
    """One row for each run: the verdict on its video."""
    rows = []
    for puzzle, video in zip(trajectory.puzzles, trajectory.video, strict=True):
        score, leaning = task_of(puzzle).score(video, puzzle), leans(video[-1], puzzle)
        rows.append([{"status": score.status, "solved": score.solved, "answer": score.answer, "leans": leaning}])
    return rows
