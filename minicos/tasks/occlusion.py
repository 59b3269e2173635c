"""Occlusions: coloured cells move straight on, pass behind a screen, and come out as they went in.

How the board looks. 7 x 7 white cells (`cells`), of which two or three are coloured, each in another colour and on
another lane. A black screen stands across all lanes; how many cells wide it is, is the size of the puzzle. Size 0 has
no screen: nothing is hidden, which is the control of all others.

What moves. Every coloured cell moves along its lane by as many cells as the prompt says, in its direction: frame f of F
shows it round(f m / (F - 1)) cells from where it started. Behind the screen nothing of it is to be seen; in the first
and in the last frame all are in the open. Lanes are rows or columns: the board is made for movement to the right, and
turned by quarter turns.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from minicos.tasks.base import (
    PARTNER,
    WHITE,
    Puzzle,
    Score,
    Split,
    Status,
    Task,
    Video,
    check_video,
    pick,
    puzzle_rng,
    split_of,
)
from minicos.tasks.cells import BOARD, SIDE, Cells, draw_cells, read_cells, spoilt, to_units

FEWEST, MOST = 3, 6  # cells that the coloured cells move by

FLOOR, SCREEN, *OBJECTS = range(7)
PALETTE = np.array([WHITE, (0, 0, 0), (220, 0, 0), (0, 200, 0), (0, 90, 220), (255, 165, 0), (150, 0, 180)], np.uint8)
COLOUR_NAMES = ("white", "black", "red", "green", "blue", "orange", "purple")
DIRECTIONS = ("right", "up", "left", "down")  # by quarter turns counterclockwise

Item = tuple[int, int, int]  # lane, column of the start, colour
Answer = tuple[tuple[int, int, str], ...]  # row, column and colour of every coloured cell


@dataclass(frozen=True, eq=False)
class OcclusionPuzzle(Puzzle):
    """quarter_turns: of the board, counterclockwise; screen: its first column before the turn; items move by `moves`
    columns to the right before the turn. The screen is `size` columns wide.
    """

    quarter_turns: int
    screen: int
    moves: int
    items: tuple[Item, ...]

    def hides(self, column: int) -> bool:
        """Whether the screen stands in this column, before the turn."""
        return self.screen <= column < self.screen + self.size

    def cells(self, moves: int) -> Cells:
        """Colour index of every cell after so many moves, as the picture shows them, (SIDE, SIDE)."""
        cells = np.full((SIDE, SIDE), FLOOR)
        for lane, start, colour in self.items:
            cells[lane, start + moves] = colour
        cells[:, self.screen : self.screen + self.size] = SCREEN
        return np.rot90(cells, self.quarter_turns)

    def empty_frames(self, frames: int, per_latent: int) -> tuple[int, ...]:
        """The latent frames of so many in which nothing coloured is to be seen, in any frame that they stand for: the
        first for itself, each other for `per_latent`.
        """
        moves = moves_by_frame(self.moves, (frames - 1) * per_latent + 1)
        shown = [False] * (per_latent - 1) + [(self.cells(done) > SCREEN).any() for done in moves]
        return tuple(frame for frame in range(frames) if not any(shown[frame * per_latent : (frame + 1) * per_latent]))

    @cached_property
    def lanes(self) -> Cells:
        """The one colour that every cell of the picture may take besides its own, FLOOR off the lanes."""
        cells = np.full((SIDE, SIDE), FLOOR)
        for lane, _, colour in self.items:
            cells[lane] = colour
        return np.rot90(cells, self.quarter_turns)


class OcclusionTask(Task):
    name = "occlusion"
    sizes = (0, 1, 2, 3, 4)
    length_unit = "moves"

    def sample(self, seed: int, index: int, *, size: int | None = None, split: Split = "train") -> OcclusionPuzzle:
        """Lanes, starts, colours, screen and direction at random. What splits is how the cells move, not the screen."""
        key = self._key(seed, index, size, split)
        rng = puzzle_rng(key)
        size = self._checked(size, split, rng)
        while True:
            moves = pick(range(max(FEWEST, size + 1), MOST + 1), rng)
            lanes = draw(range(SIDE), pick((2, 3), rng), rng)
            items = tuple(
                (lane, pick(range(SIDE - moves), rng), colour)
                for lane, colour in zip(lanes, draw(OBJECTS, len(lanes), rng), strict=True)
            )
            starts = [start for _, start, _ in items]
            places = range(max(starts) + 1, min(starts) + moves - size + 1) if size else (0,)
            if places and split_of(motion_structure(items, moves)) == split:
                turns = pick(range(4), rng)
                prompt = prompt_of(turns, moves)
                return OcclusionPuzzle(self.name, key, size, prompt, turns, pick(places, rng), moves, items)

    def prompts(self) -> tuple[str, ...]:
        return tuple(prompt_of(turns, moves) for turns in range(4) for moves in range(FEWEST, MOST + 1))

    def structure(self, puzzle: OcclusionPuzzle) -> bytes:
        return motion_structure(puzzle.items, puzzle.moves)

    def length(self, puzzle: OcclusionPuzzle) -> int:
        return puzzle.moves

    def partner(self, puzzle: OcclusionPuzzle) -> OcclusionPuzzle:
        """The same cells with each other's colours."""
        return replace(puzzle, key=f"{puzzle.key}{PARTNER}", items=exchanged(puzzle.items))

    def unscreened(self, puzzle: OcclusionPuzzle) -> OcclusionPuzzle:
        """The same cells moving in the same way, without a screen."""
        return replace(puzzle, key=f"{puzzle.key}/unscreened", size=0)

    def answers(self, puzzle: OcclusionPuzzle) -> tuple[Answer, ...]:
        return (shown(puzzle.cells(puzzle.moves)),)

    def regions(self, puzzle: OcclusionPuzzle) -> dict[str, NDArray[np.bool_]]:
        """objects (where they start), ends (where they come to rest), screen (where there is one) and elsewhere."""
        start, end = puzzle.cells(0), puzzle.cells(puzzle.moves)
        found = {"objects": start > SCREEN, "ends": end > SCREEN, "screen": start == SCREEN}
        found["ends"] &= ~found["objects"]
        found["elsewhere"] = ~np.any(list(found.values()), axis=0)
        return {name: to_units(where) for name, where in found.items() if where.any()}

    def canvas(self, puzzle: OcclusionPuzzle) -> tuple[int, int]:
        return BOARD.rows, BOARD.columns

    def render(self, puzzle: OcclusionPuzzle, frames: int, canvas: tuple[int, int] | None = None) -> Video:
        cells = np.stack([puzzle.cells(moves) for moves in moves_by_frame(puzzle.moves, frames)])
        return draw_cells(cells, PALETTE, canvas)

    def decode(self, video: Video, puzzle: OcclusionPuzzle) -> Answer | None:
        """The coloured cells of the last frame; None where a cell is unreadable."""
        check_video(video)
        cells = read_cells(video[-1:], PALETTE)[0]
        return shown(cells) if (cells >= 0).all() else None

    def holds(self, video: Video, puzzle: OcclusionPuzzle, frame: int) -> bool:
        cells = read_cells(video[frame : frame + 1], PALETTE)
        if (cells < 0).any() or scene_fault(cells[0], puzzle):
            return False
        due = due_by_frame(puzzle.moves, len(video))[frame]
        return all(on_course(track[0], item[1], due, puzzle) for item, track in tracks(cells, puzzle))

    def score(self, video: Video, puzzle: OcclusionPuzzle) -> Score:
        check_video(video)
        cells = read_cells(video, PALETTE)
        answer = self.decode(video, puzzle) in self.answers(puzzle)
        if verdict := spoilt(cells, puzzle.cells(0), lambda picture: scene_fault(picture, puzzle)):
            return Score(*verdict, answer)
        verdicts = [outcome(track, item, puzzle) for item, track in tracks(cells, puzzle)]
        for status in ("invalid", "wrong"):
            for found, reason in verdicts:
                if found == status:
                    return Score(status, reason, answer)
        return Score("solved", "", True)


