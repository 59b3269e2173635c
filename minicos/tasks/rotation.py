"""Rotations: turn a shape about the centre of its panel.

How a panel looks. 20 x 20 units (pixels at the native size): a grey border one unit thick, and in the middle a shape
of square cells, 4 x 4 units each, on a 3 x 3 grid. Cells are aligned with the miniature's tokens before the turn and
after every quarter turn. Every cell has one of two colours. Shapes are connected and, with their colours, have no
symmetry, so all their orientations differ. The grid is small, and the turn has one speed, so that a network of a
million parameters can learn where each cell goes; the two colours make up for the few outlines that such a grid has.

Variants, whose size is the angle in degrees. `rotation`: the prompt names angle and direction. `rotation-open`: a
quarter turn, the direction is left open; both are right. `rotation-by-example`: three panels, a shape, its turned copy,
and a second shape to be turned likewise; the prompt is silent, and the shorter way is right (for half a turn, either).

What moves. The shape turns at one speed, half a turn in the whole video, and rests when it has arrived: frame f of F
shows it at min(180 f / (F - 1), angle). With 5 frames every frame is thus a multiple of 45 degrees. Angles are degrees,
clockwise positive.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from minicos.tasks.base import (
    PARTNER,
    READABLE_DISTANCE,
    WHITE,
    Board,
    Puzzle,
    Score,
    Split,
    Task,
    Video,
    check_video,
    pick,
    puzzle_rng,
    split_of,
)

GRID = 3  # cells along the side of a shape's grid
CELL = 4  # units along the side of a cell
PANEL = 20  # units along the side of a panel
BORDER_COLOUR = (120, 120, 120)
COLOURS = ((220, 0, 0), (0, 90, 220), (0, 140, 60), (150, 0, 180), (255, 130, 0))

SHAPE_CELLS = (4, 5, 6, 7)

READ_EVERY = 5  # degrees between the orientations that a frame is compared with
TOLERANCE = 15  # degrees by which an orientation may miss
EIGHTH = 45  # degrees: every turn that is asked for is a multiple
# Root mean square distance in 8-bit RGB over the disc that a turning shape can reach. Orientations 5 degrees apart are
# 32 to 47 apart, orientations 45 degrees apart more than 115 (60 shapes).
MATCH_DISTANCE = 45.0

Colour = tuple[int, int, int]
Shape = NDArray[np.uint8]  # (GRID, GRID): 0 where empty, else 1 or 2, the cell's colour
Panel = tuple[Shape, tuple[Colour, Colour], int]  # shape, what its colours 1 and 2 are, angle at frame 0


@dataclass(frozen=True, eq=False)
class RotationPuzzle(Puzzle):
    """panels: shape, colour and angle of each panel at frame 0; the last one turns. turns: accepted angles, signed
    degrees, clockwise positive; shown: the one that the ground-truth video shows."""

    panels: tuple[Panel, ...]
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

    length_unit = "degrees"

    def sample(self, seed: int, index: int, *, size: int | None = None, split: Split = "train") -> RotationPuzzle:
        """A shape of 4 to 7 cells. What splits is the shape that turns, with the places of its colours."""
        key = self._key(seed, index, size, split)
        rng = puzzle_rng(key)
        size = self._checked(size, split, rng)
        while split_of(shape_structure(shape := random_shape(pick(SHAPE_CELLS, rng), rng))) != split:
            pass
        turns = pick(self._turns(size), rng)
        prompt, examples = self._pose(turns, rng)
        panels = (*examples, (shape, pick_colours(rng), 0))
        return RotationPuzzle(self.name, key, size, prompt, panels, turns, int(rng.random() * len(turns)))

    @abstractmethod
    def _turns(self, size: int) -> tuple[tuple[int, ...], ...]:
        """The sets of accepted turns that a puzzle of this angle can have."""

    @abstractmethod
    def _pose(self, turns: tuple[int, ...], rng: Random) -> tuple[str, tuple[Panel, ...]]:
        """Prompt, and panels before the one that turns."""

    def structure(self, puzzle: RotationPuzzle) -> bytes:
        return shape_structure(puzzle.panels[-1][0])

    def length(self, puzzle: RotationPuzzle) -> int:
        return abs(puzzle.turn)

    def answers(self, puzzle: RotationPuzzle) -> tuple[int, ...]:
        return puzzle.turns

    def regions(self, puzzle: RotationPuzzle) -> dict[str, NDArray[np.bool_]]:
        """shape (the grid that the turning shape lies on), examples (where there are any) and elsewhere."""
        units = np.full((puzzle.board.rows, puzzle.board.columns), "elsewhere")
        units[:, :-PANEL] = "examples"
        first, last = (PANEL - GRID * CELL) // 2, (PANEL + GRID * CELL) // 2
        units[first:last, -last:-first] = "shape"
        return {name: units == name for name in ("shape", "examples", "elsewhere") if (units == name).any()}

    def canvas(self, puzzle: RotationPuzzle) -> tuple[int, int]:
        return PANEL, PANEL * len(puzzle.panels)

    def render(self, puzzle: RotationPuzzle, frames: int, canvas: tuple[int, int] | None = None) -> Video:
        height, width = canvas or self.canvas(puzzle)
        top, left, tall, wide = puzzle.board.box(height, width)
        side, lefts = min(tall, wide // len(puzzle.panels)), np.arange(len(puzzle.panels)) * wide // len(puzzle.panels)
        video = np.full((frames, height, width, 3), 255, np.uint8)
        for place, (shape, colours, angle) in enumerate(puzzle.panels):
            moving = place == len(puzzle.panels) - 1
            area = video[:, top : top + side, left + lefts[place] :][:, :, :side]
            for frame in range(frames) if moving else (0,):
                turned = turned_by(puzzle.turn, frame, frames) if moving else 0
                area[frame] = draw_panel(shape, colours, angle + turned, side)
            if not moving:
                area[1:] = area[0]
        return video

    def decode(self, video: Video, puzzle: RotationPuzzle) -> int | None:
        """The turn from frame 0 to the last frame, degrees clockwise in (-180, 180], to READ_EVERY degrees."""
        check_video(video)
        panels = self._panels(video, puzzle)
        angle, distance = match_angle(panels[-1:, -1], read_cells(panels[0, -1]))
        return wrap(int(angle[0])) if distance[0] <= MATCH_DISTANCE else None

    def on_the_way(self, answer: int, puzzle: RotationPuzzle) -> bool:
        return any(0 <= answer * np.sign(turn) < abs(turn) - TOLERANCE for turn in puzzle.turns)

    def spelled(self, answer: int | None) -> str:
        """The angle; within TOLERANCE of one that a puzzle can ask for, that one."""
        if answer is None:
            return ""
        asked = EIGHTH * round(answer / EIGHTH)
        return str(wrap(asked) if abs(answer - asked) <= TOLERANCE else answer)

    def holds(self, video: Video, puzzle: RotationPuzzle, frame: int) -> bool:
        shape, colours, _ = puzzle.panels[-1]  # not as frame 0 shows it: that one may be destroyed
        panel = self._panels(video[frame : frame + 1], puzzle)[:, -1]
        angle, distance = match_angle(panel, cell_colours(shape, colours))
        most = 180 / (len(video) - 1) + TOLERANCE
        near = any(abs(wrap(round(angle[0] - turned_by(turn, frame, len(video))))) <= most for turn in puzzle.turns)
        return near and bool(distance[0] <= MATCH_DISTANCE)

    def score(self, video: Video, puzzle: RotationPuzzle) -> Score:
        check_video(video)
        panels = self._panels(video, puzzle)
        given = self._panels(self.render(puzzle, 2), puzzle)[0]
        shape, colours, _ = puzzle.panels[-1]
        angles, distances = match_angle(panels[:, -1], cell_colours(shape, colours))
        accepted = [t for t in puzzle.turns if abs(wrap(int(angles[-1]) - t)) <= TOLERANCE]
        answer = bool(accepted) and bool(distances[-1] <= MATCH_DISTANCE)
        for frame in np.flatnonzero(distances > MATCH_DISTANCE).tolist():
            if is_blend(panels[frame, -1]):
                return Score("unreadable", f"frame {frame}: no orientation of the shape can be read", answer)
            return Score("invalid", f"frame {frame}: not the given shape at its place", answer)
        if differs(panels[0], given):
            return Score("invalid", "frame 0 is not the given image", answer)
        if any(differs(frame[:-1], given[:-1]) for frame in panels):
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
    sizes = (45, 90, 135, 180)

    def _turns(self, size: int) -> tuple[tuple[int, ...], ...]:
        return (size,), (-size,)

    def _pose(self, turns: tuple[int, ...], rng: Random) -> tuple[str, tuple[Panel, ...]]:
        return named_prompt(turns[0]), ()

    def partner(self, puzzle: RotationPuzzle) -> RotationPuzzle:
        key = f"{puzzle.key}{PARTNER}"
        others = [turn * sign for turn in self.sizes for sign in (1, -1) if wrap(turn * sign - puzzle.turn) != 0]
        turn = pick(others, puzzle_rng(key))
        return replace(puzzle, key=key, size=abs(turn), prompt=named_prompt(turn), turns=(turn,), shown=0)

    def prompts(self) -> tuple[str, ...]:
        return tuple(named_prompt(turn * sign) for turn in self.sizes for sign in (1, -1))


class OpenRotation(RotationTask):
    name = "rotation-open"
    sizes = (90,)
    PROMPT = "Turn the shape by 90 degrees about its centre in either direction"

    def _turns(self, size: int) -> tuple[tuple[int, ...], ...]:
        return ((size, -size),)

    def _pose(self, turns: tuple[int, ...], rng: Random) -> tuple[str, tuple[Panel, ...]]:
        return self.PROMPT, ()

    def choice(self, video: Video, puzzle: RotationPuzzle) -> str:
        turn = self.decode(video, puzzle)  # a bit more exacting about colours than `score`
        return "" if turn is None else "clockwise" if turn > 0 else "counterclockwise"

    def prompts(self) -> tuple[str, ...]:
        return (self.PROMPT,)


class RotationByExample(RotationTask):
    name = "rotation-by-example"
    sizes = (90, 180)
    PROMPT = "Turn the last shape in the same way as the example"

    def _turns(self, size: int) -> tuple[tuple[int, ...], ...]:
        return ((180, -180),) if size == 180 else ((size,), (-size,))

    def _pose(self, turns: tuple[int, ...], rng: Random) -> tuple[str, tuple[Panel, ...]]:
        example, colours = random_shape(pick(SHAPE_CELLS, rng), rng), pick_colours(rng)
        return self.PROMPT, ((example, colours, 0), (example, colours, turns[0]))

    def prompts(self) -> tuple[str, ...]:
        return (self.PROMPT,)


def named_prompt(turn: int) -> str:
    direction = "clockwise" if turn > 0 else "counterclockwise"
    return f"Turn the shape by {abs(turn)} degrees {direction} about its centre"


def wrap(degrees: int) -> int:
    """Into (-180, 180]."""
    return 180 - (180 - degrees) % 360


def turned_by(turn: int, frame: int, frames: int) -> float:
    """Degrees by which the ground truth has turned at this frame."""
    return float(np.sign(turn) * min(180 * frame / (frames - 1), abs(turn)))


def unsteady(steps: list[int]) -> str:
    """Why these turns from frame to frame are no steady turn one way; '' if they are.

    A step may be half as large again as the ground truth's, and TOLERANCE more.
    """
    total = sum(steps)
    most = 1.5 * 180 / len(steps) + TOLERANCE
    for frame, step in enumerate(steps, start=1):
        if step * (1 if total >= 0 else -1) < -READ_EVERY:
            return f"frame {frame}: the shape turns back by {abs(step)} degrees"
        if abs(step) > most:
            return f"frame {frame}: the shape leaps by {abs(step)} degrees"
    return ""


# --- shapes ---------------------------------------------------------------------------------------------------------


def random_shape(size: int, rng: Random) -> Shape:
    """A connected shape of `size` cells on the grid, grown cell by cell and coloured, without any symmetry."""
    while True:
        cells = [(int(rng.random() * GRID), int(rng.random() * GRID))]
        while len(cells) < size:
            r, c = pick(cells, rng)
            row, column = pick(((r, c + 1), (r + 1, c), (r, c - 1), (r - 1, c)), rng)
            if 0 <= row < GRID and 0 <= column < GRID and (row, column) not in cells:
                cells.append((row, column))
        shape = np.zeros((GRID, GRID), np.uint8)
        for cell in cells:
            shape[cell] = 1 + int(rng.random() * 2)
        if len(set(shape[shape > 0])) == 2 and len({cropped(image) for image in images(shape)}) == 8:
            return shape


def pick_colours(rng: Random) -> tuple[Colour, Colour]:
    """Two different colours."""
    first = pick(COLOURS, rng)
    return first, pick([colour for colour in COLOURS if colour != first], rng)


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
    """Equal for the 8 images of a shape, and when its two colours change places."""
    swapped = np.where(shape > 0, 3 - shape, 0).astype(np.uint8)
    return min(cropped(image) for image in [*images(shape), *images(swapped)])


def cell_colours(shape: Shape, colours: tuple[Colour, Colour]) -> NDArray[np.float32]:
    """(GRID * GRID, 3): the colour of every cell, white where the shape has none."""
    return np.array([WHITE, *colours], np.float32)[shape.ravel()]


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


def turn_cells(coverage: NDArray[np.float32], cells: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pixels from coverage (..., pixels, cells) and cell colours (cells, 3); white where no cell is."""
    return np.array(WHITE, np.float32) + coverage @ (cells - np.array(WHITE, np.float32))


