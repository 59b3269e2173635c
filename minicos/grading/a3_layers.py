"""Checks of the third assignment: token energy, a probe that does not leak, and what a latent swap can show."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from minicos import measures
from minicos.grading import a3_given
from minicos.grading.checks import Check, Inputs

SHAPE = (3, 10, 8)  # batch, tokens, width: all different
ROWS = 41  # of a probe; odd, so that the mean of labels that are 1 or -1 is never 0


def normal(*shape: int, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator).double()


# --- energy ---------------------------------------------------------------------------------------------------------


def hidden_states(generator: Generator) -> list[Inputs]:
    return [{"hidden": (1 + 5 * k) * normal(*SHAPE, generator=generator)} for k in range(2)]


def energy(hidden: Tensor) -> Tensor:
    return measures.token_energy(hidden)


# --- probes ---------------------------------------------------------------------------------------------------------


def groups_of_rows(generator: Generator) -> list[Inputs]:
    """Groups of 6 rows each, in random order. Their numbers have gaps, and the same rest modulo the folds."""
    found = []
    for count, folds in ((10, 5), (9, 3)):
        numbers = (15 * torch.randint(1, 4, (count,), generator=generator)).cumsum(0) - 100
        groups = numbers.repeat_interleave(6)
        found.append({"groups": groups[torch.randperm(len(groups), generator=generator)], "folds": folds})
    return found


def wrong_folds(inputs: Inputs, found: list[NDArray]) -> str:
    groups, folds = inputs["groups"].numpy(), inputs["folds"]
    if len(found) != 1 or found[0].shape != groups.shape:
        return f"expected the number of a fold for every row, the shape {groups.shape}"
    fold, wanted = found[0], set(range(folds))
    if not set(fold.tolist()) <= wanted:
        return "there are other numbers than those of the folds, which are counted from 0"
    if any(len(np.unique(fold[groups == group])) > 1 for group in np.unique(groups)):
        return "a group lies in more than one fold: what is learned of it in one is known in the other"
    if any((fold == number).sum() != len(groups) / folds for number in wanted):
        return "some folds have more groups than others"
    return ""


def to_fit(generator: Generator) -> list[Inputs]:
    found = []
    for penalty in (0.5, 20.0):
        train = normal(ROWS, 6, generator=generator) + 3
        labels = (train[:, 0] - train[:, 3] + normal(ROWS, generator=generator) > 0.3).double() * 2 - 1
        found.append(
            {"train": train, "labels": labels, "test": normal(9, 6, generator=generator) + 3, "penalty": penalty}
        )
    return found


def own_middle(train: Tensor, labels: Tensor, test: Tensor, penalty: float) -> Tensor:
    """Test rows centred by their own mean."""
    return ridge(train, labels, test - test.mean(0) + train.mean(0), penalty)


def ridge(train: Tensor, labels: Tensor, test: Tensor, penalty: float, intercept: bool = True) -> Tensor:
    middle, level = (train.mean(0), labels.mean()) if intercept else (torch.zeros_like(train[0]), 0.0)
    x, y = train - middle, labels - level
    weights = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]).double(), x.T @ y)
    return (test - middle) @ weights + level


def to_cross_validate(generator: Generator) -> list[Inputs]:
    found = []
    for folds in (4, 7):
        case, order = to_fit(generator)[0], torch.randperm(ROWS, generator=generator)
        fold = (torch.arange(ROWS) % folds)[order]
        found.append({"features": case["train"], "labels": case["labels"], "fold": fold, "penalty": 0.5})
    return found


def held_out(features: Tensor, labels: Tensor, fold: Tensor, penalty: float) -> Tensor:
    scores = torch.zeros(len(labels)).double()
    for value in fold.unique():
        inside = fold == value
        scores[inside] = ridge(features[~inside], labels[~inside], features[inside], penalty)
    return scores


def not_held_out(features: Tensor, labels: Tensor, fold: Tensor, penalty: float) -> Tensor:
    return ridge(features, labels, features, penalty)


def trained_inside(features: Tensor, labels: Tensor, fold: Tensor, penalty: float) -> Tensor:
    scores = torch.zeros(len(labels)).double()
    for value in fold.unique():
        inside = fold == value
        scores[inside] = ridge(features[inside], labels[inside], features[inside], penalty)
    return scores


def read_and_baselines(generator: Generator) -> list[Inputs]:
    read = torch.rand(12, generator=generator).double()
    others = torch.rand(3, 12, generator=generator).double() * torch.tensor([[0.5], [0.9], [0.7]])
    others[0, 0] = 1  # the largest value is not in the best row
    return [{"read": read, "baselines": others}, {"read": read, "baselines": others.roll(1, 0)}]


def over_the_best(read: Tensor, baselines: Tensor) -> Tensor:
    return read - baselines[baselines.mean(1).argmax()]


# --- the swap -------------------------------------------------------------------------------------------------------


def cells_and_frames(generator: Generator) -> list[Inputs]:
    frames, rows, columns = (torch.randperm(4, generator=generator)[:3] + 3).tolist()
    sizes = {"frames": frames, "rows": rows, "columns": columns}
    places = torch.randperm(rows * columns, generator=generator).tolist()
    one, other, third = ([place // columns, place % columns] for place in places[:3])
    return [
        {**sizes, "cells": [one, other], "chosen": [places[0] % frames]},
        {**sizes, "cells": [third], "chosen": list(range(frames))},
        {**sizes, "cells": [], "chosen": [0]},
    ]


# Numbers would do here, and break what the mask is for.
BOOLEAN = """
result = torch.as_tensor(token_mask(frames, rows, columns, cells, chosen))
if result.dtype != torch.bool:
    raise TypeError(f"expected True and False, got {result.dtype}")
