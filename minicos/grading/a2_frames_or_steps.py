"""Checks of the second assignment: what x0_hat shows, damage to steps and frames, CKA, commitment, an interval."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Generator, Tensor

from minicos import measures
from minicos.grading.checks import Check, Inputs
from minicos.tasks import get_task
from minicos.tasks.base import WHITE
from minicos.tasks.maze import PALETTE, PATH, MazePuzzle

SHAPE = (3, 2, 4, 5, 6)  # batch, channels, frames, height, width: all different


# --- what x0_hat shows ----------------------------------------------------------------------------------------------


def colours_of_cells(generator: Generator) -> list[Inputs]:
    between = torch.rand(4, 5, 1, generator=generator)
    white, path = torch.tensor(WHITE).double(), torch.tensor(PALETTE[PATH]).double()
    blends = white + between * (path - white)
    others = 255 * torch.rand(3, 4, 3, generator=generator).double()
    others[0, 1] = 0  # black lies beyond the path's colour
    return [{"colours": blends}, {"colours": others}]


def share_of_path(colours: Tensor, clip: bool = True) -> Tensor:
    white, path = torch.tensor(WHITE).double(), torch.tensor(PALETTE[PATH]).double()
    share = (colours - white) @ (path - white) / ((path - white) @ (path - white))
    return share.clamp(0, 1) if clip else share


def probabilities(generator: Generator) -> list[Inputs]:
    p = torch.rand(4, 4, generator=generator).double()
    p[0, 0], p[1, 2], p[3, 3] = 0.0, 1.0, float("nan")
    return [{"p": p, "moves": 5}, {"p": torch.rand(3, 3, generator=generator).double(), "moves": 2}]


def bits(p: Tensor, moves: int) -> Tensor:
    p = p[~p.isnan()]
    return torch.special.entr(torch.stack([p, 1 - p])).sum() / np.log(2) / moves


def mazes(generator: Generator) -> list[Inputs]:
    found = []
    for size in (4, 5, 5, 6, 6, 7):
        index = int(torch.randint(10**9, (), generator=generator))
        puzzle = get_task("maze").sample(0, index, size=size)
        p = torch.rand(size, size, generator=generator).double() ** 0.5
        p[puzzle.start] = p[puzzle.goal] = float("nan")
        walls = {"right": torch.from_numpy(puzzle.right), "down": torch.from_numpy(puzzle.down)}
        found.append({"p": p, **walls, "start": list(puzzle.start), "goal": list(puzzle.goal)})
    return found


def ends(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    puzzle = MazePuzzle("maze", "", len(p), "", right.numpy(), down.numpy(), tuple(start), tuple(goal), (), 0)
    return torch.tensor(measures.ends(p.numpy(), puzzle))


def ends_through_walls(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    return ends(p, torch.ones_like(right), torch.ones_like(down), start, goal)


def ends_with_start(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    """Where the start itself is a dead end of its component, it is counted too."""
    inside = {(r, c) for r, c in product(range(len(p)), repeat=2) if p[r, c] >= measures.CANDIDATE}
    puzzle = MazePuzzle("maze", "", len(p), "", right.numpy(), down.numpy(), tuple(start), tuple(goal), (), 0)
    ways = [cell for cell in puzzle.neighbours(tuple(start)) if cell in inside | {tuple(goal)}]
    return ends(p, right, down, start, goal) + (len(ways) == 1)


# --- damage ---------------------------------------------------------------------------------------------------------


def latents_and_noise(generator: Generator) -> dict[str, Tensor]:
    return {name: torch.randn(SHAPE, generator=generator) for name in ("latents", "noise")}


def steps_to_noise(generator: Generator) -> list[Inputs]:
    return [{**latents_and_noise(generator), "step": step, "chosen": 3} for step in (2, 3, 5)]


def frames_to_noise(generator: Generator) -> list[Inputs]:
    return [{**latents_and_noise(generator), "chosen": chosen} for chosen in (0, 2, 3)]


def sets_to_noise(generator: Generator) -> list[Inputs]:
    sets = [(1, [1, 4], [0, 3]), (2, [1, 4], [0, 3]), (4, [4], [2]), (0, [0], []), (3, [], [1])]
    return [{**latents_and_noise(generator), "step": s, "steps": steps, "frames": frames} for s, steps, frames in sets]


def noised(latents: Tensor, noise: Tensor, step: int, steps: list[int], frames: list[int]) -> Tensor:
    if step not in steps:
        return latents
    frame = torch.arange(latents.shape[2])
    chosen = torch.isin(frame, torch.tensor(frames, dtype=torch.long)).view(1, 1, -1, 1, 1)
    return torch.where(chosen, noise, latents)


def noised_step(latents: Tensor, noise: Tensor, step: int, chosen: int) -> Tensor:
    return noise if step == chosen else latents


def noised_frame(latents: Tensor, noise: Tensor, chosen: int) -> Tensor:
    return noised(latents, noise, 0, [0], [chosen])


# --- runs against runs ----------------------------------------------------------------------------------------------


def two_features(generator: Generator) -> list[Inputs]:
    one = torch.randn(24, 40, generator=generator).double() + 2
    other = one[:, :7] @ torch.randn(7, 12, generator=generator).double() + torch.randn(24, 12, generator=generator)
    return [{"a": one, "b": other}, {"a": one, "b": torch.randn(24, 30, generator=generator).double() - 1}]


def plain_cka(a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor(measures.cka(a.numpy(), b.numpy(), debiased=False))


def debiased_cka(a: Tensor, b: Tensor) -> Tensor:
    return torch.tensor(measures.cka(a.numpy(), b.numpy(), debiased=True))


def uncentred_cka(a: Tensor, b: Tensor) -> Tensor:
    one, other = a @ a.T, b @ b.T
    return (one * other).sum() / ((one * one).sum() * (other * other).sum()).sqrt()


def answers_of_runs(generator: Generator) -> list[Inputs]:
    found = []
    for answer in (0, 1, -1):
        restarts = torch.cat([torch.tensor([-1, -1]), torch.randint(-1, 3, (7,), generator=generator)])
        seeds = torch.cat([torch.tensor([0, 1, 2, 0, 1]), torch.randint(-1, 3, (6,), generator=generator)])
        found.append({"answer": answer, "restarts": restarts, "seeds": seeds})
    return found


def beyond_chance(answer: int, restarts: Tensor, seeds: Tensor) -> Tensor:
    stay, chance = (((other == answer) & (answer >= 0)).double().mean() for other in (restarts, seeds))
    return torch.tensor(measures.commitment(float(stay), float(chance)))


def stays(answer: int, restarts: Tensor, seeds: Tensor) -> Tensor:
    return ((restarts == answer) & (answer >= 0)).double().mean()


def counts(generator: Generator) -> list[Inputs]:
    n = int(torch.randint(20, 200, (), generator=generator))
    return [{"successes": n // 3, "n": n}, {"successes": 0, "n": n}, {"successes": n, "n": n}]


def wilson(successes: int, n: int) -> Tensor:
    return torch.tensor(measures.wilson_interval(np.arange(n) < successes))


def plain_interval(successes: int, n: int) -> Tensor:
    rate = successes / n
    half = 1.959964 * (rate * (1 - rate) / n) ** 0.5
    return torch.tensor([rate - half, rate + half])


CHECKS = (
    Check(
        "path_probability",
        8,
        colours_of_cells,
        share_of_path,
        {"keep it between 0 and 1": lambda colours: share_of_path(colours, clip=False)},
    ),
    Check(
        "path_entropy",
        8,
        probabilities,
        bits,
        {
            "in bits: which logarithm?": lambda p, moves: bits(p, moves) * np.log(2),
            "per move of the route: divide by moves": lambda p, moves: bits(p, 1),
        },
    ),
    Check(
        "candidates",
        12,
        mazes,
        ends,
        {
            "a wall lies between some of these cells": ends_through_walls,
            "the start is where routes begin, not an end of one": ends_with_start,
        },
    ),
    Check(
        "noise_at_step",
        6,
        steps_to_noise,
        noised_step,
        {"at the chosen step only": lambda latents, noise, step, chosen: noise},
    ),
    Check(
        "noise_at_frame",
        6,
        frames_to_noise,
        noised_frame,
        {"that is the wrong axis": lambda latents, noise, chosen: torch.cat([noise[:chosen], latents[chosen:]])},
        kept=("latents",),
    ),
    Check(
        "noise_at",
        8,
        sets_to_noise,
        noised,
        {
            "only these frames, not all of them": (
                lambda latents, noise, step, steps, frames: noise if step in steps else latents
            ),
            "only at these steps, not at every one": (
                lambda latents, noise, step, steps, frames: noised(latents, noise, 0, [0], frames)
            ),
        },
    ),
    Check(
        "cka",
        8,
        two_features,
        plain_cka,
        {
            "features have to be centred first: over which axis?": uncentred_cka,
            "what is the denominator, to the last root?": lambda a, b: plain_cka(a, b) ** 2,
        },
    ),
    Check(
        "debiased_cka",
        10,
        two_features,
        debiased_cka,
        {"this is the biased estimate": plain_cka},
    ),
    Check(
        "commitment",
        10,
        answers_of_runs,
        beyond_chance,
        {
            "beyond chance: another seed agrees sometimes, too": stays,
            "-1 agrees with nothing, not even with another -1": (
                lambda answer, restarts, seeds: beyond_chance(answer + 1, restarts + 1, seeds + 1)
            ),
        },
    ),
    Check(
        "wilson",
        8,
        counts,
        wilson,
        {
            "at 0 of n this interval has no width: that is the plain one, not Wilson's": plain_interval,
            "the low end comes first": lambda successes, n: wilson(successes, n).flip(0),
        },
        forbidden=("scipy.stats.binomtest",),
    ),
)
