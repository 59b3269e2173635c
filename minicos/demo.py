"""`minicos demo`: solve held-out puzzles of every task, and draw what happens along the denoising steps."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from minicos.cards import percent
from minicos.evaluation import held_out, score_all, wilson_interval
from minicos.files import prepare_folder
from minicos.model import Reasoner, load
from minicos.plots import film_strip, save_video, video_wall
from minicos.sampling import Recorder, Trajectory, sample
from minicos.tasks import STATUSES, Score

PUZZLES = 32
STRIP_ROWS = 7


def run_demo(model: str | None, out: Path, seed: int) -> None:
    """Write film strips, videos and a table of scores to `out`, and say where they are."""
    began = time.perf_counter()
    prepare_folder(out)
    console = Console()
    reasoner = load(model)
    lines = ["| task | size | n | solved % [95 %] | step 0 % [95 %] | " + " | ".join(STATUSES[1:]) + " |"]
    lines.append("| --- " * (5 + len(STATUSES[1:])) + "|")
    with Progress(console=Console(stderr=True)) as bar:
        work = bar.add_task("solving", total=2 * len(reasoner.settings.tasks))
        for task, sizes in reasoner.settings.tasks.items():
            bar.update(work, description=f"solving {task}")
            run = sample(reasoner, held_out(task, max(sizes), PUZZLES), seed, recorders=[Recorder("x0_hat")])
            end = score_all(run.puzzles, run.video)
            first = score_all(run.puzzles, reasoner.decode(run.recorded("x0_hat")[0]))
            bar.advance(work)
            bar.update(work, description=f"drawing {task}")
            draw(reasoner, run, first, end, out)
            bar.advance(work)
            lines.append(table_line(task, max(sizes), first, end))
    (out / "scores.md").write_text("\n".join(lines) + "\n")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"\n{len(list(out.iterdir()))} files in {out.resolve()}: *-strip.png, *.gif, *.mp4 and scores.md",
        soft_wrap=True,
    )
    console.print(f"{time.perf_counter() - began:.1f} s, most of it sampling {PUZZLES} puzzles per task")


def table_line(task: str, size: int, first: list[Score], end: list[Score]) -> str:
    rates = [np.array([score.solved for score in scores]) for scores in (end, first)]
    counts = [sum(score.status == status for score in end) for status in STATUSES[1:]]
    shown = [percent(rate.mean(), wilson_interval(rate)) for rate in rates]
    return "| " + " | ".join(map(str, [task, size, len(end), *shown, *counts])) + " |"


def draw(reasoner: Reasoner, run: Trajectory, first: list[Score], end: list[Score], out: Path) -> None:
    """The strip of one puzzle and the wall of all."""
    task = run.puzzles[0].task
    # The most telling puzzle: not solved by the first estimate, solved by the last. The first of all, if there is none.
    telling = [i for i, (a, b) in enumerate(zip(first, end, strict=True)) if b.solved and not a.solved]
    chosen = (telling or [0])[0]
    shown = np.unique(np.linspace(0, len(run.schedule) - 1, STRIP_ROWS).round().astype(int)).tolist()
    estimates = [reasoner.decode(run.recorded("x0_hat")[s][chosen : chosen + 1])[0] for s in shown]
    scores = score_all([run.puzzles[chosen]] * len(shown), estimates)
    title = f"{reasoner.settings.name}, {task} {run.puzzles[chosen].size}: x0_hat along the denoising steps"
    figure = film_strip(estimates, [run.schedule[s] for s in shown], scores, title)
    figure.savefig(out / f"{task}-strip.png")
    wall = video_wall(list(run.video), end)
    for ending in ("gif", "mp4"):
        save_video(wall, out / f"{task}.{ending}")