def draw_panel(shape: Shape, colours: tuple[Colour, Colour], angle: float, side: int) -> Video:
    """(side, side, 3) uint8."""
    coverage = _cached_coverage(angle, side) if side <= 2 * PANEL else _coverage(angle, side)
    pixels = turn_cells(coverage, cell_colours(shape, colours))
    panel = pixels.round().astype(np.uint8).reshape(side, side, 3)
    edge = max(1, side // PANEL)
    for strip in (panel[:edge], panel[-edge:], panel[:, :edge], panel[:, -edge:]):
        strip[:] = BORDER_COLOUR
    return panel


# --- reading --------------------------------------------------------------------------------------------------------


def read_cells(panel: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cell colours (GRID * GRID, 3) of an unturned panel, (PANEL, PANEL, 3)."""
    first, last = (PANEL - GRID * CELL) // 2, (PANEL + GRID * CELL) // 2
    cells = panel[first:last, first:last].reshape(GRID, CELL, GRID, CELL, 3).mean((1, 3))
    return cells.reshape(GRID * GRID, 3)


@lru_cache(maxsize=4)
def orientations(every: int = READ_EVERY) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Angles in degrees, and what every grid cell covers of the disc at each: (angles, disc units, cells)."""
    angles = np.arange(0, 360, every)
    return angles, np.stack([_coverage(float(angle), PANEL) for angle in angles])[:, _disc()]


def read_disc(frame: NDArray[np.uint8], puzzle: RotationPuzzle) -> NDArray[np.float32]:
    """The disc of the panel that turns, (disc units, 3), of a frame of any size."""
    units = puzzle.board.read(frame[None])[0][:, -PANEL:]
    return units.reshape(-1, 3)[_disc()]


def _disc() -> NDArray[np.bool_]:
    """The units that a turning shape can reach: what lies outside tells nothing about it. The border is left out."""
    place = np.arange(PANEL) + 0.5 - PANEL / 2
    return (place[:, None] ** 2 + place**2 <= (PANEL / 2 - 0.5) ** 2).ravel()


def match_angle(
    panels: NDArray[np.float32], cells: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For panels (frames, PANEL, PANEL, 3): the nearest orientation of these cells in degrees, and how far from it."""
    angles, coverage = orientations()
    templates = turn_cells(coverage, cells)
    seen = panels.reshape(len(panels), -1, 3)[:, _disc()]
    squares = ((seen[:, None] - templates) ** 2).sum(-1).mean(-1)
    return angles[squares.argmin(1)], np.sqrt(squares.min(1))


def differs(panels: NDArray[np.float32], others: NDArray[np.float32]) -> bool:
    """Whether any cell-sized block of (panels, PANEL, PANEL, 3) has another colour in the other picture."""
    blocks = (panels - others).reshape(-1, PANEL // CELL, CELL, PANEL // CELL, CELL, 3).mean((2, 4))
    return bool(np.linalg.norm(blocks, axis=-1).max(initial=0) > READABLE_DISTANCE)


def is_blend(panel: NDArray[np.float32]) -> bool:
    """Whether a large part of what is drawn is neither white nor any colour of a shape: nothing definite to judge."""
    seen = panel.reshape(-1, 3)[_disc()]
    distance = np.linalg.norm(seen[:, None] - np.array([WHITE, *COLOURS]), axis=-1)
    drawn = distance[:, 0] > READABLE_DISTANCE
    doubtful = distance.min(1) > READABLE_DISTANCE
    return bool(doubtful.sum() > 0.4 * max(1, drawn.sum()))
