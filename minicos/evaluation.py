"""How many held-out puzzles a model solves, at the end and by its estimate at step 0, with intervals."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minicos.cards import CARD, CARD_FILE, EVALUATION_FILE, Row, card, describe_weights, markdown_table, provenance
from minicos.errors import MinicosError
from minicos.files import check_folder, prepare_folder, replace_file
from minicos.measures import paired_interval, wilson_interval
from minicos.model import Reasoner, load
from minicos.parallel import each
from minicos.sampling import Recorder, Trajectory, rollout, sample
from minicos.tasks import STATUSES, Puzzle, Score, get_task, task_of

CHUNK = 50  # puzzles a batch: part of the result, since matrix kernels differ in the last bits across batch shapes
MOVE_BINS = (1, 4, 8, 12, 16, 21)  # lower ends; the last one is open
LARGE_MAZE = 7  # the largest one of which all n are evaluated
BEYOND = 2  # sizes beyond training that are evaluated too, where the task has them


@dataclass(frozen=True)
class Outcome:
    """One puzzle: judged at the end of denoising, and by x0_hat at step 0 (None in a rollout).

    choice: which of several right answers it shows, "" where it shows none or they have no names.
    """

    puzzle: Puzzle
    end: Score
    step_0: Score | None
    choice: str


def score_all(puzzles: Sequence[Puzzle], videos: Iterable) -> list[Score]:
    """One score for each puzzle and its video."""
    return [task_of(p).score(v, p) for p, v in zip(puzzles, videos, strict=True)]


def solve(reasoner: Reasoner, puzzles: Sequence[Puzzle], seed: int = 0) -> list[Outcome]:
    """Run and judge puzzles of one canvas, in one batch."""
    run = sample(reasoner, puzzles, seed, recorders=[Recorder("x0_hat", steps=(0,))])
    first = reasoner.decode(run.recorded("x0_hat")[0])
    return outcomes_of(run, score_all(puzzles, first))


def solve_frame_by_frame(reasoner: Reasoner, puzzles: Sequence[Puzzle], seed: int = 0) -> list[Outcome]:
    """The same by rollout."""
    return outcomes_of(rollout(reasoner, puzzles, seed), [None] * len(puzzles))


def outcomes_of(run: Trajectory, at_step_0: Sequence[Score | None]) -> list[Outcome]:
    """Judge the videos of a run."""
    ends = score_all(run.puzzles, run.video)
    choices = [
        task_of(puzzle).choice(video, puzzle) if end.solved else ""
        for puzzle, video, end in zip(run.puzzles, run.video, ends, strict=True)
    ]
    return [Outcome(*parts) for parts in zip(run.puzzles, ends, at_step_0, choices, strict=True)]


def held_out(task_name: str, size: int, n: int) -> list[Puzzle]:
    """The first n test puzzles; below the smallest size that can be held out, these are not unseen mazes."""
    task = get_task(task_name)
    return [task.sample(0, i, size=size, split="test") for i in range(n)]


@dataclass(frozen=True)
class Difficulty:
    """One task at one size, and how many puzzles of it are evaluated."""

    task: str
    size: int
    trained: bool
    n: int
    rollout: bool = False


def difficulties(reasoner: Reasoner, n: int) -> list[Difficulty]:
    """What the model was trained on, n puzzles each, and BEYOND larger sizes.

    Of what takes long a fifth as many: large mazes, sizes beyond training, and frame by frame, which is what a causal
    model does too.
    """
    fewer = max(1, n // 5)
    found = []
    for task, sizes in reasoner.settings.tasks.items():
        larger = [size for size in get_task(task).sizes if size > max(sizes)][:BEYOND]
        large = LARGE_MAZE if get_task(task).length_unit == "moves" else max(sizes)
        found += [Difficulty(task, size, True, n if size <= large else fewer) for size in sizes]
        found += [Difficulty(task, size, False, fewer) for size in larger]
        if reasoner.settings.causal:
            found += [Difficulty(task, size, True, fewer, rollout=True) for size in sizes]
    return found


def evaluate(
    reasoner: Reasoner, n: int, seed: int = 0, advance: Callable[[str, int], None] = lambda *_: None
) -> list[Row]:
    """Rates on test puzzles of every difficulty. `advance(task, puzzles)` is told of progress."""
    chunks = []
    for difficulty in difficulties(reasoner, n):
        puzzles = held_out(difficulty.task, difficulty.size, difficulty.n)
        chunks += [(difficulty, puzzles[start : start + CHUNK]) for start in range(0, len(puzzles), CHUNK)]
    solved: dict[int, list[Outcome]] = {}
    for number, outcomes in each(reasoner, partial(_solve_chunk, seed=seed), chunks):
        solved[number] = outcomes
        advance(chunks[number][0].task, len(outcomes))
    of_difficulty: dict[Difficulty, list[Outcome]] = {}
    for number, (difficulty, _) in enumerate(chunks):
        of_difficulty.setdefault(difficulty, []).extend(solved[number])
    return [
        summarise(difficulty, length, group)
        for difficulty, outcomes in of_difficulty.items()
        for length, group in by_length(difficulty.task, outcomes)
    ]


def _solve_chunk(reasoner: Reasoner, chunk: tuple[Difficulty, list[Puzzle]], seed: int) -> list[Outcome]:
    difficulty, puzzles = chunk
    return (solve_frame_by_frame if difficulty.rollout else solve)(reasoner, puzzles, seed)


def by_length(task_name: str, outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """The whole group under "all", then its bins by length, shortest first."""
    task = get_task(task_name)
    ordered = sorted(outcomes, key=lambda outcome: task.length(outcome.puzzle))
    bins = [(name, list(group)) for name, group in groupby(ordered, key=lambda outcome: length_bin(outcome.puzzle))]
    return [("all", list(outcomes)), *bins]


def length_bin(puzzle: Puzzle) -> str:
    """The name of the bin that a puzzle's length falls into: a range of moves, or the turn itself."""
    task = task_of(puzzle)
    length = task.length(puzzle)
    if task.length_unit != "moves":
        return str(length)
    low = max(low for low in MOVE_BINS if low <= length)
    following = [other for other in MOVE_BINS if other > low]
    return f"{low}-{following[0] - 1}" if following else f"{low}+"


