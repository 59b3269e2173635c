"""Many runs at the price of few, in a folder that can be killed at any moment, resumed, and shared between processes.

A sweep is a list of chunks, a chunk a list of trials that are denoised together and share what they can (`sharing`). A
chunk's rows are written at once, when all of them are known; so a folder holds whole chunks only, and a resumed sweep
ends with the same table as an undisturbed one, byte for byte. Processes, GPUs and nodes take chunks in turn.

Where a GPU holds one expert at a time, all chunks go as far as the first expert takes them and are put aside, before
any goes on: each expert moves to the GPU once.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from minicos.cards import commit, weights_digest
from minicos.errors import MinicosError
from minicos.files import claim, prepare_folder, replace_file
from minicos.flow import Step
from minicos.model import Reasoner
from minicos.parallel import each, each_process, first_process
from minicos.runs import Run, company
from minicos.sampling import Denoising, Recorder, Trajectory, rollout_runs
from minicos.sharing import Sharing

if TYPE_CHECKING:
    from lightning import Fabric

SWEEP_FILE, TABLE_FILE, TIMES_FILE = "sweep.json", "table.csv", "times.csv"
MOST_LOST = 1200.0  # seconds of work on a chunk, beyond the step under way, that a kill may cost


@dataclass(frozen=True)
class Trial:
    """A run and what it is in the table: column name to value."""

    run: Run
    labels: dict[str, object]


@dataclass(frozen=True)
class Sweep:
    """Runs on one network. chunks: trials that are denoised together; all puzzles of a chunk share one canvas.

    measure: from the trajectory of a chunk, for each of its trials a list of rows, labels not included. features:
    arrays by name, each with the trials as first axis, where rows are not enough (`features_of`). recorders: what both
    need to have recorded. watched: how many videos `measure` decodes of a chunk, besides the end of each run.
    frame_by_frame: by `rollout`, which knows neither interventions nor recorders.
    """

    name: str
    reasoner: Reasoner
    chunks: Sequence[Sequence[Trial]]
    schedule: tuple[Step, ...]
    measure: Callable[[Trajectory], list[list[dict[str, object]]]]
    recorders: tuple[Recorder, ...] = ()
    features: Callable[[Trajectory], dict[str, NDArray]] | None = None
    watched: Callable[[Sequence[Trial]], int] = lambda chunk: 0
    frame_by_frame: bool = False

    def evaluations(self) -> int:
        """Videos that pass through the network, all steps and both branches of guidance counted."""
        if self.frame_by_frame:  # every frame but the given one has a pass of its own for each step, and a last one
            frames = self.reasoner.latent_frames
            return ceil(sum(map(len, self.chunks)) * (frames - 1) * (len(self.schedule) + 1) / frames)
        sharings = (Sharing(self.reasoner, [t.run for t in chunk], self.schedule) for chunk in self.chunks)
        return sum(sharing.evaluations(self.reasoner.settings.batch) for sharing in sharings)

    def videos(self) -> int:
        """Videos that are decoded."""
        return sum(len(chunk) + self.watched(chunk) for chunk in self.chunks)

    def fingerprint(self, weights: str) -> str:
        """Equal for sweeps that give the same table on one machine by the same code (`commits_of` tells whose it was).

        weights: digest of the network's (`cards`).
        """
        digest = hashlib.sha256(weights.encode())
        settings = replace(self.reasoner.settings, tasks={}, siblings={})  # which change no run
        steps = [asdict(step) for step in self.schedule]
        digest.update(repr((self.name, settings, self.frame_by_frame, steps)).encode())
        for chunk in self.chunks:
            digest.update(repr([(trial.run, trial.labels) for trial in chunk]).encode())
        return digest.hexdigest()


def run_sweep(
    sweep: Sweep,
    folder: Path,
    *,
    fabric: Fabric | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """The sweep's table; every chunk that is not yet in `folder` is computed and written there.

    fabric: a launched lightning.Fabric whose processes share the work. `advance(trials)` is told of progress: a chunk
    that is put aside counts as the trials that its steps would be. Raises MinicosError where the folder holds another
    sweep or a damaged chunk.
    """
    (table,) = run_sweeps({folder: sweep}, fabric=fabric, advance=advance)
    return table


def run_sweeps(
    sweeps: dict[Path, Sweep],
    *,
    fabric: Fabric | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> list[pd.DataFrame]:
    """The same for several, each in its folder: processes wait for each other once, when all are done."""
    rank = fabric.global_rank if fabric else 0
    first_process(fabric, lambda: _claim(sweeps))

    def compute() -> None:
        for (folder, sweep), share in zip(sweeps.items(), shares_of(list(sweeps.values()), fabric), strict=True):
            _compute(sweep, folder, share, rank, advance)

    each_process(fabric, compute)
    return [_merged(folder, sweep, write=rank == 0) for folder, sweep in sweeps.items()]


def shares_of(sweeps: Sequence[Sweep], fabric: Fabric | None) -> list[list[tuple[int, Sequence[Trial]]]]:
    """Of each sweep the chunks of this process with their numbers: of W processes every W-th, on and on, so that none
    has more to do because sweeps are short.
    """
    rank, world = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    place, shares = count(), []
    for sweep in sweeps:
        shares.append([(number, chunk) for number, chunk in enumerate(sweep.chunks) if next(place) % world == rank])
    return shares


def _compute(
    sweep: Sweep,
    folder: Path,
    share: list[tuple[int, Sequence[Trial]]],
    rank: int,
    advance: Callable[[int], None],
) -> None:
    """Those chunks that are not yet in the folder."""
    missing = []
    for number, chunk in share:
        if _is_done(sweep, folder, number):
            _clear_asides(folder, number)
            advance(len(chunk))
        else:
            missing.append((number, chunk))
    sweep.reasoner.learn_prompts([run.puzzle.prompt for _, c in missing for run in company([t.run for t in c])])
    began, since, code = time.perf_counter(), 0, commit() if missing else ""
    for until in stages(sweep):
        for place, _ in each(sweep.reasoner, partial(_run_chunk, sweep=sweep, folder=folder, until=until), missing):
            number, chunk = missing[place]
            now = time.perf_counter()
            with (folder / f"{rank}-{TIMES_FILE}").open("a") as times:  # beside the table: times never repeat
                times.write(f"{number},{now - began:.3f},{code}\n")
            began = now
            advance(_trials_worth(sweep, chunk, until) - _trials_worth(sweep, chunk, since))
        since = until


def stages(sweep: Sweep) -> list[int]:
    """Up to which step all chunks go before any goes further."""
    steps, reasoner = sweep.schedule, sweep.reasoner
    if sweep.frame_by_frame or not reasoner.one_at_a_time:
        return [len(steps)]
    experts = [reasoner.expert_name(step.timestep) for step in steps]
    return [step for step in range(1, len(steps)) if experts[step] != experts[step - 1]] + [len(steps)]


def _trials_worth(sweep: Sweep, chunk: Sequence[Trial], steps: int) -> int:
    """What so many steps of a chunk are worth in whole trials."""
    return len(chunk) * steps // len(sweep.schedule)


def seconds_of(folder: Path) -> float:
    """What all chunks of a sweep took, from one that was done to the next, of all processes together."""
    return sum(float(seconds) for _, seconds, _ in _times(folder))


def commits_of(folder: Path) -> set[str]:
    """By which commits the chunks of a sweep were computed: it may be resumed by another than it was begun with."""
    return {code for _, _, code in _times(folder)}


def _times(folder: Path) -> list[list[str]]:
    """For each chunk that was done: number, seconds, commit."""
    lines = [line for path in folder.glob(f"*-{TIMES_FILE}") for line in path.read_text().splitlines()]
    return [line.split(",") for line in lines if line.count(",") == 2]  # a kill may have cut one off


def features_of(sweep: Sweep, folder: Path) -> dict[str, NDArray]:
    """The features of a finished sweep by name, each (trials, ...), in the trials' order."""
    chunks = []
    for number in range(len(sweep.chunks)):
        path = _features_file(folder, number)
        try:
            with np.load(path) as arrays:
                chunks.append(dict(arrays))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise _damaged(path, error) from None
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _is_done(sweep: Sweep, folder: Path, number: int) -> bool:
    """Whether all that a chunk is to give is there."""
    features = sweep.features is None or _features_file(folder, number).exists()
    return features and _chunk_file(folder, number).exists()


