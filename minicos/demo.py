"""`minicos demo`: solve held-out puzzles of every task, and draw what happens along the denoising steps."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import rich.box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from minicos.cards import percent
from minicos.errors import MinicosError
from minicos.evaluation import held_out, score_all
from minicos.files import check_folder, prepare_folder
from minicos.measures import wilson_interval
from minicos.model import Reasoner, load
from minicos.plots import save_video, video_wall
from minicos.sampling import Recorder, Trajectory, sample
from minicos.tasks import STATUSES, Score
from minicos.teaching import strip_of

PUZZLES = 16
HEADER = ("model", "task", "size", "n", "solved % [95 %]", "at step 0 % [95 %]", *STATUSES[1:])


def run_demo(model: str | None, out: Path, seed: int) -> None:
    """Write film strips, videos and a table of scores to `out`, and say where they are."""
    began = time.perf_counter()
    check_folder(out)
    reasoner = load(model)
    work = [(reasoner.for_task(task), task) for task in reasoner.tasks()]
    if not work:
        raise MinicosError(f"{reasoner.settings.name} does not say which tasks it was trained on: nothing to show")
    prepare_folder(out)
    table = Table(*HEADER, box=rich.box.MARKDOWN)
    files = []
    with Progress(console=Console(stderr=True)) as bar:
        progress = bar.add_task("", total=2 * len(work))
        for reasoner, task in work:
            bar.update(progress, description=f"solving {task}")
            size = max(reasoner.settings.tasks[task])
            run = sample(reasoner, held_out(task, size, PUZZLES), seed, recorders=[Recorder("x0_hat")])
            end = score_all(run.puzzles, run.video)
            first = score_all(run.puzzles, reasoner.decode(run.recorded("x0_hat")[0]))
            bar.update(progress, advance=1, description=f"drawing {task}")
            files += draw(reasoner, run, first, end, out)
            bar.advance(progress)
            table.add_row(reasoner.settings.name, task, str(size), *table_cells(first, end))
    console = Console(record=True, width=150)
    console.print(table)
    (out / "scores.md").write_text(console.export_text().strip() + "\n")
    print(f"\nwritten to {out.resolve()}: scores.md, {', '.join(path.name for path in files)}")
    print(f"{time.perf_counter() - began:.1f} s for {PUZZLES} held-out puzzles of each of {len(work)} tasks")


def table_cells(first: list[Score], end: list[Score]) -> list[str]:
    """n, rates with intervals, and counts of the ways not to be solved."""
    rates = [np.array([score.solved for score in scores]) for scores in (end, first)]
    counts = [sum(score.status == status for score in end) for status in STATUSES[1:]]
    return [str(len(end)), *(percent(rate.mean(), wilson_interval(rate)) for rate in rates), *map(str, counts)]


def draw(reasoner: Reasoner, run: Trajectory, first: list[Score], end: list[Score], out: Path) -> list[Path]:
    """The strip of one puzzle and the wall of all; the files written."""
    task = run.puzzles[0].task
    # The most telling puzzle: not solved by the first estimate, solved by the last. The first of all, if there is none.
    telling = [i for i, (a, b) in enumerate(zip(first, end, strict=True)) if b.solved and not a.solved]
    chosen = (telling or [0])[0]
    strip = out / f"{task}-strip.png"
    strip_of(reasoner, run, chosen)[0].savefig(strip)
    walls = [out / f"{task}.gif", out / f"{task}.mp4"]
    for path in walls:
        save_video(video_wall(list(run.video), end), path)
    return [strip, *walls]