def summarise(difficulty: Difficulty, length: str, outcomes: Sequence[Outcome]) -> Row:
    end = np.array([o.end.solved for o in outcomes])
    answer = np.array([o.end.answer for o in outcomes])
    counts = Counter(o.end.status for o in outcomes)
    beginning: dict = dict.fromkeys(("step_0", "step_0_interval", "gap", "gap_interval"))
    if not difficulty.rollout:
        step_0 = np.array([o.step_0.solved for o in outcomes])
        beginning = {"step_0": float(step_0.mean()), "step_0_interval": wilson_interval(step_0)}
        beginning |= {"gap": float(end.mean() - step_0.mean()), "gap_interval": paired_interval(end, step_0)}
    return Row(
        task=difficulty.task,
        size=difficulty.size,
        length=length,
        trained=difficulty.trained,
        n=len(outcomes),
        counts={status: counts[status] for status in STATUSES},
        end=float(end.mean()),
        end_interval=wilson_interval(end),
        answer=float(answer.mean()),
        answer_interval=wilson_interval(answer),
        rollout=difficulty.rollout,
        chosen=dict(sorted(Counter(o.choice for o in outcomes if o.choice).items())),
        **beginning,
    )


def run_evaluation(model: str | None, out: Path | None, n: int, seed: int) -> None:
    """`minicos evaluate`: print the table; with `out`, write evaluation.json and the card README.md there."""
    reasoner = load(model)
    if not reasoner.settings.tasks:
        raise MinicosError(f"{reasoner.settings.name} does not say which tasks it was trained on: nothing to evaluate")
    if out is not None:
        check_folder(out)
        if (out / CARD_FILE).exists() and CARD not in (out / CARD_FILE).read_text():
            raise MinicosError(f"{out / CARD_FILE} is no card of a checkpoint, and would be lost: give another --out")
    began = time.perf_counter()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        work = bar.add_task("evaluating", total=sum(difficulty.n for difficulty in difficulties(reasoner, n)))
        rows = evaluate(reasoner, n, seed, lambda name, k: bar.update(work, advance=k, description=name))
    report = {
        "model": reasoner.settings.name,
        "command": f"minicos evaluate --model {model or reasoner.settings.name} --n {n} --seed {seed}",
        "seconds": round(time.perf_counter() - began, 1),
        **provenance(),
        "checkpoint": describe_weights(reasoner),
        "rows": [asdict(row) for row in rows],
    }
    print(markdown_table(rows))
    if out is not None:
        prepare_folder(out)
        replace_file(out / EVALUATION_FILE, (json.dumps(report, indent=1) + "\n").encode())
        replace_file(out / CARD_FILE, card(reasoner, report).encode())
        print(f"\nwritten: {out / EVALUATION_FILE} and the card {out / CARD_FILE}")
