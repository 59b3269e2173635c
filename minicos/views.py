"""Pictures and words of `minicos.explore`: arrays, PNG and HTML, fast enough for a slider; and the figure for print.

Nothing is told by colour alone: verdicts have marks and words, noise is striped, and every picture has a text that says
what it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from html import escape
from io import BytesIO
from itertools import groupby
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from minicos.explorer import Choice, Recording
from minicos.plots import MARKS
from minicos.tasks import Score, task_of
from minicos.teaching import Picture, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Pixels = NDArray[np.uint8]  # (height, width, 3)
Noise = tuple[tuple[int, ...], tuple[int, ...]]  # at these steps, at these frames

SIDE = 38  # pixels of a cell of the grid, if its frame is square
GRID_WIDTH = 300  # that many frames share, SMALLEST each at least
SMALLEST = 26
MARGIN = 3  # around a frame in its cell: white, striped where there is noise
LARGE = 132  # pixels of the frame and of the token map that are looked at
STRIPE = (213, 94, 0)
MAP_COLOURS = "cividis"
TWIN_ROWS = 4  # steps of each run in the figure, beside those with noise


# --- pictures -------------------------------------------------------------------------------------------------------


def cell_size(recording: Recording) -> tuple[int, int]:
    """Height and width in pixels of a cell of the grid."""
    _, frames, height, width, _ = recording.estimates.shape
    wide = int(np.clip(GRID_WIDTH // frames, SMALLEST, SIDE * max(1, width / height)))
    return int(np.clip(wide * height / width, SMALLEST, SIDE)), wide


def fitted(picture: Pixels, height: int, width: int) -> Pixels:
    """Scaled to fit, in the middle of white; edges stay crisp, whatever the factor."""
    tall, wide, _ = picture.shape
    scale = min(height / tall, width / wide)
    times = max(1, int(np.ceil(2 * scale)))
    size = max(1, round(wide * scale)), max(1, round(tall * scale))
    shrunk = Image.fromarray(picture.repeat(times, 0).repeat(times, 1)).resize(size, Image.Resampling.BOX)
    canvas = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = shrunk
    return canvas


def grid(recording: Recording, rows: Sequence[int], noise: Noise) -> Pixels:
    """x0_hat of some steps (rows) in every frame (columns), striped where there is noise."""
    frames, (height, width) = recording.estimates.shape[1], cell_size(recording)
    picture = np.full((len(rows) * height, frames * width, 3), 255, np.uint8)
    stripes = np.add.outer(np.arange(height), np.arange(width)) % 6 < 3
    for row, step in enumerate(rows):
        for frame in range(frames):
            cell = picture[row * height :, frame * width :][:height, :width]
            if step in noise[0] or frame in noise[1]:
                cell[stripes] = STRIPE
            inner = cell[MARGIN:-MARGIN, MARGIN:-MARGIN]
            inner[:] = fitted(recording.estimates[step, frame], *inner.shape[:2])
    return picture


@cache
def map_colours() -> NDArray[np.uint8]:
    """(256, 3), from dark to light, even to the eye."""
    from matplotlib import colormaps

    return colormaps[MAP_COLOURS](np.arange(256), bytes=True)[:, :3]


def token_map(energy: NDArray[np.float32], low: float, high: float) -> Pixels:
    """One pixel for each token: from `low` (dark) to `high` (light); energy: (rows, columns)."""
    share = (energy - low) / max(high - low, 1e-9)
    return map_colours()[(255 * share.clip(0, 1)).round().astype(int)]


def energy_range(recordings: tuple[Recording, Recording], block: int, step: int) -> tuple[float, float]:
    """The lowest and the highest energy of a block's tokens at one step, over both runs and all frames."""
    values = [recording.energy[step, block] for recording in recordings]
    return float(min(v.min() for v in values)), float(max(v.max() for v in values))


