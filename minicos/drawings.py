"""Drawings for the lecture: schemes of an idea, not outputs of a model. Each gives a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from minicos.tasks import Video

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, BLUE, ORANGE, GREEN = "#1b1f23", "#9aa4ad", "#0072B2", "#D55E00", "#009E73"


def canvas(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Empty panels side by side, without axes, one unit the same in both directions."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.set_axis_off()
        axis.set_aspect("equal")
    return figure, axes


def box(axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str = INK) -> None:
    """A rounded box with its lower left corner at (x, y)."""
    shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.03", fc="white", ec=colour, lw=1.6)
    axis.add_patch(shape)
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = INK, bend: float = 0) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 12, "color": colour, "lw": 1.6}
    axis.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", shrinkA=1, shrinkB=1, **style))


def tokens(video: Video) -> Figure:
    """A picture cut into tokens, and a video cut into tokens that have a place and a time."""
    figure, (left, right) = canvas(10, 3.8, panels=2)
    height, width, _ = video[0].shape
    for axis, frames in ((left, video[-1:]), (right, video)):
        for number, frame in enumerate(frames):
            shift = 0.42 * width * (len(frames) - 1 - number)
            extent = (shift, shift + width, 0.22 * shift, 0.22 * shift + height)
            axis.imshow(frame, extent=extent, interpolation="nearest", zorder=number)
            for cut in range(0, width + 1, 4):
                axis.plot([shift + cut] * 2, extent[2:], color=FAINT, lw=0.6, zorder=number)
            for cut in range(0, height + 1, 4):
                axis.plot(extent[:2], [0.22 * shift + cut] * 2, color=FAINT, lw=0.6, zorder=number)
        axis.autoscale()
    cells = height * width // 16
    left.set_title(f"image: {cells} tokens, each a place", fontsize=11)
    right.set_title(f"video: {len(video)} x {cells} tokens, each a place and a time", fontsize=11)
    return figure


def transformer() -> Figure:
    """The diffusion transformer of one denoising step: what comes in, what a block does, what comes out."""
    figure, (axis,) = canvas(11, 3.8)
    for row, text in enumerate(("noisy latents", "mask", "first frame")):
        box(axis, 0, 2.4 - 0.9 * row, 2.1, 0.6, text)
        arrow(axis, (2.15, 2.7 - 0.9 * row), (2.95, 1.8), FAINT)
    box(axis, 3.0, 1.3, 1.5, 1.0, "patches\nto tokens")
    arrow(axis, (4.55, 1.8), (5.15, 1.8))
    axis.add_patch(Rectangle((5.15, -0.25), 6.0, 3.5, fc="#f2f6f9", ec=BLUE, lw=1.6))
    axis.text(8.15, 2.98, "block, repeated 40 times in Wan2.2, 6 times in micro", ha="center", fontsize=10, color=BLUE)
    for x, text in (
        (5.4, "attention\nevery token to\nevery token,\nall frames"),
        (7.4, "attention\nto the prompt"),
        (9.4, "MLP"),
    ):
        box(axis, x, 1.05, 1.6, 1.5, text)
    for x in (7.05, 9.05):
        arrow(axis, (x, 1.8), (x + 0.3, 1.8))
    box(axis, 5.4, -0.05, 5.6, 0.55, "noise level σ: modulates the first and the last")
    arrow(axis, (11.2, 1.8), (11.9, 1.8))
    box(axis, 11.95, 1.3, 1.6, 1.0, "velocity v")
    axis.text(12.75, 0.85, "x0_hat = x - σ v", ha="center", fontsize=10, color=ORANGE)
    axis.set(xlim=(-0.1, 13.7), ylim=(-0.4, 3.4))
    return figure


def two_chains(video: Video) -> Figure:
    """Left: one frame after the other. Right: all frames at once, one denoising step after the other."""
    figure, (left, right) = canvas(11, 3.9, panels=2)
    rng, side = np.random.default_rng(0), 1.0
    shown = video[:: max(1, (len(video) - 1) // 3)][:4] / 255
    for number, frame in enumerate(shown):
        x = 1.4 * number
        left.imshow(frame, extent=(x, x + side, 1.5, 1.5 + side), interpolation="nearest")
        left.text(x + side / 2, 1.25, f"frame {number}", ha="center", fontsize=9)
        if number:
            arrow(left, (x - 0.4, 2.0), (x, 2.0), ORANGE)
        for row, weight in enumerate((0.15, 0.5, 1.0)):
            y = 2.9 - 1.4 * row
            mixed = weight * frame + (1 - weight) * rng.random(frame.shape)
            right.imshow(mixed, extent=(1.15 * number, 1.15 * number + side, y, y + side), interpolation="nearest")
    for row, text in enumerate(("early step", "middle step", "late step")):
        right.text(-0.15, 3.4 - 1.4 * row, text, ha="right", va="center", fontsize=9)
        if row:
            arrow(right, (2.2, 4.3 - 1.4 * row), (2.2, 3.9 - 1.4 * row), BLUE)
    left.set_title("chain-of-frames: frame by frame", fontsize=11, color=ORANGE)
    right.set_title("chain-of-steps: all frames, step by step", fontsize=11, color=BLUE)
    left.set(xlim=(-0.1, 5.4), ylim=(0, 4))
    right.set(xlim=(-1.5, 4.7), ylim=(0, 4))
    return figure


def candidates() -> Figure:
    """Tic-tac-toe and a robot's way: several candidates in an early estimate, one in the last."""
    figure = Figure(figsize=(5, 5.2), layout="constrained", dpi=130)
    axes = figure.subplots(2, 2)
    for axis, title in zip(axes.flat, 2 * ("early step: several", "late step: one"), strict=True):
        axis.set_axis_off()
        axis.set(xlim=(-0.1, 3.1), ylim=(-0.1, 3.1), aspect="equal")
        axis.set_title(title, fontsize=12)
    for axis, moves in zip(axes[0], ({(0, 2): 0.45, (2, 0): 0.45}, {(2, 0): 1.0}), strict=True):
        for line in (1, 2):
            axis.plot([line, line], [0, 3], color=INK, lw=1.5)
            axis.plot([0, 3], [line, line], color=INK, lw=1.5)
        given = {(0, 0): "X", (1, 1): "X", (2, 2): "O", (0, 1): "O"}
        for (x, y), mark in given.items():
            axis.text(x + 0.5, y + 0.5, mark, ha="center", va="center", fontsize=20)
        for (x, y), weight in moves.items():
            axis.text(x + 0.5, y + 0.5, "X", ha="center", va="center", fontsize=20, color=ORANGE, alpha=weight)
    ways = ([(0.4, 0.4), (0.4, 2.6), (2.6, 2.6)], [(0.4, 0.4), (2.6, 0.4), (2.6, 2.6)])
    for axis, weights in zip(axes[1], ((0.45, 0.45), (0.0, 1.0)), strict=True):
        axis.add_patch(Rectangle((0, 0), 3, 3, fill=False, ec=INK, lw=1.5))
        axis.add_patch(Rectangle((1, 1), 1, 1, fc=FAINT, ec=INK))
        for way, weight in zip(ways, weights, strict=True):
            axis.plot(*np.transpose(way), color=ORANGE, lw=4, alpha=weight, solid_joinstyle="round")
        axis.plot(0.4, 0.4, "o", color=GREEN, markersize=10)
        axis.plot(2.6, 2.6, "*", color="#B00020", markersize=14)
    return figure


