"""Mazes: find the shortest way from the green cell to the red cell.

How a cell looks. A maze of size n is a board of 4n x 4n units; each cell has 4 x 4 of them. The inner 2 x 2 units are
the cell's floor. The two middle units of each side are an opening (floor) or a wall (black); the four corner units are
always wall. A passage between two cells is thus 2 units long, one in each cell, and the outer border is 1 unit thick.
The picture is the same under all 8 symmetries of the square, and at the native size one unit is one pixel.

What moves. Frame 0 shows walls, start (green) and goal (red). Frame f of F shows an orange trail up to route cell
n(f) = round(f L / (F - 1)), L moves being the length of the route: the trail fills the floor of the cells it has
reached and the openings it went through; its head is the agent. Start and goal keep their colours.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from random import Random

import numpy as np
from numpy.typing import NDArray

from minicos.tasks.base import (
    PARTNER,
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
from minicos.tasks.trails import (
    FLOOR,
    GOAL,
    PALETTE,
    PATH,
    START,
    WALL,
    Cell,
    Fault,
    Route,
    board_of,
    follow_trail,
    process_fault,
    read_scene,
    read_video,
    scene_fault,
    unreadable,
)

HELD_OUT_FROM = 5  # below 5 x 5 there are too few mazes to hold any out
MOST_ROUTES = 8  # accepted shortest routes of a braided maze
PROMPT = "Draw the shortest path from the green cell to the red cell in orange without crossing the black walls"


@dataclass(frozen=True, eq=False)
class MazePuzzle(Puzzle):
    """right: (size, size - 1) bool, passage to the right; down: (size - 1, size) bool, passage downwards.

    routes: every accepted route, each from start to goal; shown: the one that the ground-truth video draws.
    """

    right: NDArray[np.bool_]
    down: NDArray[np.bool_]
    start: Cell
    goal: Cell
    routes: tuple[Route, ...]
    shown: int

    @property
    def route(self) -> Route:
        return self.routes[self.shown]

    @property
    def board(self) -> Board:
        return board_of(self.size)

    def neighbours(self, cell: Cell) -> list[Cell]:
        """Cells that an open passage leads to."""
        r, c = cell
        ways = (
            (c + 1 < self.size and self.right[r, c], (r, c + 1)),
            (c > 0 and self.right[r, c - 1], (r, c - 1)),
            (r + 1 < self.size and self.down[r, c], (r + 1, c)),
            (r > 0 and self.down[r - 1, c], (r - 1, c)),
        )
        return [other for is_open, other in ways if is_open]

    @cached_property
    def scene(self) -> NDArray[np.int64]:
        """Colour index of every unit of frame 0, (4 size, 4 size)."""
        return draw_scene(self.right, self.down, self.start, self.goal)


class MazeTask(Task):
    """`maze`: spanning trees, one answer. `maze-braided`: two or more shortest routes, all of them right."""

    sizes = tuple(range(3, 17))
    length_unit = "moves"

    def __init__(self, name: str, braided: bool) -> None:
        self.name = name
        self.braided = braided

    def sample(self, seed: int, index: int, *, size: int | None = None, split: Split = "train") -> MazePuzzle:
        """Walls by one of three spanning-tree algorithms, start anywhere, goal at least size - 1 moves away."""
        key = self._key(seed, index, size, split)
        rng = puzzle_rng(key)
        size = self._checked(size, split, rng)
        while True:
            passages = pick(TREES, rng)(size, rng)
            if self.braided:
                passages = passages | _some_walls(size, passages, rng)
            right, down = _passage_arrays(size, passages)
            if self.splittable(size) and split_of(maze_structure(right, down)) != split:
                continue
            neighbours = _neighbours(size, passages)
            start = pick(list(neighbours), rng)
            ends = _ends(neighbours, start, size - 1, at_least=2 if self.braided else 1)
            if ends:
                goal = pick(ends, rng)
                routes = shortest_routes(neighbours, start, goal)
                shown = int(rng.random() * len(routes))
                return MazePuzzle(self.name, key, size, PROMPT, right, down, start, goal, routes, shown)

    def prompts(self) -> tuple[str, ...]:
        return (PROMPT,)

    def splittable(self, size: int) -> bool:
        return size >= HELD_OUT_FROM

    def structure(self, puzzle: MazePuzzle) -> bytes:
        return maze_structure(puzzle.right, puzzle.down)

    def length(self, puzzle: MazePuzzle) -> int:
        return len(puzzle.route) - 1

    def partner(self, puzzle: MazePuzzle) -> MazePuzzle | None:
        key = f"{puzzle.key}{PARTNER}"
        rng = puzzle_rng(key)
        neighbours = {cell: puzzle.neighbours(cell) for cell in np.ndindex(puzzle.size, puzzle.size)}
        ends = _ends(neighbours, puzzle.start, puzzle.size - 1, at_least=2 if self.braided else 1)
        ends = [cell for cell in ends if cell != puzzle.goal]
        if not ends:
            return None
        goal = pick(ends, rng)
        routes = shortest_routes(neighbours, puzzle.start, goal)
        return replace(puzzle, key=key, goal=goal, routes=routes, shown=int(rng.random() * len(routes)))

    def answers(self, puzzle: MazePuzzle) -> tuple[Route, ...]:
        return puzzle.routes

    def regions(self, puzzle: MazePuzzle) -> dict[str, NDArray[np.bool_]]:
        """start, goal, path (every accepted route between them) and elsewhere."""
        cells = np.full((puzzle.size, puzzle.size), "elsewhere")
        for cell in itertools.chain(*puzzle.routes):
            cells[cell] = "path"
        cells[puzzle.start], cells[puzzle.goal] = "start", "goal"
        units = cells.repeat(4, 0).repeat(4, 1)
        return {name: units == name for name in ("start", "goal", "path", "elsewhere")}

    def canvas(self, puzzle: MazePuzzle) -> tuple[int, int]:
        return 4 * puzzle.size, 4 * puzzle.size

    def render(self, puzzle: MazePuzzle, frames: int, canvas: tuple[int, int] | None = None) -> Video:
        reached = draw_arrival(puzzle.size, puzzle.route)
        moves = self.length(puzzle)
        trail = np.array([int(f * moves / (frames - 1) + 0.5) for f in range(frames)])
        units = np.where(reached <= trail[:, None, None], PATH, puzzle.scene)
        return puzzle.board.draw(PALETTE[units], *(canvas or self.canvas(puzzle)))

    def decode(self, video: Video, puzzle: MazePuzzle) -> Route | None:
        """The trail of the last frame, from the green cell on; None where the frame is unreadable anywhere, or shows no
        trail, or more than one.
        """
        check_video(video)
        reading = read_scene(video[-1:], puzzle.size)[0]
        trail = unreadable(reading) or follow_trail(reading)
        return trail if isinstance(trail, tuple) and len(trail) > 1 else None

    def on_the_way(self, answer: Route, puzzle: MazePuzzle) -> bool:
        return any(answer == route[: len(answer)] for route in puzzle.routes if len(route) > len(answer))

    def holds(self, video: Video, puzzle: MazePuzzle, frame: int) -> bool:
        trail = follow_trail(read_video(video[[0, frame, -1]], puzzle.size)[1])
        if not isinstance(trail, tuple):
            return False
        moves, step = self.length(puzzle), ceil(self.length(puzzle) / (len(video) - 1))
        on_route = any(trail == route[: len(trail)] for route in puzzle.routes)
        return on_route and abs(len(trail) - 1 - moves * frame / (len(video) - 1)) <= step

    def score(self, video: Video, puzzle: MazePuzzle) -> Score:
        check_video(video)
        given = read_scene(PALETTE[puzzle.scene][None], puzzle.size)[0]
        trails: list[Route | Fault] = []
        for frame, reading in enumerate(read_video(video, puzzle.size)):
            trail = scene_fault(reading, given) or follow_trail(reading)
            trails.append(trail if isinstance(trail, tuple) else Fault(trail.status, f"frame {frame}: {trail.reason}"))
        final = trails[-1]
        answer = final in puzzle.routes
        for status in ("unreadable", "invalid"):
            for trail in trails:
                if isinstance(trail, Fault) and trail.status == status:
                    return Score(status, trail.reason, answer)
        reason = process_fault(trails)
        if reason:
            return Score("invalid", reason, answer)
        if answer:
            return Score("solved", "", True)
        if final[-1] != puzzle.goal:
            return Score("wrong", f"the trail ends at {final[-1]}, the goal is {puzzle.goal}", False)
        return Score(
            "wrong", f"a longer way: {len(final) - 1} moves, the shortest has {len(puzzle.routes[0]) - 1}", False
        )


# --- sampling -------------------------------------------------------------------------------------------------------

Passages = frozenset[tuple[Cell, Cell]]  # each pair ordered, upper or left cell first


def _ordered(a: Cell, b: Cell) -> tuple[Cell, Cell]:
    return (a, b) if a < b else (b, a)


def _around(cell: Cell, size: int) -> list[Cell]:
    row, column = cell
    candidates = ((row - 1, column), (row, column - 1), (row, column + 1), (row + 1, column))
    return [(r, c) for r, c in candidates if 0 <= r < size and 0 <= c < size]


def backtracker(size: int, rng: Random) -> Passages:
    """Depth-first search: long winding corridors."""
    here = (int(rng.random() * size), int(rng.random() * size))
    stack, seen, passages = [here], {here}, set()
    while stack:
        fresh = [cell for cell in _around(stack[-1], size) if cell not in seen]
        if not fresh:
            stack.pop()
            continue
        cell = pick(fresh, rng)
        passages.add(_ordered(stack[-1], cell))
        seen.add(cell)
        stack.append(cell)
    return frozenset(passages)


def prim(size: int, rng: Random) -> Passages:
    """Growth from a random border cell: short branches, many dead ends."""
    here = (int(rng.random() * size), int(rng.random() * size))
    seen, passages = {here}, set()
    border = [(here, cell) for cell in _around(here, size)]
    while border:
        place = int(rng.random() * len(border))
        border[place], border[-1] = border[-1], border[place]
        inside, cell = border.pop()
        if cell in seen:
            continue
        passages.add(_ordered(inside, cell))
        seen.add(cell)
        border += [(cell, other) for other in _around(cell, size) if other not in seen]
    return frozenset(passages)


def wilson(size: int, rng: Random) -> Passages:
    """Loop-erased random walks (Wilson 1996): every spanning tree is equally likely."""
    cells = [(r, c) for r in range(size) for c in range(size)]
    seen, passages = {pick(cells, rng)}, set()
    for first in cells:
        onward, cell = {}, first
        while cell not in seen:
            onward[cell] = pick(_around(cell, size), rng)
            cell = onward[cell]
        cell = first
        while cell not in seen:
            passages.add(_ordered(cell, onward[cell]))
            seen.add(cell)
            cell = onward[cell]
    return frozenset(passages)


TREES = (backtracker, prim, wilson)


def _some_walls(size: int, passages: Passages, rng: Random) -> Passages:
    """About one wall in five, to be opened: each closes a loop of the tree."""
    cells = [(r, c) for r in range(size) for c in range(size)]
    walls = [_ordered(a, b) for a in cells for b in _around(a, size) if a < b and (a, b) not in passages]
    return frozenset(wall for wall in walls if rng.random() < 0.2)


def _neighbours(size: int, passages: Passages) -> dict[Cell, list[Cell]]:
    neighbours: dict[Cell, list[Cell]] = {(r, c): [] for r in range(size) for c in range(size)}
    for a, b in sorted(passages):
        neighbours[a].append(b)
        neighbours[b].append(a)
    return neighbours


def _distances(neighbours: dict[Cell, list[Cell]], start: Cell) -> tuple[dict[Cell, int], dict[Cell, int]]:
    """Moves from start, and the number of shortest routes, for every cell in reach."""
    moves, count, queue = {start: 0}, {start: 1}, deque([start])
    while queue:
        cell = queue.popleft()
        for other in neighbours[cell]:
            if other not in moves:
                moves[other], count[other] = moves[cell] + 1, 0
                queue.append(other)
            if moves[other] == moves[cell] + 1:
                count[other] += count[cell]
    return moves, count


def _ends(neighbours: dict[Cell, list[Cell]], start: Cell, nearest: int, at_least: int) -> list[Cell]:
    moves, count = _distances(neighbours, start)
    return [cell for cell in sorted(moves) if moves[cell] >= nearest and at_least <= count[cell] <= MOST_ROUTES]


def shortest_routes(neighbours: dict[Cell, list[Cell]], start: Cell, goal: Cell) -> tuple[Route, ...]:
    """Every shortest route from start to goal, in lexicographic order."""
    moves, _ = _distances(neighbours, goal)
    routes: list[Route] = [(start,)]
    for left in range(moves[start] - 1, -1, -1):
        routes = [(*route, cell) for route in routes for cell in neighbours[route[-1]] if moves[cell] == left]
    return tuple(sorted(routes))


def _passage_arrays(size: int, passages: Passages) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    right, down = np.zeros((size, size - 1), bool), np.zeros((size - 1, size), bool)
    for (row, column), (other, _) in passages:
        if row == other:
            right[row, column] = True
        else:
            down[row, column] = True
    return right, down


def maze_structure(right: NDArray[np.bool_], down: NDArray[np.bool_]) -> bytes:
    """The maze graph, equal for its 8 symmetric images; start and goal do not count."""
    images = []
    for _ in range(4):
        right, down = down.T[:, ::-1], right.T[:, ::-1]  # a quarter turn clockwise
        images += [right.tobytes() + down.tobytes(), right[:, ::-1].tobytes() + down[:, ::-1].tobytes()]
    return min(images)


# --- drawing --------------------------------------------------------------------------------------------------------


def draw_scene(right: NDArray[np.bool_], down: NDArray[np.bool_], start: Cell, goal: Cell) -> NDArray[np.int64]:
    """Colour index of every unit of the given image, (4 size, 4 size)."""
    size = len(right)
    units = np.full((4 * size, 4 * size), WALL)
    cells = units.reshape(size, 4, size, 4)
    cells[:, 1:3, :, 1:3] = FLOOR
    opening = np.where(right, FLOOR, WALL)[:, None, :]
    cells[:, 1:3, :-1, 3] = opening
    cells[:, 1:3, 1:, 0] = opening
    opening = np.where(down, FLOOR, WALL)[:, :, None]
    cells[:-1, 3, :, 1:3] = opening
    cells[1:, 0, :, 1:3] = opening
    cells[start[0], 1:3, start[1], 1:3] = START
    cells[goal[0], 1:3, goal[1], 1:3] = GOAL
    return units


def draw_arrival(size: int, route: Route) -> NDArray[np.int64]:
    """For every unit, the move at which the trail covers it; more than any route has where it never does."""
    units = np.full((4 * size, 4 * size), 4 * size * size)
    for move, ((r0, c0), (r1, c1)) in enumerate(itertools.pairwise(route), start=1):
        top, left = min(r0, r1), min(c0, c1)
        if r0 == r1:
            units[4 * top + 1 : 4 * top + 3, 4 * left + 3 : 4 * left + 5] = move
        else:
            units[4 * top + 3 : 4 * top + 5, 4 * left + 1 : 4 * left + 3] = move
        if move < len(route) - 1:
            units[4 * r1 + 1 : 4 * r1 + 3, 4 * c1 + 1 : 4 * c1 + 3] = move
    return units
