"""Denoising: deterministic Euler from noise to video, watched by recorders; all frames together, or one by one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from minicos import flow
from minicos.causal import frame_memory
from minicos.errors import MinicosError
from minicos.model import Condition, Reasoner
from minicos.parallel import host_memory
from minicos.runs import SITES, Address, Batch, Intervention, Run, Site, check_range, company, noise_for
from minicos.sharing import Sharing, branches_of
from minicos.tasks import Puzzle, Video

BRANCHES = "guided", "cond", "uncond"
Records = dict[tuple[str, str, int | None], dict[int, Tensor]]


@dataclass(frozen=True)
class Recorder:
    """Watches one site of a run and changes nothing.

    site: "latents" (before the step), "velocity", "x0_hat", or "block" (hidden states, (batch, tokens, width)).
    branch: "guided" is what the sampler moves by; "cond" and "uncond" are the two passes of guidance, equal to
        "guided" and absent, respectively, at guidance 1. Blocks know only "cond" and "uncond".
    steps: which steps, all when None. blocks: which blocks, for site "block" only.
    reduce: what is kept of a value, (batch, ...) to (batch, ...), at once: nothing larger is ever held. All of it when
        None, which for the blocks of a large model is more than memory has room for.
    """

    site: Site
    branch: Literal["guided", "cond", "uncond"] = "guided"
    steps: tuple[int, ...] | None = None
    blocks: tuple[int, ...] = ()
    reduce: Callable[[Tensor, Batch], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise MinicosError(f"unknown site '{self.site}': choose from {', '.join(SITES)}")
        if self.branch not in BRANCHES:
            raise MinicosError(f"unknown branch '{self.branch}': choose from {', '.join(BRANCHES)}")
        if (self.site == "block") != bool(self.blocks):
            raise MinicosError("`blocks` is for the site 'block', which needs at least one")
        if self.site == "block" and self.branch == "guided":
            raise MinicosError("a block works in one branch: choose 'cond' or 'uncond'")

    def wants(self, step: flow.Step) -> bool:
        return self.steps is None or step.index in self.steps

    def keep(self, value: Tensor, batch: Batch) -> Tensor:
        """What is recorded of a value, in host memory: a GPU has no room for all steps."""
        return (value if self.reduce is None else self.reduce(value, batch)).cpu()


@dataclass
class Trajectory:
    """What runs leave behind.

    latents: final latents, (batch, channels, frames, height, width); video: uint8 (batch, frames, height, width, 3).
    """

    runs: list[Run]
    schedule: tuple[flow.Step, ...]
    latents: Tensor
    video: Video
    _records: Records = field(default_factory=dict, repr=False)

    @property
    def puzzles(self) -> list[Puzzle]:
        return [run.puzzle for run in self.runs]

    def recorded(self, site: Site, branch: str = "guided", block: int | None = None) -> dict[int, Tensor]:
        """Recorded tensors by step, each with the batch as first axis. Raises MinicosError if nobody recorded it."""
        try:
            return self._records[site, branch, block]
        except KeyError:
            where = f"{site} ({branch}{'' if block is None else f', block {block}'})"
            hint = "; uncond is there with guidance above 1 only" if branch == "uncond" else ""
            raise MinicosError(f"{where} was not recorded: pass a Recorder for it to sample(){hint}") from None


def sample(
    reasoner: Reasoner,
    puzzles: Sequence[Puzzle],
    seed: int = 0,
    *,
    schedule: tuple[flow.Step, ...] | None = None,
    interventions: Sequence[Intervention] = (),
    recorders: Sequence[Recorder] = (),
) -> Trajectory:
    """Solve puzzles that share one canvas, by Euler steps from pure noise.

    schedule: the denoising steps, the model's own when None (`reasoner.schedule(steps, shift)` makes others).
    interventions: what is done to every run, in this order. Raises MinicosError as `sample_runs` does.
    """
    runs = [Run(puzzle, seed, tuple(interventions)) for puzzle in puzzles]
    return sample_runs(reasoner, runs, schedule=schedule, recorders=recorders)


def sample_runs(
    reasoner: Reasoner,
    runs: Sequence[Run],
    *,
    schedule: tuple[flow.Step, ...] | None = None,
    recorders: Sequence[Recorder] = (),
    batch_size: int | None = None,
) -> Trajectory:
    """The same for runs that differ in puzzle, seed and interventions. Runs that they need are denoised beside them.

    Runs of one puzzle and seed are computed once until an intervention parts them (`sharing`). batch_size: how many
    videos pass through the network at once, the model's own number when None. Recorders see what interventions have
    left. Raises MinicosError for puzzles of different sizes, and for steps, frames or blocks that do not exist.
    """
    denoising = Denoising(reasoner, runs, schedule=schedule, recorders=recorders, batch_size=batch_size)
    while denoising.done < len(denoising.schedule):
        denoising.advance()
    return denoising.trajectory()


class Denoising:
    """Runs on their way from noise to video, a step at a time. What is done can be put aside, and gone on from.

    Takes what `sample_runs` takes, and raises what it raises. done: how many steps.
    """

    @torch.no_grad()
    def __init__(
        self,
        reasoner: Reasoner,
        runs: Sequence[Run],
        *,
        schedule: tuple[flow.Step, ...] | None = None,
        recorders: Sequence[Recorder] = (),
        batch_size: int | None = None,
    ) -> None:
        everyone = company(runs)
        self.reasoner = _network_for(reasoner, [run.puzzle for run in everyone])
        self.runs, self.recorders = list(runs), recorders
        self.batch_size = batch_size or self.reasoner.settings.batch
        self.schedule = self.reasoner.schedule() if schedule is None else schedule
        self._row_of = {puzzle: row for row, puzzle in enumerate(dict.fromkeys(run.puzzle for run in everyone))}
        self._condition = self.reasoner.condition(list(self._row_of))
        self._extent, self._grid = extents(self.reasoner, self._condition)
        _check_recorders(self.reasoner, self.schedule, recorders)
        _check_memory(self.reasoner, self.schedule, recorders, len(runs) * math.prod(self._grid))
        _check_interventions(self.reasoner, self.schedule, everyone, self._grid[0])
        self._sharing = Sharing(self.reasoner, runs, self.schedule)
        self._state = _State.beginning(self._tracks(0), self.reasoner, self._extent)
        self._records: Records = {}
        self.done = 0

    @torch.no_grad()
    def advance(self) -> None:
        """One more step."""
        step = self.schedule[self.done]
        at = Address("latents", step, self.reasoner.expert_name(step.timestep))
        watching = [recorder for recorder in self.recorders if recorder.wants(step)]
        passes = []
        for tracks in self._sharing.batches(step.index, self.batch_size):
            before = self._state.of(tracks)
            track_of = partial(self._sharing.track, step=step.index)
            batch = Batch(tracks, self._extent, self._grid, self._state.sigma, before.x0_hat, track_of)
            rows = self._condition.rows([self._row_of[track.puzzle] for track in tracks])
            passes.append(_denoise(self.reasoner, before.latents, at, rows, batch, watching))
        kept = _first_rows([track for p in passes for track in p.tracks])
        self._state = _State.after(passes, kept, step)
        where = [kept[row] for row in self._state.rows([self._sharing.track(run, step.index) for run in self.runs])]
        for key in passes[0].recorded:
            self._records.setdefault(key, {})[step.index] = torch.cat([p.recorded[key] for p in passes])[where]
        self.done += 1

    def put_aside(self) -> dict[str, object]:
        """All that the steps so far have left, in host memory; at least one must be done."""
        latents, x0_hat = (value.cpu() for value in (self._state.latents, self._state.x0_hat))
        return {"done": self.done, "latents": latents, "x0_hat": x0_hat, "records": self._records}

    def go_on_from(self, aside: dict[str, object]) -> None:
        """What a denoising of the same runs has put aside."""
        self.done, self._records = aside["done"], aside["records"]
        step = self.schedule[self.done - 1]
        latents, x0_hat = (aside[what].to(self.reasoner.device) for what in ("latents", "x0_hat"))
        self._state = _State(self._tracks(step.index), latents, x0_hat, step.next_sigma)

    def trajectory(self) -> Trajectory:
        """What the runs leave behind, when all steps are done."""
        last = self.schedule[-1].index
        latents = self._state.of([self._sharing.track(run, last) for run in self.runs]).latents
        return Trajectory(self.runs, self.schedule, latents, self.reasoner.decode(latents), self._records)

    def _tracks(self, step: int) -> list[Run]:
        """In the order of the state's rows."""
        return list(dict.fromkeys(t for batch in self._sharing.batches(step, self.batch_size) for t in batch))


