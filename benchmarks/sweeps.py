"""Finished runs a second of a noise-at-step sweep, against diffusers' class. Run: python benchmarks/sweeps.py [MODEL]

The sweep: mazes, each undisturbed and with noise at every step. The baseline denoises every run from step 0 with
diffusers' class as it is, in float32, a batch of puzzles of the size that is fastest (it is searched here). Ours shares
prefixes. All rows in one process, in turn; each ratio is the mean of REPEATS with a 95 % t interval. What fused
projections, inference mode and bfloat16 would add is measured on top, with the share of verdicts that they leave alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy, deepcopy

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from minicos import flow
from minicos.cards import provenance
from minicos.evaluation import held_out, score_all
from minicos.interventions import noise_at_step
from minicos.model import Reasoner, load
from minicos.runs import Run, noise_for
from minicos.sampling import Trajectory, sample_runs
from minicos.sharing import Sharing
from minicos.tasks import Puzzle

REPEATS = 5
PUZZLES, SIZE = 16, 5
BATCHES = (1, 4, 8, 16)
SIDE = 1536  # of the matrices that tell the processor's full rate


@torch.no_grad()
def from_step_0(batch: int) -> None:
    """For each step of noise, and for none, all puzzles from pure noise, `batch` at a time."""
    for noised in (None, *schedule):
        for start in range(0, PUZZLES, batch):
            denoise(puzzles[start : start + batch], noised)


def denoise(some: list[Puzzle], noised: flow.Step | None) -> None:
    plain = [Run(puzzle) for puzzle in some]
    condition = reasoner.condition(some)
    shape = (reasoner.latent_channels, *condition.channels.shape[2:])
    latents = noise_for(plain, shape, 0, "initial")
    for step in schedule:
        if step is noised:
            latents = noise_for(plain, shape, step.index, "noise")
        times = torch.full((len(some),), step.timestep)
        inputs = torch.cat([latents, condition.channels], 1)
        velocity = reasoner.transformer(inputs, times, condition.text["cond"], return_dict=False)[0]
        latents = flow.euler_step(latents, velocity, step)
    reasoner.decode(latents)


def ours(network: Reasoner, inference: bool = False) -> Trajectory:
    with torch.inference_mode() if inference else nullcontext():
        return sample_runs(network, runs, batch_size=network.settings.batch)


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_transformer(transformer: WanTransformer3DModel) -> Reasoner:
    """The same network with another transformer."""
    changed = copy(reasoner)
    changed.transformer = transformer.eval().requires_grad_(False)
    return changed


def statuses(trajectory: Trajectory) -> np.ndarray:
    return np.array([score.status for score in score_all(trajectory.puzzles, trajectory.video)])


def mean_with_interval(values: np.ndarray) -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def rate_of_matrices() -> float:
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / min(seconds(lambda: left @ right) for _ in range(5))


def operations_a_pass() -> float:
    """Of one video, in matrix products and attention."""
    condition = reasoner.condition(puzzles[:1])
    latents = torch.zeros(1, reasoner.latent_channels, *condition.channels.shape[2:])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reasoner.velocity(latents, 500.0, condition, "cond")
    return counter.get_total_flops()


if __name__ == "__main__":
    reasoner = load(sys.argv[1] if len(sys.argv) > 1 else "micro").for_task("maze")
    puzzles, schedule = held_out("maze", SIZE, PUZZLES), reasoner.schedule()
    noises = ((), *((noise_at_step(step.index),) for step in schedule))
    runs = [Run(puzzle, 0, noise) for puzzle in puzzles for noise in noises]
    fused = with_transformer(deepcopy(reasoner.transformer))
    fused.transformer.fuse_qkv_projections()
    weights = reasoner.folder / "transformer"
    halved = with_transformer(WanTransformer3DModel.from_pretrained(weights, torch_dtype=torch.bfloat16))
    rows = {
        "shared prefixes": lambda: ours(reasoner),
        "and inference mode": lambda: ours(reasoner, inference=True),
        "and fused projections": lambda: ours(fused),
        "and bfloat16": lambda: ours(halved),
    }
    expected = statuses(ours(reasoner))
    best = min(BATCHES, key=lambda batch: seconds(lambda: from_step_0(batch)))
    times = np.array([[seconds(w) for w in (lambda: from_step_0(best), *rows.values())] for _ in range(REPEATS)])
    print(f"{len(runs)} runs of {len(schedule)} steps on {SIZE}x{SIZE} mazes, {reasoner.settings.name}, n = {REPEATS}")
    print(
        f"diffusers' class from step 0, {best} puzzles at once: {mean_with_interval(len(runs) / times[:, 0])} runs/s\n"
    )
    print("| what | runs/s | times as fast | verdicts unchanged |\n| --- | --- | --- | --- |")
    for column, (name, work) in enumerate(rows.items(), 1):
        same = np.mean(statuses(work()) == expected)
        numbers = mean_with_interval(len(runs) / times[:, column]), mean_with_interval(times[:, 0] / times[:, column])
        print(f"| {name} | {' | '.join(numbers)} | {100 * same:.1f} % |")
    evaluations = Sharing(reasoner, runs, schedule).evaluations()
    share = operations_a_pass() * evaluations / times[:, 1].mean() / rate_of_matrices()
    print(f"\nshared prefixes alone, by passes: {len(runs) * len(schedule) / evaluations:.2f}")
    print(f"share of the rate of a {SIDE} x {SIDE} matrix product: {100 * share:.0f} %")
    print(f"on {provenance()['machine']}, torch {provenance()['torch']}")
