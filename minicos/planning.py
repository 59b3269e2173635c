"""What sweeps will cost, before they are run: passes through the network, memory, and time on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minicos.model import Reasoner
from minicos.parallel import each, lanes
from minicos.runs import Batch
from minicos.sampling import Recorder, extents
from minicos.sweeps import Sweep
from minicos.tasks import Puzzle

TIMED = 2  # passes of a full batch that are timed on every core, after one that is not


@dataclass(frozen=True)
class Plan:
    """One sweep. evaluations: passes of one video; unshared: if every run were computed from its first step.

    bytes: of the recorded tensors of its largest chunk, which are in memory at one time. seconds: of the passes alone,
    measured on a few.
    """

    name: str
    runs: int
    evaluations: int
    unshared: int
    bytes: int
    seconds: float


def plan(sweeps: Sequence[Sweep]) -> list[Plan]:
    """Counts are exact; times come from a few passes of each network on each canvas."""
    pace: dict[tuple[Reasoner, tuple[int, ...]], float] = {}
    found = []
    for sweep in sweeps:
        run = sweep.chunks[0][0].run
        batch = Batch([run], *extents(sweep.reasoner, sweep.reasoner.condition([run.puzzle])))
        if (sweep.reasoner, batch.extent) not in pace:
            pace[sweep.reasoner, batch.extent] = seconds_a_pass(sweep.reasoner, run.puzzle)
        runs, evaluations = sum(map(len, sweep.chunks)), sweep.evaluations()
        unshared = evaluations if sweep.frame_by_frame else runs * len(sweep.schedule) * sweep.branches
        held = max(map(len, sweep.chunks)) * sum(recorded_bytes(sweep, recorder, batch) for recorder in sweep.recorders)
        seconds = evaluations * pace[sweep.reasoner, batch.extent]
        found.append(Plan(sweep.name, runs, evaluations, unshared, held, seconds))
    return found


def seconds_a_pass(reasoner: Reasoner, puzzle: Puzzle) -> float:
    """Of one video, in batches of as many as a sweep takes, as many at once as in a sweep."""
    batch, at_once = reasoner.settings.batch, lanes(reasoner)
    condition = reasoner.condition([puzzle] * batch)
    latents = torch.zeros(batch, reasoner.latent_channels, *condition.channels.shape[2:], device=reasoner.device)
    timestep = reasoner.schedule()[0].timestep

    @torch.no_grad()
    def one_pass(own: Reasoner, _: int) -> float:
        own.velocity(latents, timestep, condition, "cond").sum().item()  # item() waits for a GPU
        return time.perf_counter()

    ends = sorted(end for _, end in each(reasoner, one_pass, range(at_once * (1 + TIMED))))
    # From the end of the first round to that of the last: threads take time to start.
    return (ends[-1] - ends[at_once - 1]) / (at_once * TIMED) / batch


def recorded_bytes(sweep: Sweep, recorder: Recorder, batch: Batch) -> int:
    """What a recorder keeps of the one run in `batch`."""
    steps = sum(recorder.wants(step) for step in sweep.schedule)
    transformer = sweep.reasoner.transformer
    if recorder.site == "block":
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        kept = recorder.keep(torch.ones(1, math.prod(batch.grid), width, dtype=transformer.dtype), batch)
        return steps * len(recorder.blocks) * kept.nbytes
    return steps * recorder.keep(torch.zeros(1, sweep.reasoner.latent_channels, *batch.extent), batch).nbytes


def hours_line(plans: Sequence[tuple[str, list[Plan]]], device: str, workers: int) -> str:
    """The time of the passes on one device as measured here, and shared by `workers` of its kind."""
    hours = sum(one.seconds for _, of_experiment in plans for one in of_experiment) / 3600
    alone = f"{hours:.2g} {'GPU' if device == 'cuda' else 'CPU'}-hours of passes, at the pace of a few on this machine"
    return alone if workers == 1 else f"{alone}; {hours / workers:.2g} hours on {workers} devices like it"


def plan_table(plans: Sequence[tuple[str, list[Plan]]]) -> str:
    """One line for each sweep and a total, as a table in Markdown."""
    lines = ["| experiment | sweep | runs | passes | unshared | recorded, MB | minutes |", "|" + " --- |" * 7]
    everything = [one for _, of_experiment in plans for one in of_experiment]
    for experiment, of_experiment in plans:
        lines += [_line(experiment, one) for one in of_experiment]
        if len(of_experiment) > 1:
            lines.append(_line(experiment, _total(of_experiment)))
    return "\n".join([*lines, _line("all", _total(everything))])


def _total(plans: Sequence[Plan]) -> Plan:
    runs, evaluations, unshared = (sum(getattr(p, what) for p in plans) for what in ("runs", "evaluations", "unshared"))
    return Plan("total", runs, evaluations, unshared, max(p.bytes for p in plans), sum(p.seconds for p in plans))


def _line(experiment: str, one: Plan) -> str:
    counts = f"{one.runs:,} | {one.evaluations:,} | {one.unshared:,}"
    return f"| {experiment} | {one.name} | {counts} | {one.bytes / 1e6:.1f} | {one.seconds / 60:.1f} |"
