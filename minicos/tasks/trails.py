"""Mazes as they are read: from the frames of a video to trails, or to what is wrong with them.

How a cell looks: `maze`. Nothing but the size is taken from the puzzle. At the native size a unit is a pixel. In large
videos the middle of each unit counts, and a frame may show a trail on its way: our own reach whole cells only, another
model's may grow as it likes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from minicos.tasks.base import WHITE, Board, Video, nearest_colour

Cell = tuple[int, int]
Route = tuple[Cell, ...]

# Colours as in VBVR's maze task, so that scorers that know only colours can read our videos.
WALL, FLOOR, START, GOAL, PATH = range(5)
PALETTE = np.array([(0, 0, 0), WHITE, (0, 200, 0), (220, 0, 0), (255, 165, 0)], np.uint8)
COLOUR_NAMES = ("black", "white", "green", "red", "orange")
UNREADABLE = -1
# Floor that a trail has half covered, in large videos: what is covered more, or less, reads as a trail, or as floor.
HALF = len(PALETTE)
HALF_COVERED = PALETTE[[FLOOR, PATH]].mean(0, keepdims=True)

CORE = 0.6  # share of a unit's side that is read in large videos: blur and compression smear the edges


def board_of(size: int) -> Board:
    return Board(4 * size, 4 * size)


@dataclass(frozen=True, eq=False)
class Reading:
    """Colour indices of one frame, UNREADABLE (-1) where no colour is near, HALF where a trail may be on its way.

    floor: (size, size); right: (size, size - 1) and down: (size - 1, size), the openings or walls between two cells;
    fixed: (size, size), the worst of a cell's corners and border sides, which are always wall.
    """

    floor: NDArray[np.int64]
    right: NDArray[np.int64]
    down: NDArray[np.int64]
    fixed: NDArray[np.int64]


@dataclass(frozen=True)
class Fault:
    status: str
    reason: str


def read_video(video: Video, size: int) -> list[Reading]:
    """Every frame; in a large video, between the first and the last, without the head of a trail on its way."""
    first, *between, last = read_scene(video, size)
    return [first, *(between if _native(video, size) else map(without_head, between)), last]


def _native(video: Video, size: int) -> bool:
    return video.shape[1:3] == (4 * size, 4 * size)


def read_scene(video: Video, size: int) -> list[Reading]:
    """Read every frame of a uint8 (frames, height, width, 3) video of a maze of this size; uses nothing else of it."""
    units = board_of(size).read(video, CORE).reshape(-1, size, 4, size, 4, 3)
    floor = units[:, :, 1:3, :, 1:3].mean((2, 4))
    north, south = units[:, :, 0, :, 1:3].mean(3), units[:, :, 3, :, 1:3].mean(3)
    west, east = units[:, :, 1:3, :, 0].mean(2), units[:, :, 1:3, :, 3].mean(2)
    corners = units[:, :, ::3][:, :, :, :, ::3].mean((2, 4))
    # The border sides of the outer cells, black by definition elsewhere, so that one array holds all that never opens.
    border = np.stack([corners] * 5)
    border[1][:, 0], border[2][:, -1], border[3][:, :, 0], border[4][:, :, -1] = (
        north[:, 0],
        south[:, -1],
        west[:, :, 0],
        east[:, :, -1],
    )
    fixed = np.where((nearest_colour(border, PALETTE) == WALL).all(0), WALL, UNREADABLE)
    read = nearest_colour if _native(video, size) else _colour_or_half
    right = read((east[:, :, :-1] + west[:, :, 1:]) / 2, PALETTE)
    down = read((south[:, :-1] + north[:, 1:]) / 2, PALETTE)
    parts = read(floor, PALETTE), right, down, fixed
    return [Reading(*frame) for frame in zip(*parts, strict=True)]


def _colour_or_half(colours: NDArray, palette: NDArray) -> NDArray[np.int64]:
    """As `nearest_colour`; HALF where no colour of the palette is near, and that of half covered floor is."""
    found, half = nearest_colour(colours, palette), nearest_colour(colours, HALF_COVERED) == 0
    return np.where((found == UNREADABLE) & half, HALF, found)


def without_head(reading: Reading) -> Reading:
    """A frame whose trail has begun one more move, as it was before; every other frame as it is."""
    parts = {name: getattr(reading, name).copy() for name in ("floor", "right", "down")}
    begun = [
        (name, place, cells)
        for name, place, cells in _openings(reading, (PATH, HALF))
        if parts[name][place] == HALF or not all(parts["floor"][cell] in (START, PATH, GOAL) for cell in cells)
    ]
    if len(begun) != 1:
        return reading
    ((name, place, cells),) = begun
    parts[name][place] = FLOOR
    for cell in cells:
        if parts["floor"][cell] == HALF:
            parts["floor"][cell] = FLOOR
    before = Reading(**parts, fixed=reading.fixed)
    trail = follow_trail(before)
    return before if isinstance(trail, tuple) and trail[-1] in cells else reading


def _openings(reading: Reading, shades: tuple[int, ...]) -> Iterator[tuple[str, Cell, tuple[Cell, Cell]]]:
    """Openings of these colours: "right" or "down", the place there, and the two cells that it lies between."""
    for name, down, across in (("right", 0, 1), ("down", 1, 0)):
        for row, column in np.argwhere(np.isin(getattr(reading, name), shades)).tolist():
            yield name, (row, column), ((row, column), (row + down, column + across))


def _first(mask: NDArray[np.bool_]) -> Cell:
    row, column = np.argwhere(mask)[0]
    return int(row), int(column)


def unreadable(reading: Reading) -> Fault | None:
    """Where a frame has no colour of the palette; None if everywhere it has."""
    for part in ("floor", "right", "down", "fixed"):
        strange = np.isin(getattr(reading, part), (UNREADABLE, HALF))
        if strange.any():
            return Fault("unreadable", f"no palette colour at cell {_first(strange)} ({part})")
    return None


def scene_fault(reading: Reading, given: Reading) -> Fault | None:
    """Why this frame is not the given scene with something drawn on its floor; None if it is."""
    if fault := unreadable(reading):
        return fault
    for part in ("right", "down"):
        seen, scene = getattr(reading, part), getattr(given, part)
        crossed = (scene == WALL) & (seen != WALL)
        if crossed.any():
            return Fault("invalid", f"a wall is crossed or gone at cell {_first(crossed)} ({part})")
        closed = (scene == FLOOR) & (seen != FLOOR) & (seen != PATH)
        if closed.any():
            return Fault("invalid", f"a passage changed at cell {_first(closed)} ({part})")
    moved = np.where(given.floor == FLOOR, (reading.floor != FLOOR) & (reading.floor != PATH), False)
    moved |= (given.floor != FLOOR) & (reading.floor != given.floor)
    if moved.any():
        cell = _first(moved)
        return Fault("invalid", f"cell {cell} turned {COLOUR_NAMES[reading.floor[cell]]}")
    return None


def follow_trail(reading: Reading) -> Route | Fault:
    """The trail from the green cell through orange openings, as cells; a fault where it is not one simple path."""
    starts = np.argwhere(reading.floor == START)
    if len(starts) != 1:
        return Fault("invalid", f"{len(starts)} green cells instead of one")
    links: dict[Cell, list[Cell]] = {}
    for _, _, (one, other) in _openings(reading, (PATH,)):
        links.setdefault(one, []).append(other)
        links.setdefault(other, []).append(one)
    trail: list[Cell] = [tuple(starts[0].tolist())]
    while onward := [cell for cell in links.get(trail[-1], []) if cell not in trail[-2:-1]]:
        if len(onward) > 1:
            return Fault("invalid", f"the trail forks at {trail[-1]}")
        if onward[0] in trail:
            return Fault("invalid", f"the trail returns to {onward[0]}")
        if reading.floor[onward[0]] not in (PATH, GOAL):
            return Fault("invalid", f"the trail stops in the opening before {onward[0]}")
        trail.append(onward[0])
    drawn = int((reading.floor == PATH).sum()) + int(reading.floor[trail[-1]] == GOAL)
    openings = int((reading.right == PATH).sum() + (reading.down == PATH).sum())
    if drawn != len(trail) - 1 or openings != len(trail) - 1:
        return Fault("invalid", f"orange pieces that the trail to {trail[-1]} does not reach: a jump")
    return tuple(trail)


def process_fault(trails: list[Route]) -> str:
    """Why readable trails are no walk: frame 0 not the given image, no prefix, shrinking, or a leap; '' if they are."""
    final = trails[-1]
    leap = ceil((len(final) - 1) / (len(trails) - 1)) + 1
    if len(trails[0]) > 1:
        return "frame 0 already shows a trail"
    for frame, (before, now) in enumerate(itertools.pairwise(trails), start=1):
        if now != final[: len(now)]:
            return f"frame {frame}: the trail is no prefix of the last frame's"
        if len(now) < len(before):
            return f"frame {frame}: the trail shrinks"
        if len(now) - len(before) > leap:
            return f"frame {frame}: the trail leaps {len(now) - len(before)} cells, at most {leap} are a walk"
    return ""
