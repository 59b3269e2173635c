"""Finished runs a second of a noise-at-step sweep, against diffusers' class. Run: python benchmarks/sweeps.py [MODEL]

The sweep: mazes, each undisturbed and with noise at every step. The baseline denoises every run from step 0 with
diffusers' class as it is, in float32, a batch of puzzles of the size that is fastest (it is searched here). Ours shares
prefixes, says the same in fewer passes over memory (`cpu.quicken`), and keeps every core busy with a chunk of its own
(`parallel.each`). All rows in one process, in turn; each ratio is the mean of REPEATS with a 95 % t interval. What
inference mode, fused projections and bfloat16 would add is measured on top, with the share of verdicts that they leave
alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from copy import copy, deepcopy

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from scipy import stats
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minicos import flow
from minicos.cards import provenance
from minicos.evaluation import held_out, score_all
from minicos.experiments.base import grouped
from minicos.interventions import noise_at_step
from minicos.model import Reasoner, load
from minicos.parallel import each
from minicos.runs import Run, noise_for
from minicos.sampling import Trajectory, sample_runs
from minicos.sharing import Sharing
from minicos.sweeps import Trial
from minicos.tasks import Puzzle

REPEATS = 8
PUZZLES, SIZE = 32, 5
BATCHES = (1, 4, 8, 16, 32)
SIDE = 1536  # of the matrices that tell the processor's full rate


@torch.no_grad()
def from_step_0(batch: int) -> None:
    """For each step of noise, and for none, all puzzles from pure noise, `batch` at a time."""
    for noised in (None, *schedule):
        for start in range(0, PUZZLES, batch):
            denoise(puzzles[start : start + batch], noised)


def denoise(some: list[Puzzle], noised: flow.Step | None) -> None:
    undisturbed = [Run(puzzle) for puzzle in some]
    condition = reasoner.condition(some)
    shape = (reasoner.latent_channels, *condition.channels.shape[2:])
    latents = noise_for(undisturbed, shape, 0, "initial")
    for step in schedule:
        if step is noised:
            latents = noise_for(undisturbed, shape, step.index, "noise")
        times = torch.full((len(some),), step.timestep)
        inputs = torch.cat([latents, condition.channels], 1)
        velocity = plain.transformer(inputs, times, condition.text["cond"], return_dict=False)[0]
        latents = flow.euler_step(latents, velocity, step)
    reasoner.decode(latents)


def chunk_by_chunk(network: Reasoner) -> list[Trajectory]:
    """One after the other, each pass by all cores."""
    return [solve_chunk(network, chunk) for chunk in chunks]


def side_by_side(network: Reasoner) -> list[Trajectory]:
    """As `minicos experiment` does: a core for each chunk."""
    return [trajectory for _, trajectory in sorted(each(network, solve_chunk, chunks), key=lambda pair: pair[0])]


def inferring(network: Reasoner) -> list[Trajectory]:
    def solve(own: Reasoner, chunk: list[Trial]) -> Trajectory:
        with torch.inference_mode():
            return solve_chunk(own, chunk)

    return [trajectory for _, trajectory in sorted(each(network, solve, chunks), key=lambda pair: pair[0])]


def solve_chunk(network: Reasoner, chunk: list[Trial]) -> Trajectory:
    return sample_runs(network, [trial.run for trial in chunk])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_transformer(transformer: WanTransformer3DModel) -> Reasoner:
    """The same network with another transformer."""
    changed = copy(reasoner)
    changed.transformer = transformer.eval().requires_grad_(False)
    return changed


def statuses(trajectories: list[Trajectory]) -> np.ndarray:
    return np.array([score.status for t in trajectories for score in score_all(t.puzzles, t.video)])


def mean_with_interval(values: np.ndarray) -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():.2f} [{low:.2f}, {high:.2f}]"


def rate_of_matrices() -> float:
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    return 2 * SIDE**3 / min(seconds(lambda: left @ right) for _ in range(5))


def operations_a_pass() -> float:
    """Of one video, in matrix products and attention; counted in diffusers' class, by operations that are known."""
    condition = reasoner.condition(puzzles[:1])
    latents = torch.zeros(1, reasoner.latent_channels, *condition.channels.shape[2:])
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        plain.velocity(latents, 500.0, condition, "cond")
    return counter.get_total_flops()


if __name__ == "__main__":
    reasoner = load(sys.argv[1] if len(sys.argv) > 1 else "micro").for_task("maze")
    puzzles, schedule = held_out("maze", SIZE, PUZZLES), reasoner.schedule()
    noises = ((), *((noise_at_step(step.index),) for step in schedule))
    chunks = grouped(reasoner, puzzles, lambda puzzle, _: [Trial(Run(puzzle, 0, noise), {}) for noise in noises])
    weights = reasoner.folder / "transformer"
    plain = with_transformer(WanTransformer3DModel.from_pretrained(weights))
    fused = with_transformer(deepcopy(plain.transformer))
    fused.transformer.fuse_qkv_projections()
    halved = with_transformer(WanTransformer3DModel.from_pretrained(weights, torch_dtype=torch.bfloat16))
    rows = {
        "shared prefixes alone": lambda: chunk_by_chunk(plain),
        "and fewer passes over memory": lambda: chunk_by_chunk(reasoner),
        "and a core for each chunk: what `minicos experiment` does": lambda: side_by_side(reasoner),
        "and inference mode": lambda: inferring(reasoner),
        "the third row with diffusers' class, projections fused": lambda: side_by_side(fused),
        "the third row with diffusers' class in bfloat16": lambda: side_by_side(halved),
    }
    expected = statuses(chunk_by_chunk(plain))
    best = min(BATCHES, key=lambda batch: seconds(lambda: from_step_0(batch)))
    times = np.array([[seconds(w) for w in (lambda: from_step_0(best), *rows.values())] for _ in range(REPEATS)])
    runs = sum(map(len, chunks))
    print(f"{runs} runs of {len(schedule)} steps on {SIZE}x{SIZE} mazes, {reasoner.settings.name}, n = {REPEATS}")
    print(f"diffusers' class from step 0, {best} puzzles at once: {mean_with_interval(runs / times[:, 0])} runs/s\n")
    print("| what | runs/s | times as fast | verdicts unchanged |\n| --- | --- | --- | --- |")
    for column, (name, work) in enumerate(rows.items(), 1):
        same = np.mean(statuses(work()) == expected)
        numbers = mean_with_interval(runs / times[:, column]), mean_with_interval(times[:, 0] / times[:, column])
        print(f"| {name} | {' | '.join(numbers)} | {100 * same:.1f} % |")
    sharings = [Sharing(reasoner, [trial.run for trial in chunk], schedule) for chunk in chunks]
    evaluations = sum(sharing.evaluations(reasoner.settings.batch) for sharing in sharings)
    achieved, ceiling = operations_a_pass() * evaluations / times[:, 3].mean(), rate_of_matrices()
    print(f"\nshared prefixes alone, by passes: {runs * len(schedule) / evaluations:.2f}")
    print(
        f"third row: {achieved / 1e9:.0f} GFLOP/s, {100 * achieved / ceiling:.0f} % of the {ceiling / 1e9:.0f} of a "
        f"{SIDE} x {SIDE} matrix product"
    )
    print(f"on {provenance()['machine']}, torch {provenance()['torch']}")