def prompt_of(turns: int, moves: int) -> str:
    return f"Move every coloured cell {DIRECTIONS[turns]} by {moves} cells, behind whatever is black"


def moves_by_frame(moves: int, frames: int) -> list[int]:
    return [int(frame * moves / (frames - 1) + 0.5) for frame in range(frames)]


def due_by_frame(moves: int, frames: int) -> list[range]:
    """How far a coloured cell may be in each frame: as far as it is a frame earlier to a frame later, or between."""
    due = moves_by_frame(moves, frames)
    return [range(due[max(0, frame - 1)], due[min(frames - 1, frame + 1)] + 1) for frame in range(frames)]


def draw(items: range | list[int], count: int, rng: Random) -> list[int]:
    """Different ones of the items, in any order."""
    chosen: list[int] = []
    while len(chosen) < count:
        chosen.append(pick([item for item in items if item not in chosen], rng))
    return chosen


def exchanged(items: tuple[Item, ...]) -> tuple[Item, ...]:
    """Each with the colour of the next one."""
    following = (*items[1:], items[0])
    return tuple((lane, start, other[2]) for (lane, start, _), other in zip(items, following, strict=True))


def motion_structure(items: tuple[Item, ...], moves: int) -> bytes:
    """Lanes, starts and moves without colours; equal for the mirror image, and, as the board is turned, for all 8."""
    images = [sorted((lane, start) for lane, start, _ in items), sorted((SIDE - 1 - lane, s) for lane, s, _ in items)]
    return min(bytes([moves, *itertools.chain(*image)]) for image in images)


