"""Checks of the fourth assignment: averages over seeds, their controls, what they cost, and whether a gain is one."""

from __future__ import annotations

from math import ceil

import torch
from torch import Generator, Tensor

from minicos.grading.checks import Check, Inputs

SEEDS = 3
Z = 1.959964


def states(generator: Generator) -> list[Inputs]:
    return [{"states": torch.randn(SEEDS, 7, 6, generator=generator).double()} for _ in range(2)]


def averaged(states: Tensor) -> Tensor:
    return states.mean(0).expand_as(states)


def matched(states: Tensor) -> Tensor:
    mean = states.mean(0)
    return (mean * states.norm(dim=-1).mean(0)[:, None] / mean.norm(dim=-1, keepdim=True)).expand_as(states)


def noises(generator: Generator) -> list[Inputs]:
    return [{"noise": torch.randn(count, 2, 3, 4, 5, generator=generator).double()} for count in (3, 5)]


def unit_average(noise: Tensor) -> Tensor:
    return noise.sum(0) / len(noise) ** 0.5


def ballots(generator: Generator) -> list[Inputs]:
    fixed = ([4, 7, 7], [7, 4, 4], [5, 6, 8], [-1, 3, 9], [-1, -1, 2], [-1, -1, -1], [2, 9, 9, 2, 5], [-1, -1, 8, 8])
    fixed += ([9, 2, 2, 9, 5], [8, 6, 5])  # the first is not the smallest
    drawn = torch.randint(-1, 3, (4, 5), generator=generator).tolist()
    return [{"answers": answers} for answers in (*map(list, fixed), *drawn)]


def elected(answers: list[int], unreadable: bool = False, last: bool = False) -> Tensor:
    kept = [answer for answer in answers if unreadable or answer >= 0]
    if not kept:
        return torch.tensor(0)
    most = max(map(kept.count, kept))
    winners = [place for place, answer in enumerate(answers) if answer in kept and kept.count(answer) == most]
    return torch.tensor(winners[-1 if last else 0])


def right_of_seeds(generator: Generator) -> list[Inputs]:
    def draw(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) < 0.6).double()

    return [{"right": draw(20), "single": draw(SEEDS, 20)}]


def gained(right: Tensor, single: Tensor) -> Tensor:
    return right - single.mean(0)


def pairs(generator: Generator) -> list[Inputs]:
    found = []
    for count in (30, 200):
        common = torch.randn(count, generator=generator).double()
        one, other = (common + 0.2 * torch.randn(count, generator=generator).double() for _ in range(2))
        found.append({"one": one + 0.1, "other": other})
    return found


def paired(one: Tensor, other: Tensor) -> Tensor:
    difference = one - other
    half = Z * difference.std() / len(difference) ** 0.5
    return torch.stack([difference.mean() - half, difference.mean() + half])


def unpaired(one: Tensor, other: Tensor) -> Tensor:
    half = Z * (one.var() / len(one) + other.var() / len(other)).sqrt()
    return torch.stack([(one - other).mean() - half, (one - other).mean() + half])


def costs(generator: Generator) -> list[Inputs]:
    steps, seeds, shared = (int(torch.randint(*ends, (), generator=generator)) for ends in ((20, 60), (3, 9), (2, 19)))
    return [
        {"seeds": 1, "steps": steps, "shared": 0},
        {"seeds": seeds, "steps": steps, "shared": shared},
        {"seeds": seeds + 1, "steps": steps, "shared": steps},
    ]


def passes(seeds: int, steps: int, shared: int) -> Tensor:
    return torch.tensor(seeds * shared + steps - shared)


def wishes(generator: Generator) -> list[Inputs]:
    """Such that 1.96 gives the same numbers as Z."""
    while True:
        spread = 0.3 + 0.2 * float(torch.rand((), generator=generator))
        found = [{"spread": spread, "half_width": 0.03}, {"spread": 2 * spread, "half_width": 0.01}]
        if all(needed(**case) == needed(**case, z=1.96) for case in found):
            return found


def needed(spread: float, half_width: float, z: float = Z) -> Tensor:
    return torch.tensor(ceil((z * spread / half_width) ** 2))


CHECKS = (
    Check(
        "average_hidden",
        8,
        states,
        averaged,
        {"over seeds, not over tokens": lambda states: states.mean(1, keepdim=True).expand_as(states)},
    ),
    Check(
        "average_matched",
        12,
        states,
        matched,
        {
            "the norm is not matched yet": averaged,
            "each token has its own norm": (
                lambda states: averaged(states) * states.norm(dim=(1, 2)).mean() / states.mean(0).norm()
            ),
        },
    ),
    Check(
        "average_noise",
        10,
        noises,
        unit_average,
        {"the mean of independent noise is too quiet: what is its variance?": lambda noise: noise.mean(0)},
    ),
    Check(
        "vote",
        10,
        ballots,
        elected,
        {
            "an answer that cannot be read must not win": lambda answers: elected(answers, unreadable=True),
            "on a tie the first seed decides": lambda answers: elected(answers, last=True),
        },
    ),
    Check(
        "gains",
        6,
        right_of_seeds,
        gained,
        {
            "against the mean of the single seeds, not the best of them": (
                lambda right, single: right - single.amax(0)
            ),
            "against the mean of all the single seeds, not the first": lambda right, single: right - single[0],
        },
    ),
    Check(
        "paired_interval",
        14,
        pairs,
        paired,
        {
            "it is not paired: the same puzzle stands in both rows": unpaired,
            "the error of a mean falls with the square root of n": (
                lambda one, other: torch.stack(
                    [(one - other).mean() - Z * (one - other).std(), (one - other).mean() + Z * (one - other).std()]
                )
            ),
        },
    ),
    Check(
        "passes",
        8,
        costs,
        passes,
        {"only the shared steps are computed for every seed": lambda seeds, steps, shared: torch.tensor(seeds * steps)},
    ),
    Check(
        "puzzles_needed",
        8,
        wishes,
        needed,
        {
            "a whole number, and enough of them: round up": (
                lambda spread, half_width: torch.tensor(int((Z * spread / half_width) ** 2))
            )
        },
        tolerance=1e-9,
    ),
)
