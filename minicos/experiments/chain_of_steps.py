"""Chain-of-steps: what x0_hat shows at each denoising step, on puzzles with one right answer and with several.

A least-squares denoiser shows the mean of what is still possible. Where one answer is right, a blend measures what one
forward pass cannot work out; where several are, the blend is right, and the steps have to break the tie. So both are
shown side by side, and each picture beside its null: the right answer with the same errors, scattered at random. The
mean of all right answers shows what the measure would find in a perfect blend. Whole answers are counted, for a blend
has hardly more ends of ways than errors at random places make.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minicos.experiments.base import (
    ALL,
    TOLD,
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
from minicos.measures import (
    angle_posterior,
    candidates,
    cell_probabilities,
    entropy_bits,
    leans,
    path_entropy,
    whole_candidates,
)
from minicos.model import Reasoner
from minicos.runs import Run
from minicos.sampling import Recorder, Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, Video, task_of
from minicos.tasks.base import puzzle_rng, shuffled
from minicos.tasks.maze import MazePuzzle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = ("maze", "rotation", "maze-braided", "rotation-open")
SEVERAL = ("maze-braided", "rotation-open")  # more than one right answer
STYLES = dict(zip(TASKS, (("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "v"), ("#CC79A7", "^")), strict=True))
CELL = 4  # board units along the side of a cell, in mazes and in shapes
GAP = 0.10
EXTRA = 0.25
ORIENTATION = 0.25  # weight from which on an orientation counts as a candidate


class ChainOfSteps(Experiment):
    name = "chain-of-steps"
    finding = "x0_hat shows several candidates at early steps, and later steps choose among them."
    paper = "About 72 % of 200 cases show several candidates at early steps (judged by eye, without a control)."
    picture = (
        "Three panels against the denoising step, a line for each task: the share of puzzles that x0_hat "
        "solves, the whole answers that it leaves possible (dotted lines are the null, dash-dotted ones a blend of all "
        "right answers), and its entropy. Where there are enough puzzles a fourth: the gaps between step 0 "
        "and the end, of what is solved and of what leans to a right route, against the route's length."
    )
    criterion = (
        f"On mazes with one answer the solved rate rises by more than {100 * GAP:g} points from step 0 to the end, and "
        "so does the share whose last frame leans to the right route (its cells are more like the path than any other"
        f"); on mazes with several right answers, x0_hat at step 0 shows over {EXTRA:g} whole candidates (ways through "
        f"to the goal) more than its null, and this excess falls by over {EXTRA:g} to the end."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        return [self._sweep(reasoner, task, scale) for task in tasks_of(reasoner, TASKS)]

    def _sweep(self, reasoner: Reasoner, task: str, scale: Scale) -> Sweep:
        trials = [
            Trial(Run(puzzle), labels_of(puzzle, i)) for i, puzzle in enumerate(puzzles_for(reasoner, task, scale))
        ]
        network = reasoner.for_task(task)
        # With guidance x0_hat is extrapolated: what is blended is read from the cond branch.
        recorders = (Recorder("x0_hat"), Recorder("x0_hat", "cond"))
        schedule, measure = network.schedule(), partial(measured, network)
        return Sweep(
            task,
            network,
            chunked(network, trials),
            schedule,
            measure,
            recorders,
            watched=partial(of_undisturbed, videos=len(recorders) * len(schedule)),
        )

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        table = pd.concat(tables.values(), ignore_index=True)
        for what in ("candidates", "whole"):
            table[f"extra_{what}"] = table[what] - table[f"null_{what}"]
        end = table["step"] == table.groupby("task")["step"].transform("max")
        at_end = table[end].set_index(["task", "puzzle"])
        keys = pd.MultiIndex.from_frame(table[["task", "puzzle"]])
        for column, gap in (("solved", "gap"), ("answer", "answer_gap"), ("leans", "leaning_gap")):
            table[gap] = at_end[column].loc[keys].to_numpy().astype(float) - table[column].astype(float)
        table["given_up"] = table["extra_whole"] - at_end["extra_whole"].loc[keys].to_numpy()
        columns = ["solved", "answer", "leans", "entropy", "gap", "answer_gap", "leaning_gap", "given_up"]
        columns += [f"{kind}{what}" for what in ("whole", "candidates") for kind in ("", "null_", "extra_", "blend_")]
        by = ["task", "size", "length", "step", "sigma"]
        return means(with_lengths(table), by, columns)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        first = of_all(summary[summary["step"] == 0]).set_index("task")
        parts, beside = [], []
        if "maze" in first.index:
            parts.append(("gap on maze", *judged(first.loc["maze"], "gap", GAP)))
            # The solved rate asks for frames that can be read: of its gap a part is legibility.
            parts.append(("gap on maze, leaning", *judged(first.loc["maze"], "leaning_gap", GAP)))
        for task in (task for task in SEVERAL if task in first.index):
            for what, column in (
                ("at step 0 beyond the null", "extra_whole"),
                ("given up by the end", "given_up"),
            ):
                if task in TOLD:
                    beside.append((f"whole candidates of {task} {what}", first.loc[task], column))
                else:
                    parts.append((f"whole candidates of {task} {what}", *judged(first.loc[task], column, EXTRA)))
        single = [task for task in TASKS if task in first.index and task not in SEVERAL]
        beside += [(f"ends of ways of {task} beyond the null", first.loc[task], "extra_candidates") for task in single]
        if "maze" in first.index:
            beside.append(("gap on maze, right last frames", first.loc["maze"], "answer_gap"))
        return joined(parts, beside)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        # Nothing in a small run: too few puzzles of any length.
        by_length = summary[(summary["length"] != ALL) & (summary["step"] == 0)]
        panels = 3 if by_length.empty else 4
        figure = Figure(figsize=(3 * panels, 3.8), layout="constrained", dpi=150)
        axes = figure.subplots(1, panels)
        for task, (colour, mark) in STYLES.items():
            rows = of_all(summary[summary["task"] == task])
            if rows.empty:
                continue
            style = "--" if task in SEVERAL else "-"
            for axis, column, scale in zip(axes, ("solved", "whole", "entropy"), (100, 1, 1), strict=False):
                axis.plot(
                    rows["step"], scale * rows[column], style, color=colour, marker=mark, markersize=3, label=task
                )
                low, high = scale * rows[f"{column}_low"], scale * rows[f"{column}_high"]
                axis.fill_between(rows["step"], low, high, color=colour, alpha=0.2, linewidth=0)
                if f"null_{column}" in rows:
                    axis.plot(rows["step"], rows[f"null_{column}"], ":", color=colour, linewidth=1)
                if f"blend_{column}" in rows:
                    axis.plot(rows["step"], rows[f"blend_{column}"], "-.", color=colour, linewidth=1)
        labels = ("solved by x0_hat, %", "whole candidates in x0_hat", "entropy of x0_hat, bits (mazes: a move)")
        for axis, label in zip(axes, labels, strict=False):
            axis.set(xlabel="denoising step", ylabel=label)
            axis.xaxis.get_major_locator().set_params(integer=True)
        axes[0].legend(fontsize=7)
        if not by_length.empty:
            plot_gaps(axes[3], by_length)
        lines = "solid: one right answer, dashed: several; dotted: the null, dash-dotted: a blend of all right answers"
        figure.suptitle(f"{title}\n{lines}; bands: 95 %", fontsize=9)
        return figure


def plot_gaps(axis: Axes, by_length: pd.DataFrame) -> None:
    """What the steps add, against the length of the route: to what is solved, and to what leans to a right route."""
    for task, bins in by_length.groupby("task"):
        colour, mark = STYLES[task]
        bins = bins.sort_values("length", key=lambda names: names.str.extract(r"(\d+)")[0].astype(int))
        for column, face, label in (("gap", colour, task), ("leaning_gap", "white", f"{task}, leaning")):
            gap = 100 * bins[[column, f"{column}_low", f"{column}_high"]].T.to_numpy()
            style = {"linestyle": "--" if task in SEVERAL else "-", "color": colour, "marker": mark, "capsize": 2}
            errors = [gap[0] - gap[1], gap[2] - gap[0]]
            axis.errorbar(bins["length"], gap[0], errors, markerfacecolor=face, label=label, **style)
    axis.set_ylim(top=150)  # room for the legend
    axis.legend(fontsize=6)
    axis.set(xlabel="moves of the route", ylabel="gap from step 0 to the end, points")


def measured(reasoner: Reasoner, trajectory: Trajectory) -> list[list[dict[str, object]]]:
    """For each run a row for each step."""
    rows: list[list[dict[str, object]]] = [[] for _ in trajectory.runs]
    blended = [left_open(mean_answer(puzzle), puzzle) for puzzle in trajectory.puzzles]
    rights = [task_of(shown).render(shown, 2) for shown in answers_of(trajectory)]
    for step in trajectory.schedule:
        guided, cond = (reasoner.decode(trajectory.recorded("x0_hat", b)[step.index]) for b in ("guided", "cond"))
        for row, puzzle, right, video, blend, of_blend in zip(
            rows, trajectory.puzzles, rights, guided, cond, blended, strict=True
        ):
            score = task_of(puzzle).score(video, puzzle)
            null = scattered(blend[-1:], right[-1:], puzzle, f"{puzzle.key}/{step.index}")[0]
            found = {"status": score.status, "solved": score.solved, "answer": score.answer}
            found["leans"] = leans(video[-1], puzzle)
            seen = left_open(blend[-1], puzzle)
            found["entropy"] = seen["entropy"]
            for kind, left in (("", seen), ("null_", left_open(null, puzzle)), ("blend_", of_blend)):
                found |= {f"{kind}{what}": left[what] for what in ("whole", "candidates")}
            row.append({"step": step.index, "sigma": step.sigma, **found})
    return rows


def left_open(frame: NDArray[np.uint8], puzzle: Puzzle) -> dict[str, float]:
    """What a picture leaves open. whole: ways through to the goal; candidates: ends of ways; of a rotation both are
    orientations. entropy: of the route in bits a move, or of the orientation in bits.
    """
    if isinstance(puzzle, MazePuzzle):
        p = cell_probabilities(frame, puzzle)
        return {
            "whole": whole_candidates(p, puzzle),
            "candidates": candidates(p, puzzle),
            "entropy": path_entropy(p, puzzle),
        }
    _, weights = angle_posterior(frame, puzzle)
    count = int((weights >= ORIENTATION).sum())
    return {"whole": count, "candidates": count, "entropy": entropy_bits(weights)}


def mean_answer(puzzle: Puzzle) -> NDArray[np.uint8]:
    """The positive control: the mean of the last frames of all right answers, which is the best guess at step 0."""
    task = task_of(puzzle)
    shown = range(len(task.answers(puzzle)))
    return np.mean([task.render(replace(puzzle, shown=i), 2)[-1] for i in shown], axis=0).round().astype(np.uint8)


def answers_of(trajectory: Trajectory) -> list[Puzzle]:
    """Of each run the puzzle, showing the right answer that comes closest to how it ends."""
    return [nearest_answer(v[-1], p) for v, p in zip(trajectory.video, trajectory.puzzles, strict=True)]


def nearest_answer(frame: NDArray[np.uint8], puzzle: Puzzle) -> Puzzle:
    """The same puzzle, showing the right answer that comes closest to this frame."""
    shown = [replace(puzzle, shown=i) for i in range(len(task_of(puzzle).answers(puzzle)))]
    ends = [task_of(other).render(other, 2, frame.shape[:2])[-1].astype(float) for other in shown]
    return shown[int(np.argmin([np.square(end - frame).sum() for end in ends]))]


def scattered(video: Video, right: Video, puzzle: Puzzle, key: str) -> Video:
    """The null: the right video with the errors of `video`, the errors of each cell at the place of a random other one.

    An error that would leave the range of colours there is turned round, pixel by pixel: too pale on the route becomes
    too dark beside it, and none is lost. Both (frames, height, width, 3). Returned at the board's native size, where a
    cell is 4 x 4 pixels.
    """
    drawn, seen = puzzle.board.read(right), puzzle.board.read(video)
    frames, *sides = seen.shape[:3]
    rows, columns = (side // CELL for side in sides)
    cells = (seen - drawn).reshape(frames, rows, CELL, columns, CELL, 3).transpose(1, 3, 0, 2, 4, 5)
    order = shuffled(rows * columns, puzzle_rng(key))
    moved = cells.reshape(rows * columns, frames, CELL, CELL, 3)[order].reshape(cells.shape)
    errors = moved.transpose(2, 0, 3, 1, 4, 5).reshape(seen.shape)
    ways = np.stack([drawn + errors, drawn - errors])
    lost = np.abs(ways - ways.clip(0, 255)).sum(-1, keepdims=True)
    return np.where(lost[0] <= lost[1], *ways).clip(0, 255).round().astype(np.uint8)
