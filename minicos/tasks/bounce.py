"""Bounces: a ball moves diagonally, is thrown back by walls, and comes to rest on the first target in its way.

How the board looks. 7 x 7 black cells (`cells`), on them an orange ball, a red, a green and a blue target, and two
white bars of two cells, which may touch or overlap. White are also the edges of the board, and what lies beyond: all
that is white throws back. How often the ball is thrown back before it arrives, is the size of the puzzle.

What moves. The prompt says in which of the four diagonal directions the ball starts. Before each move it looks at the
three cells ahead of it: where the one above or below is white, it turns from up to down or from down to up; where the
one beside is white, from left to right or from right to left; and where it then still has a white cell ahead, back. It
has one speed, 6 moves in the whole video, and rests when it has arrived: frame f of F shows it after
min(round(6 f / (F - 1)), L) of the L moves to its target. It covers what it is on.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil

import numpy as np
from numpy.typing import NDArray

from minicos.tasks.base import (
    PARTNER,
    WHITE,
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
from minicos.tasks.cells import BOARD, SIDE, Cells, draw_cells, read_cells, spoilt, to_units

MOVES = 6  # of the ball in the whole video
LEAST = 3  # moves to a target

FLOOR, WALL, BALL, *TARGETS = range(6)
PALETTE = np.array([(0, 0, 0), WHITE, (255, 165, 0), (220, 0, 0), (0, 200, 0), (0, 90, 220)], np.uint8)
COLOUR_NAMES = ("black", "white", "orange", "red", "green", "blue")

Cell = tuple[int, int]
Route = tuple[Cell, ...]
Direction = tuple[int, int]  # -1 or 1 down, -1 or 1 to the right

DIRECTIONS: tuple[Direction, ...] = ((-1, -1), (-1, 1), (1, -1), (1, 1))
EVERY_CELL: tuple[Cell, ...] = tuple(itertools.product(range(SIDE), repeat=2))
BARS = tuple(
    ((row, column), (row + down, column + 1 - down))
    for down in (0, 1)
    for row in range(SIDE - down)
    for column in range(SIDE - 1 + down)
)
_BOARD = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
# The 8 symmetric images of the board: the number of the cell that comes to lie in each place.
IMAGES = np.array([np.rot90(board, turns).ravel() for board in (_BOARD, _BOARD.T) for turns in range(4)])


@dataclass(frozen=True, eq=False)
class BouncePuzzle(Puzzle):
    """walls: the cells of the bars; route: of the ball, up to the target that it comes to rest on; other: the route of
    the partner, from the same start; targets: the red, the green and the blue cell.
    """

    walls: frozenset[Cell]
    route: Route
    other: Route
    targets: tuple[Cell, ...]

    @cached_property
    def scene(self) -> Cells:
        """Colour index of every cell without the ball, (SIDE, SIDE)."""
        cells = np.full((SIDE, SIDE), FLOOR)
        for cell in self.walls:
            cells[cell] = WALL
        for colour, cell in zip(TARGETS, self.targets, strict=True):
            cells[cell] = colour
        return cells

    def cells(self, moves: int) -> Cells:
        """Colour index of every cell after so many moves, (SIDE, SIDE)."""
        cells = self.scene.copy()
        cells[self.route[moves]] = BALL
        return cells


class BounceTask(Task):
    name = "bounce"
    sizes = (0, 1, 2, 3)
    length_unit = "moves"

    def sample(self, seed: int, index: int, *, size: int | None = None, split: Split = "train") -> BouncePuzzle:
        """Bars, start and direction at random; a target where the ball was thrown back `size` times, one where it would
        come to in another direction, and one that it meets in neither. What splits is the bars with the route, with
        each of the two.
        """
        key = self._key(seed, index, size, split)
        rng = puzzle_rng(key)
        size = self._checked(size, split, rng)
        while True:
            walls = frozenset(pick(BARS, rng) + pick(BARS, rng))
            start, direction = pick(EVERY_CELL, rng), pick(DIRECTIONS, rng)
            other_direction = pick([other for other in DIRECTIONS if other != direction], rng)
            routes = routes_of(walls, start, direction, (size,), split)
            others = routes and routes_of(walls, start, other_direction, self.sizes, split)
            if not others:
                continue
            route, other = pick(routes, rng), pick(others, rng)
            if route[-1] in other or other[-1] in route:
                continue
            free = [cell for cell in EVERY_CELL if cell not in (*walls, *route, *other)]
            targets = pick(list(itertools.permutations((route[-1], other[-1], pick(free, rng)))), rng)
            return BouncePuzzle(self.name, key, size, prompt_of(route), walls, route, other, targets)

    def prompts(self) -> tuple[str, ...]:
        return tuple(prompt_of(((0, 0), direction)) for direction in DIRECTIONS)

    def structure(self, puzzle: BouncePuzzle) -> bytes:
        return structure_of(puzzle.walls, puzzle.route)

    def length(self, puzzle: BouncePuzzle) -> int:
        return len(puzzle.route) - 1

    def partner(self, puzzle: BouncePuzzle) -> BouncePuzzle:
        """The same picture, with another direction, which leads to another target."""
        route, key = puzzle.other, f"{puzzle.key}{PARTNER}"
        changed = {"size": reflections(route), "prompt": prompt_of(route), "route": route, "other": puzzle.route}
        return replace(puzzle, key=key, **changed)

    def answers(self, puzzle: BouncePuzzle) -> tuple[Cell, ...]:
        return (puzzle.route[-1],)

    def regions(self, puzzle: BouncePuzzle) -> dict[str, NDArray[np.bool_]]:
        """ball (at the start), target (the right one), others (the other targets), path, walls and elsewhere."""
        names = np.full((SIDE, SIDE), "elsewhere")
        names[puzzle.scene == WALL] = "walls"
        names[tuple(np.transpose(puzzle.route))] = "path"
        names[np.isin(puzzle.scene, TARGETS)] = "others"
        names[puzzle.route[0]], names[puzzle.route[-1]] = "ball", "target"
        return {name: to_units(names == name) for name in ("ball", "target", "others", "path", "walls", "elsewhere")}

    def canvas(self, puzzle: BouncePuzzle) -> tuple[int, int]:
        return BOARD.rows, BOARD.columns

    def render(self, puzzle: BouncePuzzle, frames: int, canvas: tuple[int, int] | None = None) -> Video:
        cells = np.stack([puzzle.cells(moves) for moves in moves_by_frame(puzzle, frames)])
        return draw_cells(cells, PALETTE, canvas)

    def decode(self, video: Video, puzzle: BouncePuzzle) -> Cell | None:
        """Where the ball is in the last frame; None where a cell is unreadable, or where there is not one ball."""
        check_video(video)
        cells = read_cells(video[-1:], PALETTE)[0]
        balls = np.argwhere(cells == BALL).tolist()
        return tuple(balls[0]) if len(balls) == 1 and (cells >= 0).all() else None

    def on_the_way(self, answer: Cell, puzzle: BouncePuzzle) -> bool:
        return answer in puzzle.route[:-1]

    def holds(self, video: Video, puzzle: BouncePuzzle, frame: int) -> bool:
        cells = read_cells(video[frame : frame + 1], PALETTE)[0]
        return not scene_fault(cells, puzzle) and on_course(ball_of(cells), frame, len(video), puzzle)

    def score(self, video: Video, puzzle: BouncePuzzle) -> Score:
        check_video(video)
        cells = read_cells(video, PALETTE)
        answer = self.decode(video, puzzle) == puzzle.route[-1]
        if verdict := spoilt(cells, puzzle.cells(0), lambda picture: scene_fault(picture, puzzle)):
            return Score(*verdict, answer)
        way = [ball_of(picture) for picture in cells]
        for frame, (before, now) in enumerate(itertools.pairwise(way), start=1):
            if now not in within_reach(before, step_of(len(video)) + 1, puzzle.walls):
                return Score("invalid", f"frame {frame}: the ball leaps from {before} to {now}", answer)
        if not answer:
            what = COLOUR_NAMES[puzzle.scene[way[-1]]]
            return Score("wrong", f"the ball ends at {way[-1]} ({what}), its target is {puzzle.route[-1]}", False)
        passed = 0
        for frame, cell in enumerate(way):
            places = [place for place in due_in(frame, len(video), puzzle) if puzzle.route[place] == cell]
            if not places:
                return Score("invalid", f"frame {frame}: the ball is at {cell}, off its way", answer)
            if places[-1] < passed:
                return Score("invalid", f"frame {frame}: the ball moves back to {cell}", answer)
            passed = next(place for place in places if place >= passed)
        return Score("solved", "", True)


def prompt_of(route: Route) -> str:
    """The direction of its first move in words."""
    down, right = (after - before for before, after in zip(*route[:2], strict=True))
    towards = f"{'down' if down > 0 else 'up'} and {'right' if right > 0 else 'left'}"
    return f"Move the orange ball {towards} until it meets a target, reflecting from whatever is white"


# --- the ball -------------------------------------------------------------------------------------------------------


def is_wall(walls: frozenset[Cell], cell: Cell) -> bool:
    return cell in walls or not (0 <= cell[0] < SIDE and 0 <= cell[1] < SIDE)


def roll(walls: frozenset[Cell], start: Cell, direction: Direction) -> Route:
    """The cells of the ball from its start on, MOVES of them or until it is caught between walls."""
    (row, column), (down, right) = start, direction
    route = [start]
    for _ in range(MOVES):
        above, beside = is_wall(walls, (row + down, column)), is_wall(walls, (row, column + right))
        down, right = (-down if above else down), (-right if beside else right)
        if is_wall(walls, (row + down, column + right)):
            down, right = -down, -right
        if is_wall(walls, (row + down, column + right)):
            break
        row, column = row + down, column + right
        route.append((row, column))
    return tuple(route)


def stops(walls: frozenset[Cell], start: Cell, direction: Direction) -> list[Route]:
    """The routes to where a target could stand: at least LEAST moves away, on a cell that was not passed before, and
    before the ball comes through its start again. None where it could not make its first move in this direction.
    """
    down, right = direction
    ahead = itertools.product((start[0], start[0] + down), (start[1], start[1] + right))
    if any(is_wall(walls, cell) for cell in ahead):
        return []
    route = roll(walls, start, direction)
    ends = [end for end in range(LEAST, len(route)) if route[end] not in route[:end]]
    return [route[: end + 1] for end in ends if start not in route[1:end]]


def routes_of(
    walls: frozenset[Cell], start: Cell, direction: Direction, sizes: tuple[int, ...], split: Split
) -> list[Route]:
    """Those of these sizes and this split."""
    found = [route for route in stops(walls, start, direction) if reflections(route) in sizes]
    return [route for route in found if split_of(structure_of(walls, route)) == split]


def reflections(route: Route) -> int:
    """How often the ball is thrown back on its way; in a corner once."""
    ways = [(after[0] - before[0], after[1] - before[1]) for before, after in itertools.pairwise(route)]
    return sum(one != other for one, other in itertools.pairwise(ways))


def structure_of(walls: frozenset[Cell], route: Route) -> bytes:
    """Equal for the 8 symmetric images of the bars and the route between them."""
    (bars, way) = ([row * SIDE + column for row, column in cells] for cells in (walls, route))
    return min(image[way].tobytes() + np.sort(image[bars]).tobytes() for image in IMAGES)


def step_of(frames: int) -> int:
    """The most that the ball moves in a frame."""
    return ceil(MOVES / (frames - 1))


def moves_by_frame(puzzle: BouncePuzzle, frames: int) -> list[int]:
    return [min(int(MOVES * frame / (frames - 1) + 0.5), len(puzzle.route) - 1) for frame in range(frames)]


def due_in(frame: int, frames: int, puzzle: BouncePuzzle) -> range:
    """How many moves may be done: as many as a frame earlier to as many as a frame later, or between."""
    due = moves_by_frame(puzzle, frames)
    return range(due[max(0, frame - 1)], due[min(frames - 1, frame + 1)] + 1)


def within_reach(cell: Cell, moves: int, walls: frozenset[Cell]) -> set[Cell]:
    """Where so many diagonal moves, or fewer, can lead without going through a wall."""
    found = {cell}
    for _ in range(moves):
        found |= {(r + down, c + right) for r, c in found for down, right in DIRECTIONS}
        found = {other for other in found if not is_wall(walls, other)}
    return found


# --- reading --------------------------------------------------------------------------------------------------------


def scene_fault(cells: Cells, puzzle: BouncePuzzle) -> str:
    """Why a picture is not the given scene with one ball; '' if it is."""
    for row, column in np.argwhere((cells != puzzle.scene) & (cells != BALL)).tolist():
        return f"cell ({row}, {column}) turned {COLOUR_NAMES[cells[row, column]]}"
    for row, column in np.argwhere((puzzle.scene == WALL) & (cells == BALL)).tolist():
        return f"the ball is in the wall at ({row}, {column})"
    balls = int((cells == BALL).sum())
    return "" if balls == 1 else f"{balls} balls instead of one"


def ball_of(cells: Cells) -> Cell:
    """Where the ball is, in a picture that has no fault."""
    row, column = np.argwhere(cells == BALL)[0]
    return int(row), int(column)


def on_course(cell: Cell, frame: int, frames: int, puzzle: BouncePuzzle) -> bool:
    """Whether the ball is on its route as far as it has to be."""
    return any(puzzle.route[place] == cell for place in due_in(frame, frames, puzzle))
