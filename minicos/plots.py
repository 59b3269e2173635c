"""Pictures: film strips of a run, walls of solved videos, curves of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minicos.curves import BAND, WINDOW, Point
from minicos.errors import MinicosError
from minicos.flow import Step
from minicos.tasks import Score, Video

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Verdicts differ in mark as well as in colour (Okabe and Ito's, told apart by colour-blind readers).
MARKS = {
    "solved": ("✓", "#009E73"),
    "wrong": ("✗", "#D55E00"),
    "invalid": ("!", "#CC79A7"),
    "unreadable": ("?", "#56606B"),
}


def film_strip(estimates: Sequence[Video], steps: Sequence[Step], scores: Sequence[Score], title: str) -> Figure:
    """x0_hat along denoising: a row for each step with its sigma, a column for each frame, the verdict at the right.

    estimates: one uint8 (frames, height, width, 3) video for each of `steps`.
    """
    from matplotlib.figure import Figure

    rows, frames = len(estimates), len(estimates[0])
    height, width = estimates[0].shape[1:3]
    cell = 0.95
    figure = Figure(figsize=(cell * width / height * frames + 2.4, cell * rows + 0.9), layout="constrained", dpi=150)
    axes = figure.subplots(rows, frames, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.06})
    for row, (video, step, score) in enumerate(zip(estimates, steps, scores, strict=True)):
        for frame in range(frames):
            axis = axes[row, frame]
            axis.imshow(video[frame], interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="#9a9a9a", linewidth=0.6)
            if row == 0:
                axis.set_title(f"frame {frame}", fontsize=8)
        axes[row, 0].set_ylabel(
            f"step {step.index}\nσ = {step.sigma:.2f}", fontsize=8, rotation=0, ha="right", va="center"
        )
        mark, colour = MARKS[score.status]
        axes[row, -1].annotate(
            f"{mark} {score.status}",
            (1.08, 0.5),
            xycoords="axes fraction",
            fontsize=8,
            color=colour,
            va="center",
            annotation_clip=False,
        )
    figure.suptitle(title, fontsize=9)
    return figure


def film(videos: Mapping[str, Video], title: str = "") -> Figure:
    """Videos one under the other: a row for each name, a column for each frame. Sizes and lengths may differ.

    videos: uint8 (frames, height, width, 3) by name. Raises MinicosError where there is none.
    """
    from matplotlib.figure import Figure

    if not videos:
        raise MinicosError("no video to show: give at least one, as {name: video}")
    columns = max(len(video) for video in videos.values())
    figure = Figure(figsize=(0.95 * columns + 1.6, 1.0 * len(videos) + 0.5), layout="constrained", dpi=150)
    axes = figure.subplots(len(videos), columns, squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.06})
    for frame, axis in enumerate(axes[0]):
        axis.set_title(f"frame {frame}", fontsize=8)
    for row, (name, video) in zip(axes, videos.items(), strict=True):
        for frame, axis in enumerate(row):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set(color="#9a9a9a", linewidth=0.6)
            if frame < len(video):
                axis.imshow(video[frame], interpolation="nearest")
            else:
                axis.set_axis_off()
        row[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=9)
    return figure


def video_wall(videos: Sequence[Video], scores: Sequence[Score], columns: int = 8, scale: int = 4) -> Video:
    """Many videos of one size as one, enlarged, each in a frame: black where solved, striped where not."""
    frames, height, width, _ = videos[0].shape
    margin = 4
    tall, wide = height * scale + 2 * margin, width * scale + 2 * margin
    rows = -(-len(videos) // columns)
    wall = np.full((frames, rows * tall, columns * wide, 3), 255, np.uint8)
    for place, (video, score) in enumerate(zip(videos, scores, strict=True)):
        top, left = place // columns * tall, place % columns * wide
        tile = wall[:, top : top + tall, left : left + wide]
        tile[:, 1:-1, 1:-1] = 60 if score.solved else 235
        if not score.solved:
            tile[:, 1:-1, 1:-1][:, np.add.outer(np.arange(tall - 2), np.arange(wide - 2)) % 6 < 3] = (213, 94, 0)
        large = video.repeat(scale, axis=1).repeat(scale, axis=2)
        tile[:, margin:-margin, margin:-margin] = large
    return wall


def save_video(video: Video, path: Path, seconds_per_frame: float = 0.5) -> None:
    """Write a uint8 video as .gif (endless) or .mp4 (once), the last frame held."""
    import imageio.v3 as imageio

    if path.suffix == ".gif":
        times = [int(seconds_per_frame * 1000)] * (len(video) - 1) + [1500]
        imageio.imwrite(path, video, duration=times, loop=0)
    else:
        write_mp4(np.concatenate([video, video[-1:], video[-1:]]), path, 1 / seconds_per_frame)


def write_mp4(video: Video, path: Path, frames_per_second: float) -> None:
    """H.264, which wants even sides: an odd one gets one more row or column."""
    import imageio.v3 as imageio

    _, height, width, _ = video.shape
    even = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    imageio.imwrite(path, even, fps=frames_per_second, codec="libx264", macro_block_size=1, quality=8)


def training_curve(points: Sequence[Point], others: Mapping[str, Sequence[Point]], title: str) -> Figure:
    """Left: the loss with its band, and retrainings over it. Right: validation rates at the end and at step 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2)
    steps, loss = [p.step for p in points], np.array([p.loss for p in points])
    left.fill_between(steps, loss / BAND, loss * BAND, color="#cfd8dc", label=f"band: a factor of {BAND}")
    left.plot(steps, loss, color="#000000", marker="o", markersize=3, label="shipped")
    for (name, curve), mark in zip(others.items(), "xv+s", strict=False):
        left.plot([p.step for p in curve], [p.loss for p in curve], color="#D55E00", marker=mark, lw=0.8, label=name)
    left.set(xlabel="training step", ylabel=f"loss, mean over {WINDOW} steps", yscale="log")
    left.legend(fontsize=7)
    names = sorted({name for p in points for name in p.solved if not name.endswith("_step_0")})
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56606B")
    for name, colour, mark in zip(names, colours, "osv^D", strict=False):
        task, _, size = name.removeprefix("solved_").rpartition("_")
        for key, style, moment in ((name, "-", "end"), (f"{name}_step_0", ":", "step 0")):
            known = [p for p in points if key in p.solved]
            rates = [100 * p.solved[key] for p in known]
            label = f"{task} {size}, {moment}"
            right.plot([p.step for p in known], rates, style, color=colour, marker=mark, markersize=3, label=label)
    right.set(xlabel="training step", ylabel="validation puzzles solved, %", ylim=(-3, 103))
    right.legend(fontsize=6, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))  # above, where no line runs
    figure.suptitle(title, fontsize=9)
    return figure
