"""Runs an experiment into a folder: sweeps, summary, figure and verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minicos.experiments.base import Experiment, Scale, Verdict, without_few
from minicos.files import alone_in, claim
from minicos.model import Reasoner
from minicos.parallel import first_process
from minicos.sweeps import commits_of, features_of, run_sweeps, seconds_of, shares_of

if TYPE_CHECKING:
    from lightning import Fabric

CLAIM_FILE = "experiment.json"  # which experiment the folder is of
SUMMARY_FILE, VERDICT_FILE, PNG_FILE, SVG_FILE = "summary.csv", "verdict.md", "figure.png", "figure.svg"


@dataclass(frozen=True)
class Result:
    """What an experiment came to. seconds: of all its chunks, whenever and by whomever they were computed; commits: of
    the code that computed them; networks: those that were run, by name.
    """

    summary: pd.DataFrame
    verdict: Verdict
    seconds: float
    commits: tuple[str, ...]
    networks: tuple[str, ...]


# What shows progress: by what is done, how many runs there are, and whether it is shown; gives what to call per chunk.
Bar = Callable[[str, int, bool], AbstractContextManager[Callable[[int], object]]]


@contextmanager
def terminal_bar(name: str, total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """A line on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        work = bar.add_task(name, total=total)
        yield lambda done: bar.advance(work, done)


def run_experiment(
    experiment: Experiment,
    reasoner: Reasoner,
    out: Path,
    scale: Scale,
    fabric: Fabric | None = None,
    bar: Bar = terminal_bar,
) -> Result | None:
    """`minicos experiment`: writes summary, figure and verdict to `out`; killed and run again, it goes on.

    fabric: a launched lightning.Fabric, whose processes share the sweeps; None is returned in all but the first.
    """
    sweeps = experiment.sweeps(reasoner, scale)
    first = fabric is None or fabric.global_rank == 0
    mine = sum(len(chunk) for share in shares_of(sweeps, fabric) for _, chunk in share)

    def enter() -> None:
        # Sweeps of two experiments may have different names, but their figures have not.
        claim(out / CLAIM_FILE, {"experiment": experiment.name}, "experiment", used=False)
        held.enter_context(alone_in(out))

    with ExitStack() as held:
        first_process(fabric, enter)
        with bar(experiment.name, mine, first) as advance:
            found = run_sweeps({out / sweep.name: sweep for sweep in sweeps}, fabric=fabric, advance=advance)
    if not first:
        return None
    tables = {sweep.name: table for sweep, table in zip(sweeps, found, strict=True)}
    features = {s.name: features_of(s, out / s.name) for s in sweeps if s.features is not None}
    summary = without_few(experiment.summarise(tables, features))
    verdict = experiment.verdict(summary)
    figure = experiment.plot(summary, f"{experiment.name}: {reasoner.settings.name}, {scale.name}")
    figure.savefig(out / PNG_FILE)
    figure.savefig(out / SVG_FILE, metadata={"Date": None})
    summary.to_csv(out / SUMMARY_FILE, index=False, lineterminator="\n", float_format="%.6g")
    (out / VERDICT_FILE).write_text(f"**{verdict.status}**: {verdict.text}\n")
    folders = [out / sweep.name for sweep in sweeps]
    commits = sorted(set().union(*map(commits_of, folders)))
    networks = sorted({sweep.reasoner.settings.name for sweep in sweeps})
    return Result(summary, verdict, sum(map(seconds_of, folders)), tuple(commits), tuple(networks))
