"""Ensemble: hidden states of several seeds averaged at step 0, beside what else several seeds can be used for.

Always against single seeds, puzzle by puzzle, and with what each row costs: passes through the network for one answer.
A run that goes on with latents of its own is compared with the undisturbed run of the same seed, so that the luck of
that seed is in both; what has no seed of its own, with the mean of the single seeds. A gain that an average of the
initial noise or of the outputs has too says nothing about hidden states. The same is told of mazes with several right
answers, where an average could choose between them, or blend them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minicos.experiments.base import (
    Experiment,
    Scale,
    Verdict,
    grouped,
    joined,
    judged,
    labels_of,
    means,
    of_all,
    puzzles_for,
    spread,
    tasks_of,
    with_lengths,
)
from minicos.interventions import Average
from minicos.model import Reasoner
from minicos.runs import Intervention, Run
from minicos.sampling import Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, task_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK, SEVERAL = "maze", "maze-braided"  # of the second, with several right answers, it is told and not judged
SEEDS = (0, 1, 2)
WINDOW = (0.5, 0.75)  # of the blocks: the paper's layers 20 to 29 of 40
WINDOWS = 7  # at most
GAIN = 0.03  # what the paper reports
OF_ITS_KIND = ("initial noise", "initial noise, matched", "velocity", "x0_hat")  # averages at step 0, too
# What has no latents of its own, and is so no seed's.
TOGETHER = ("single seeds", "hidden states and latents", "initial noise", "initial noise, matched")
TOGETHER += ("outputs", "vote", "best of 3")


class Ensemble(Experiment):
    name = "ensemble"
    finding = "Averaging hidden states of the middle blocks over 3 seeds at step 0 solves more puzzles."
    paper = "0.685 to 0.716 by averaging layers 20 to 29 of 40 over 3 seeds at step 0 (no ablation, no interval)."
    picture = (
        "Right answers beyond those of single seeds, a panel for each task, a row for each thing that was averaged, "
        "voted on or chosen, with its cost in passes."
    )
    criterion = (
        "On mazes with one right answer the average over the paper's share of the blocks gains over "
        f"{100 * GAIN:g} points over the same single seed, "
        "and more than the best control of its kind does (initial noise, velocity, x0_hat averaged)."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        (task,) = tasks_of(reasoner, (TASK,))
        network = reasoner.for_task(task)
        schedule, blocks = network.schedule(), len(network.transformer.blocks)
        puzzles = puzzles_for(reasoner, task, scale, scale.many)
        few = puzzles[: scale.puzzles]  # for what is not judged
        thrice = 3 * len(schedule)
        measure = partial(judged_together, reasoner=network)
        main = grouped(network, puzzles, partial(trials_of, conditions=conditions(blocks), steps=len(schedule)))
        longer = grouped(network, few, partial(trials_of, conditions={"3x steps": ()}, steps=thrice))
        others = grouped(network, few, partial(trials_of, conditions=not_judged(blocks), steps=len(schedule)))
        found = [
            Sweep("main", network, main, schedule, measure, watched=means_of),
            Sweep("3x-steps", network, longer, network.schedule(thrice), measure, watched=means_of),
            Sweep("not-judged", network, others, schedule, measure, watched=means_of),
        ]
        if SEVERAL in tasks_of(reasoner, (TASK, SEVERAL)):
            found.append(self._of_several(reasoner.for_task(SEVERAL), puzzles_for(reasoner, SEVERAL, scale)))
        return found

    def _of_several(self, network: Reasoner, puzzles: list[Puzzle]) -> Sweep:
        """The conditions that are judged on TASK."""
        schedule, blocks = network.schedule(), len(network.transformer.blocks)
        chunks = grouped(network, puzzles, partial(trials_of, conditions=conditions(blocks), steps=len(schedule)))
        return Sweep(SEVERAL, network, chunks, schedule, partial(judged_together, reasoner=network), watched=means_of)

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        table = pd.concat(tables.values(), ignore_index=True)
        single = table[table["condition"] == "single seeds"]
        case = ["task", "puzzle"]
        mean, own = single.groupby(case)["right"].mean(), single[single["seed"] == SEEDS[0]].set_index(case)["right"]
        groups = ["task", "size", "length", "condition", "evaluations"]
        of_puzzle = table.groupby([*groups, "puzzle"])[["right", "solved"]].mean().reset_index()
        cases = pd.MultiIndex.from_frame(of_puzzle[case])
        of_mean, of_own = (right.astype(float).loc[cases].to_numpy() for right in (mean, own))
        of_puzzle["gain"] = of_puzzle["right"] - np.where(of_puzzle["condition"].isin(TOGETHER), of_mean, of_own)
        hidden = of_puzzle[of_puzzle["condition"] == "hidden states"].set_index(case)["gain"]
        # Gains are compared, not rates: only of some rows is the luck of seed 0 in both.
        of_puzzle["behind_hidden"] = hidden.loc[cases].to_numpy() - of_puzzle["gain"]
        return means(with_lengths(of_puzzle), groups, ["right", "solved", "gain", "behind_hidden"])

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        of_task = {task: rows.set_index("condition") for task, rows in of_all(summary).groupby("task")}
        rows = of_task[TASK]
        best = rows.loc[list(OF_ITS_KIND)]["gain"].idxmax()
        parts = [("gain over the same single seed", *judged(rows.loc["hidden states"], "gain", GAIN))]
        parts.append((f"gain beyond that of the average of {best}", *judged(rows.loc[best], "behind_hidden", 0.0)))
        beside = []
        if SEVERAL in of_task:
            several = of_task[SEVERAL]
            beside.append((f"gain on {SEVERAL}", several.loc["hidden states"], "gain"))
            beside.append((f"gain there of the average of {best}", several.loc[best], "gain"))
        return joined(parts, beside)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        panels = [rows.sort_values("gain").reset_index(drop=True) for _, rows in of_all(summary).groupby("task")]
        figure = Figure(figsize=(6 * len(panels), 0.28 * len(panels[0]) + 1.6), layout="constrained", dpi=150)
        for axis, rows in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _gains(axis, rows)
        figure.supxlabel("right answers beyond those of single seeds, points", fontsize=10)
        figure.suptitle(f"{title}; squares: hidden states; bars: 95 %", fontsize=9)
        return figure


def _gains(axis: Axes, rows: pd.DataFrame) -> None:
    for place, row in rows.iterrows():
        ours = row["condition"].startswith(("hidden", "blocks"))
        errors = [[100 * (row["gain"] - row["gain_low"])], [100 * (row["gain_high"] - row["gain"])]]
        colour, mark = ("#D55E00", "s") if ours else ("#0072B2", "o")
        axis.errorbar(100 * row["gain"], place, xerr=errors, fmt=mark, color=colour, capsize=2)
    labels = [f"{row['condition']} ({row['evaluations']:g} passes, n = {row['n']})" for _, row in rows.iterrows()]
    axis.set_yticks(range(len(rows)), labels=labels, fontsize=8)
    axis.axvline(0, color="#56606B", linestyle=":", linewidth=1)
    axis.set_title(f"{rows['task'].iloc[0]} {rows['size'].iloc[0]}", fontsize=9)


def paper_average(blocks: int) -> Average:
    """What the paper's ensemble does."""
    return Average(SEEDS, "block", window_of(blocks))