"""


def tokens_of(
    frames: int, rows: int, columns: int, cells: list[list[int]], chosen: list[int], by_column: bool = False
) -> Tensor:
    mask = torch.zeros(frames, rows, columns)
    for frame in chosen:
        for row, column in cells:
            mask[frame, row, column] = 1
    return (mask.transpose(1, 2) if by_column else mask).flatten()


def states_to_swap(generator: Generator) -> list[Inputs]:
    mask = torch.randperm(SHAPE[1], generator=generator) < 4
    pairs = [{name: normal(*SHAPE, generator=generator) for name in ("own", "donor")} for _ in range(2)]
    return [{**pairs[0], "mask": mask}, {**pairs[1], "mask": torch.zeros_like(mask)}]


def swapped(own: Tensor, donor: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask[:, None], donor, own)


def answers_after(generator: Generator) -> list[Inputs]:
    n = 200  # so many that each of the ways to go wrong shows
    a, b = (torch.randint(-1, 3, (n,), generator=generator) for _ in range(2))
    after = torch.where(torch.rand(n, generator=generator) < 0.4, a, torch.randint(-1, 4, (n,), generator=generator))
    return [{"after": after, "a": a, "b": b}]


def ways(after: Tensor, a: Tensor, b: Tensor, equal: bool = False, unreadable: bool = False) -> Tensor:
    """equal, unreadable: keep pairs that have equal answers, or one that cannot be read."""
    counts = ((a != b) | equal) & (((a >= 0) & (b >= 0)) | unreadable)
    stays, becomes = (after == a)[counts].double(), (after == b)[counts].double()
    return torch.stack([stays.mean(), becomes.mean(), (1 - stays - becomes).mean()])


CHECKS = (
    Check(
        "token_energy",
        8,
        hidden_states,
        energy,
        {
            "relative to the mean over the tokens of the same video": (
                lambda hidden: hidden.norm(dim=-1) / hidden.norm(dim=-1).mean()
            ),
            "raw norms: they cannot be compared between blocks": lambda hidden: hidden.norm(dim=-1),
            "the norm, not its square": (
                lambda hidden: hidden.square().sum(-1) / hidden.square().sum(-1).mean(-1, keepdim=True)
            ),
        },
    ),
    Check(
        "folds_of",
        10,
        groups_of_rows,
        judge=wrong_folds,
    ),
    Check(
        "ridge_scores",
        12,
        to_fit,
        ridge,
        {
            "the intercept is missing: centre features and labels first, by what the training rows say": (
                lambda train, labels, test, penalty: ridge(train, labels, test, penalty, intercept=False)
            ),
            "test rows are centred by the mean of the training rows, not by their own": own_middle,
            "the labels' mean, which was taken off, has to come back": (
                lambda train, labels, test, penalty: ridge(train, labels, test, penalty) - labels.mean()
            ),
            "the penalty makes no difference to the result": (
                lambda train, labels, test, penalty: ridge(train, labels, test, 0.0)
            ),
        },
    ),
    Check(
        "out_of_fold",
        10,
        to_cross_validate,
        held_out,
        {
            "it leaks: a row must be scored by a probe that never saw its fold": not_held_out,
            "the other way round: train on all other folds": trained_inside,
            "scores come in the order of the rows, not fold by fold": (
                lambda features, labels, fold, penalty: held_out(features, labels, fold, penalty)[
                    fold.argsort(stable=True)
                ]
            ),
        },
        given=(a3_given.ridge_scores,),
    ),
    Check(
        "beyond_baseline",
        8,
        read_and_baselines,
        over_the_best,
        {
            "one baseline for all puzzles: the best on average, not the best for each": (
                lambda read, baselines: read - baselines.amax(0)
            ),
            "against the best of the baselines, not their mean": lambda read, baselines: read - baselines.mean(0),
            "puzzle by puzzle: take off what the best baseline reads of each, not its mean": (
                lambda read, baselines: read - baselines.mean(1).max()
            ),
        },
    ),
    Check(
        "token_mask",
        10,
        cells_and_frames,
        tokens_of,
        {
            "in a frame, tokens come row by row": (lambda **inputs: tokens_of(**inputs, by_column=True)),
        },
        driver=BOOLEAN,
    ),
    Check(
        "swap_hidden",
        8,
        states_to_swap,
        swapped,
        {
            "the wrong way round: where the mask is true, the donor's": (
                lambda own, donor, mask: swapped(donor, own, mask)
            ),
        },
        kept=("own", "donor"),
    ),
    Check(
        "three_ways",
        10,
        answers_after,
        ways,
        {
            "pairs with equal or unreadable answers tell nothing: leave them out": (
                lambda after, a, b: ways(after, a, b, equal=True, unreadable=True)
            ),
            "pairs with equal answers tell nothing: leave them out": lambda after, a, b: ways(after, a, b, equal=True),
            "pairs with an unreadable answer of A or B tell nothing: leave them out": (
                lambda after, a, b: ways(after, a, b, unreadable=True)
            ),
            "an answer that cannot be read after the swap is neither, and counts": (
                lambda after, a, b: ways(after[after >= 0], a[after >= 0], b[after >= 0])
            ),
        },
    ),
)
