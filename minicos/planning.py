"""What sweeps will cost, before they are run: passes, decoded videos, memory, and time on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from minicos.model import Reasoner
from minicos.parallel import each, lanes
from minicos.runs import Batch
from minicos.sampling import Recorder, extents
from minicos.sharing import Sharing, branches_of
from minicos.sweeps import Sweep, stages
from minicos.tasks import Puzzle

TIMED = 2  # passes of a full batch, and as many of its decodings, that are timed on every core, after one that is not


@dataclass(frozen=True)
class Plan:
    """One sweep. chunks: what devices share it by. evaluations: passes of one video; unshared: if every run were
    computed from its first step. videos: those that are decoded.

    bytes: of the recorded tensors and the videos of its largest chunk, times as many as are in memory at one time.
    aside: bytes on disk, when all chunks wait for the second expert; 0 where they need not. seconds: of passes and
    decoding, measured on a few; what scores and statistics take is not among them.
    """

    name: str
    runs: int
    chunks: int
    evaluations: int
    unshared: int
    videos: int
    bytes: int
    aside: int
    seconds: float


def plan(sweeps: Sequence[Sweep]) -> list[Plan]:
    """Counts are exact; times come from a few passes of each network on each canvas, and a few decodings."""
    paces: dict[tuple[Reasoner, tuple[int, ...]], tuple[float, float]] = {}
    found = []
    for sweep in sweeps:
        run = sweep.chunks[0][0].run
        batch = Batch([run], *extents(sweep.reasoner, sweep.reasoner.condition([run.puzzle])))
        if (sweep.reasoner, batch.extent) not in paces:
            paces[sweep.reasoner, batch.extent] = seconds_each(sweep.reasoner, run.puzzle)
        a_pass, a_video = paces[sweep.reasoner, batch.extent]
        runs, evaluations, videos = sum(map(len, sweep.chunks)), sweep.evaluations(), sweep.videos()
        alone = sum(len(branches_of(sweep.reasoner, step)) for step in sweep.schedule)
        unshared = evaluations if sweep.frame_by_frame else runs * alone
        of_run = recorded_bytes(sweep, batch, len(sweep.schedule)) + video_bytes(sweep, run.puzzle)
        held = max(map(len, sweep.chunks)) * of_run * min(lanes(sweep.reasoner), len(sweep.chunks))
        seconds = evaluations * a_pass + videos * a_video
        counts = runs, len(sweep.chunks), evaluations, unshared, videos
        found.append(Plan(sweep.name, *counts, held, aside_bytes(sweep, batch), seconds))
    return found


def seconds_each(reasoner: Reasoner, puzzle: Puzzle) -> tuple[float, float]:
    """Of one video a pass, and its decoding; in batches of as many as a sweep takes, as many at once as in a sweep."""
    batch = reasoner.settings.batch
    condition = reasoner.condition([puzzle] * batch)
    latents = torch.zeros(batch, reasoner.latent_channels, *condition.channels.shape[2:], device=reasoner.device)
    timestep = reasoner.schedule()[0].timestep

    @torch.no_grad()
    def one_pass(own: Reasoner) -> None:
        own.velocity(latents, timestep, condition, "cond").sum().item()  # item() waits for a GPU

    def one_decoding(own: Reasoner) -> None:
        own.decode(latents)

    return _seconds(reasoner, one_pass) / batch, _seconds(reasoner, one_decoding) / batch


def _seconds(reasoner: Reasoner, work: Callable[[Reasoner], None]) -> float:
    """That the same work takes, done again and again."""
    at_once = lanes(reasoner)

    def one(own: Reasoner, _: int) -> float:
        work(own)
        return time.perf_counter()

    ends = sorted(end for _, end in each(reasoner, one, range(at_once * (1 + TIMED))))
    # From the end of the first round to that of the last: threads take time to start.
    return (ends[-1] - ends[at_once - 1]) / (at_once * TIMED)


def aside_bytes(sweep: Sweep, batch: Batch) -> int:
    """What the runs of a sweep, each as large as the one in `batch`, have come to when the second expert takes over:
    what was recorded; latents and x0_hat of each run that is computed by then.
    """
    until, *later = stages(sweep)
    if not later:
        return 0
    sharings = (Sharing(sweep.reasoner, [t.run for t in chunk], sweep.schedule) for chunk in sweep.chunks)
    tracks = sum(len(tracks) for sharing in sharings for tracks in sharing.batches(until - 1))
    latents = 4 * sweep.reasoner.latent_channels * math.prod(batch.extent)
    return tracks * 2 * latents + sum(map(len, sweep.chunks)) * recorded_bytes(sweep, batch, until)


def video_bytes(sweep: Sweep, puzzle: Puzzle) -> int:
    """Of the decoded video of one run."""
    return (puzzle.frames or sweep.reasoner.settings.frames) * puzzle.image(sweep.reasoner.settings.canvas).nbytes


def recorded_bytes(sweep: Sweep, batch: Batch, until: int) -> int:
    """What the recorders keep of the one run in `batch` in the steps before `until`."""
    return sum(_recorded_bytes(sweep, recorder, batch, until) for recorder in sweep.recorders)


def _recorded_bytes(sweep: Sweep, recorder: Recorder, batch: Batch, until: int) -> int:
    steps = sum(recorder.wants(step) for step in sweep.schedule[:until])
    transformer = sweep.reasoner.transformer
    if recorder.site == "block":
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        kept = recorder.keep(torch.ones(1, math.prod(batch.grid), width, dtype=transformer.dtype), batch)
        return steps * len(recorder.blocks) * kept.nbytes
    return steps * recorder.keep(torch.zeros(1, sweep.reasoner.latent_channels, *batch.extent), batch).nbytes


def hours_line(plans: Sequence[tuple[str, list[Plan]]], device: str, workers: int) -> str:
    """The time on one device as measured here, and shared by `workers` of its kind: of each experiment whole chunks,
    of which the last ones leave some of them waiting.
    """
    hours = sum(one.seconds for _, of_experiment in plans for one in of_experiment) / 3600
    shared = 0.0
    for _, of_experiment in plans:
        chunks = sum(one.chunks for one in of_experiment)
        seconds = sum(one.seconds for one in of_experiment)
        shared += seconds * math.ceil(chunks / workers) / chunks / 3600
    kind = "GPU" if device == "cuda" else "CPU"
    alone = f"{hours:.2g} {kind}-hours, at this machine's pace of a few passes and decodings; scoring is not counted"
    return alone if workers == 1 else f"{alone}; {shared:.2g} hours on {workers} devices like it"


def plan_table(plans: Sequence[tuple[str, list[Plan]]]) -> str:
    """One line for each sweep and a total, as a table in Markdown."""
    head = "| experiment | sweep | runs | passes | unshared | decoded | in memory, MB | put aside, MB | minutes |"
    lines = [head, "|" + " --- |" * 9]
    everything = [one for _, of_experiment in plans for one in of_experiment]
    for experiment, of_experiment in plans:
        lines += [_line(experiment, one) for one in of_experiment]
        if len(of_experiment) > 1:
            lines.append(_line(experiment, _total(of_experiment)))
    return "\n".join([*lines, _line("all", _total(everything))])


def _total(plans: Sequence[Plan]) -> Plan:
    counts = (sum(getattr(p, what) for p in plans) for what in ("runs", "chunks", "evaluations", "unshared", "videos"))
    most, aside = max(p.bytes for p in plans), max(p.aside for p in plans)  # sweeps run one after another
    return Plan("total", *counts, most, aside, sum(p.seconds for p in plans))


def _line(experiment: str, one: Plan) -> str:
    counts = f"{one.runs:,} | {one.evaluations:,} | {one.unshared:,} | {one.videos:,}"
    megabytes = f"{one.bytes / 1e6:.1f} | {one.aside / 1e6:.1f}"
    return f"| {experiment} | {one.name} | {counts} | {megabytes} | {one.seconds / 60:.1f} |"