@dataclass
class _State:
    """Where every track is between two steps. Rows of latents and x0_hat are in the order of tracks."""

    tracks: list[Run]
    latents: Tensor
    x0_hat: Tensor | None
    sigma: float

    @classmethod
    def beginning(cls, tracks: list[Run], reasoner: Reasoner, extent: tuple[int, int, int]) -> _State:
        noise = noise_for(tracks, (reasoner.latent_channels, *extent), 0, "initial")
        return cls(tracks, noise.to(reasoner.device), None, 1.0)

    @classmethod
    def after(cls, passes: list[_Pass], kept: list[int], step: flow.Step) -> _State:
        """kept: which rows of all passes, one of each track."""
        tracks = [track for p in passes for track in p.tracks]
        latents, x0_hat = torch.cat([p.latents for p in passes]), torch.cat([p.x0_hat for p in passes])
        return cls([tracks[row] for row in kept], latents[kept], x0_hat[kept], step.next_sigma)

    def of(self, tracks: list[Run]) -> _State:
        """The state of these tracks."""
        rows = self.rows(tracks)
        return _State(tracks, self.latents[rows], None if self.x0_hat is None else self.x0_hat[rows], self.sigma)

    def rows(self, tracks: list[Run]) -> list[int]:
        """Where they are; one that begins now is where the undisturbed run has got to."""
        place = {track: row for row, track in enumerate(self.tracks)}
        return [place[track if track in place else Run(track.puzzle, track.seed)] for track in tracks]