def _damaged(path: Path, error: Exception) -> MinicosError:
    return MinicosError(f"{path} is damaged ({type(error).__name__}): delete it and run again")


def _run_chunk(
    reasoner: Reasoner, numbered: tuple[int, Sequence[Trial]], sweep: Sweep, folder: Path, until: int
) -> None:
    """As far as step `until`: its rows are written when that is the end, else what it has come to is put aside."""
    number, chunk = numbered
    path, runs, schedule = _chunk_file(folder, number), [trial.run for trial in chunk], sweep.schedule
    aside = _aside_file(folder, number, until)
    asides = _asides(folder, number)
    if until < len(schedule) and asides and asides[-1] >= aside:  # it has come so far before, or further
        return
    if sweep.frame_by_frame:
        trajectory = rollout_runs(reasoner, runs, schedule=schedule)
    else:
        denoising, since = _taken_up(reasoner, runs, sweep, asides), time.monotonic()
        while denoising.done < until:
            denoising.advance()
            if denoising.done == until < len(schedule) or time.monotonic() - since > MOST_LOST:
                _put_aside(denoising, folder, number)
                since = time.monotonic()
        if until < len(schedule):
            return
        trajectory = denoising.trajectory()
    measured = sweep.measure(trajectory)
    rows = [trial.labels | row for trial, rows in zip(chunk, measured, strict=True) for row in rows]
    if sweep.features is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **sweep.features(trajectory))
        replace_file(_features_file(folder, number), buffer.getvalue())
    # Last: a chunk is done once its rows are there.
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format="%.9g", na_rep="nan")
    replace_file(path, f"{text}{_end_of(len(rows))}".encode())
    _clear_asides(folder, number)


