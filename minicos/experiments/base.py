"""What every experiment is: sweeps, a summary with intervals, a verdict by a criterion, a figure."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minicos.cards import EVALUATION_FILE, Row, rows_of
from minicos.errors import CannotRun, MinicosError
from minicos.evaluation import held_out, length_bin
from minicos.measures import mean_interval, wilson_interval
from minicos.model import Reasoner
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, get_task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Item = TypeVar("Item")

EDGE = (0.4, 0.9)  # final solved rates between which a difficulty is at the edge of a model's ability; over it: solid
INFORMATIVE = 0.25  # gap between step 0 and the end from which on the steps do something
LEAST = 16
NARROW = 0.03  # half-width of an interval from which on an effect that is not there counts as not shown
# Told and not judged: in training, miniatures are shown blends of its two answers (`training.Batches`), so that what
# they do with one is no finding.
TOLD = ("rotation-open",)
ROUTES = ("maze", "maze-braided")  # told by the length of the route, too
ALL = "all"  # for a length: of whatever length
FEW = 10  # of fewer puzzles of one length nothing is told: no interval is worth the name
MOST = 100_000  # puzzles that anybody would run: a mean at its criterion asks for any number of them


@dataclass(frozen=True)
class Scale:
    """How much is run. puzzles: of each task; pairs: to swap between; many: puzzles where small effects are measured.

    A quick run takes the easiest puzzles that show something, not those at the edge.
    """

    name: str
    puzzles: int
    pairs: int
    many: int
    quick: bool = False


FULL, QUICK = Scale("full", 256, 128, 1000), Scale("quick", 16, 4, 16, quick=True)


def scale_of(quick: bool, cases: int | None) -> Scale:
    """What the command line asks for; cases: puzzles of each task, with the other numbers in proportion.

    Raises MinicosError for fewer than one case.
    """
    scale = QUICK if quick else FULL
    if cases is None:
        return scale
    if cases < 1:
        raise MinicosError(f"{cases} cases: at least 1 puzzle of each task is needed")
    share = cases / scale.puzzles
    pairs, many = (max(1, round(share * number)) for number in (scale.pairs, scale.many))
    return Scale(f"{scale.name}-{cases}", cases, pairs, many, quick)


@dataclass(frozen=True)
class Verdict:
    """shown, not shown or unclear, and one paragraph that says by which numbers."""

    status: Literal["shown", "not shown", "unclear"]
    text: str


class Experiment(ABC):
    """One finding of the paper.

    finding: what it claims; paper: the paper's own numbers; criterion: what would have to be seen, in numbers; picture:
    what the figure shows, for those who cannot see it.
    """

    name: ClassVar[str]
    finding: ClassVar[str]
    paper: ClassVar[str]
    picture: ClassVar[str]
    criterion: ClassVar[str]

    @abstractmethod
    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        """What is to be run."""

    @abstractmethod
    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        """Means with intervals, from the tables of the sweeps, and the features of those that keep some, by name."""

    @abstractmethod
    def verdict(self, summary: pd.DataFrame) -> Verdict:
        """By the criterion."""

    @abstractmethod
    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        """Readable in grey: marks and line styles beside colours."""


def judge(mean: float, low: float, high: float, criterion: float, n: int) -> tuple[str, str]:
    """An effect against what it would have to exceed: status, and its numbers in words.

    Shown where the whole interval lies above the criterion. Not shown where it lies below, and is narrow: a half-width
    of at most NARROW, or of half the criterion. Otherwise unclear, with the n that would settle it.
    """
    if np.isnan(mean):
        return "unclear", f"not measured: too few puzzles, n = {n}"
    numbers = f"{mean:.3g} [{low:.3g}, {high:.3g}], n = {n}, criterion {criterion:g}"
    half, narrow = (high - low) / 2, max(NARROW, criterion / 2)
    if low > criterion:
        return "shown", numbers
    if high < criterion and half <= narrow:
        return "not shown", numbers
    # Half of the interval must become smaller than this, and shrinks with the square root of n.
    margin = mean - criterion if mean > criterion else min(narrow, criterion - mean)
    needed = max(n + 1, n * (half / max(margin, 1e-9)) ** 2)
    number = f"about {ceil(needed)}" if needed <= MOST else f"only more than {MOST:,}"
    return "unclear", f"{numbers}; {number} puzzles would settle it"


def together(statuses: Sequence[str]) -> Literal["shown", "not shown", "unclear"]:
    """Of several parts of one criterion: shown if all are, not shown if one is not."""
    if all(status == "shown" for status in statuses):
        return "shown"
    return "not shown" if "not shown" in statuses else "unclear"


def judged(row: pd.Series, column: str, criterion: float) -> tuple[str, str]:
    """`judge` of one column of one row of `means`."""
    return judge(row[column], row[f"{column}_low"], row[f"{column}_high"], criterion, int(row["n"]))


def joined(parts: Sequence[tuple[str, str, str]], beside: Sequence[tuple[str, pd.Series, str]] = ()) -> Verdict:
    """One verdict from the parts of a criterion: (what, status, its numbers); unclear where there is none.

    beside: controls that are told and not judged, (what, a row of `means`, its column).
    """
    text = _sentence(f"{what}: {status} ({numbers})" for what, status, numbers in parts)
    if beside:
        controls = [
            f"{what} {row[column]:.3g} [{row[f'{column}_low']:.3g}, {row[f'{column}_high']:.3g}], n = {row['n']}"
            for what, row, column in beside
        ]
        text += f" Beside it, not judged: {'; '.join(controls)}."
    return Verdict(together([status for _, status, _ in parts]) if parts else "unclear", text)


def _sentence(parts: Iterable[str]) -> str:
    text = "; ".join(parts) or "nothing to judge by: no puzzle of this kind came up"
    return f"{text[0].upper()}{text[1:]}."


def chunked(network: Reasoner, trials: list[Trial]) -> list[list[Trial]]:
    """Trials that need nothing of each other, in chunks."""
    return evenly(trials, chunk_of(network))


def grouped(
    network: Reasoner, puzzles: list[Puzzle], trials_of: Callable[[Puzzle, int], list[Trial]]
) -> list[list[Trial]]:
    """The trials of every puzzle and its number, a few puzzles a chunk: what they share is computed once."""
    trials = [trials_of(puzzle, index) for index, puzzle in enumerate(puzzles)]
    groups = evenly(trials, max(1, chunk_of(network) // 6))
    return [[trial for of_puzzle in group for trial in of_puzzle] for group in groups]


def spread(first: int, last: int, most: int) -> list[int]:
    """Every whole number from first to last, or `most` of them, evenly spread."""
    return sorted({round(number) for number in np.linspace(first, last, min(most, last - first + 1))})


def bars(rows: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """How far the intervals of a column reach below and above its means, (2, rows): what `errorbar` draws."""
    return rows[[f"{column}_low", f"{column}_high"]].sub(rows[column], axis=0).abs().T.to_numpy()


def of_undisturbed(chunk: Sequence[Trial], videos: int) -> int:
    """So many videos of every run that nothing is done to, in all."""
    return videos * sum(not trial.run.interventions for trial in chunk)


def evenly(items: Sequence[Item], most: int) -> list[list[Item]]:
    """As few groups as hold `most` each, and about as many in each: of processes that take them in turn none waits
    while another has a whole group more to do than it.
    """
    count = ceil(len(items) / most)
    return [list(items[len(items) * i // count : len(items) * (i + 1) // count]) for i in range(count)]


def chunk_of(network: Reasoner) -> int:
    """Runs that are denoised side by side: a batch; at least LEAST, so that a full model seldom changes its expert."""
    return max(LEAST, network.settings.batch)


def means(table: pd.DataFrame, by: list[str], columns: Sequence[str]) -> pd.DataFrame:
    """One row for each group: n, and of each column the mean with its interval (column, column_low, column_high).

    A row of `table` is one puzzle; booleans get Wilson intervals, numbers a bootstrap.
    """
    rows = []
    for key, group in table.groupby(by, sort=True):
        row = dict(zip(by, key, strict=True)) | {"n": len(group)}
        for column in columns:
            values = group[column].to_numpy()
            interval = wilson_interval if values.dtype == bool else mean_interval
            row |= {column: float(np.mean(values))}
            row |= dict(zip((f"{column}_low", f"{column}_high"), interval(values), strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def labels_of(puzzle: Puzzle, index: int) -> dict[str, object]:
    """What rows of a sweep's table say of their puzzle; index: its number among those of the sweep."""
    return {"task": puzzle.task, "size": puzzle.size, "length": length_bin(puzzle), "puzzle": index}