def pattern() -> Figure:
    """A row of discs that grow; in an early estimate the next one has several sizes at once, in a late one its own."""
    figure = Figure(figsize=(5, 3.8), layout="constrained", dpi=130)
    sizes_of = {"early step": (0.5, 0.75, 1.0), "late step": (0.75,)}
    for axis, (title, sizes) in zip(figure.subplots(2, 1), sizes_of.items(), strict=True):
        axis.set_axis_off()
        for number, size in enumerate((0.3, 0.45, 0.6)):
            axis.add_patch(_disc(1.8 * number, size, INK, 1.0))
        for size in sizes:
            axis.add_patch(_disc(5.6, size, ORANGE, 1 / len(sizes)))
        axis.set(xlim=(-0.6, 6.8), ylim=(-1.1, 1.1), aspect="equal")
        axis.set_title(title, fontsize=12)
    return figure


def _disc(x: float, radius: float, colour: str, alpha: float) -> Polygon:
    angles = np.linspace(0, 2 * np.pi, 60)
    return Polygon(
        np.stack([x + radius * np.cos(angles), radius * np.sin(angles)], 1), fc=colour, alpha=alpha, ec="none"
    )


def cube() -> Figure:
    """A cube that turns: an early estimate shows two turns at once, a late one the right one."""
    figure = Figure(figsize=(3.2, 6), layout="constrained", dpi=130)
    turns_of = {"given": (20,), "early step": (50, 80), "late step": (80,)}
    for axis, (name, turns) in zip(figure.subplots(3, 1), turns_of.items(), strict=True):
        axis.set_axis_off()
        for turn in turns:
            corners = _cube_corners(np.radians(turn))
            for one, other in _CUBE_EDGES:
                ends = np.transpose([corners[one], corners[other]])
                axis.plot(*ends, color=INK if name == "given" else ORANGE, lw=1.8, alpha=1 / len(turns))
        axis.set(xlim=(-1.6, 1.6), ylim=(-1.2, 1.2), aspect="equal")
        axis.set_title(name, fontsize=12)
    return figure


