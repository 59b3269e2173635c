"""How fast the ground floor is: puzzles made per second, a cold start, and sampling. Run: python benchmarks/speed.py

Each row is the mean of REPEATS measurements with a 95 % t interval. Times are wall-clock and depend on the machine; a
busy one makes them worse, so nothing in the tests depends on them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from minicos.cards import provenance
from minicos.evaluation import CHUNK, held_out
from minicos.model import load
from minicos.sampling import sample
from minicos.tasks import get_task

REPEATS = 5
PUZZLES = 1000
FRAMES = 7
COLD_START = """
import minicos
reasoner = minicos.load("nano")
puzzle = minicos.get_task("maze").sample(0, 0, size=5, split="test")
minicos.sample(reasoner, [puzzle])
"""


def puzzles_per_second(name: str) -> float:
    """Sampling, solving and rendering on one core (nothing here runs in parallel)."""
    task, size = get_task(name), 5 if name.startswith("maze") else 90
    began = time.perf_counter()
    for index in range(PUZZLES):
        task.render(task.sample(1, index, size=size), FRAMES)
    return PUZZLES / (time.perf_counter() - began)


def cold_start() -> float:
    """Seconds from nothing to one solved 5x5 maze, in a process of its own."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", COLD_START], check=True)
    return time.perf_counter() - began


def milliseconds_per_puzzle() -> float:
    """Denoising one 5x5 maze, as part of a batch of CHUNK, at the model's own number of steps."""
    began = time.perf_counter()
    sample(reasoner, mazes)
    return 1000 * (time.perf_counter() - began) / len(mazes)


def show(what: str, unit: str, measure: Callable[[], float]) -> None:
    measure()  # warm caches
    values = np.array([measure() for _ in range(REPEATS)])
    low, high = stats.t.interval(0.95, REPEATS - 1, values.mean(), stats.sem(values))
    mean, low, high = (f"{float(f'{value:.3g}'):g}" for value in (values.mean(), low, high))  # 3 digits, no exponent
    print(f"| {what} | {mean} [{low}, {high}] {unit} | {REPEATS} |", flush=True)


if __name__ == "__main__":
    print("| what | mean [95 %] | n |\n| --- | --- | --- |")
    for name in ("maze", "maze-braided", "rotation"):
        show(
            f"`{name}` puzzles sampled, solved and rendered, {FRAMES} frames",
            "/s",
            lambda name=name: puzzles_per_second(name),
        )
    show("cold start: import, load, solve one 5x5 maze", "s", cold_start)
    reasoner, mazes = load("nano"), held_out("maze", 5, CHUNK)
    show(f"sampling a 5x5 maze, {reasoner.settings.steps} steps, batch {CHUNK}", "ms", milliseconds_per_puzzle)
    print(f"\non {provenance()['machine']}, torch {provenance()['torch']}")