@dataclass
class _Pass:
    """What one batch leaves after one step: latents at the next noise level, x0_hat, and what was recorded."""

    tracks: Sequence[Run]
    latents: Tensor
    x0_hat: Tensor
    recorded: dict[tuple[str, str, int | None], Tensor]


def _first_rows(tracks: list[Run]) -> list[int]:
    """Where each track comes first: one that several batches need has passed in each of them."""
    rows: dict[Run, int] = {}
    for row, track in enumerate(tracks):
        rows.setdefault(track, row)
    return list(rows.values())


def _denoise(
    reasoner: Reasoner,
    latents: Tensor,
    at: Address,
    condition: Condition,
    batch: Batch,
    watching: Sequence[Recorder],
) -> _Pass:
    """One Euler step of one batch, with its interventions."""
    recorded: dict[tuple[str, str, int | None], Tensor] = {}
    latents = batch.changed(latents, at)
    velocities = _velocities(reasoner, latents, at, condition, batch, watching, recorded)
    velocities["guided"] = _changed_velocity(velocities["guided"], latents, batch, at)
    for recorder in watching:
        if recorder.site != "block" and recorder.branch in velocities:
            value = _at_site(recorder, latents, velocities[recorder.branch], at.step)
            recorded[recorder.site, recorder.branch, None] = recorder.keep(value, batch)
    x0_hat = flow.estimate_x0(latents, velocities["guided"], at.step.sigma)
    return _Pass(batch.runs, flow.euler_step(latents, velocities["guided"], at.step), x0_hat, recorded)


