"""The curve of a training run, and whether a retraining falls into the band around a shipped one."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from minicos.errors import MinicosError

CURVE_FILE = "curve.csv"
WINDOW = 500  # steps that one point of the curve covers
BAND = 1.6  # a retraining's loss lies between the shipped one's divided by this and times this (docs/training.md)


@dataclass(frozen=True)
class Point:
    """step: the last one of the window; loss: mean over it; solved: the last validation rates in it, by column name."""

    step: int
    loss: float
    solved: dict[str, float]


def curve_of_run(folder: Path) -> list[Point]:
    """From the logs of a run, however often it was resumed; only what they tell of.

    Raises MinicosError where there are none.
    """
    logs = sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    if not logs:
        raise MinicosError(f"{folder} has no logs of a training run")
    rows: dict[int, dict[str, float]] = {}
    for path in logs:  # what was done again after a kill replaces what was lost
        for row in csv.DictReader(path.open()):
            try:
                step, found = int(row["step"]), {k: float(v) for k, v in row.items() if v and k != "step"}
            except (TypeError, ValueError):  # a power cut, or a full disk, has cut it off
                continue
            rows.setdefault(step, {}).update(found)
    points = []
    for end in range(WINDOW, max(rows, default=0) + 2, WINDOW):
        window = [rows[step] for step in range(end - WINDOW, end) if step in rows]
        losses = [row["loss"] for row in window if "loss" in row]
        if not losses:  # logs were taken away
            continue
        solved = {name: value for row in window for name, value in row.items() if name.startswith("solved")}
        points.append(Point(end, sum(losses) / len(losses), solved))
    return points


def write_curve(points: list[Point], path: Path) -> None:
    names = sorted({name for point in points for name in point.solved})
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", *names])
        for point in points:
            rates = [f"{point.solved[name]:.4f}" if name in point.solved else "" for name in names]
            writer.writerow([point.step, f"{point.loss:.5f}", *rates])


def read_curve(path: Path) -> list[Point]:
    with path.open() as file:
        return [
            Point(
                int(row["step"]),
                float(row["loss"]),
                {name: float(value) for name, value in row.items() if name.startswith("solved") and value},
            )
            for row in csv.DictReader(file)
        ]


def outside_band(points: list[Point], reference: list[Point]) -> list[int]:
    """The steps at which a run's loss leaves the band around the reference; both have the same steps."""
    return [
        own.step
        for own, other in zip(points, reference, strict=True)
        if not other.loss / BAND <= own.loss <= other.loss * BAND
    ]


def verdict(points: list[Point], reference: list[Point]) -> str:
    """One line for the end of a training run; a recipe of another length has another curve, which says nothing."""
    if len(points) != len(reference):
        took = reference[-1].step, points[-1].step if points else reference[-1].step
        if took[0] == took[1]:
            return (
                f"the logs tell of {len(points)} of {len(reference)} points: no comparison with the shipped run's curve"
            )
        return f"the shipped run took {took[0]} steps, this one {took[1]}: their curves do not compare"
    left = outside_band(points, reference)
    count = f"{len(points) - len(left)} of {len(points)} points of the loss curve"
    where = f" (not: step {', '.join(map(str, left))})" if left else ""
    ratios = [own.loss / other.loss for own, other in zip(points, reference, strict=True)]
    span = f"from {min(ratios):.2f} to {max(ratios):.2f} times its loss"
    return f"{count} lie within a factor of {BAND} of the shipped run's{where}; {span}"
