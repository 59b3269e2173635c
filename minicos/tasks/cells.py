"""A board of 7 x 7 cells, each of one colour and 4 x 4 units: what the tasks with moving cells are drawn on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from minicos.tasks.base import Board, Status, Video, nearest_colour

SIDE = 7  # cells along the side of the board
CELL = 4  # units along the side of a cell: pixels at the native size
BOARD = Board(CELL * SIDE, CELL * SIDE)

Cells = NDArray[np.int64]  # (..., SIDE, SIDE), an index into a palette, -1 where no colour of it is near


def draw_cells(cells: Cells, palette: NDArray[np.uint8], canvas: tuple[int, int] | None) -> Video:
    """(frames, SIDE, SIDE) to a video of this height and width, or of the native one."""
    return BOARD.draw(palette[to_units(cells)], *(canvas or (BOARD.rows, BOARD.columns)))


def to_units(cells: NDArray) -> NDArray:
    """(..., SIDE, SIDE) to (..., board rows, board columns)."""
    return cells.repeat(CELL, -1).repeat(CELL, -2)


def read_cells(video: Video, palette: NDArray[np.uint8]) -> Cells:
    """Of every frame; raises MinicosError for a canvas that is too small."""
    units = BOARD.read(video).reshape(len(video), SIDE, CELL, SIDE, CELL, 3)
    return nearest_colour(units.mean((2, 4)), palette)


def spoilt(cells: Cells, given: Cells, fault_of: Callable[[Cells], str]) -> tuple[Status, str] | None:
    """Why what moves in a video need not be looked at: a cell that cannot be read, a first frame that is not the given
    image, a frame of which `fault_of` says what is wrong. None where there is no such thing.
    """
    for frame, row, column in np.argwhere(cells < 0).tolist():
        return "unreadable", f"frame {frame}: no palette colour at cell ({row}, {column})"
    if (cells[0] != given).any():
        return "invalid", "frame 0 is not the given image"
    for frame, picture in enumerate(cells):
        if reason := fault_of(picture):
            return "invalid", f"frame {frame}: {reason}"
    return None