_CUBE = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.75
_CUBE_EDGES = [(i, j) for i in range(8) for j in range(i) if (_CUBE[i] != _CUBE[j]).sum() == 1]


def _cube_corners(turn: float) -> np.ndarray:
    x, y, z = _CUBE.T
    across, deep = x * np.cos(turn) - z * np.sin(turn), x * np.sin(turn) + z * np.cos(turn)
    return np.stack([across, y + 0.35 * deep], 1)


def rat() -> Figure:
    """A rat at the foot of a maze's fork: paths swept through before it moves, and the one that it takes."""
    figure = Figure(figsize=(3.6, 6), layout="constrained", dpi=130)
    axes = figure.subplots(2, 1)
    arms = [[(1.5, 0), (1.5, 1.2), (0.4, 2.4)], [(1.5, 0), (1.5, 1.2), (1.5, 2.6)], [(1.5, 0), (1.5, 1.2), (2.6, 2.4)]]
    for axis, taken, title in zip(axes, (None, 2), ("before it moves: swept", "then: taken"), strict=True):
        for number, arm in enumerate(arms):
            axis.plot(
                *np.transpose(arm), color="#dfe4e8", lw=16, solid_capstyle="round", solid_joinstyle="round", zorder=0
            )
            if taken in (None, number):
                line = ":" if taken is None else "-"
                axis.plot(*np.transpose(arm), color=ORANGE, lw=3, linestyle=line, alpha=0.6 if taken is None else 1)
        axis.plot(1.5, 0, "o", color=INK, markersize=9)
        axis.text(2.6, 2.65, "food", ha="center", fontsize=9)
        axis.set_title(title, fontsize=12)
        axis.set_axis_off()
        axis.set(xlim=(0, 3.1), ylim=(-0.4, 3), aspect="equal")
    return figure


def stages() -> Figure:
    """The paper's three stages within one step: perceive, reason, consolidate."""
    figure, (axis,) = canvas(10, 1.25)
    parts = (
        ("perceive", "early blocks", BLUE),
        ("reason", "middle blocks", ORANGE),
        ("consolidate", "late blocks", GREEN),
    )
    for number, (name, where, colour) in enumerate(parts):
        box(axis, 4 * number, 0, 3.1, 0.9, f"{name}\n{where}", colour)
        if number:
            arrow(axis, (4 * number - 0.8, 0.45), (4 * number - 0.1, 0.45))
    axis.set(xlim=(-0.1, 11.3), ylim=(-0.15, 1.05))
    return figure


def ensemble() -> Figure:
    """Three seeds through the blocks of the first step; in the middle their hidden states become one mean."""
    figure, (axis,) = canvas(11, 3.0)
    for row in range(3):
        y = 2 - row
        box(axis, 0, y, 1.5, 0.6, f"seed {row}")
        box(axis, 2.3, y, 2.2, 0.6, "blocks 0 to 19")
        box(axis, 8.3, y, 2.2, 0.6, "blocks 30 to 39")
        box(axis, 11.3, y, 2.3, 0.6, "steps 1 to 49")
        arrow(axis, (1.55, y + 0.3), (2.25, y + 0.3))
        arrow(axis, (4.55, y + 0.3), (5.25, y + 0.3), ORANGE)
        arrow(axis, (7.55, y + 0.3), (8.25, y + 0.3), ORANGE)
        arrow(axis, (10.55, y + 0.3), (11.25, y + 0.3))
    box(axis, 5.3, 0, 2.2, 2.6, "blocks 20 to 29:\nmean of the\nhidden states", ORANGE)
    axis.text(6.4, -0.35, "denoising step 0", ha="center", fontsize=10)
    axis.set(xlim=(-0.1, 13.8), ylim=(-0.6, 2.8))
    return figure


def benchmark() -> Figure:
    """VBVR-Bench scores that the paper reports (Wang et al. 2026, 500 cases, no error bars)."""
    scores = {
        "human": 0.974,
        "VBVR-Wan2.2,\nensemble": 0.716,
        "VBVR-Wan2.2": 0.685,
        "Sora 2": 0.546,
        "Veo 3.1": 0.480,
        "Wan2.2 base": 0.371,
    }
    figure = Figure(figsize=(6, 3.6), layout="constrained", dpi=130)
    axis = figure.subplots()
    colours = [ORANGE if "ensemble" in name else FAINT for name in scores]
    bars = axis.barh(list(scores), list(scores.values()), color=colours, edgecolor=INK)
    axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=9)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1.1), xlabel="VBVR-Bench score, as the paper reports it")
    axis.spines[["top", "right"]].set_visible(False)
    return figure