def window_of(blocks: int) -> tuple[int, ...]:
    """The paper's share of the blocks."""
    return tuple(range(int(WINDOW[0] * blocks), max(int(WINDOW[1] * blocks), int(WINDOW[0] * blocks) + 1)))


def conditions(blocks: int) -> dict[str, tuple[Intervention, ...]]:
    """What is averaged at step 0; each member goes on with latents of its own unless these are averaged."""
    return {
        "single seeds": (),
        "hidden states": (paper_average(blocks),),
        "initial noise": (Average(SEEDS, "latents"),),
        "initial noise, matched": (Average(SEEDS, "latents", matched=True),),
        "velocity": (Average(SEEDS, "velocity"),),
        "x0_hat": (Average(SEEDS, "x0_hat"),),
    }


def not_judged(blocks: int) -> dict[str, tuple[Intervention, ...]]:
    """Hidden states in other ways, and in windows of the same width over all blocks: each possible one, or WINDOWS of a
    deep network, evenly spread.

    Hidden states and latents: these after step 0, since members with equal latents have equal hidden states.
    """
    hidden = paper_average(blocks)
    width = len(hidden.blocks)
    last = blocks - width
    firsts = spread(0, last, WINDOWS)
    windows = [tuple(range(first, first + width)) for first in firsts]
    return {
        "hidden states, matched": (replace(hidden, matched=True),),
        "hidden states and latents": (hidden, Average(SEEDS, "latents", steps=(1,), matched=True)),
        **{f"blocks {w[0]} to {w[-1]}": (Average(SEEDS, "block", w),) for w in windows},
    }


