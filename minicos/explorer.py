"""`minicos.explore`: a puzzle solved undisturbed and disturbed, side by side, step by step and frame by frame.

Here is what is chosen and what is run; `views` draws it, `panel` puts widgets around it. The figure is the panel's twin
for runs without a front end.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from minicos.errors import MinicosError
from minicos.experiments.base import solid
from minicos.experiments.ensemble import SEEDS, window_of
from minicos.flow import Step
from minicos.interventions import Average, SwapHidden, Tokens, noise_at_frame, noise_at_step
from minicos.measures import token_energy
from minicos.model import Reasoner, loaded
from minicos.runs import Batch, Intervention, Run, check_range
from minicos.sampling import Recorder, sample_runs
from minicos.tasks import TASKS, Puzzle, Score, get_task, task_of

if TYPE_CHECKING:
    from minicos.panel import Panel
    from minicos.teaching import Picture

RUNS = 64  # that are kept
PUZZLES = 100  # of each task and size, from the test split
LARGEST_SEED = 9999


@dataclass(frozen=True)
class Choice:
    """What is looked at, and what is done to it.

    index: of the test puzzle, below PUZZLES. steps, frames: noise before each of these steps, in each of these frames.
    block: whose token map is shown. swap: the puzzle whose hidden states replace this block's at step 0, by its index,
    or "pair" for the other one of a pair (`Task.partner`); None for no swap. region: which tokens are replaced
    (`Task.regions`, or "all"). ensemble: average hidden states over 3 seeds at step 0, in the paper's share of the
    blocks.
    """

    task: str
    size: int
    block: int
    index: int = 0
    seed: int = 0
    steps: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    swap: int | Literal["pair"] | None = None
    region: str = "all"
    ensemble: bool = False


@dataclass(frozen=True, eq=False)
class Recording:
    """What is kept of a run.

    estimates: x0_hat, uint8 (steps, frames, height, width, 3), of each latent frame the pixel frame that it ends with.
    scores: the verdict on the whole video of x0_hat at every step; score and answer: on the final video, None where no
    answer can be read. energy: of every token (`measures.token_energy`), (steps, blocks, frames, rows, columns).
    """

    run: Run
    schedule: tuple[Step, ...]
    estimates: NDArray[np.uint8]
    scores: tuple[Score, ...]
    score: Score
    answer: object | None
    energy: NDArray[np.float32]


class Explorer:
    """Runs what is chosen, each run once: the last RUNS are kept.

    progress: told the share of a run that is done, after every step of a new one. Raises MinicosError as `load` does.
    """

    def __init__(
        self, model: Reasoner | str | Path | None = None, progress: Callable[[float], None] = lambda share: None
    ) -> None:
        self.reasoner = loaded(model)
        self.progress = progress
        self.puzzle = lru_cache(maxsize=None)(self._puzzle)  # a puzzle is equal to itself only
        self.partner = lru_cache(maxsize=None)(lambda puzzle: task_of(puzzle).partner(puzzle))
        self.recording = lru_cache(maxsize=RUNS)(self._record)

    def sizes(self) -> dict[str, list[int]]:
        """By task, what the model was trained on; every task where it does not say."""
        found = {}
        for task in self.reasoner.tasks() or TASKS:
            sizes = self.network(task).settings.tasks.get(task, get_task(task).sizes)
            found[task] = [size for size in sizes if self._has_room(task, size)]
        return {task: sizes for task, sizes in found.items() if sizes}

    def network(self, task: str) -> Reasoner:
        """The network behind the model's name that a task is for."""
        return self.reasoner.for_task(task)

    def depth(self, task: str) -> int:
        """How many blocks it has."""
        return len(self.network(task).transformer.blocks)

    def choice(self, **given: object) -> Choice:
        """A Choice from those of its fields that are given: the first task unless said, a size that is almost always
        solved, the block in the middle.

        Raises MinicosError for an unknown field, and for what the model or the task does not have.
        """
        known = [field.name for field in fields(Choice)]
        for name in given:
            if name not in known:
                raise MinicosError(f"nothing to choose is called '{name}': choose from {', '.join(known)}")
        sizes = self.sizes()
        task = given.setdefault("task", next(iter(sizes)))
        if task not in sizes:
            raise MinicosError(f"{self.reasoner.settings.name} has no task '{task}': choose from {', '.join(sizes)}")
        given = {"size": solid(self.reasoner, task), "block": self.depth(task) // 2} | given
        for name in ("size", "block", "index", "seed"):
            given[name] = _number(name, given.get(name, 0))
        for name in ("steps", "frames"):
            given[name] = _numbers(name, given.get(name, ()))
        if given.get("swap") not in (None, "pair"):
            given["swap"] = _number("swap", given["swap"])
        choice = Choice(**given)
        self._check(choice, sizes[task])
        return choice

    def runs(self, choice: Choice) -> tuple[Run, Run]:
        """The undisturbed run and the disturbed one, which are equal where nothing is done."""
        puzzle = self.puzzle(choice.task, choice.size, choice.index)
        return Run(puzzle, choice.seed), Run(puzzle, choice.seed, self._disturbance(choice))

    def recordings(self, choice: Choice) -> tuple[Recording, Recording]:
        """What is kept of the two."""
        clean, disturbed = self.runs(choice)
        return self.recording(clean), self.recording(disturbed)

    def donor(self, choice: Choice) -> Puzzle | None:
        """The puzzle that hidden states come from. Raises MinicosError where a pair is asked for and there is none."""
        if choice.swap != "pair":
            return None if choice.swap is None else self.puzzle(choice.task, choice.size, choice.swap)
        puzzle = self.puzzle(choice.task, choice.size, choice.index)
        partner = self.partner(puzzle)
        if partner is None:
            raise MinicosError(f"{puzzle.key} is not one of a pair: swap from another puzzle, by its index")
        return partner

    def _disturbance(self, choice: Choice) -> tuple[Intervention, ...]:
        done: list[Intervention] = [noise_at_step(step) for step in choice.steps]
        done += [noise_at_frame(frame) for frame in choice.frames]
        donor = self.donor(choice)
        if donor is not None:
            done.append(SwapHidden(Run(donor, choice.seed), choice.block, tokens=Tokens(choice.region)))
        if choice.ensemble:
            seeds = tuple(choice.seed + seed for seed in SEEDS)
            done.append(Average(seeds, blocks=window_of(self.depth(choice.task))))
        return tuple(done)

    def _puzzle(self, task: str, size: int, index: int) -> Puzzle:
        return get_task(task).sample(0, index, size=size, split="test")

    def _has_room(self, task: str, size: int) -> bool:
        """Whether the model's canvas, where it has one of its own, has room for the puzzle's picture."""
        puzzle, canvas = self.puzzle(task, size, 0), self.network(task).settings.canvas
        return canvas is None or all(a >= b for a, b in zip(canvas, task_of(puzzle).canvas(puzzle), strict=True))

    def _check(self, choice: Choice, sizes: list[int]) -> None:
        network = self.network(choice.task)
        if choice.size not in sizes:
            known = ", ".join(map(str, sizes))
            raise MinicosError(
                f"{network.settings.name} has no size {choice.size} of {choice.task}: choose from {known}"
            )
        check_range("puzzle", (choice.index, *([choice.swap] if isinstance(choice.swap, int) else [])), PUZZLES)
        check_range("seed", (choice.seed,), LARGEST_SEED + 1)
        check_range("step", choice.steps, len(network.schedule()))
        check_range("frame", choice.frames, network.latent_frames)
        check_range("block", (choice.block,), self.depth(choice.task))
        puzzle = self.puzzle(choice.task, choice.size, choice.index)
        task_of(puzzle).region(puzzle, choice.region, 1, 1)
        self.donor(choice)

    def _record(self, run: Run) -> Recording:
        network, task = self.network(run.puzzle.task), task_of(run.puzzle)
        schedule, blocks = network.schedule(), range(self.depth(task.name))
        done = iter(range(1, len(schedule) + 1))

        def counted(x0_hat: Tensor, batch: Batch) -> Tensor:
            self.progress(next(done) / len(schedule))
            return x0_hat

        recorders = Recorder("block", "cond", None, tuple(blocks), energy), Recorder("x0_hat", reduce=counted)
        trajectory = sample_runs(network, [run], schedule=schedule, recorders=recorders)
        videos = [network.decode(x0_hat)[0] for x0_hat in trajectory.recorded("x0_hat").values()]
        maps = [torch.stack(list(trajectory.recorded("block", "cond", b).values())) for b in blocks]
        return Recording(
            run,
            schedule,
            np.stack([video[:: network.frames_per_latent] for video in videos]),
            tuple(task.score(video, run.puzzle) for video in videos),
            task.score(trajectory.video[0], run.puzzle),
            task.decode(trajectory.video[0], run.puzzle),
            torch.stack(maps, 2)[:, 0].numpy(),
        )


def _number(name: str, given: object) -> int:
    try:
        return operator.index(given)
    except TypeError:
        raise MinicosError(f"{name} is a whole number, not {given!r}") from None


def _numbers(name: str, given: object) -> tuple[int, ...]:
    """One number or several, in order and each once."""
    try:
        return tuple(sorted({operator.index(number) for number in np.atleast_1d(given).tolist()}))
    except (TypeError, ValueError):
        raise MinicosError(f"{name} are whole numbers, not {given!r}: give one, or several as (0, 3)") from None


def energy(hidden: Tensor, batch: Batch) -> Tensor:
    """Token energy as maps, (batch, frames, rows, columns); hidden: (batch, tokens, width)."""
    return token_energy(hidden.float()).reshape(len(hidden), *batch.grid)


def explore(
    model: Reasoner | str | Path | None = None, *, static: bool | None = None, **start: object
) -> Panel | Picture:
    """Look into a run, and disturb it: in a notebook a panel, elsewhere a figure, clean above disturbed.

    model: one that is loaded, or what `load` takes. start: what is chosen at first, any fields of `Choice`:
    explore(task="maze", index=3, steps=(4,)). static: a figure (True) or a panel (False). When None, a panel where
    somebody can be looking: in a kernel that a Jupyter server started for a notebook (it sets JPY_SESSION_NAME), unless
    nbgrader runs it (NBGRADER_EXECUTION). Front ends without such a server, as VS Code, want static=False. Raises
    MinicosError for an unknown model, and as `Explorer.choice`.
    """
    explorer = Explorer(model)
    choice = explorer.choice(**start)
    if static is None:
        static = "JPY_SESSION_NAME" not in os.environ or "NBGRADER_EXECUTION" in os.environ
    if static:
        from minicos.views import twin

        return twin(*explorer.recordings(choice), choice)
    from minicos.panel import Panel

    return Panel(explorer, choice)
