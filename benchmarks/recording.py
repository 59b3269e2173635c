"""What recording x0_hat at every step costs over a plain run. Run: python benchmarks/recording.py

On one core, as the chunks of a sweep are computed, and in processor time, of which other work on the machine takes
none. Pairs of runs in turn, the one with the recorder and the one without; the ratio of each pair, mean of REPEATS
with a 95 % t interval.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy import stats

from minicos.cards import provenance
from minicos.evaluation import CHUNK, held_out
from minicos.model import load
from minicos.parallel import keep_freed_memory
from minicos.sampling import Recorder, sample

REPEATS = 40


def seconds(recorders: tuple[Recorder, ...]) -> float:
    began = time.process_time()
    sample(reasoner, puzzles, recorders=recorders)
    return time.process_time() - began


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed_memory()
    reasoner, puzzles = load("nano"), held_out("maze", 5, CHUNK)
    recorder = (Recorder("x0_hat"),)
    seconds(()), seconds(recorder)  # warm up
    pairs = [(seconds(recorder), seconds(())) for _ in range(REPEATS)]
    cost = 100 * (np.array([watched / plain for watched, plain in pairs]) - 1)
    low, high = stats.t.interval(0.95, REPEATS - 1, cost.mean(), stats.sem(cost))
    print(f"recording x0_hat costs {cost.mean():.1f} % [{low:.1f}, {high:.1f}] over a plain run, n = {REPEATS}")
    print(f"on {provenance()['machine']}, torch {provenance()['torch']}")