def rollout(
    reasoner: Reasoner,
    puzzles: Sequence[Puzzle],
    seed: int = 0,
    *,
    schedule: tuple[flow.Step, ...] | None = None,
) -> Trajectory:
    """Solve puzzles frame by frame, as chain-of-frames has it: each from pure noise, after earlier ones are done.

    Frame 0 is the given image. Frame f is denoised by the whole schedule while the frames before it are clean and
    say so (timestep 0), and no later frame exists. The noise is that of `sample`. Each frame passes alone, for earlier
    ones are remembered (`causal.FrameMemory`): all together, a rollout costs about what a joint run of as many steps
    does, and one pass of each frame more.

    Raises MinicosError as `sample` does, and for a network that is not frame-causal (`micro-causal` is): it has never
    seen clean frames beside noisy ones, nor a frame without those that follow.
    """
    return rollout_runs(reasoner, [Run(puzzle, seed) for puzzle in puzzles], schedule=schedule)


@torch.no_grad()
def rollout_runs(
    reasoner: Reasoner, runs: Sequence[Run], *, schedule: tuple[flow.Step, ...] | None = None
) -> Trajectory:
    """The same for runs that differ in puzzle and seed. Raises MinicosError for one that has interventions, too."""
    if any(run.interventions for run in runs):
        raise MinicosError("interventions act on all frames of a step together: a rollout takes none")
    puzzles = [run.puzzle for run in runs]
    reasoner = _network_for(reasoner, puzzles)
    if not reasoner.settings.causal:
        raise MinicosError(f"{reasoner.settings.name} is not frame-causal, a rollout needs one that is: micro-causal")
    schedule = reasoner.schedule() if schedule is None else schedule
    condition = reasoner.condition(puzzles)
    batch = Batch(list(runs), *extents(reasoner, condition))
    latents = _State.beginning(batch.runs, reasoner, batch.extent).latents
    latents[:, :, 0] = condition.channels[:, -reasoner.latent_channels :, 0]
    frames = latents.shape[2]
    with frame_memory(reasoner.transformer) as memory:
        for frame in range(frames):
            memory.frame, now, visible = frame, slice(frame, frame + 1), condition.frames(frame, frame + 1)
            for step in schedule if frame > 0 else ():
                velocity = reasoner.velocity(latents[:, :, now], step.timestep, visible, "cond")
                latents[:, :, now] = flow.euler_step(latents[:, :, now], velocity, step)
            if frame + 1 < frames:  # a pass that says it is clean, for later ones to look at
                reasoner.velocity(latents[:, :, now], 0.0, visible, "cond")
    return Trajectory(list(batch.runs), schedule, latents, reasoner.decode(latents))


def _network_for(reasoner: Reasoner, puzzles: Sequence[Puzzle]) -> Reasoner:
    """The network behind the model's name that these puzzles are for."""
    if not puzzles:
        raise MinicosError("no puzzle to solve: give at least one")
    networks = {reasoner.for_task(puzzle.task) for puzzle in puzzles}
    if len(networks) > 1:
        raise MinicosError("puzzles for different networks in one batch: group them by task first")
    network = networks.pop()
    trained = network.settings.tasks
    for task in sorted({puzzle.task for puzzle in puzzles} - trained.keys() if trained else ()):
        warnings.warn(f"{network.settings.name} was never trained on {task}, but on {', '.join(trained)}", stacklevel=2)
    return network


