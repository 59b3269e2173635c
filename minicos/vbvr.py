"""VBVR-Bench: its cases, a model's answers to them in the layout of its evaluator, and that evaluator if it is there.

A case is a folder <split>/<task>/<number>/ with first_frame.png, prompt.txt and ground_truth.mp4; an answer is the file
<split>/<task>/<number>.mp4. The scores are the evaluator's, not ours: it knows the rules of the hundred tasks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import groupby
from math import sqrt
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from minicos.cards import weights_digest
from minicos.errors import MinicosError
from minicos.files import claim, prepare_folder
from minicos.model import Reasoner
from minicos.parallel import each_process, first_process
from minicos.plots import write_mp4
from minicos.runs import Intervention, Run, check_range
from minicos.sampling import sample_runs
from minicos.tasks import Puzzle, Video

if TYPE_CHECKING:
    from lightning import Fabric

EVALUATOR = "vbvrevalkit"
# The class of VBVR-EvalKit that reads answers as they lie here; its own command walks another layout.
EVALUATION = f"""import sys
from {EVALUATOR}.eval.vbvr_bench import VBVRBench
data, answers, scores, device = sys.argv[1:]
VBVRBench(data, scores, device=device).evaluate(answers, name="scores")
"""
CLAIM_FILE = "bench.json"  # which run the answers are of
FRAMES_PER_SECOND = 16  # of Wan2.2
MULTIPLE = 16  # sides of a canvas: the VAE's stride times the patch
CASES_A_CHUNK, FEW = 16, 4


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
    reasoner: Reasoner,
    cases: Sequence[Case],
    out: Path,
    seed: int = 0,
    interventions: tuple[Intervention, ...] = (),
    advance: Callable[[int], None] = lambda n: None,
    fabric: Fabric | None = None,
) -> None:
    """Write the model's video of every case that `out` does not yet hold; killed and run again, it goes on.

    Cases of one canvas and length are denoised together, so that an expert is moved once for all of them. fabric: a
    launched lightning.Fabric; of W processes each takes every W-th of these chunks.
    """
    prepare_folder(out)
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    # A video that is a batch is minutes of work, beside which the experts' moves are little: few are lost by a kill.
    most = FEW if reasoner.settings.batch == 1 else CASES_A_CHUNK
    mine = chunks_of(cases, reasoner.settings.canvas, most)[rank::world]
    reasoner.learn_prompts([case.prompt for chunk in mine for case in chunk])  # the text encoder is moved once
    for chunk in mine:
        waiting = [case for case in chunk if not (out / f"{case.key}.mp4").exists()]
        if waiting:
            runs = [Run(case, seed, interventions) for case in waiting]
            videos = sample_runs(reasoner, runs).video
            for case, video in zip(waiting, videos, strict=True):
                write_answer(video[: case.length], out / f"{case.key}.mp4")
        advance(len(chunk))


def fitting(
    reasoner: Reasoner, cases: Sequence[Case], interventions: tuple[Intervention, ...]
) -> tuple[list[Case], list[Skipped]]:
    """The cases that have all frames that are to be disturbed, and those that have not.

    Raises MinicosError for a step or block that the model does not have, or a frame that no case has.
    """
    limits = {"step": len(reasoner.schedule()), "block": len(reasoner.transformer.blocks)}
    frames = [frame for one in interventions for frame in one.indices().get("frame") or ()]
    for one in interventions:
        for what, limit in limits.items():
            check_range(what, one.indices().get(what), limit)
    fits, skipped, last = [], [], 0
    for case in cases:
        count = ((case.frames or reasoner.settings.frames) - 1) // reasoner.frames_per_latent + 1
        last = max(last, count - 1)
        if max(frames, default=0) < count:
            fits.append(case)
        else:
            skipped.append(
                Skipped(case.key, f"frame {max(frames)} does not exist: it has latent frames 0 to {count - 1}")
            )
    if not fits:
        raise MinicosError(f"frame {max(frames)} does not exist in any case: they have latent frames 0 to {last}")
    return fits, skipped


def chunks_of(cases: Sequence[Case], canvas: tuple[int, int] | None, most: int) -> list[list[Case]]:
    """Cases of one canvas and length, so many at most."""

    def kind(case: Case) -> tuple:
        return case.image(canvas).shape, case.frames or 0

    chunks = []
    for _, group in groupby(sorted(cases, key=kind), key=kind):
        alike = list(group)
        chunks += [alike[start : start + most] for start in range(0, len(alike), most)]
    return chunks


def write_answer(video: Video, path: Path) -> None:
    """A kill leaves no half of it under this name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.stem}.draft.mp4")
    write_mp4(video, draft, FRAMES_PER_SECOND)
    os.replace(draft, path)


def evaluate_answers(data: Path, out: Path, device: str) -> str | None:
    """Run VBVR-Bench's own evaluator on the answers and return what it prints; None where it is not installed.

    Raises MinicosError where it fails, and where it finds none of them: it knows its own splits only.
    """
    if find_spec(EVALUATOR) is None:
        return None
    scores = out / "scores"
    command = [sys.executable, "-c", EVALUATION, str(data), str(out), str(scores), device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise MinicosError(f"VBVR-Bench's evaluator failed: {reason}")
    try:
        found = json.loads((scores / "scores_eval_results.json").read_text())["overall"]["num_videos"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise MinicosError(f"VBVR-Bench's evaluator left no scores in {scores} that can be read ({reason})") from None
    if not found:
        raise MinicosError(f"VBVR-Bench's evaluator found no answer: are the splits named as in its data set ({data})?")
    return done.stdout


def run_bench(
    reasoner: Reasoner,
    data: Path,
    out: Path,
    n: int | None,
    seed: int,
    interventions: tuple[Intervention, ...] = (),
    fabric: Fabric | None = None,
) -> None:
    """`minicos bench`: answer the cases, say what was skipped, and score the answers where the evaluator is there."""
    from rich.console import Console
    from rich.progress import Progress

    first = fabric is None or fabric.global_rank == 0

    def taken() -> tuple[int, list[Case], list[Skipped]]:
        cases, skipped = read_cases(data)
        # Drawn before any is left out: a run with another disturbance is to answer the same cases.
        some, unfit = fitting(reasoner, chosen(cases, n, seed), interventions)
        return len(cases), some, skipped + unfit

    def claimed() -> None:
        settings = repr(replace(reasoner.settings, tasks={}, siblings={}, batch=1))
        mine = {"model": reasoner.settings.name, "weights": weights_digest(reasoner), "settings": settings}
        mine |= {"seed": seed, "done": repr(interventions)}
        claim(out / CLAIM_FILE, mine, "run", used=any(out.rglob("*.mp4")))

    count, some, skipped = each_process(fabric, taken)

    first_process(fabric, claimed)
    with Progress(console=Console(stderr=True), disable=not first) as bar:
        work = bar.add_task("VBVR-Bench", total=len(some) if fabric is None else None)
        tell = partial(bar.advance, work)
        each_process(fabric, lambda: answer(reasoner, some, out, seed, interventions, tell, fabric))
    if not first:
        return
    print(f"{len(some)} of {count} cases answered (seed {seed}), {len(skipped)} skipped")
    for one in skipped:
        print(f"skipped: {one.key}: {one.reason}")
    scores = evaluate_answers(data, out, reasoner.device.type)
    print(scores or f"not scored: VBVR-Bench's evaluator ({EVALUATOR}) is not installed; with it, run the same again")
