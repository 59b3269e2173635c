"""Perception first: does x0_hat know which cells belong to the route before it knows when each is reached?

Three orders are compared, each from -1 over 0 (knows nothing) to 1: walls are darker than floor (what), cells of the
route carry more colour than others in the last frame (where), earlier cells of the route carry it for longer (when).
Copying frame 0 knows what, and neither where nor when. The null is the right video with the errors of x0_hat, each
cell's at the place of a random other cell: it says what an error of this size costs each of the three.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minicos.experiments.base import (
    Experiment,
    Scale,
    Verdict,
    chunked,
    joined,
    judged,
    labels_of,
    means,
    of_all,
    of_undisturbed,
    puzzles_for,
    tasks_of,
    with_lengths,
)
from minicos.experiments.chain_of_steps import answers_of, scattered
from minicos.measures import cell_probabilities, order_known
from minicos.model import Reasoner
from minicos.runs import Run
from minicos.sampling import Recorder, Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Video, task_of
from minicos.tasks.maze import PALETTE, MazePuzzle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("maze", "maze-braided")
WHAT = ("what", "where", "when")
AHEAD = 0.10
STYLES = {"what": ("#56606B", "s"), "where": ("#0072B2", "o"), "when": ("#D55E00", "^")}


class PerceptionFirst(Experiment):
    name = "perception-first"
    finding = "Early steps settle what is where; when it happens comes later."
    paper = "Described with examples; no rates."
    picture = (
        "How well x0_hat knows what, where and when, against the denoising step, a panel for each task; "
        "dotted lines are the null."
    )
    criterion = (
        "On mazes, x0_hat at step 0 knows where the route lies better than when each of its cells is reached, by over "
        f"{AHEAD:g} more than its null does."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        found = []
        for task in tasks_of(reasoner, TASKS):
            network = reasoner.for_task(task)
            puzzles = puzzles_for(reasoner, task, scale)
            trials = [Trial(Run(puzzle), labels_of(puzzle, i)) for i, puzzle in enumerate(puzzles)]
            recorders, schedule = (Recorder("x0_hat", "cond"),), network.schedule()
            measure, watched = partial(known, reasoner=network), partial(of_undisturbed, videos=len(schedule))
            chunks = chunked(network, trials)
            found.append(Sweep(task, network, chunks, schedule, measure, recorders, watched=watched))
        return found

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        table = pd.concat(tables.values(), ignore_index=True).dropna()  # routes of two moves have no order in time
        table["ahead"] = (table["where"] - table["when"]) - (table["null_where"] - table["null_when"])
        columns = [*WHAT, *(f"null_{what}" for what in WHAT), "ahead"]
        if table.empty:
            return pd.DataFrame({"n": []})
        return means(with_lengths(table), ["task", "size", "length", "step", "sigma"], columns)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        if summary.empty:
            return joined([])
        first = of_all(summary[summary["step"] == 0])
        return joined([(f"{row['task']}, step 0", *judged(row, "ahead", AHEAD)) for _, row in first.iterrows()])

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        tasks = list(summary["task"].unique()) if "task" in summary else []
        figure = Figure(figsize=(4.5 * max(1, len(tasks)), 3.6), layout="constrained", dpi=150)
        for axis, task in zip(figure.subplots(1, max(1, len(tasks)), squeeze=False)[0], tasks, strict=False):
            rows = of_all(summary[summary["task"] == task])
            for what, (colour, mark) in STYLES.items():
                axis.plot(rows["step"], rows[what], color=colour, marker=mark, markersize=4, label=what)
                low, high = rows[f"{what}_low"], rows[f"{what}_high"]
                axis.fill_between(rows["step"], low, high, color=colour, alpha=0.2, linewidth=0)
                axis.plot(rows["step"], rows[f"null_{what}"], ":", color=colour, linewidth=1)
            axis.axhline(0, color="#9a9a9a", linewidth=0.6)
            axis.set(xlabel="denoising step", ylabel="order known by x0_hat", ylim=(-0.1, 1.05))
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_title(f"{task} {rows['size'].iloc[0]}, n = {rows['n'].iloc[0]}", fontsize=9)
            axis.legend(fontsize=7)
        figure.suptitle(
            f"{title}\ndotted: the null; a copy of frame 0 has what 1, where 0, when 0; bands: 95 %", fontsize=9
        )
        return figure


def known(trajectory: Trajectory, reasoner: Reasoner) -> list[list[dict[str, object]]]:
    """For each run a row for each step."""
    rows: list[list[dict[str, object]]] = [[] for _ in trajectory.runs]
    answers = answers_of(trajectory)
    rights = [task_of(shown).render(shown, len(trajectory.video[0])) for shown in answers]
    for step in trajectory.schedule:
        estimates = reasoner.decode(trajectory.recorded("x0_hat", "cond")[step.index])
        for row, shown, right, video in zip(rows, answers, rights, estimates, strict=True):
            null = scattered(video, right, shown, f"{shown.key}/{step.index}")
            found = orders(video, right, shown)
            found |= {f"null_{name}": value for name, value in orders(null, right, shown).items()}
            row.append({"step": step.index, "sigma": step.sigma, **found})
    return rows


def orders(video: Video, right: Video, puzzle: MazePuzzle) -> dict[str, float]:
    """How well a video knows what, where and when; right: the video of the route that the puzzle shows, of any size."""
    units = puzzle.board.read(video[-1:])[0]
    walls = (PALETTE[puzzle.scene] == 0).all(-1)
    colour, reached = (
        np.stack([cell_probabilities(frame, puzzle) for frame in frames[1:]]) for frames in (video, right)
    )
    inside, route = ~np.isnan(colour[-1]), tuple(np.transpose(puzzle.route[1:-1]))
    return {
        "what": order_known(-units.mean(-1).ravel(), walls.ravel()),
        "where": order_known(colour[-1][inside], reached[-1][inside]),
        "when": order_known(colour.sum(0)[route], reached.sum(0)[route]) if len(route) else float("nan"),
    }