def extents(reasoner: Reasoner, condition: Condition) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Frames, height and width of the latents, and the same in tokens."""
    extent = tuple(condition.channels.shape[2:])
    patch = reasoner.transformer.config.patch_size
    return extent, tuple(size // side for size, side in zip(extent, patch, strict=True))


def _velocities(
    reasoner: Reasoner,
    latents: Tensor,
    at: Address,
    condition: Condition,
    batch: Batch,
    watching: Sequence[Recorder],
    recorded: dict[tuple[str, str, int | None], Tensor],
) -> dict[str, Tensor]:
    """The velocity of every branch that is computed at this step, and the one to follow as "guided"."""
    scale = reasoner.guidance(at.step)
    velocities = {}
    for branch in branches_of(reasoner, at.step):
        with _block_hooks(reasoner, replace(at, site="block", branch=branch), batch, watching, recorded):
            velocities[branch] = reasoner.velocity(latents, at.step.timestep, condition, branch)
    guided = flow.guide(velocities["cond"], velocities["uncond"], scale) if scale > 1 else velocities["cond"]
    return {**velocities, "guided": guided}


def _changed_velocity(velocity: Tensor, latents: Tensor, batch: Batch, at: Address) -> Tensor:
    """After what acts on the velocity itself, and on x0_hat, which says where the velocity leads to."""
    velocity = batch.changed(velocity, replace(at, site="velocity"))
    x0_hat = flow.estimate_x0(latents, velocity, at.step.sigma)
    changed = batch.changed(x0_hat, replace(at, site="x0_hat"))
    if changed is x0_hat:
        return velocity
    # x0_hat = x_sigma - sigma v, solved for v; to the last bit the same where nothing was changed
    return torch.where(changed == x0_hat, velocity, (latents - changed) / at.step.sigma)


def _at_site(recorder: Recorder, latents: Tensor, velocity: Tensor, step: flow.Step) -> Tensor:
    if recorder.site == "latents":
        return latents
    return velocity if recorder.site == "velocity" else flow.estimate_x0(latents, velocity, step.sigma)


@contextmanager
def _block_hooks(
    reasoner: Reasoner,
    at: Address,
    batch: Batch,
    watching: Sequence[Recorder],
    recorded: dict[tuple[str, str, int | None], Tensor],
) -> Iterator[None]:
    """Forward hooks on changed and recorded blocks for one pass; whatever happens, they are gone afterwards."""
    wanted = {b: r for r in watching if r.site == "block" and r.branch == at.branch for b in r.blocks}
    with ExitStack() as stack:
        for index, block in enumerate(reasoner.blocks(at.step)):
            here = replace(at, block=index)
            if index not in wanted and not batch.acting(here):
                continue

            def hook(module, inputs, output, here=here):
                output = batch.changed(output, here)
                if here.block in wanted:
                    # A copy of what is kept, not of the states: those of a large model are too many to hold twice.
                    kept = wanted[here.block].keep(output.detach(), batch).clone()
                    recorded["block", here.branch, here.block] = kept
                return output

            stack.callback(block.register_forward_hook(hook).remove)
        yield


def _check_recorders(reasoner: Reasoner, schedule: tuple[flow.Step, ...], recorders: Sequence[Recorder]) -> None:
    watched: set[tuple[object, ...]] = set()
    for recorder in recorders:
        check_range("step", recorder.steps, len(schedule))
        check_range("block", recorder.blocks, len(reasoner.transformer.blocks))
        steps = [step.index for step in schedule if recorder.wants(step)]
        places = {(recorder.site, recorder.branch, b, step) for b in recorder.blocks or (None,) for step in steps}
        if places & watched:
            raise MinicosError(f"two recorders of {recorder.site} ({recorder.branch}) at one step: leave one out")
        watched |= places


def _check_memory(
    reasoner: Reasoner, schedule: tuple[flow.Step, ...], recorders: Sequence[Recorder], tokens: int
) -> None:
    """Hidden states as they are, of all `tokens`, must fit into host memory: known before hours have gone by."""
    config = reasoner.transformer.config
    of_block = tokens * config.num_attention_heads * config.attention_head_dim * reasoner.transformer.dtype.itemsize
    whole = [recorder for recorder in recorders if recorder.reduce is None]
    held = sum(of_block * len(r.blocks) * sum(r.wants(step) for step in schedule) for r in whole)
    if held > host_memory():
        raise MinicosError(
            f"hidden states of {held / 1e9:.0f} GB would be recorded, in a memory of {host_memory() / 1e9:.0f}: give "
            "the Recorder a `reduce`, fewer blocks or steps, or take a smaller model"
        )


def _check_interventions(reasoner: Reasoner, schedule: tuple[flow.Step, ...], runs: Sequence[Run], frames: int) -> None:
    limits = {"step": len(schedule), "block": len(reasoner.transformer.blocks), "frame": frames}
    for intervention in {intervention for run in runs for intervention in run.interventions}:
        for what, indices in intervention.indices().items():
            check_range(what, indices, limits[what])
