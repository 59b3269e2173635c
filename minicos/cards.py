"""The table that `minicos evaluate` prints, and the card that is generated from what it wrote.

A card holds nothing that is not in the files beside it: training.json, evaluation.json, and what the model is.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from minicos import __version__

if TYPE_CHECKING:
    from minicos.model import Reasoner

TRAINING_FILE = "training.json"
EVALUATION_FILE = "evaluation.json"
CARD_FILE = "README.md"
CARD = "A Wan2.2 image-to-video transformer with small parts"  # how every card begins
COLUMNS = ("task", "size", "length", "n", "solved", "step 0", "gap", "answer")
COLUMNS += ("wrong", "invalid", "unreadable", "chosen")


@dataclass(frozen=True)
class Row:
    """Rates over one group of puzzles; intervals are 95 %. `length` is "all" or a bin, in the task's unit.

    end, step_0 and answer: share solved (answer: last frame right); gap: end minus step_0, paired. A rollout, which
    goes frame by frame, has no step 0 of the whole video. chosen: where several answers are right and have names, how
    many solved puzzles show which.
    """

    task: str
    size: int
    length: str
    trained: bool
    n: int
    counts: dict[str, int]
    end: float
    end_interval: tuple[float, float]
    step_0: float | None
    step_0_interval: tuple[float, float] | None
    gap: float | None
    gap_interval: tuple[float, float] | None
    answer: float
    answer_interval: tuple[float, float]
    rollout: bool = False
    chosen: dict[str, int] = field(default_factory=dict)


def rows_of(report: dict) -> list[Row]:
    """The rows of evaluation.json, as they were before they became JSON."""
    return [Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in report["rows"]]


def provenance() -> dict[str, str]:
    """What made a file: version, commit (with + where files differ from it), Python, torch and machine."""
    import torch

    return {
        "minicos": __version__,
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": _machine(),
    }


def _machine() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {cores} {'core' if cores == 1 else 'cores'}, {gpu}"


@cache
def commit() -> str:
    """The commit of this code, with + where files differ from it; asked once, as the code is read once."""
    here, own = Path(__file__).parent, Path(__file__).name
    try:  # a copy in a folder of another project is none of its files
        subprocess.run(["git", "ls-files", "--error-unmatch", own], cwd=here, capture_output=True, check=True)
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--", "*.py"], cwd=here, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def describe_weights(reasoner: Reasoner) -> dict:
    """Parameters, bytes on disk and SHA-256 of the learned parts of a checkpoint."""
    files = sorted(
        path
        for part in ("transformer", "transformer_2", "text_encoder")
        for path in (reasoner.folder / part).glob("*.safetensors")
    )
    modules = [module for module in (reasoner.transformer, reasoner.transformer_2, reasoner.text_encoder) if module]
    return {
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": {str(path.relative_to(reasoner.folder)): _digest(path) for path in files},
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:  # a piece at a time: a shard of a full model is gigabytes
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_digest(reasoner: Reasoner) -> str:
    """SHA-256 of all learned numbers, as they are in memory."""
    import torch

    digest = hashlib.sha256()
    for module in (reasoner.transformer, reasoner.transformer_2, reasoner.text_encoder):
        for name, value in sorted(module.state_dict().items()) if module else ():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def percent(value: float | None, interval: tuple[float, float] | None, signed: bool = False) -> str:
    if value is None or interval is None:
        return "-"
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} [{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table, as text; rates in per cent with 95 % intervals."""
    return (
        row.task + (", frame by frame" if row.rollout else "") + ("" if row.trained else " *"),
        str(row.size),
        row.length,
        str(row.n),
        percent(row.end, row.end_interval),
        percent(row.step_0, row.step_0_interval),
        percent(row.gap, row.gap_interval, signed=True),
        percent(row.answer, row.answer_interval),
        *(f"{100 * row.counts[status] / row.n:.1f}" for status in ("wrong", "invalid", "unreadable")),
        ", ".join(f"{name} {count}" for name, count in row.chosen.items()) or "-",
    )


def markdown_table(rows: Sequence[Row]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


LEGEND = """\
Rates in per cent, 95 % intervals in brackets (Wilson; the gap: paired bootstrap over puzzles, the rule of three where
no puzzle differs from another). *size*: cells along a side, degrees of the turn, width of the screen or number of
reflections. *solved*: the answer is right and every frame is legal; *step 0*: the same for the clean estimate x0_hat
at the first denoising step; *gap*: solved minus step 0; *answer*: the last frame is right, whatever the frames before
it show; *wrong*, *invalid* and *unreadable* are the ways not to be solved. *length*: moves of the route, degrees of
the turn. A star marks sizes beyond training. Puzzles come from the test split; mazes below 5x5 are too few to hold
any out. *frame by frame*: each frame denoised from pure noise after the earlier ones are done; all other rows denoise
all frames together. *chosen*: where several answers are right, how many puzzles were solved by which. A + after a
commit: some files differed from it."""


def card(reasoner: Reasoner, report: dict) -> str:
    """The README.md beside a checkpoint."""
    settings, weights = reasoner.settings, report["checkpoint"]
    trained = "; ".join(f"`{task}` {', '.join(map(str, sizes))}" for task, sizes in settings.tasks.items())
    facts = {
        "parameters": f"{weights['parameters']:,}",
        "size of the weights": f"{weights['bytes'] / 1e6:.2f} MB",
        "video": f"{settings.frames} frames",
        "sampler": f"Euler, {settings.steps} steps, shift {settings.shift:g}, guidance {settings.guidance[0]:g}",
        **_training_facts(reasoner.folder),
        "evaluated by": f"`{report['command']}`",
        "evaluation": f"{report['seconds'] / 60:.1f} minutes on {report['machine']}",
        "evaluation code": f"commit {report['commit']}, torch {report['torch']}",
        **{f"sha256 of {file}": f"`{digest}`" for file, digest in weights["sha256"].items()},
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return f"""\
# {settings.name}

{CARD} ({len(reasoner.transformer.blocks)} blocks), trained from nothing
on puzzles (task and sizes): {trained}.

| | |
| --- | --- |
{table}

## Held-out puzzles

{markdown_table(rows_of(report))}

{LEGEND}
"""


def _training_facts(folder: Path) -> dict[str, str]:
    path = folder / TRAINING_FILE
    if not path.exists():
        return {"trained by": "not recorded"}
    training = json.loads(path.read_text())
    earlier = "".join(f", before it {other}" for other in reversed(training.get("earlier_commits", [])))
    return {
        "trained by": f"`{training['command']}`",
        "training": f"{training['steps']} steps in {training['seconds'] / 60:.1f} minutes on {training['machine']}",
        "training code": f"commit {training['commit']}{earlier}, torch {training['torch']}",
    }
