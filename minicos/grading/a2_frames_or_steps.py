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


def bits(p: Tensor, moves: int, half: bool = False) -> Tensor:
    p = p[~p.isnan()]
    return torch.special.entr(p if half else torch.stack([p, 1 - p])).sum() / np.log(2) / moves


def mazes(generator: Generator) -> list[Inputs]:
    """Pictures of all kinds: many cells near the threshold, on both sides; routes that arrive; a goal beside the start,
    and nothing else there.
    """

    def draw(size: int) -> Tensor:
        return torch.rand(size, size, generator=generator).double()

    found = []
    for number, size in enumerate((4, 5, 5, 6, 6, 7, 7, 7)):
        puzzle = get_task("maze").sample(0, int(torch.randint(10**9, (), generator=generator)), size=size)
        p = torch.where(draw(size) < 0.3, 0.2 + 0.1 * draw(size), draw(size) ** 0.5)
        if number % 2:
            p[tuple(zip(*puzzle.route, strict=True))] = 1.0
        goal = puzzle.route[1] if number in (3, 4) else puzzle.goal
        if number == 4:
            p[tuple(zip(*puzzle.neighbours(puzzle.start), strict=True))] = 0.0
        p[puzzle.start] = p[goal] = float("nan")
        walls = {"right": torch.from_numpy(puzzle.right), "down": torch.from_numpy(puzzle.down)}
        found.append({"p": p, **walls, "start": list(puzzle.start), "goal": list(goal)})
    return found


def as_puzzle(right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> MazePuzzle:
    return MazePuzzle("maze", "", len(right), "", right.numpy(), down.numpy(), tuple(start), tuple(goal), (), 0)


def ends(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    return torch.tensor(measures.ends(p.numpy(), as_puzzle(right, down, start, goal)))


def ends_through_walls(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    return ends(p, torch.ones_like(right), torch.ones_like(down), start, goal)


def ends_with_start(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    """Where the start itself is a dead end of its component, it is counted too."""
    onward = measures.possible_cells(p.numpy(), as_puzzle(right, down, start, goal))[tuple(start)]
    return ends(p, right, down, start, goal) + (len(onward) == 1)


def ends_anywhere(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    """Of cells that cannot be reached, too."""
    puzzle = as_puzzle(right, down, start, goal)
    inside = {cell for cell in product(range(len(p)), repeat=2) if p[cell] >= measures.CANDIDATE}
    inside |= {puzzle.start, puzzle.goal}
    onward = {cell: inside.intersection(puzzle.neighbours(cell)) for cell in inside - {puzzle.start}}
    return torch.tensor(sum(len(others) == 1 for others in onward.values()))


def ends_without_goal(p: Tensor, right: Tensor, down: Tensor, start: list[int], goal: list[int]) -> Tensor:
    """p is nan at the goal, and so its cell is lost."""
    down, right = down.clone(), right.clone()
    row, column = goal
    right[row, max(column - 1, 0) : column + 1] = False
    down[max(row - 1, 0) : row + 1, column] = False
    return ends(p, right, down, start, goal)


# --- damage ---------------------------------------------------------------------------------------------------------


def latents_and_noise(generator: Generator) -> dict[str, Tensor]:
    return {name: torch.randn(SHAPE, generator=generator) for name in ("latents", "noise")}


def steps_to_noise(generator: Generator) -> list[Inputs]:
    chosen = int(torch.randint(1, 9, (), generator=generator))
    return [
        {**latents_and_noise(generator), "step": step, "chosen": chosen} for step in (chosen - 1, chosen, chosen + 2)
    ]


def frames_to_noise(generator: Generator) -> list[Inputs]:
    order = torch.randperm(SHAPE[2], generator=generator).tolist()
    return [{**latents_and_noise(generator), "chosen": chosen} for chosen in order[1:]]


def sets_to_noise(generator: Generator) -> list[Inputs]:
    one, other, third = torch.randperm(8, generator=generator)[:3].tolist()
    a, b, c = torch.randperm(SHAPE[2], generator=generator)[:3].tolist()
    sets = [(one, [one, other], [a, b]), (third, [one, other], [a, b]), (other, [other], [c]), (one, [one], [])]
    sets.append((third, [], [a]))
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
            "a cell is on the route or it is not: both have their share": lambda p, moves: bits(p, moves, half=True),
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
            "there are ends that no way leads to from the start": ends_anywhere,
            "the goal belongs to the cells, too: p is nan there": ends_without_goal,
        },
    ),
    Check(
        "noise_at_step",
        6,
        steps_to_noise,
        noised_step,
        {"at the chosen step only": lambda latents, noise, step, chosen: noise},
        kept=("latents",),
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
            "that is the other axis: every feature is to have mean 0 over the rows": (
                lambda a, b: uncentred_cka(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True))
            ),
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