# --- reading --------------------------------------------------------------------------------------------------------


def shown(cells: Cells) -> Answer:
    """The coloured cells of a picture, row by row."""
    return tuple((r, c, COLOUR_NAMES[cells[r, c]]) for r, c in np.argwhere(cells > SCREEN).tolist())


def scene_fault(cells: Cells, puzzle: OcclusionPuzzle) -> str:
    """Why a picture is not the screen with each colour on its own lane, once at most; '' if it is."""
    given = puzzle.cells(0)
    foreign = (cells != puzzle.lanes) & (cells > SCREEN) | ((cells == SCREEN) != (given == SCREEN))
    for row, column in np.argwhere(foreign).tolist():
        return f"cell ({row}, {column}) turned {COLOUR_NAMES[cells[row, column]]}"
    for _, _, colour in puzzle.items:
        if (cells == colour).sum() > 1:
            return f"{(cells == colour).sum()} {COLOUR_NAMES[colour]} cells instead of one"
    return ""


Track = list[int | None]  # the column of a coloured cell in each frame, None where it is not to be seen


def tracks(cells: Cells, puzzle: OcclusionPuzzle) -> list[tuple[Item, Track]]:
    """Of pictures that have no fault, (frames, SIDE, SIDE): where each coloured cell is, before the turn."""
    before = np.rot90(cells, -puzzle.quarter_turns, (1, 2))
    found = []
    for item in puzzle.items:
        seen = [np.flatnonzero(picture[item[0]] == item[2]).tolist() for picture in before]
        found.append((item, [columns[0] if columns else None for columns in seen]))
    return found


def on_course(place: int | None, start: int, due: range, puzzle: OcclusionPuzzle) -> bool:
    """Whether a coloured cell is where so many moves take it: hidden only where the screen can hide it."""
    if place is None:
        return any(puzzle.hides(start + moved) for moved in due)
    return place - start in due


def outcome(track: Track, item: Item, puzzle: OcclusionPuzzle) -> tuple[Status, str]:
    """Status and reason of one coloured cell, judged by the steady way to where it ends, wherever that is.

    One that does not come out ended behind the screen: at the speed that takes it there, or at its own until it was.
    """
    _, start, colour = item
    name, end = f"the {COLOUR_NAMES[colour]} cell", track[-1]
    if end is not None:
        ways = [(max(end, start) - start, max(end, start))]
    else:
        behind = [column for column in range(start, SIDE) if puzzle.hides(column)]
        ways = [(column - start, column) for column in behind] + [(puzzle.moves, column) for column in behind[-1:]]
    faults = [unsteady(track, start, moves, puzzle, stop) for moves, stop in ways]
    if all(faults):
        return "invalid", f"{name} {faults[0] if faults else 'is gone in the last frame'}"
    if end is None:
        return "wrong", f"{name} does not come out"
    if end != start + puzzle.moves:
        return "wrong", f"{name} moves by {end - start} cells instead of {puzzle.moves}"
    return "solved", ""


def unsteady(track: Track, start: int, moves: int, puzzle: OcclusionPuzzle, stop: int) -> str:
    """Why a coloured cell does not move at the speed of so many cells a video, up to the column `stop`, to one frame's
    step; '' if it does.
    """
    last, most = start, stop - start
    for frame, (place, due) in enumerate(zip(track, due_by_frame(moves, len(track)), strict=True)):
        due = range(min(due.start, most), min(due.stop, most + 1))
        if place is not None and place < last:
            return f"moves back in frame {frame}"
        if not on_course(place, start, due, puzzle):
            return f"is gone in frame {frame}" if place is None else f"is not at one speed in frame {frame}"
        last = last if place is None else place
    return ""
