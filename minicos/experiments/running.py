"""Runs an experiment into a folder: sweeps, summary, figure and verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from minicos.experiments.base import Experiment, Scale, Verdict
from minicos.files import prepare_folder
from minicos.model import Reasoner
from minicos.sweeps import features_of, run_sweep, seconds_of, share_of

if TYPE_CHECKING:
    from lightning import Fabric

SUMMARY_FILE, VERDICT_FILE, PNG_FILE, SVG_FILE = "summary.csv", "verdict.md", "figure.png", "figure.svg"


@dataclass(frozen=True)
class Result:
    """What an experiment came to. seconds: of all its chunks, whenever and by whomever they were computed."""

    summary: pd.DataFrame
    verdict: Verdict
    seconds: float


def run_experiment(
    experiment: Experiment, reasoner: Reasoner, out: Path, scale: Scale, fabric: Fabric | None = None
) -> Result | None:
    """`minicos experiment`: writes summary, figure and verdict to `out`; killed and run again, it goes on.

    fabric: a launched lightning.Fabric, whose processes share the sweeps; None is returned in all but the first.
    """
    sweeps = experiment.sweeps(reasoner, scale)
    prepare_folder(out)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    first = fabric is None or fabric.global_rank == 0
    with Progress(*columns, console=Console(stderr=True), disable=not first) as bar:
        mine = sum(len(chunk) for sweep in sweeps for _, chunk in share_of(sweep, fabric))
        work = bar.add_task(experiment.name, total=mine)
        tables = {
            sweep.name: run_sweep(sweep, out / sweep.name, fabric=fabric, advance=lambda done: bar.advance(work, done))
            for sweep in sweeps
        }
    if not first:
        return None
    features = {s.name: features_of(s, out / s.name) for s in sweeps if s.features is not None}
    summary = experiment.summarise(tables, features)
    verdict = experiment.verdict(summary)
    figure = experiment.plot(summary, f"{experiment.name}: {reasoner.settings.name}, {scale.name}")
    figure.savefig(out / PNG_FILE)
    figure.savefig(out / SVG_FILE, metadata={"Date": None})
    summary.to_csv(out / SUMMARY_FILE, index=False, lineterminator="\n", float_format="%.6g")
    (out / VERDICT_FILE).write_text(f"**{verdict.status}**: {verdict.text}\n")
    return Result(summary, verdict, sum(seconds_of(out / sweep.name) for sweep in sweeps))
