"""Finished runs a second of a noise-at-step sweep, against diffusers' class. Run: python benchmarks/sweeps.py

The baseline denoises every run of the sweep from step 0 with the transformer as it is, in float32, a batch of puzzles
of the size that is fastest (it is searched here). Ours shares prefixes. Both in one process, in turn; the ratio of each
pair of measurements, mean of REPEATS with a 95 % t interval.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from scipy import stats

from minicos import flow
from minicos.cards import provenance
from minicos.evaluation import held_out
from minicos.interventions import noise_at_step
from minicos.model import load
from minicos.runs import Run, noise_for
from minicos.sampling import sample_runs
from minicos.sharing import Sharing
from minicos.sweeps import BATCH

REPEATS = 5
PUZZLES = 16
BATCHES = (4, 8, 16)


@torch.inference_mode()
def baseline(batch: int) -> float:
    """Runs a second: for each step of noise, all puzzles from pure noise, `batch` at a time."""
    began = time.perf_counter()
    for noised in schedule:
        for start in range(0, len(puzzles), batch):
            some = [Run(puzzle) for puzzle in puzzles[start : start + batch]]
            condition = reasoner.condition([run.puzzle for run in some])
            shape = (reasoner.latent_channels, *condition.channels.shape[2:])
            latents = noise_for(some, shape, 0, "initial")
            for step in schedule:
                if step.index == noised.index:
                    latents = noise_for(some, shape, step.index, "noise")
                times = torch.full((len(some),), step.timestep)
                inputs = torch.cat([latents, condition.channels], 1)
                velocity = reasoner.transformer(inputs, times, condition.text["cond"], return_dict=False)[0]
                latents = flow.euler_step(latents, velocity, step)
            reasoner.decode(latents)
    return len(runs) / (time.perf_counter() - began)


def ours() -> float:
    began = time.perf_counter()
    sample_runs(reasoner, runs, batch_size=BATCH)
    return len(runs) / (time.perf_counter() - began)


if __name__ == "__main__":
    reasoner, puzzles = load("nano"), held_out("maze", 5, PUZZLES)
    schedule = reasoner.schedule()
    runs = [Run(puzzle, 0, (noise_at_step(step.index),)) for puzzle in puzzles for step in schedule]
    ours()
    best = max(BATCHES, key=baseline)
    pairs = np.array([(ours(), baseline(best)) for _ in range(REPEATS)])
    ratio = pairs[:, 0] / pairs[:, 1]
    low, high = stats.t.interval(0.95, REPEATS - 1, ratio.mean(), stats.sem(ratio))
    shared = len(runs) * len(schedule) / Sharing(reasoner, runs, schedule).evaluations()
    print(
        f"{len(runs)} runs of {len(schedule)} steps: {pairs[:, 0].mean():.1f} runs/s, baseline {pairs[:, 1].mean():.1f}"
    )
    print(f"(its best batch: {best}); {ratio.mean():.2f} [{low:.2f}, {high:.2f}] times as fast, n = {REPEATS}")
    print(f"shared prefixes alone would give {shared:.2f}, by evaluations")
    print(f"on {provenance()['machine']}, torch {provenance()['torch']}")