def png(picture: Pixels) -> bytes:
    """The file's bytes; packed lightly, since nobody keeps them."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


# --- words ----------------------------------------------------------------------------------------------------------


def marked(score: Score) -> str:
    """The verdict in a mark and a word."""
    return f"{MARKS[score.status][0]} {score.status}"


def verdict(recording: Recording) -> str:
    """The verdict on a run, why, and its answer."""
    reason = f" ({recording.score.reason})" if recording.score.reason else ""
    return f"{marked(recording.score)}{reason}. Answer: {answer_words(recording)}"


def answer_words(recording: Recording) -> str:
    """The answer that the last frame shows, as the task decodes it; a route by its cells, row and column."""
    answer = recording.answer
    if answer is None:
        return "none can be read"
    if not isinstance(answer, tuple):
        return f"{answer:+} {task_of(recording.run.puzzle).length_unit}"
    whole = all(isinstance(part, tuple) for part in answer)
    return (" ".join(map(str, answer)) or "nothing") if whole else str(answer)


def done_words(choice: Choice) -> str:
    """What is done to the disturbed run."""
    done = [f"noise at step {step}" for step in choice.steps] + [f"noise at frame {frame}" for frame in choice.frames]
    if choice.swap is not None:
        donor = "its pair" if choice.swap == "pair" else f"puzzle {choice.swap}"
        tokens = "all tokens" if choice.region == "all" else choice.region
        done.append(f"{tokens} of block {choice.block} from {donor} at step 0")
    return ", ".join(done + ["ensemble of 3 seeds at step 0"] * choice.ensemble) or "nothing is done"


def grid_words(name: str, recording: Recording) -> str:
    """The grid for those who cannot see it: the verdicts on x0_hat along the steps."""
    spans = []
    for status, steps in groupby(range(len(recording.scores)), lambda step: recording.scores[step].status):
        first, *_, last = [*steps] * 2
        spans.append(f"{status} at step {first}" if first == last else f"{status} at steps {first} to {last}")
    return f"{name}: x0_hat of every step (rows) in every frame (columns); as a video {', '.join(spans)}."


def frame_words(name: str, recording: Recording, step: int, frame: int) -> str:
    """One frame for those who cannot see it."""
    return f"{name}: x0_hat of step {step} in frame {frame}; as a video {recording.scores[step].status}."


def map_words(name: str, recording: Recording, block: int, step: int, frame: int) -> str:
    """A token map for those who cannot see it."""
    energy = recording.energy[step, block, frame]
    row, column = np.unravel_index(energy.argmax(), energy.shape)
    return (
        f"{name}: energy of block {block}'s tokens in frame {frame} at step {step}, of the block's mean: from "
        f"{energy.min():.2f} to {energy.max():.2f}, highest in row {row}, column {column}."
    )


# --- HTML -----------------------------------------------------------------------------------------------------------


def image_html(picture: Pixels, words: str) -> str:
    return Picture(png(picture), words)._repr_html_()


@lru_cache(maxsize=16)
def grid_html(name: str, recording: Recording, noise: Noise) -> str:
    """The grid, and at the right of every row the mark of its verdict."""
    height, _ = cell_size(recording)
    style = f"display:block; height:{height}px; line-height:{height}px; padding-left:5px; font-weight:bold"
    marks = [
        f'<span title="{escape(f"step {step}: {score.status} {score.reason}")}" style="{style}; '
        f'color:{MARKS[score.status][1]}">{MARKS[score.status][0]}</span>'
        for step, score in enumerate(recording.scores)
    ]
    picture = image_html(grid(recording, range(len(recording.scores)), noise), grid_words(name, recording))
    return f'{picture}<div aria-hidden="true">{"".join(marks)}</div>'


def chosen_html(name: str, recording: Recording, noise: Noise, step: int, frame: int) -> str:
    """The grid with a frame around one step and frame."""
    height, width = cell_size(recording)
    place = f"left:{frame * width}px; top:{step * height}px; width:{width}px; height:{height}px"
    around = f'<div style="position:absolute; {place}; box-sizing:border-box; border:{MARGIN}px solid #000"></div>'
    both = grid_html(name, recording, noise) + around
    return f'<div style="position:relative; display:flex; align-items:flex-start">{both}</div>'


def frame_html(name: str, recording: Recording, step: int, frame: int) -> str:
    """One frame of x0_hat, large, with the verdict on the video that it is of."""
    caption = f"<b>{name}</b>, x0_hat<br>{marked(recording.scores[step])}"
    return _captioned(recording.estimates[step, frame], frame_words(name, recording, step, frame), caption)


def map_html(name: str, recording: Recording, block: int, step: int, frame: int, low: float, high: float) -> str:
    """One token map, large."""
    picture = token_map(recording.energy[step, block, frame], low, high)
    caption = f"<b>{name}</b>, block {block}<br>dark {low:.2f}, light {high:.2f}"
    return _captioned(picture, map_words(name, recording, block, step, frame), caption)


def _captioned(picture: Pixels, words: str, caption: str) -> str:
    height, width, _ = picture.shape
    large = fitted(picture, min(LARGE, max(1, LARGE * height // width)), LARGE)
    lines = f'<figcaption style="line-height:1.35; font-size:12px">{caption}</figcaption>'
    return f'<figure style="margin:0; width:{LARGE}px">{image_html(large, words)}{lines}</figure>'


# --- the figure -----------------------------------------------------------------------------------------------------


def twin(clean: Recording, disturbed: Recording, choice: Choice) -> Picture:
    """The panel for print, with words for those who cannot see it."""
    words = " ".join(
        f"{name}: {verdict(recording)}. {grid_words(name, recording)}"
        for name, recording in (("Clean", clean), (f"Disturbed, {done_words(choice)}", disturbed))
    )
    return show(twin_figure(clean, disturbed, choice), words)


def twin_figure(clean: Recording, disturbed: Recording, choice: Choice) -> Figure:
    """The panel for print: the clean run above the disturbed one, some steps of each and every frame, with verdicts;
    beside each, the token map of the chosen block at step 0 in the last frame.
    """
    from matplotlib.figure import Figure

    steps, frames = clean.estimates.shape[:2]
    rows = sorted({*np.linspace(0, steps - 1, TWIN_ROWS).round().astype(int).tolist(), *choice.steps})
    height, width = cell_size(clean)
    low, high = energy_range((clean, disturbed), choice.block, 0)
    size = (frames * width / 55 + 4.4, 2 * len(rows) * height / 55 + 2)
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots(2, 2, width_ratios=(3, 1))
    done = ("clean", f"disturbed: {done_words(choice)}")
    for (left, right), recording, name in zip(axes, (clean, disturbed), done, strict=True):
        noise = (choice.steps, choice.frames) if recording is disturbed else ((), ())
        left.imshow(grid(recording, rows, noise), interpolation="nearest")
        left.set_xticks((np.arange(frames) + 0.5) * width, [f"frame {frame}" for frame in range(frames)], fontsize=7)
        labels = [f"step {step.index}, σ = {step.sigma:.2f}" for step in recording.schedule]
        left.set_yticks((np.arange(len(rows)) + 0.5) * height, [labels[step] for step in rows], fontsize=7)
        left.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
        left.spines[:].set_visible(False)
        for row, step in enumerate(rows):
            place, colour = (frames * width + 4, (row + 0.5) * height), MARKS[recording.scores[step].status][1]
            left.text(*place, marked(recording.scores[step]), color=colour, fontsize=7, va="center")
        left.set_title(fill(f"{name}. {verdict(recording)}", 90), fontsize=8, loc="left")
        shown = right.imshow(recording.energy[0, choice.block, -1], vmin=low, vmax=high, cmap=MAP_COLOURS)
        right.set(xticks=[], yticks=[])
        right.set_title(f"energy of block {choice.block}'s tokens,\nstep 0, last frame", fontsize=7)
        figure.colorbar(shown, ax=right, shrink=0.6).ax.tick_params(labelsize=7)
    puzzle = clean.run.puzzle
    figure.suptitle(f"{puzzle.task} {puzzle.size}, puzzle {choice.index}, seed {choice.seed}: x0_hat", fontsize=9)
    return figure
