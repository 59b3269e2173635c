"""Rotations: turn a shape about the centre of its panel.

How a panel looks. 24 x 24 units (pixels at the native size): a grey border one unit thick, and in the middle a shape of
square cells, 4 x 4 units each, on a 4 x 4 grid. Cells are aligned with the miniature's tokens before the turn and after
every quarter turn. Shapes are connected and have no symmetry, so all their orientations differ.

Variants. `rotation`: the prompt names angle and direction. `rotation-open`: a quarter turn, the direction is left open;
both are right. `rotation-by-example`: three panels, a shape, its turned copy, and a second shape to be turned likewise;
the prompt is silent, and the shorter way is right (for half a turn, either).

What moves. Frame f of F shows the shape turned by f / (F - 1) of the angle. Angles are degrees, clockwise positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from minicos.tasks.base import READABLE_DISTANCE, WHITE, Board, Puzzle, Score, Split, Task, Video, check_video
from minicos.tasks.base import puzzle_rng, split_of

GRID = 4  # cells along the side of a shape's grid
CELL = 4  # units along the side of a cell
PANEL = 24  # units along the side of a panel
BORDER_COLOUR = (120, 120, 120)
COLOURS = ((220, 0, 0), (0, 90, 220), (0, 140, 60), (150, 0, 180), (255, 130, 0))

TURNS = (45, 90, 135, 180)  # degrees, named in prompts
READ_EVERY = 5  # degrees between the orientations that a frame is compared with
TOLERANCE = 15  # degrees by which an orientation may miss
# Root mean square distance in 8-bit RGB over the disc that a turning shape can reach. Orientations 5 degrees apart are
# 27 to 52 apart, orientations 45 degrees apart more than 100 (50 shapes).
MATCH_DISTANCE = 45.0
CHANGED_DISTANCE = 25.0  # mean absolute difference of panels that must stay as they are

Shape = NDArray[np.bool_]  # (GRID, GRID)


@dataclass(frozen=True, eq=False)
class RotationPuzzle(Puzzle):
    """panels: shape, colour and angle of each panel at frame 0; the last one turns. turns: accepted angles, signed
    degrees, clockwise positive; shown: the one that the ground-truth video shows."""

    panels: tuple[tuple[Shape, tuple[int, int, int], int], ...]
    turns: tuple[int, ...]
    shown: int

    @property
    def turn(self) -> int:
        return self.turns[self.shown]

    @property
    def board(self) -> Board:
        return Board(PANEL, PANEL * len(self.panels))


class RotationTask(Task):
    """Base of the three variants, which differ in how they are posed and in which turns are right."""

    sizes = (7, 8, 9, 10)  # cells of a shape; with fewer there are too few shapes to hold any out
    length_unit = "degrees"

    def sample(self, seed: int, index: int, *, size: int | None = None, split: Split = "train") -> RotationPuzzle:
        """A shape of `size` cells in a colour of its own; `structure` (what splits) is the shape that turns."""
        key = f"{self.name}/{size or 'any'}/{split}/{seed}/{index}"
        rng = puzzle_rng(key)
        size = self._checked(size, split, rng)
        while split_of(shape_structure(shape := random_shape(size, rng))) != split:
            pass
        return self._pose(key, shape, COLOURS[int(rng.random() * len(COLOURS))], rng)

    def _pose(self, key: str, shape: Shape, colour: tuple[int, int, int], rng: Random) -> RotationPuzzle:
        raise NotImplementedError

    def structure(self, puzzle: RotationPuzzle) -> bytes:
        return shape_structure(puzzle.panels[-1][0])

    def length(self, puzzle: RotationPuzzle) -> int:
        return abs(puzzle.turn)

    def canvas(self, puzzle: RotationPuzzle) -> tuple[int, int]:
        return PANEL, PANEL * len(puzzle.panels)

    def render(self, puzzle: RotationPuzzle, frames: int, canvas: tuple[int, int] | None = None) -> Video:
        height, width = canvas or self.canvas(puzzle)
        top, left, tall, wide = puzzle.board.box(height, width)
        side = min(tall, wide // len(puzzle.panels))
        video = np.full((frames, height, width, 3), 255, np.uint8)
        for place, (shape, colour, angle) in enumerate(puzzle.panels):
            moving = place == len(puzzle.panels) - 1
            area = video[:, top : top + side, left + place * side : left + (place + 1) * side]
            for frame in range(frames) if moving else (0,):
                turned = angle + (puzzle.turn * frame / (frames - 1) if moving else 0)
                area[frame] = draw_panel(shape, colour, turned, side)
            if not moving:
                area[1:] = area[0]
        return video

    def decode(self, video: Video, puzzle: RotationPuzzle) -> int | None:
        """The turn from frame 0 to the last frame, degrees clockwise in (-180, 180], to READ_EVERY degrees."""
        check_video(video)
        panels = self._panels(video, puzzle)
        shape, colour = read_shape(panels[0, -1])
        angle, distance = match_angle(panels[-1:, -1], shape, colour)
        return wrap(int(angle[0])) if distance[0] <= MATCH_DISTANCE else None

    def score(self, video: Video, puzzle: RotationPuzzle) -> Score:
        check_video(video)
        panels = self._panels(video, puzzle)
        given = self._panels(self.render(puzzle, 2), puzzle)[0]
        shape, colour, _ = puzzle.panels[-1]
        angles, distances = match_angle(panels[:, -1], shape, colour)
        accepted = [t for t in puzzle.turns if abs(wrap(int(angles[-1]) - t)) <= TOLERANCE]
        answer = bool(accepted) and distances[-1] <= MATCH_DISTANCE
        for frame in np.flatnonzero(distances > MATCH_DISTANCE).tolist():
            if is_blend(panels[frame, -1], colour):
                return Score("unreadable", f"frame {frame}: no orientation of the shape can be read", answer)
            return Score("invalid", f"frame {frame}: not the given shape at its place", answer)
        if np.abs(panels[0] - given).mean((1, 2, 3)).max() > CHANGED_DISTANCE:
            return Score("invalid", "frame 0 is not the given image", answer)
        if np.abs(panels[:, :-1] - given[:-1]).mean((2, 3, 4)).max(initial=0) > CHANGED_DISTANCE:
            return Score("invalid", "an example panel changed", answer)
        steps = [wrap(b - a) for a, b in zip(angles.tolist(), angles.tolist()[1:], strict=False)]
        total = sum(steps)
        reason = unsteady(steps)
        if reason:
            return Score("invalid", reason, answer)
        if any(abs(total - turn) <= TOLERANCE for turn in puzzle.turns):
            return Score("solved", "", True)
        expected = " or ".join(f"{turn:+d}" for turn in puzzle.turns)
        return Score("wrong", f"turned by {total:+d} degrees, expected {expected}", answer)

    def _panels(self, video: Video, puzzle: RotationPuzzle) -> NDArray[np.float32]:
        """(frames, panels, PANEL, PANEL, 3)"""
        units = puzzle.board.read(video).reshape(len(video), PANEL, len(puzzle.panels), PANEL, 3)
        return units.transpose(0, 2, 1, 3, 4)


class NamedRotation(RotationTask):
    name = "rotation"

    def _pose(self, key: str, shape: Shape, colour: tuple[int, int, int], rng: Random) -> RotationPuzzle:
        turn = TURNS[int(rng.random() * len(TURNS))] * (1 if rng.random() < 0.5 else -1)
        return RotationPuzzle(self.name, key, int(shape.sum()), named_prompt(turn), ((shape, colour, 0),), (turn,), 0)

    def prompts(self) -> tuple[str, ...]:
        return tuple(named_prompt(turn * sign) for turn in TURNS for sign in (1, -1))


class OpenRotation(RotationTask):
    name = "rotation-open"
    PROMPT = "Turn the shape by 90 degrees about its centre in either direction"

    def _pose(self, key: str, shape: Shape, colour: tuple[int, int, int], rng: Random) -> RotationPuzzle:
        shown = int(rng.random() * 2)
        return RotationPuzzle(
            self.name, key, int(shape.sum()), self.PROMPT, ((shape, colour, 0),), (90, -90), shown
        )

    def prompts(self) -> tuple[str, ...]:
        return (self.PROMPT,)


class RotationByExample(RotationTask):
    name = "rotation-by-example"
    PROMPT = "Turn the last shape in the same way as the example"

    def _pose(self, key: str, shape: Shape, colour: tuple[int, int, int], rng: Random) -> RotationPuzzle:
        example = random_shape(int(shape.sum()), rng)
        others = [c for c in COLOURS if c != colour]
        example_colour = others[int(rng.random() * len(others))]
        turns = ((90,), (-90,), (180, -180))[int(rng.random() * 3)]
        panels = (example, example_colour, 0), (example, example_colour, turns[0]), (shape, colour, 0)
        shown = int(rng.random() * len(turns))
        return RotationPuzzle(self.name, key, int(shape.sum()), self.PROMPT, panels, turns, shown)

    def prompts(self) -> tuple[str, ...]:
        return (self.PROMPT,)


def named_prompt(turn: int) -> str:
    direction = "clockwise" if turn > 0 else "counterclockwise"
    return f"Turn the shape by {abs(turn)} degrees {direction} about its centre"


def wrap(degrees: int) -> int:
    """Into (-180, 180]."""
    return 180 - (180 - degrees) % 360


def unsteady(steps: list[int]) -> str:
    """Why these turns from frame to frame are no steady turn one way; '' if they are."""
    total = sum(steps)
    most = 2 * abs(total) / len(steps) + TOLERANCE
    for frame, step in enumerate(steps, start=1):
        if step * (1 if total >= 0 else -1) < -READ_EVERY:
            return f"frame {frame}: the shape turns back by {abs(step)} degrees"
        if abs(step) > most:
            return f"frame {frame}: the shape leaps by {abs(step)} degrees"
    return ""


# --- shapes ---------------------------------------------------------------------------------------------------------


def random_shape(size: int, rng: Random) -> Shape:
    """A connected shape of `size` cells on the grid, grown cell by cell, without any symmetry."""
    while True:
        cells = {(int(rng.random() * GRID), int(rng.random() * GRID))}
        while len(cells) < size:
            border = sorted(
                {(r + i, c + j) for r, c in cells for i, j in ((0, 1), (1, 0), (0, -1), (-1, 0))}
                - cells
                - {(r, c) for r in (-1, GRID) for c in range(GRID)}
                - {(r, c) for c in (-1, GRID) for r in range(GRID)}
            )
            cells.add(border[int(rng.random() * len(border))])
        shape = np.zeros((GRID, GRID), bool)
        shape[tuple(zip(*cells, strict=True))] = True
        if len({cropped(image) for image in images(shape)}) == 8:
            return shape


def images(shape: Shape) -> list[Shape]:
    """The 8 symmetric images."""
    turned = [np.rot90(shape, k) for k in range(4)]
    return turned + [image[:, ::-1] for image in turned]


def cropped(shape: Shape) -> bytes:
    """The shape without its place on the grid."""
    rows, columns = np.flatnonzero(shape.any(1)), np.flatnonzero(shape.any(0))
    box = shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return bytes(box.shape) + box.tobytes()


def shape_structure(shape: Shape) -> bytes:
    return min(cropped(image) for image in images(shape))


# --- drawing --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=512)
def _cached_coverage(angle: float, side: int) -> NDArray[np.float32]:
    return _coverage(angle, side)


def _coverage(angle: float, side: int) -> NDArray[np.float32]:
    """Share of every pixel that each grid cell covers after the turn, (side * side, GRID * GRID)."""
    fine = 4 if side <= 2 * PANEL else 2  # sub-pixels along each axis, for smooth edges
    place = ((np.arange(side * fine) + 0.5) / (side * fine) - 0.5) * PANEL
    y, x = np.meshgrid(place, place, indexing="ij")
    radians = np.deg2rad(angle)
    # Where the pixel was before a clockwise turn (y points down).
    row = (np.cos(radians) * y - np.sin(radians) * x) / CELL + GRID / 2
    column = (np.cos(radians) * x + np.sin(radians) * y) / CELL + GRID / 2
    inside = (row >= 0) & (row < GRID) & (column >= 0) & (column < GRID)
    cell = np.where(inside, np.floor(row) * GRID + np.floor(column), GRID * GRID).astype(np.int64)
    pixel = (np.arange(side * fine) // fine)[:, None] * side + np.arange(side * fine) // fine
    counts = np.bincount((pixel * (GRID * GRID + 1) + cell).ravel(), minlength=side * side * (GRID * GRID + 1))
    return (counts.reshape(side * side, -1)[:, :-1] / fine**2).astype(np.float32)


def draw_panel(shape: Shape, colour: tuple[int, int, int], angle: float, side: int) -> Video:
    """(side, side, 3) uint8."""
    coverage = _cached_coverage(angle, side) if side <= 2 * PANEL else _coverage(angle, side)
    share = (coverage @ shape.ravel().astype(np.float32))[:, None]
    panel = (share * np.array(colour) + (1 - share) * np.array(WHITE)).round().astype(np.uint8)
    panel = panel.reshape(side, side, 3)
    edge = max(1, side // PANEL)
    for strip in (panel[:edge], panel[-edge:], panel[:, :edge], panel[:, -edge:]):
        strip[:] = BORDER_COLOUR
    return panel


# --- reading --------------------------------------------------------------------------------------------------------


def read_shape(panel: NDArray[np.float32]) -> tuple[Shape, tuple[int, int, int]]:
    """Shape and colour of an unturned panel, (PANEL, PANEL, 3)."""
    first, last = (PANEL - GRID * CELL) // 2, (PANEL + GRID * CELL) // 2
    cells = panel[first:last, first:last].reshape(GRID, CELL, GRID, CELL, 3).mean((1, 3))
    shape = np.linalg.norm(cells - np.array(WHITE), axis=-1) > READABLE_DISTANCE
    if not shape.any():
        return shape, WHITE
    return shape, tuple(int(v) for v in cells[shape].mean(0).round())


@lru_cache(maxsize=1)
def _orientations() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    angles = np.arange(0, 360, READ_EVERY)
    return angles, np.stack([_coverage(float(angle), PANEL) for angle in angles])


def _disc() -> NDArray[np.bool_]:
    """The units that a turning shape can reach: what lies outside tells nothing about it. The border is left out."""
    place = np.arange(PANEL) + 0.5 - PANEL / 2
    return (place[:, None] ** 2 + place**2 <= (PANEL / 2 - 0.5) ** 2).ravel()


def match_angle(
    panels: NDArray[np.float32], shape: Shape, colour: tuple[int, int, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For panels (frames, PANEL, PANEL, 3): the nearest orientation of the shape in degrees, and how far from it."""
    angles, coverage = _orientations()
    share = (coverage @ shape.ravel().astype(np.float32))[:, _disc(), None]
    templates = share * np.array(colour, np.float32) + (1 - share) * np.array(WHITE, np.float32)
    seen = panels.reshape(len(panels), -1, 3)[:, _disc()]
    squares = ((seen[:, None] - templates) ** 2).sum(-1).mean(-1)
    return angles[squares.argmin(1)], np.sqrt(squares.min(1))


def is_blend(panel: NDArray[np.float32], colour: tuple[int, int, int]) -> bool:
    """Whether a large part of what is drawn is neither white nor the shape's colour: nothing definite to judge."""
    seen = panel.reshape(-1, 3)[_disc()]
    from_white = np.linalg.norm(seen - np.array(WHITE), axis=-1)
    from_colour = np.linalg.norm(seen - np.array(colour), axis=-1)
    doubtful = (from_white > READABLE_DISTANCE) & (from_colour > READABLE_DISTANCE)
    drawn = from_white > READABLE_DISTANCE
    return bool(doubtful.sum() > 0.4 * max(1, drawn.sum()))
