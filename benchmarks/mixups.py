"""How often a checkpoint solves open rotations, by the cells in which their two answers differ.

Run: python benchmarks/mixups.py [--model micro-rotation] [--n 500]

Draws: how often such shapes are drawn, of DRAWS puzzles of each split. Solved: of n test puzzles, in per cent with
95 % intervals (Wilson).
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from minicos import load
from minicos.evaluation import CHUNK, held_out, solve
from minicos.measures import wilson_interval
from minicos.tasks import Puzzle, Split, get_task

TASK, SIZE, DRAWS = "rotation-open", 90, 5000


def apart(puzzle: Puzzle) -> int:
    """Cells of the grid in which the two quarter turns of the shape end differently."""
    shape = puzzle.panels[-1][0]
    return int((np.rot90(shape) != np.rot90(shape, -1)).sum())


def draws(split: Split) -> dict[int, float]:
    """For each number of cells apart, its share of the draws."""
    puzzles = (get_task(TASK).sample(0, index, size=SIZE, split=split) for index in range(DRAWS))
    return {cells: count / DRAWS for cells, count in Counter(map(apart, puzzles)).items()}


def main(model: str, n: int) -> None:
    reasoner, puzzles = load(model), held_out(TASK, SIZE, n)
    outcomes = [o for start in range(0, n, CHUNK) for o in solve(reasoner, puzzles[start : start + CHUNK])]
    train, test = draws("train"), draws("test")
    print("| cells apart | draws, train | draws, test | n | solved |")
    print("| --- | --- | --- | --- | --- |")
    for cells in sorted({*train, *test}):
        solved = np.array([o.end.solved for o in outcomes if apart(o.puzzle) == cells])
        shares = [f"{100 * split.get(cells, 0):.1f} %" for split in (train, test)]
        print(f"| {cells} | {' | '.join(shares)} | {len(solved)} | {rate(solved)} |")
    print(f"| all | | | {n} | {rate(np.array([o.end.solved for o in outcomes]), digits=1)} |")


def rate(solved: NDArray[np.bool_], digits: int = 0) -> str:
    """In per cent, with its interval."""
    if not len(solved):
        return "-"
    low, high = wilson_interval(solved)
    return f"{100 * solved.mean():.{digits}f} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="micro-rotation")
    parser.add_argument("--n", type=int, default=500)
    options = parser.parse_args()
    main(options.model, options.n)
