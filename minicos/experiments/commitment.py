"""Commitment: from which step on does a run come to the same answer, whatever noise it is given afresh?

Restarted at step s in two ways: x0_hat is noised to sigma_s again, or the latents are noised up to an earlier level and
denoised once more. Staying counts beyond the agreement of independent seeds. On puzzles with one right answer "stays"
is little more than "solved", so puzzles with several right answers are used, and runs that came to a wrong one. A run
without a readable answer has nothing to stay with, and does not count.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
from numpy.typing import NDArray

from minicos.experiments.base import (
    TOLD,
    Experiment,
    Scale,
    Verdict,
    grouped,
    joined,
    judge,
    labels_of,
    of_all,
    puzzles_for,
    spread,
    tasks_of,
    with_lengths,
)
from minicos.flow import turned_back
from minicos.interventions import NoiseUp, Renoise
from minicos.measures import commitment_interval
from minicos.model import Reasoner
from minicos.runs import Run
from minicos.sampling import Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEVERAL, SINGLE = ("maze-braided", "rotation-open"), ("maze",)
STEPS = 6  # of the schedule, evenly spread, step 0 left out: there a restart is another seed
BACK = 3  # of these, where several answers are right: the second form costs twice as much
DRAWS = 2  # restarts of each run at each step, and independent seeds
EARLY, LATE = 0.5, 0.8
FEW = 10  # wrong runs, of fewer of which a figure shows nothing but their interval


class Commitment(Experiment):
    name = "commitment"
    finding = "The answer is decided in the first half of the steps: later noise does not change it any more."
    paper = "Not measured. From CKA: runs are most sensitive at steps 20 to 30 of 50."
    picture = (
        "Commitment beyond chance against the step of the restart, a panel for each task, a line for each "
        "form of restart, for all runs with a readable answer and for those with a wrong one."
    )
    criterion = (
        "On mazes with several right answers, of runs with a readable one, x0_hat noised again: commitment exceeds "
        f"{LATE:g} at the last restart of the first half of the steps, and at the first restart stays {EARLY:g} or "
        "more below 1."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        found = []
        for task in tasks_of(reasoner, (*SEVERAL, *SINGLE)):
            network = reasoner.for_task(task)
            schedule = network.schedule()
            chosen = restarts(len(schedule), STEPS)
            puzzles = puzzles_for(reasoner, task, scale)
            plain = partial(first_form, chosen=chosen)
            found.append(Sweep(task, network, grouped(network, puzzles, plain), schedule, answered))
            for s in restarts(len(schedule), BACK) if task in SEVERAL else ():
                back = turned_back(schedule, at=s, to=s // 2)
                second = partial(second_form, step=s)
                found.append(Sweep(f"{task}-back-{s}", network, grouped(network, puzzles, second), back, answered))
        return found

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        table = pd.concat(tables.values(), ignore_index=True)
        table["answer"] = table["answer"].astype(str)  # a table of angles alone was read as numbers
        rows: list[dict[str, object]] = []
        for (task, size, length), of_task in with_lengths(table).groupby(["task", "size", "length"]):
            base = of_task[of_task["family"] == "run"].set_index("puzzle")
            of_task = of_task[of_task["family"] != "run"].copy()
            of_task["stays"] = of_task["answer"].to_numpy() == base.loc[of_task["puzzle"], "answer"].to_numpy()
            readable = base["answer"] != ""
            groups = {"all runs": base.index[readable], "wrong runs": base.index[readable & ~base["right"]]}
            for group, puzzles in groups.items():
                named = {"task": task, "size": size, "length": length, "group": group}
                rows += [{**named, **row} for row in committed(of_task, list(puzzles))]
        columns = ["task", "size", "length", "group", "family", "step", "n"]
        return pd.DataFrame(rows, columns=[*columns, "stay", "chance", "commitment", "low", "high"])

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        parts, beside = [], []
        mine = of_all(summary[(summary["group"] == "all runs") & (summary["family"] == "x0_hat noised again")])
        for task in SEVERAL:
            rows = mine[mine["task"] == task].sort_values("step")
            if rows.empty:
                continue
            first = rows.iloc[0]
            half = rows[rows["step"] <= (rows["step"].max() + 1) / 2].iloc[-1]
            if task in TOLD:
                for row in (first, half):
                    row = row.rename({"low": "commitment_low", "high": "commitment_high"})
                    beside.append((f"{task}, step {row['step']}", row, "commitment"))
                continue
            if half["step"] == first["step"]:
                parts.append((task, "unclear", "too few steps to tell the first restart from a later one"))
                continue
            numbers = half["commitment"], half["low"], half["high"]
            parts.append((f"{task}, step {half['step']}", *judge(*numbers, LATE, int(half["n"]))))
            open_still = 1 - first["commitment"], 1 - first["high"], 1 - first["low"]
            parts.append((f"{task}, still open at step {first['step']}", *judge(*open_still, EARLY, int(first["n"]))))
        return joined(parts, beside)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        tasks = list(summary["task"].unique())
        panels = max(1, len(tasks))  # none where no run has a readable answer
        figure = Figure(figsize=(3.6 * panels, 3.6), layout="constrained", dpi=150)
        for axis, task in zip(figure.subplots(1, panels, squeeze=False)[0], tasks, strict=False):
            of_task = of_all(summary[summary["task"] == task])
            drawn = of_task[(of_task["group"] == "all runs") | (of_task["n"] >= FEW)]
            for (group, family), rows in drawn.groupby(["group", "family"]):
                colour = "#0072B2" if group == "all runs" else "#D55E00"
                mark, line = ("o", "-") if family == "x0_hat noised again" else ("s", "--")
                axis.plot(
                    rows["step"],
                    rows["commitment"],
                    marker=mark,
                    linestyle=line,
                    color=colour,
                    label=f"{group}, {family}",
                )
                axis.fill_between(rows["step"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
            axis.axhline(0, color="#56606B", linestyle=":", linewidth=1)
            axis.set(xlabel="restarted before step", ylabel="commitment beyond chance", ylim=(-0.5, 1.1))
            axis.set_title(f"{task} {of_task['size'].iloc[0]}", fontsize=9)
            axis.legend(fontsize=6)
        figure.suptitle(f"{title}; bands: 95 %; fewer than {FEW} wrong runs: in the table only", fontsize=9)
        return figure


def restarts(steps: int, count: int) -> list[int]:
    return spread(1, steps - 1, count)


def first_form(puzzle: Puzzle, index: int, chosen: list[int]) -> list[Trial]:
    """The run itself, independent seeds, and restarts from x0_hat."""
    found = [_trial(puzzle, index, "run", 0, 0, Run(puzzle))]
    found += [_trial(puzzle, index, "another seed", 0, d, Run(puzzle, d)) for d in range(1, DRAWS + 1)]
    for s in chosen:
        runs = [Run(puzzle, 0, (Renoise((s,), draw=d),)) for d in range(DRAWS)]
        found += [_trial(puzzle, index, "x0_hat noised again", s, d, run) for d, run in enumerate(runs)]
    return found


def second_form(puzzle: Puzzle, index: int, step: int) -> list[Trial]:
    """Restarts from the latents, for a schedule that turns back at `step`."""
    runs = [Run(puzzle, 0, (NoiseUp(step, draw=d),)) for d in range(DRAWS)]
    return [_trial(puzzle, index, "latents noised up", step, d, run) for d, run in enumerate(runs)]


def _trial(puzzle: Puzzle, index: int, family: str, step: int, draw: int, run: Run) -> Trial:
    return Trial(run, labels_of(puzzle, index) | {"family": family, "step": step, "draw": draw})


def answered(trajectory: Trajectory) -> list[list[dict[str, object]]]:
    """For each run the answer that its last frame shows ("" where it shows none), and whether it is right."""
    rows = []
    for puzzle, video in zip(trajectory.puzzles, trajectory.video, strict=True):
        task = task_of(puzzle)
        answer = task.spelled(task.decode(video, puzzle))
        rows.append([{"answer": answer, "right": task.score(video, puzzle).answer}])
    return rows


def committed(table: pd.DataFrame, puzzles: list[int]) -> list[dict[str, object]]:
    """Rows of commitment for each family and step, over these puzzles; none where there are too few to say anything."""
    if len(puzzles) < 2:
        return []
    seeds = table[table["family"] == "another seed"].groupby("puzzle")["stays"].mean().loc[puzzles]
    rows = []
    for (family, step), group in table[table["family"] != "another seed"].groupby(["family", "step"]):
        stay = group.groupby("puzzle")["stays"].mean().loc[puzzles]
        value, low, high = commitment_interval(stay.to_numpy(), seeds.to_numpy())
        row = {"family": family, "step": step, "n": len(puzzles), "stay": stay.mean(), "chance": seeds.mean()}
        rows.append({**row, "commitment": value, "low": low, "high": high})
    return rows