def trials_of(puzzle: Puzzle, index: int, conditions: dict[str, tuple[Intervention, ...]], steps: int) -> list[Trial]:
    """All seeds on their own, which outputs and votes are made of; of the others, one member each."""
    found = []
    for name, interventions in conditions.items():
        # The peers of step 0 are passes of one step each; initial noise is averaged before there is any pass.
        peers = interventions and not name.startswith("initial noise")
        passes = steps + (len(SEEDS) - 1 if peers else 0)
        labels = labels_of(puzzle, index) | {"condition": name, "evaluations": passes}
        seeds = SEEDS if name == "single seeds" else SEEDS[:1]
        found += [Trial(Run(puzzle, seed, interventions), {**labels, "seed": seed}) for seed in seeds]
    return found


def judged_together(trajectory: Trajectory, reasoner: Reasoner) -> list[list[dict[str, object]]]:
    """A row for each run; with the last seed of a puzzle also what can be made of its seeds: mean, vote, best."""
    rows = [[_row(run.puzzle, video)] for run, video in zip(trajectory.runs, trajectory.video, strict=True)]
    plain: dict[Puzzle, list[int]] = {}
    for number, run in enumerate(trajectory.runs):
        if not run.interventions:
            plain.setdefault(run.puzzle, []).append(number)
    steps = len(trajectory.schedule)
    for puzzle, members in plain.items():
        if len(members) < len(SEEDS):
            continue
        mean = reasoner.decode(trajectory.latents[members].mean(0, keepdim=True))[0]
        together = {"outputs": _row(puzzle, mean)}
        answers = [task_of(puzzle).decode(trajectory.video[number], puzzle) for number in members]
        # The most frequent answer; on a tie that of the first seed, and an unreadable one only if all are.
        counts = Counter(answer for answer in answers if answer is not None)
        winner = answers.index(counts.most_common(1)[0][0]) if counts else 0
        together["vote"] = rows[members[winner]][0]
        own = [rows[number][0] for number in members]
        together["best of 3"] = max(own, key=lambda row: (row["right"], row["solved"]))
        extra = {"evaluations": len(SEEDS) * steps, "seed": -1}
        rows[members[-1]] += [{**row, "condition": name, **extra} for name, row in together.items()]
    return rows


def means_of(chunk: Sequence[Trial]) -> int:
    """How many means of all seeds are decoded."""
    plain = Counter(trial.run.puzzle for trial in chunk if not trial.run.interventions)
    return sum(count == len(SEEDS) for count in plain.values())


def _row(puzzle: Puzzle, video: NDArray[np.uint8]) -> dict[str, object]:
    score = task_of(puzzle).score(video, puzzle)
    return {"right": score.answer, "solved": score.solved}
