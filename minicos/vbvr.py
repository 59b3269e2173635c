"""VBVR-Bench: its cases, a model's answers to them in the layout of its evaluator, and that evaluator if it is there.

A case is a folder <split>/<task>/<number>/ with first_frame.png, prompt.txt and ground_truth.mp4; an answer is the file
<split>/<task>/<number>.mp4. The scores are the evaluator's, not ours: it knows the rules of the hundred tasks.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from math import sqrt
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray

from minicos.errors import MinicosError
from minicos.files import prepare_folder
from minicos.model import Reasoner
from minicos.plots import write_mp4
from minicos.runs import Run
from minicos.sampling import sample_runs
from minicos.tasks import Puzzle

EVALUATOR = "vbvrevalkit"
FRAMES_PER_SECOND = 16  # of Wan2.2
MULTIPLE = 16  # sides of a canvas: the VAE's stride times the patch
CASES_A_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Case(Puzzle):
    """One case. key is <split>/<task>/<number>; length: frames of its ground truth, None where there is none."""

    folder: Path
    length: int | None

    @property
    def frames(self) -> int | None:
        """The number of the form 4 k + 1 next to the ground truth's, not below it: 96 become 97."""
        return None if self.length is None else max(5, -(-(self.length - 1) // 4) * 4 + 1)

    def image(self, canvas: tuple[int, int] | None) -> NDArray[np.uint8]:
        """The first frame, at its own aspect ratio and about as large as the canvas."""
        from PIL import Image

        with Image.open(self.folder / "first_frame.png") as image:
            width, height = image.size
            scale = sqrt(canvas[0] * canvas[1] / (width * height)) if canvas else 1.0
            sides = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (width, height))
            return np.asarray(image.convert("RGB").resize(tuple(sides), Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Skipped:
    """A case or a task that cannot be used, and why."""

    key: str
    reason: str


def read_cases(data: Path) -> tuple[list[Case], list[Skipped]]:
    """All cases of a data folder in their order, and what has to be skipped. Raises MinicosError where none is left."""
    cases: list[Case] = []
    skipped: list[Skipped] = []
    tasks = sorted(path for path in data.glob("*/*") if path.is_dir())
    for task in tasks:
        folders = sorted(path for path in task.iterdir() if path.is_dir())
        if not folders:
            skipped.append(Skipped(f"{task.parent.name}/{task.name}", "no cases in it"))
        for folder in folders:
            read = read_case(folder)
            (cases if isinstance(read, Case) else skipped).append(read)
    if not cases:
        reasons = f": {skipped[0].key}: {skipped[0].reason}" if skipped else ""
        raise MinicosError(f"{data} holds no case <split>/<task>/<number>/ that can be used{reasons}")
    return cases, skipped


def read_case(folder: Path) -> Case | Skipped:
    """One case, or why it cannot be used."""
    from PIL import Image, UnidentifiedImageError

    key = "/".join(folder.parts[-3:])
    try:
        prompt = (folder / "prompt.txt").read_text().strip()
        with Image.open(folder / "first_frame.png") as image:
            image.load()
        truth = folder / "ground_truth.mp4"
        length = count_frames(truth) if truth.exists() else None
    except FileNotFoundError as error:
        return Skipped(key, f"no {Path(error.filename).name}")
    except UnidentifiedImageError:
        return Skipped(key, "first_frame.png is no image")
    except (OSError, ValueError) as error:
        return Skipped(key, str(error).strip().splitlines()[0])
    return Case("vbvr", key, 0, prompt, folder, length) if prompt else Skipped(key, "prompt.txt is empty")


def count_frames(path: Path) -> int:
    """Frames of a video. Raises OSError where it cannot be read."""
    import imageio.v3 as imageio

    try:
        return sum(1 for _ in imageio.imiter(path, plugin="FFMPEG"))
    except Exception:  # whatever the reader raises on a damaged file
        raise OSError(f"{path.name} cannot be read") from None


def chosen(cases: Sequence[Case], n: int | None, seed: int) -> list[Case]:
    """n of the cases, drawn by the seed, in their order; all when None."""
    if n is None or n >= len(cases):
        return list(cases)
    return [cases[i] for i in sorted(Random(seed).sample(range(len(cases)), n))]


def answer(
    reasoner: Reasoner, cases: Sequence[Case], out: Path, seed: int = 0, advance: Callable[[int], None] = lambda n: None
) -> None:
    """Write the model's video of every case that `out` does not yet hold; killed and run again, it goes on.

    Cases of one canvas and length are denoised together, so that an expert is moved once for all of them.
    """
    prepare_folder(out)
    waiting = [case for case in cases if not (out / f"{case.key}.mp4").exists()]
    advance(len(cases) - len(waiting))

    def kind(case: Case) -> tuple:
        return case.image(reasoner.settings.canvas).shape, case.frames or 0

    for _, group in groupby(sorted(waiting, key=kind), key=kind):
        alike = list(group)
        for start in range(0, len(alike), CASES_A_CHUNK):
            chunk = alike[start : start + CASES_A_CHUNK]
            runs = [Run(case, seed) for case in chunk]
            videos = sample_runs(reasoner, runs, batch_size=reasoner.settings.batch).video
            for case, video in zip(chunk, videos, strict=True):
                path = out / f"{case.key}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_name(f"{path.stem}.draft.mp4")
                write_mp4(video[: case.length], draft, FRAMES_PER_SECOND)
                os.replace(draft, path)  # a kill leaves no half of a video
            advance(len(chunk))


def evaluate_answers(data: Path, out: Path) -> str | None:
    """Run VBVR-Bench's own evaluator on the answers and return what it prints; None where it is not installed."""
    if find_spec(EVALUATOR) is None:
        return None
    command = [sys.executable, "-m", f"{EVALUATOR}.runner.score", "--inference-dir", str(out)]
    done = subprocess.run([*command, "--gt-base-path", str(data)], capture_output=True, text=True)
    if done.returncode:
        raise MinicosError(f"VBVR-Bench's evaluator failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def run_bench(reasoner: Reasoner, data: Path, out: Path, n: int | None, seed: int) -> None:
    """`minicos bench`: answer the cases, say what was skipped, and score the answers where the evaluator is there."""
    from rich.console import Console
    from rich.progress import Progress

    cases, skipped = read_cases(data)
    some = chosen(cases, n, seed)
    with Progress(console=Console(stderr=True)) as bar:
        work = bar.add_task("VBVR-Bench", total=len(some))
        answer(reasoner, some, out, seed, lambda done: bar.advance(work, done))
    print(f"{len(some)} of {len(cases)} cases answered (seed {seed}), {len(skipped)} skipped")
    for one in skipped:
        print(f"skipped: {one.key}: {one.reason}")
    scores = evaluate_answers(data, out)
    command = f"python -m {EVALUATOR}.runner.score --inference-dir {out} --gt-base-path {data}"
    print(scores or f"VBVR-Bench's evaluator is not installed. Where it is: {command}")