def with_lengths(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ALL for a length, and below it the mazes' rows once more, with the length of their route.

    Grouped by length, the whole comes first, then the shortest routes. Verdicts and most figures are of the whole.
    """
    found = pd.concat([table.assign(length=ALL), table[table["task"].isin(ROUTES)]], ignore_index=True)
    lengths = sorted(set(found["length"]) - {ALL}, key=lambda moves: int(re.split(r"\D", moves)[0]))
    return found.assign(length=pd.Categorical(found["length"], [ALL, *lengths], ordered=True))


def of_all(summary: pd.DataFrame) -> pd.DataFrame:
    """The rows that are not of one length only."""
    return summary[summary["length"] == ALL]


def without_few(summary: pd.DataFrame) -> pd.DataFrame:
    """Without the rows of one length that are of fewer than FEW."""
    if "length" not in summary:
        return summary
    return summary[(summary["length"] == ALL) | (summary["n"] >= FEW)].reset_index(drop=True)


def edge(reasoner: Reasoner, task: str) -> int:
    """The size of a task where most can be gained and lost: the final rate nearest to the middle of EDGE, as the
    evaluation has it, of the sizes where the steps do something (INFORMATIVE), if there are any.

    Without an evaluation, or where no rate reaches EDGE, the smallest size of which puzzles can be held out: of those
    that it was trained on, or of the task's where it does not say.
    """
    rows = [row for row in _evaluated(reasoner, task) if row.end >= EDGE[0]]
    rows = [row for row in rows if row.gap >= INFORMATIVE] or rows
    middle = sum(EDGE) / 2
    return min(rows, key=lambda row: abs(row.end - middle)).size if rows else _smallest(reasoner, task)


def solid(reasoner: Reasoner, task: str) -> int:
    """The largest size that the model solves almost always (over EDGE); the edge where there is none."""
    sizes = [row.size for row in _evaluated(reasoner, task) if row.end > EDGE[1]]
    return max(sizes) if sizes else edge(reasoner, task)


def easiest(reasoner: Reasoner, task: str) -> int:
    """The smallest size that can be held out and whose gap is at least INFORMATIVE; the edge where there is none."""
    task_class = get_task(task)
    rows = [row for row in _evaluated(reasoner, task) if row.gap >= INFORMATIVE and task_class.splittable(row.size)]
    return min(row.size for row in rows) if rows else edge(reasoner, task)


def _evaluated(reasoner: Reasoner, task: str) -> list[Row]:
    """What the checkpoint's evaluation says of the sizes of a task that it was trained on, all frames together."""
    network = reasoner.for_task(task)
    path = network.folder / EVALUATION_FILE if network.folder else None
    if path is None or not path.exists():
        return []
    try:
        rows = rows_of(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise MinicosError(f"{path} is damaged ({type(error).__name__}): restore it, or evaluate again") from None
    return [row for row in rows if row.task == task and row.length == "all" and row.trained and not row.rollout]


def _smallest(reasoner: Reasoner, name: str) -> int:
    task = get_task(name)
    sizes = reasoner.for_task(name).settings.tasks.get(name, task.sizes)
    return min([size for size in sizes if task.splittable(size)] or sizes)


def puzzles_for(
    reasoner: Reasoner,
    task: str,
    scale: Scale,
    n: int | None = None,
    where: Callable[[Reasoner, str], int] = edge,
) -> list[Puzzle]:
    """n test puzzles (scale.puzzles, if not said) at the model's edge, or where it is solid; the easiest if quick."""
    size = easiest if scale.quick else where
    return held_out(task, size(reasoner, task), n or scale.puzzles)


def tasks_of(reasoner: Reasoner, names: Sequence[str]) -> list[str]:
    """Those of the named tasks that the model was trained on; all where it does not say.

    Raises CannotRun where none is left.
    """
    known = reasoner.tasks() or list(names)
    found = [name for name in names if name in known]
    if not found:
        raise CannotRun(f"{reasoner.settings.name} was trained on none of {', '.join(names)}: take another --model")
    return found
