"""The table that `minicos evaluate` prints, and the card that is generated from what it wrote.

A card holds nothing that is not in training.json or evaluation.json beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from minicos import __version__

if TYPE_CHECKING:
    from minicos.evaluation import Row
    from minicos.model import Reasoner

TRAINING_FILE = "training.json"
EVALUATION_FILE = "evaluation.json"
COLUMNS = ("task", "size", "length", "n", "solved", "step 0", "gap", "answer", "wrong", "invalid", "unreadable")


def provenance() -> dict[str, str]:
    """What made a file: version, commit (with + where files differ from it), Python, torch and machine."""
    import torch

    return {
        "minicos": __version__,
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores, "
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}",
    }


def _commit() -> str:
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain", "--", "*.py"], cwd=here, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not a git checkout"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def describe_weights(reasoner: Reasoner) -> dict:
    """Parameters, bytes on disk and SHA-256 of the learned parts of a checkpoint."""
    files = sorted(path for part in ("transformer", "text_encoder") for path in (reasoner.folder / part).glob("*.safetensors"))
    modules = [reasoner.transformer, reasoner.text_encoder]
    return {
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "bytes": sum(path.stat().st_size for path in files),
        "sha256": {str(p.relative_to(reasoner.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files},
    }


def percent(value: float, interval: tuple[float, float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} [{100 * interval[0]:{sign}.1f}, {100 * interval[1]:{sign}.1f}]"


def cells(row: Row) -> tuple[str, ...]:
    """One row of the table, as text; rates in per cent with 95 % intervals."""
    return (
        row.task + ("" if row.trained else " *"),
        str(row.size),
        row.length,
        str(row.n),
        percent(row.end, row.end_interval),
        percent(row.step_0, row.step_0_interval),
        percent(row.gap, row.gap_interval, signed=True),
        percent(row.answer, row.answer_interval),
        *(f"{100 * row.counts[status] / row.n:.1f}" for status in ("wrong", "invalid", "unreadable")),
    )


def markdown_table(rows: Sequence[Row]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


LEGEND = """\
Rates in per cent, 95 % intervals in brackets (Wilson; the gap: paired bootstrap over puzzles). *solved*: the answer is
right and every frame is legal; *step 0*: the same for the clean estimate x0_hat at the first denoising step; *gap*:
solved minus step 0; *answer*: the last frame is right, whatever the frames before it show; *wrong*, *invalid* and
*unreadable* are the ways not to be solved. *length*: moves of the route, degrees of the turn. A star marks sizes beyond
training. Puzzles come from the test split; mazes below 5x5 are too few to hold any out."""


def card(reasoner: Reasoner, report: dict, rows: Sequence[Row]) -> str:
    """The README.md beside a checkpoint."""
    weights = report["checkpoint"]
    training = json.loads((reasoner.folder / TRAINING_FILE).read_text())
    hashes = "\n".join(f"- `{name}` sha256 `{digest}`" for name, digest in weights["sha256"].items())
    trained = "; ".join(f"{task} {', '.join(map(str, sizes))}" for task, sizes in reasoner.settings.tasks.items())
    settings = reasoner.settings
    return f"""\
# {settings.name}

A Wan2.2 image-to-video transformer with small parts ({len(reasoner.transformer.blocks)} blocks), trained from nothing
on puzzles: {trained} (task and sizes).

| | |
| --- | --- |
| parameters | {weights["parameters"]:,} |
| size of the weights | {weights["bytes"] / 1e6:.2f} MB |
| video | {settings.frames} frames |
| sampler | Euler, {settings.steps} steps, shift {settings.shift:g}, guidance {settings.guidance[0]:g} |
| trained by | `{training["command"]}` |
| training | {training["steps"]} steps in {training["seconds"] / 60:.1f} minutes on {training["machine"]} |
| training code | commit {training["commit"]}, torch {training["torch"]} |
| evaluated by | `{report["command"]}` |
| evaluation | {report["seconds"] / 60:.1f} minutes on {report["machine"]} |
| evaluation code | commit {report["commit"]}, torch {report["torch"]} |

{hashes}

## Held-out puzzles

{markdown_table(rows)}

{LEGEND}
"""
