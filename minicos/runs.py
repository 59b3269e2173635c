"""A run, the places in it that can be watched or changed, and the base of what changes it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from minicos import flow
from minicos.errors import MinicosError
from minicos.model import Branch
from minicos.tasks import Puzzle, task_of

Site = Literal["latents", "velocity", "x0_hat", "block"]
SITES: tuple[Site, ...] = ("latents", "velocity", "x0_hat", "block")


@dataclass(frozen=True)
class Address:
    """One place in a run. branch and block are None at the sites that belong to no single pass or block.

    site: "latents" (before the step), "velocity" (guided), "x0_hat", or "block" (output, (batch, tokens, width)).
    """

    site: Site
    step: flow.Step
    expert: Literal["transformer", "transformer_2"]
    branch: Branch | None = None
    block: int | None = None


@dataclass(frozen=True)
class Run:
    """One denoising: a puzzle, a seed, and what is done to it, in this order."""

    puzzle: Puzzle
    seed: int = 0
    interventions: tuple[Intervention, ...] = ()

    def __repr__(self) -> str:
        """Short, and the same in every process: sweeps are told apart by it."""
        return f"Run({self.puzzle.key}, {self.seed}, {self.interventions})"


@dataclass
class Batch:
    """Runs that are denoised together, and what an intervention may know about them.

    extent: latent frames, height and width; grid: the same in tokens. sigma: noise level that the last step left.
    x0_hat: the clean estimate of the last step, None before the first. track_of: the run that is computed in the place
    of one that is still equal to it.
    """

    runs: Sequence[Run]
    extent: tuple[int, int, int]
    grid: tuple[int, int, int]
    sigma: float = 1.0
    x0_hat: Tensor | None = None
    track_of: Callable[[Run], Run] = lambda run: run
    _plan: dict[tuple[int, Intervention], list[int]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._plan = {}
        for row, run in enumerate(self.runs):
            for place, intervention in enumerate(run.interventions):
                self._plan.setdefault((place, intervention), []).append(row)

    def acting(self, at: Address) -> list[tuple[Intervention, list[int]]]:
        """The interventions that act here, in the order of the runs' lists, each with the rows that it acts on."""
        ordered = sorted(self._plan.items(), key=lambda item: item[0][0])
        return [(intervention, rows) for (_, intervention), rows in ordered if intervention.acts(at)]

    def changed(self, value: Tensor, at: Address) -> Tensor:
        """`value` after every intervention that acts here; itself, untouched, where none does."""
        for intervention, rows in self.acting(at):
            index = torch.tensor(rows, device=value.device)
            value = value.index_copy(0, index, intervention.change(value, rows, self, at).to(value.dtype))
        return value

    def row_of(self, run: Run) -> int:
        """Where a run is in the batch."""
        return self.runs.index(self.track_of(run))

    def region(self, row: int, name: str, other: Puzzle | None = None) -> Tensor:
        """Bool (token rows, token columns) of a run's puzzle, or of it and another one (`Task.region_of_both`).

        Raises MinicosError where there is no such region.
        """
        puzzle = self.runs[row].puzzle
        task = task_of(puzzle)
        if other is None:
            return torch.from_numpy(task.region(puzzle, name, *self.grid[1:]))
        return torch.from_numpy(task.region_of_both(puzzle, other, name, *self.grid[1:]))

    def noise(self, rows: Sequence[int], shape: tuple[int, ...], step: int, purpose: str) -> Tensor:
        return noise_for([self.runs[row] for row in rows], shape, step, purpose)


class Intervention(ABC):
    """Changes runs. Subclasses are frozen dataclasses, so that equal ones are told to be equal.

    An intervention sees where it is (an Address), never how often it was called.
    """

    def needs(self, run: Run) -> tuple[Run, ...]:
        """Other runs that have to be in the same batch."""
        return ()

    @abstractmethod
    def indices(self) -> dict[str, tuple[int, ...] | None]:
        """The "step", "block" and "frame" numbers that it names, to be checked against the model before a run."""

    @abstractmethod
    def acts(self, at: Address) -> bool:
        """Whether it changes anything here. Must not depend on the run."""

    @abstractmethod
    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        """New values for `rows` of the batch's `value`, (len(rows), ...)."""


def noise_for(runs: Sequence[Run], shape: tuple[int, ...], step: int, purpose: str) -> Tensor:
    """Standard normal noise, (runs, *shape), one stream for each (seed, puzzle, step, purpose), drawn on the CPU.

    It depends neither on the batch nor on the device, so a run can be repeated alone or in other company.
    """
    rows = []
    for run in runs:
        digest = hashlib.blake2b(f"{run.seed}/{run.puzzle.noise_key}/{step}/{purpose}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        rows.append(torch.randn(shape, generator=generator))
    return torch.stack(rows)


def company(runs: Sequence[Run]) -> list[Run]:
    """The runs, then those that they need and that are not among them."""
    everyone, known = list(runs), set(runs)
    for run in everyone:  # grows while it is walked through
        for other in (r for intervention in run.interventions for r in intervention.needs(run)):
            if other not in known:
                known.add(other)
                everyone.append(other)
    return everyone


def check_range(what: str, indices: Sequence[int] | None, count: int) -> None:
    """Raises MinicosError where one of `indices` is none of the `count` steps, blocks or frames."""
    for index in indices or ():
        if not 0 <= index < count:
            raise MinicosError(f"{what} {index} does not exist: this run has {what}s 0 to {count - 1}")
