"""Perturbation: noise at a step against noise at a frame, with the controls that tell damage from importance.

The paper overwrites all frames at one step, or one frame at all steps. These erase different amounts, so a curve of
other sets is drawn against the number of erased frame-steps, and all F frames at one step are set against the last
frame, which is judged, at F steps: those that end with it, so that both have as many steps left to mend. (What is
overwritten again is gone already: the earlier of these steps act by what other frames have seen meanwhile.) The same
with the judged frame spared on both sides (the others at one step, F - 1 frame-steps, against an inner frame at F
steps) is told beside: what is spared is a whole copy of the answer. Unit noise is foreign to a step whose noise level
is lower, so the same steps are also re-noised to their own level. And noise at step 0 is another seed: no damage.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from minicos.experiments.base import (
    ALL,
    TOLD,
    Experiment,
    Scale,
    Verdict,
    bars,
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
from minicos.interventions import Noise, Places, Renoise, noise_at_frame, noise_at_step
from minicos.measures import cka, jackknife_interval, mean_interval
from minicos.model import Reasoner
from minicos.runs import Batch, Intervention, Run
from minicos.sampling import Recorder, Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, task_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = ("maze", "rotation-open")
STEPS = 6  # of the schedule, evenly spread
LEAST_ROWS = 8  # of a CKA and its jackknife
FRAMES, COUNTS = 8, 3  # at most: which frames are noised throughout, and how many in the curve of equal damage
FEATURES = 64  # per step, random projections of x0_hat
RAW, MATCHED = 0.20, 0.10
TOO_SHORT = "unclear", "not measured: too few frames, or fewer steps than frames"
AGAIN = "re-noise at step"
LAST, OTHERS = "last frame at one step", "all but the last frame at one step"
LAST_LONG, INNER_LONG = "last frame at as many steps", "inner frame at as many steps"
RAW_PAIR, NOISED, SPARED = "step - frame", "step - frame, matched", "step - frame, matched, judged frame spared"
SIDES = {  # of each contrast: where the steps' damage is, and the frame's
    RAW_PAIR: ("noise at step", "noise at frame"),
    NOISED: ("noise at step", LAST_LONG),
    SPARED: (OTHERS, INNER_LONG),
}
STYLES = {
    "noise at step": ("#0072B2", "o"),
    "re-noise at step": ("#E69F00", "s"),
    "noise at frame": ("#009E73", "v"),
    "frames at one step": ("#E69F00", "s"),
    "one frame at steps": ("#009E73", "v"),
    INNER_LONG: ("#009E73", "D"),
    LAST_LONG: ("#000000", "D"),
    "share of positions at one step": ("#CC79A7", "^"),
    LAST: ("#000000", "x"),
    OTHERS: ("#000000", "+"),
}
# What each panel is drawn against, and its families.
PANELS = {
    "denoising step": ("noise at step", "re-noise at step"),
    "frame": ("noise at frame",),
    "erased frame-steps": tuple(family for family in STYLES if family not in ("re-noise at step", "noise at frame")),
}


class Perturbation(Experiment):
    name = "perturbation"
    finding = "Noise at one denoising step destroys the answer, noise at one frame hardly does."
    paper = (
        "The score falls from 0.685 to below 0.3 by noise at one step, and far less by noise at one frame "
        "(value not published)."
    )
    picture = (
        "Right answers after noise, for each task: against the step that was noised or re-noised, against the frame "
        "that was noised (where that is the last, the frame before it is judged), and against the number of erased "
        "frame-steps; and how unlike the undisturbed runs x0_hat is from the disturbed step on, beside another seed."
    )
    criterion = (
        f"On mazes, noise at a step (not 0) costs over {100 * RAW:g} points of right answers more than noise at a frame"
        f" (not the first or last); and so it does by over {100 * MATCHED:g} points at as many erased frame-steps: all "
        "frames at one step in the middle against the last frame, which is judged, at as many steps up to that one."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        found = []
        for task in tasks_of(reasoner, TASKS):
            network = reasoner.for_task(task)
            schedule = network.schedule()
            puzzles = puzzles_for(reasoner, task, scale)
            chunks = grouped(network, puzzles, partial(trials_of, steps=len(schedule), frames=network.latent_frames))
            measure = partial(judged_frames, per_latent=network.frames_per_latent)
            found.append(
                Sweep(task, network, chunks, schedule, measure, (Recorder("x0_hat", reduce=projected),), stacked)
            )
        return found

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        parts = []
        for name, table in tables.items():
            clean = table[table["family"] == "clean"].set_index("puzzle")["right"].astype(float)
            table["loss"] = clean.loc[table["puzzle"]].to_numpy() - table["right"].astype(float)
            by = ["family", "at", "erased", "first"]
            summary = means(table.assign(length=ALL), ["task", "size", "length", *by], ["right", "solved", "loss"])
            of = {key: features[name]["x0_hat"][rows] for key, rows in table.groupby(by).indices.items()}
            clean, seed = (next(x for key, x in of.items() if key[0] == family) for family in ("clean", "another seed"))
            for key, values in of.items():
                here = (summary[by] == list(key)).all(axis=1)
                for column, other in (("dissimilarity", values), ("of_another_seed", seed)):
                    found = dissimilarity(other, clean, key[-1])
                    summary.loc[here, [column, f"{column}_low", f"{column}_high"]] = found
            parts.append(summary)
            # By length, what is judged only: of every condition that would be a long table.
            parts += [contrasts(rows) for _, rows in with_lengths(table).groupby("length")]
        return pd.concat(parts, ignore_index=True)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        parts, beside = [], controls(summary)
        for task, rows in of_all(summary).groupby("task", sort=False):
            for family, criterion in ((RAW_PAIR, RAW), (NOISED, MATCHED)):
                of_family = rows[rows["family"] == family]
                if task in TOLD:
                    beside += [(f"{family}, {task}", row, "loss") for _, row in of_family.iterrows()]
                    continue
                found = judged(of_family.iloc[0], "loss", criterion) if len(of_family) else TOO_SHORT
                parts.append((f"{family}, {task}", *found))
        return joined(parts, beside)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        tasks = list(summary["task"].unique())
        figure = Figure(figsize=(13.5, 3.4 * len(tasks)), layout="constrained", dpi=150)
        for axes, task in zip(figure.subplots(len(tasks), 4, squeeze=False), tasks, strict=True):
            of_task = of_all(summary[summary["task"] == task])
            for axis, (label, families) in zip(axes, PANELS.items(), strict=False):
                for family in families:
                    rows = of_task[of_task["family"] == family].sort_values(["erased", "at"])
                    place, line = (rows["erased"], "none") if axis is axes[2] else (rows["at"], "-")
                    errors = 100 * bars(rows, "right")
                    colour, mark = STYLES[family]
                    style = {"marker": mark, "linestyle": line, "color": colour, "capsize": 2, "label": family}
                    axis.errorbar(place, 100 * rows["right"], errors, **style)
                    if family == "noise at frame":
                        style |= {"markerfacecolor": "white", "label": "judged: the frame before"}
                        axis.errorbar(place[-1:], 100 * rows["right"][-1:], errors[:, -1:], **style, zorder=3)
                clean = of_task[of_task["family"] == "clean"]["right"].iloc[0]
                axis.axhline(100 * clean, color="#56606B", linestyle=":", linewidth=1, label="undisturbed")
                axis.set(xlabel=label, ylabel=f"{task}: right answers, %", ylim=(-3, 103))
                axis.xaxis.get_major_locator().set_params(integer=True)
                axis.legend(fontsize=6)
            _dissimilarities(axes[3], of_task)
        figure.suptitle(f"{title}; bars: 95 %", fontsize=9)
        return figure


def _dissimilarities(axis: Axes, of_task: pd.DataFrame) -> None:
    for family in PANELS["denoising step"]:
        rows = of_task[of_task["family"] == family].sort_values("at")
        colour, mark = STYLES[family]
        _with_bars(axis, rows, "dissimilarity", {"marker": mark, "color": colour, "label": family})
    rows = of_task[of_task["family"] == "noise at step"].sort_values("at")
    _with_bars(axis, rows, "of_another_seed", {"linestyle": ":", "color": "#56606B", "label": "another seed"})
    axis.set(xlabel="denoising step", ylabel="x0_hat from there on: 1 - CKA")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=6)


def _with_bars(axis: Axes, rows: pd.DataFrame, column: str, style: dict[str, object]) -> None:
    axis.errorbar(rows["at"], rows[column], bars(rows, column), capsize=2, **style)


def trials_of(puzzle: Puzzle, index: int, steps: int, frames: int) -> list[Trial]:
    """Every condition of one puzzle."""
    found = []
    for family, at, erased, first, interventions in conditions(steps, frames):
        labels = {"family": family, "at": at, "erased": erased, "first": first, "last": frames - 1}
        run = Run(puzzle, int(family == "another seed"), interventions)
        found.append(Trial(run, labels_of(puzzle, index) | labels))
    return found


def conditions(steps: int, frames: int) -> list[tuple[str, int, float, int, tuple[Intervention, ...]]]:
    """(family, at which step, frame or count, erased frame-steps, first disturbed step, interventions)."""
    chosen, middle = spread(0, steps - 1, STEPS), middle_of(steps, frames)
    inner, others = tuple(range(1, frames - 1)), tuple(range(frames - 1))
    counts = spread(1, len(inner), COUNTS) if inner else []
    found: list[tuple[str, int, float, int, tuple[Intervention, ...]]] = []
    found += [("clean", 0, 0, 0, ()), ("another seed", 0, 0, 0, ())]
    found += [("noise at step", s, frames, s, (noise_at_step(s),)) for s in chosen]
    found += [("re-noise at step", s, frames, s, (Renoise((s,)),)) for s in chosen if s]  # at step 0: another seed
    found += [("noise at frame", f, steps, 0, (noise_at_frame(f),)) for f in spread(0, frames - 1, FRAMES)]
    for family, some in ((LAST, (frames - 1,)), (OTHERS, others)):
        found.append((family, middle, len(some), middle, (Noise((middle,), Places(some)),)))
    for k in counts:
        found.append(("frames at one step", k, k, middle, (Noise((middle,), Places(inner[:k])),)))
    for m in (count for count in counts if 1 < count <= min(steps // 2, middle + 1)):  # one at one step is above
        span = up_to(middle, m)
        found.append(("one frame at steps", m, m, span[0], (Noise(span, Places(inner[:1])),)))
    for frame in sorted({*inner[:1], *inner[-1:], frames - 1}) if frames <= steps else ():
        family, span = LAST_LONG if frame == frames - 1 else INNER_LONG, up_to(middle, frames)
        found.append((family, frame, frames, span[0], (Noise(span, Places((frame,))),)))
    for share in (0.25, 0.5, 0.75):
        noise = Noise((middle,), Places(share=share))
        found.append(("share of positions at one step", middle, share * frames, middle, (noise,)))
    return found


def middle_of(steps: int, frames: int) -> int:
    """Of the steps that are noised, but the first, the one nearest to the middle: of those that are the last of as many
    steps as there are frames, if there are any.
    """
    chosen = spread(0, steps - 1, STEPS)[1:] or [0]
    late = [s for s in chosen if s >= frames - 1] or chosen
    return min(late, key=lambda s: abs(s - (steps - 1) / 2))


def up_to(last: int, count: int) -> tuple[int, ...]:
    """So many steps in a row, of which this is the last."""
    return tuple(range(last - count + 1, last + 1))


def judged_frames(trajectory: Trajectory, per_latent: int) -> list[list[dict[str, object]]]:
    """For each run: whether the video is solved, and whether the last frame shows a right answer.

    Of a run whose last frame was noised throughout, it is the frame before it that is judged, as far as the answer
    should have got by then.
    """
    rows = []
    for run, video in zip(trajectory.runs, trajectory.video, strict=True):
        task, last = task_of(run.puzzle), len(video) - 1
        score, lost = task.score(video, run.puzzle), noise_at_frame(last // per_latent) in run.interventions
        right = task.holds(video, run.puzzle, last - per_latent) if lost else score.answer
        rows.append([{"solved": score.solved, "right": right}])
    return rows


def projected(x0_hat: Tensor, batch: Batch) -> Tensor:
    """FEATURES random projections, (runs, FEATURES); the same ones for every puzzle and step."""
    estimates = x0_hat.flatten(1).float().cpu()
    return estimates @ directions(estimates.shape[-1]) / estimates.shape[-1] ** 0.5


@lru_cache(maxsize=1)
def directions(size: int) -> Tensor:
    """(size, FEATURES), drawn once: of a large model that takes a second."""
    return torch.randn(size, FEATURES, generator=torch.Generator().manual_seed(0))


def stacked(trajectory: Trajectory) -> dict[str, NDArray]:
    """The projections of all steps, (runs, steps, FEATURES)."""
    return {"x0_hat": torch.stack(list(trajectory.recorded("x0_hat").values()), 1).numpy()}


def dissimilarity(features: NDArray, clean: NDArray, first: int) -> tuple[float, float, float]:
    """1 - debiased CKA to the undisturbed runs over puzzles, mean over the steps from `first` on; with its interval.

    features, clean: (puzzles, steps, FEATURES).
    """

    def of(rows: NDArray) -> float:
        return float(np.mean([1 - cka(features[rows, s], clean[rows, s]) for s in range(first, clean.shape[1])]))

    if len(clean) < LEAST_ROWS:
        return (float("nan"),) * 3
    return of(np.arange(len(clean))), *jackknife_interval(of, len(clean))


def contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """Mean loss by noise at a step minus mean loss by noise at a frame, puzzle by puzzle: each of SIDES.

    Raw: all steps but 0 against all frames but the first and the last; matched: the step in the middle.
    """
    last, middle = table["last"].iloc[0], table[table["family"] == LAST]["at"].iloc[0]
    rows = []
    for family, sides in SIDES.items():
        steps, frames = (table[table["family"] == side] for side in sides)
        if family == RAW_PAIR:
            steps, frames = steps[steps["at"] > 0], frames[frames["at"].between(1, last - 1)]
        else:
            steps = steps[steps["at"] == middle]
        one, other = (side.groupby("puzzle")["loss"].mean() for side in (steps, frames))
        if one.empty or other.empty:  # too few frames
            continue
        difference = (one - other).to_numpy()
        interval = dict(zip(("loss_low", "loss_high"), mean_interval(difference), strict=True))
        named = {column: table[column].iloc[0] for column in ("task", "size", "length")}
        rows.append({**named, "family": family, "n": len(difference), "loss": float(difference.mean()), **interval})
    return pd.DataFrame(rows)


def controls(summary: pd.DataFrame) -> list[tuple[str, pd.Series, str]]:
    """What is told beside the verdict, of the step in the middle: how much of the loss is that of the frame which is
    judged, the matched contrast without it, and how much is left where the noise is not foreign to the step.
    """
    found = []
    for task, rows in of_all(summary).groupby("task", sort=False):
        here = rows[rows["at"] == rows[rows["family"] == LAST]["at"].iloc[0]].set_index("family")
        for family, words in ((LAST, f"noise on {LAST}"), (OTHERS, f"noise on {OTHERS}"), (AGAIN, "re-noising there")):
            found += [(f"lost on {task} by {words}", row, "loss") for _, row in here[here.index == family].iterrows()]
        for family, words in ((LAST_LONG, f"lost on {task} by noise on {LAST_LONG}"), (SPARED, f"{SPARED}, {task}")):
            found += [(words, row, "loss") for _, row in rows[rows["family"] == family].iterrows()]
    return found