def _taken_up(reasoner: Reasoner, runs: list[Run], sweep: Sweep, asides: list[Path]) -> Denoising:
    """The denoising of a chunk, from where it was put aside last, if it was."""
    denoising = Denoising(reasoner, runs, schedule=sweep.schedule, recorders=sweep.recorders)
    if asides:
        try:
            done = torch.load(asides[-1], weights_only=True)
        except Exception as error:  # whatever torch raises on a damaged file becomes one line
            raise _damaged(asides[-1], error) from error
        denoising.go_on_from(done)
    return denoising


def _put_aside(denoising: Denoising, folder: Path, number: int) -> None:
    buffer, aside = io.BytesIO(), _aside_file(folder, number, denoising.done)
    torch.save(denoising.put_aside(), buffer)
    replace_file(aside, buffer.getbuffer())  # no second copy: it may be gigabytes
    _clear_asides(folder, number, but=aside)


def _claim(sweeps: dict[Path, Sweep]) -> None:
    """Write down which sweep each folder is for, or see that it is for this one; before anything is computed."""
    digests: dict[Reasoner, str] = {}  # a full model's takes a minute
    for folder, sweep in sweeps.items():
        task = sweep.chunks[0][0].run.puzzle.task
        if sweep.reasoner.for_task(task) is not sweep.reasoner:  # threads would share the other network, and its hooks
            raise MinicosError(
                f"{sweep.reasoner.settings.name} leaves {task} to another network: sweep for_task('{task}')"
            )
        if sweep.reasoner not in digests:
            digests[sweep.reasoner] = weights_digest(sweep.reasoner)
        chunks = prepare_folder(folder / "chunks")
        fingerprint = sweep.fingerprint(digests[sweep.reasoner])
        mine = {"name": sweep.name, "chunks": len(sweep.chunks), "fingerprint": fingerprint}
        claim(folder / SWEEP_FILE, mine, "sweep", used=any(chunks.iterdir()))
        for draft in chunks.glob("*.draft"):  # of a run that was killed while it wrote
            draft.unlink(missing_ok=True)


def _chunk_file(folder: Path, number: int) -> Path:
    return folder / "chunks" / f"{number:06d}.csv"


def _features_file(folder: Path, number: int) -> Path:
    return _chunk_file(folder, number).with_suffix(".npz")


def _aside_file(folder: Path, number: int, step: int) -> Path:
    return folder / "chunks" / f"{number:06d}-{step:04d}.aside"


def _asides(folder: Path, number: int) -> list[Path]:
    """What was put aside of a chunk, the latest last: one, but for a moment."""
    return sorted((folder / "chunks").glob(f"{number:06d}-*.aside"))


def _clear_asides(folder: Path, number: int, but: Path | None = None) -> None:
    for aside in _asides(folder, number):
        if aside != but:
            aside.unlink(missing_ok=True)


def _end_of(rows: int) -> str:
    """The last line of a chunk, which tells a whole one from what was cut off, by a copy that did not end."""
    return f"# {rows} rows\n"


def _rows_in(path: Path) -> tuple[str, pd.DataFrame]:
    """Of a chunk, as a text and as a table. Raises OSError, ValueError or EOFError for what is no whole chunk."""
    text, _, _ = path.read_text().rpartition("# ")
    table = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=["nan"])
    if path.read_text() != f"{text}{_end_of(len(table))}":
        raise EOFError
    return text, table


def _merged(folder: Path, sweep: Sweep, write: bool) -> pd.DataFrame:
    """All chunks as one table, written to table.csv as it is returned."""
    tables, texts = [], []
    for number in range(len(sweep.chunks)):
        path = _chunk_file(folder, number)
        try:
            text, table = _rows_in(path)
        except (OSError, ValueError, EOFError) as error:
            raise _damaged(path, error) from None
        texts.append(text)
        tables.append(table)
    columns = [tuple(table.columns) for table in tables]
    for number, found in enumerate(columns):
        if found != columns[0]:
            raise MinicosError(
                f"{_chunk_file(folder, number)} has other columns than the first: delete it and run again"
            )
    if write:
        lines = [text.split("\n", 1)[1] for text in texts]
        replace_file(folder / TABLE_FILE, (",".join(columns[0]) + "\n" + "".join(lines)).encode())
    return pd.concat(tables, ignore_index=True)
