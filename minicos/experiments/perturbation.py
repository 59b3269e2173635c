"""Perturbation: noise at a step against noise at a frame, with the controls that tell damage from importance.

The paper overwrites all frames at one step, or one frame at all steps. These erase different amounts, so a curve of
other sets is drawn against the number of erased frame-steps. Unit noise is foreign to a step whose noise level is
lower, so the same steps are also re-noised to their own level. And noise at step 0 is another seed: no damage at all.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from minicos.experiments.base import (
    Experiment,
    Scale,
    Verdict,
    grouped,
    joined,
    judged,
    means,
    puzzles_for,
    tasks_of,
)
from minicos.interventions import Noise, Places, Renoise, noise_at_frame, noise_at_step
from minicos.measures import cka, mean_interval
from minicos.model import Reasoner
from minicos.runs import Batch, Intervention, Run
from minicos.sampling import Recorder, Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("maze", "rotation-open")
STEPS = 6  # of the schedule, evenly spread
FRAMES, COUNTS = 8, 6  # at most: which frames are noised throughout, and how many in the curve of equal damage
FEATURES = 64  # per step, random projections of x0_hat
RAW, MATCHED = 0.20, 0.10
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
PANELS = (
    ("noise at step", "re-noise at step"),
    ("noise at frame",),
    ("frames at one step", "one frame at steps", "share of positions at one step", "noise at step"),
)
PANEL_LABELS = ("denoising step", "frame", "erased frame-steps")


class Perturbation(Experiment):
    name = "perturbation"
    finding = "Noise at one denoising step destroys the answer, noise at one frame hardly does."
    paper = (
        "The score falls from 0.685 to below 0.3 by noise at one step, and far less by noise at one frame "
        "(value not published)."
    )
    picture = (
        "Right answers after noise, for each task: against the step that was noised or re-noised, against the "
        "frame that was noised, and against the number of erased frame-steps."
    )
    criterion = (
        f"Noise at a step (not 0) costs over {100 * RAW:g} points of right answers more than noise at a frame (not the "
        f"first or last); and so it does by more than {100 * MATCHED:g} points at as many erased frame-steps."
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
            summary = means(table, ["task", "size", "family", "at", "erased"], ["right", "solved", "loss"])
            summary["dissimilarity"] = [
                dissimilarity(features[name]["x0_hat"], table, row["family"], row["at"], row["erased"])
                for _, row in summary.iterrows()
            ]
            parts += [summary, contrasts(table)]
        return pd.concat(parts, ignore_index=True)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        parts = []
        for family, criterion in (("step - frame", RAW), ("step - frame, matched", MATCHED)):
            for _, row in summary[summary["family"] == family].iterrows():
                parts.append((f"{family}, {row['task']}", *judged(row, "loss", criterion)))
        return joined(parts)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        tasks = list(summary["task"].unique())
        figure = Figure(figsize=(11, 3.4 * len(tasks)), layout="constrained", dpi=150)
        for axes, task in zip(figure.subplots(len(tasks), 3, squeeze=False), tasks, strict=True):
            of_task = summary[summary["task"] == task]
            for axis, families, label in zip(axes, PANELS, PANEL_LABELS, strict=True):
                for family, colour, mark in zip(
                    families, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), "osv^", strict=False
                ):
                    rows = of_task[of_task["family"] == family].sort_values(["erased", "at"])
                    place = rows["erased"] if axis is axes[2] else rows["at"]
                    errors = 100 * rows[["right_low", "right_high"]].sub(rows["right"], axis=0).abs().T.to_numpy()
                    line = "none" if axis is axes[2] else "-"
                    axis.errorbar(
                        place,
                        100 * rows["right"],
                        errors,
                        marker=mark,
                        linestyle=line,
                        color=colour,
                        capsize=2,
                        label=family,
                    )
                clean = of_task[of_task["family"] == "clean"]["right"].iloc[0]
                axis.axhline(100 * clean, color="#56606B", linestyle=":", linewidth=1, label="undisturbed")
                axis.set(xlabel=label, ylabel=f"{task}: right answers, %", ylim=(-3, 103))
                axis.legend(fontsize=6)
        figure.suptitle(f"{title}; bars: 95 %", fontsize=9)
        return figure


def trials_of(puzzle: Puzzle, index: int, steps: int, frames: int) -> list[Trial]:
    """Every condition of one puzzle."""
    found = []
    for family, at, erased, interventions in conditions(steps, frames):
        labels = {"task": puzzle.task, "size": puzzle.size, "puzzle": index}
        labels |= {"family": family, "at": at, "erased": erased, "last": frames - 1}
        found.append(Trial(Run(puzzle, int(family == "another seed"), interventions), labels))
    return found


def conditions(steps: int, frames: int) -> list[tuple[str, int, float, tuple[Intervention, ...]]]:
    """(family, at which step, frame or count, erased frame-steps, interventions)."""
    chosen = spread(0, steps - 1, STEPS)
    middle, inner = steps // 2, tuple(range(1, frames - 1)) or (0,)
    found: list[tuple[str, int, float, tuple[Intervention, ...]]] = [("clean", 0, 0, ()), ("another seed", 0, 0, ())]
    found += [("noise at step", s, frames, (noise_at_step(s),)) for s in chosen]
    found += [("re-noise at step", s, frames, (Renoise((s,)),)) for s in chosen]
    found += [("noise at frame", f, steps, (noise_at_frame(f),)) for f in spread(0, frames - 1, FRAMES)]
    counts = spread(1, len(inner), COUNTS)
    for k in counts:
        found.append(("frames at one step", k, k, (Noise((middle,), Places(inner[:k])),)))
    for m in (count for count in counts if count <= steps // 2):
        span = tuple(range(middle - m // 2, middle - m // 2 + m))
        found.append(("one frame at steps", m, m, (Noise(span, Places(inner[:1])),)))
    for share in (0.25, 0.5, 0.75):
        found.append(
            ("share of positions at one step", middle, share * frames, (Noise((middle,), Places(share=share)),))
        )
    return found


def spread(first: int, last: int, most: int) -> list[int]:
    """Every whole number from first to last, or `most` of them, evenly spread."""
    return sorted({round(number) for number in np.linspace(first, last, min(most, last - first + 1))})


def judged_frames(trajectory: Trajectory, per_latent: int) -> list[list[dict[str, object]]]:
    """For each run: whether the video is solved, and whether the last frame that was not noised throughout is right."""
    rows = []
    for run, video in zip(trajectory.runs, trajectory.video, strict=True):
        task, last = task_of(run.puzzle), len(video) - 1
        lost = noise_at_frame(last // per_latent) in run.interventions
        frame = last - per_latent if lost else last
        rows.append([{"solved": task.score(video, run.puzzle).solved, "right": task.holds(video, run.puzzle, frame)}])
    return rows


def projected(x0_hat: Tensor, batch: Batch) -> Tensor:
    """FEATURES random projections, (runs, FEATURES); the same ones for every puzzle and step."""
    estimates = x0_hat.flatten(1).float().cpu()
    directions = torch.randn(estimates.shape[-1], FEATURES, generator=torch.Generator().manual_seed(0))
    return estimates @ directions / estimates.shape[-1] ** 0.5


def stacked(trajectory: Trajectory) -> dict[str, NDArray]:
    """The projections of all steps, (runs, steps, FEATURES)."""
    return {"x0_hat": torch.stack(list(trajectory.recorded("x0_hat").values()), 1).numpy()}


def dissimilarity(features: NDArray, table: pd.DataFrame, family: str, at: int, erased: float) -> float:
    """1 - debiased CKA to the undisturbed runs over puzzles, mean over the steps from the first disturbed one on."""
    here = (table["family"] == family) & (table["at"] == at) & (table["erased"] == erased)
    first = at if "at step" in family else 0
    mine, clean = features[here.to_numpy()], features[(table["family"] == "clean").to_numpy()]
    if len(mine) < 4:
        return float("nan")
    return float(np.mean([1 - cka(mine[:, s], clean[:, s]) for s in range(first, features.shape[1])]))


def contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """Mean loss by noise at a step minus mean loss by noise at a frame, puzzle by puzzle: raw, and at equal damage.

    Matched: the inner frames at one step against one inner frame at as many steps, of the counts that both have.
    """
    last = table["last"].iloc[0]
    steps = table[(table["family"] == "noise at step") & (table["at"] > 0)]
    frames = table[(table["family"] == "noise at frame") & table["at"].between(1, last - 1)]
    many, long = (table[table["family"] == family] for family in ("frames at one step", "one frame at steps"))
    common = set(many["erased"]) & set(long["erased"])
    pairs = {"step - frame": (steps, frames)}
    pairs["step - frame, matched"] = tuple(rows[rows["erased"].isin(common)] for rows in (many, long))
    rows = []
    for family, sides in pairs.items():
        one, other = (side.groupby("puzzle")["loss"].mean() for side in sides)
        if one.empty or other.empty:  # too few frames
            continue
        difference = (one - other).to_numpy()
        interval = dict(zip(("loss_low", "loss_high"), mean_interval(difference), strict=True))
        named = {"task": table["task"].iloc[0], "size": table["size"].iloc[0], "family": family, "n": len(difference)}
        rows.append({**named, "loss": float(difference.mean()), **interval})
    return pd.DataFrame(rows)
