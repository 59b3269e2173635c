"""The only denoising loop: deterministic Euler from noise to video, watched by recorders."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from minicos import flow
from minicos.errors import MinicosError
from minicos.model import Branch, Condition, Reasoner
from minicos.tasks import Puzzle, Video

Site = Literal["latents", "velocity", "x0_hat", "block"]
SITES: tuple[Site, ...] = ("latents", "velocity", "x0_hat", "block")


@dataclass(frozen=True)
class Recorder:
    """Watches one site of a run and changes nothing.

    site: "latents" (before the step), "velocity", "x0_hat", or "block" (hidden states, (batch, tokens, width)).
    branch: "guided" is what the sampler moves by; "cond" and "uncond" are the two passes of guidance, equal to
        "guided" and absent, respectively, at guidance 1. Blocks know only "cond" and "uncond".
    steps: which steps, all when None. blocks: which blocks, for site "block" only.
    """

    site: Site
    branch: Literal["guided", "cond", "uncond"] = "guided"
    steps: tuple[int, ...] | None = None
    blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise MinicosError(f"unknown site '{self.site}': choose from {', '.join(SITES)}")
        if (self.site == "block") != bool(self.blocks):
            raise MinicosError("`blocks` is for the site 'block', which needs at least one")
        if self.site == "block" and self.branch == "guided":
            raise MinicosError("a block works in one branch: choose 'cond' or 'uncond'")

    def wants(self, step: flow.Step) -> bool:
        return self.steps is None or step.index in self.steps


@dataclass
class Trajectory:
    """What a run leaves behind.

    latents: final latents, (batch, channels, frames, height, width); video: uint8 (batch, frames, height, width, 3).
    """

    puzzles: list[Puzzle]
    seed: int
    schedule: tuple[flow.Step, ...]
    latents: Tensor
    video: Video
    _records: dict[tuple[str, str, int | None], dict[int, Tensor]] = field(default_factory=dict, repr=False)

    def recorded(self, site: Site, branch: str = "guided", block: int | None = None) -> dict[int, Tensor]:
        """Recorded tensors by step, each with the batch as first axis. Raises MinicosError if nobody recorded it."""
        try:
            return self._records[site, branch, block]
        except KeyError:
            where = f"{site} ({branch}{'' if block is None else f', block {block}'})"
            raise MinicosError(f"{where} was not recorded: pass a Recorder for it to sample()") from None


def noise_for(puzzles: Sequence[Puzzle], shape: tuple[int, ...], seed: int, step: int, purpose: str) -> Tensor:
    """Standard normal noise, (batch, *shape), one stream for each (seed, puzzle, step, purpose), drawn on the CPU.

    It depends neither on the batch nor on the device, so a run can be repeated alone or in other company.
    """
    rows = []
    for puzzle in puzzles:
        digest = hashlib.blake2b(f"{seed}/{puzzle.key}/{step}/{purpose}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
        rows.append(torch.randn(shape, generator=generator))
    return torch.stack(rows)


@torch.no_grad()
def sample(
    reasoner: Reasoner,
    puzzles: Sequence[Puzzle],
    seed: int = 0,
    *,
    schedule: tuple[flow.Step, ...] | None = None,
    recorders: Sequence[Recorder] = (),
) -> Trajectory:
    """Solve puzzles that share one canvas, by Euler steps from pure noise.

    schedule: the denoising steps, the model's own when None (`reasoner.schedule(steps, shift)` makes others).
    Raises MinicosError for puzzles of different sizes, and for recorders of steps or blocks that do not exist.
    """
    reasoner = _network_for(reasoner, puzzles)
    schedule = reasoner.schedule() if schedule is None else schedule
    _check_recorders(reasoner, schedule, recorders)
    condition = reasoner.condition(puzzles)
    latents = _initial_latents(reasoner, puzzles, condition, seed)
    records: dict[tuple[str, str, int | None], dict[int, Tensor]] = {}
    for step in schedule:
        watching = [recorder for recorder in recorders if recorder.wants(step)]
        velocities = _velocities(reasoner, latents, step, step.timestep, condition, watching, records)
        for recorder in watching:
            if recorder.site != "block" and recorder.branch in velocities:
                value = _at_site(recorder, latents, velocities[recorder.branch], step)
                records.setdefault((recorder.site, recorder.branch, None), {})[step.index] = value
        latents = flow.euler_step(latents, velocities["guided"], step)
    return Trajectory(list(puzzles), seed, schedule, latents, reasoner.decode(latents), records)


@torch.no_grad()
def rollout(
    reasoner: Reasoner,
    puzzles: Sequence[Puzzle],
    seed: int = 0,
    *,
    schedule: tuple[flow.Step, ...] | None = None,
) -> Trajectory:
    """Solve puzzles frame by frame, as chain-of-frames has it: each from pure noise, after earlier ones are done.

    Frame 0 is the given image. Frame f is denoised by the whole schedule while the frames before it are clean and
    say so (timestep 0), and no later frame exists. The noise is that of `sample`. Only a model that was trained with
    clean earlier frames (`micro-causal`) knows such inputs. Raises MinicosError as `sample` does.
    """
    reasoner = _network_for(reasoner, puzzles)
    schedule = reasoner.schedule() if schedule is None else schedule
    condition = reasoner.condition(puzzles)
    latents = _initial_latents(reasoner, puzzles, condition, seed)
    latents[:, :, 0] = condition.channels[:, -reasoner.latent_channels :, 0]
    for frame in range(1, latents.shape[2]):
        visible = condition.first_frames(frame + 1)
        times = torch.zeros(len(latents), frame + 1, device=latents.device)
        for step in schedule:
            times[:, frame] = step.timestep
            velocity = _velocities(reasoner, latents[:, :, : frame + 1], step, times, visible, (), {})["guided"]
            latents[:, :, frame] = flow.euler_step(latents[:, :, frame], velocity[:, :, frame], step)
    return Trajectory(list(puzzles), seed, schedule, latents, reasoner.decode(latents))


def _network_for(reasoner: Reasoner, puzzles: Sequence[Puzzle]) -> Reasoner:
    """The network behind the model's name that these puzzles are for."""
    if not puzzles:
        raise MinicosError("no puzzle to solve: give at least one")
    networks = {reasoner.for_task(puzzle.task) for puzzle in puzzles}
    if len(networks) > 1:
        raise MinicosError("puzzles for different networks in one batch: group them by task first")
    return networks.pop()


def _initial_latents(reasoner: Reasoner, puzzles: Sequence[Puzzle], condition: Condition, seed: int) -> Tensor:
    shape = (reasoner.latent_channels, *condition.channels.shape[2:])
    return noise_for(puzzles, shape, seed, 0, "initial").to(reasoner.device)


def _velocities(
    reasoner: Reasoner,
    latents: Tensor,
    step: flow.Step,
    timestep: Tensor | float,
    condition: Condition,
    watching: Sequence[Recorder],
    records: dict[tuple[str, str, int | None], dict[int, Tensor]],
) -> dict[str, Tensor]:
    """The velocity of every branch that is computed at this step, and the one to follow as "guided"."""
    scale = reasoner.guidance(step)
    branches: tuple[Branch, ...] = ("cond", "uncond") if scale > 1 else ("cond",)
    velocities = {}
    for branch in branches:
        with _block_hooks(reasoner, step, branch, watching, records):
            velocities[branch] = reasoner.velocity(latents, timestep, condition, branch)
    guided = flow.guide(velocities["cond"], velocities["uncond"], scale) if scale > 1 else velocities["cond"]
    return {**velocities, "guided": guided}


def _at_site(recorder: Recorder, latents: Tensor, velocity: Tensor, step: flow.Step) -> Tensor:
    if recorder.site == "latents":
        return latents
    return velocity if recorder.site == "velocity" else flow.estimate_x0(latents, velocity, step.sigma)


@contextmanager
def _block_hooks(
    reasoner: Reasoner,
    step: flow.Step,
    branch: Branch,
    watching: Sequence[Recorder],
    records: dict[tuple[str, str, int | None], dict[int, Tensor]],
) -> Iterator[None]:
    """Forward hooks on the recorded blocks for the length of one pass; whatever happens, they are gone afterwards."""
    blocks = reasoner.blocks(step)
    with ExitStack() as stack:
        for index in {b for r in watching if r.site == "block" and r.branch == branch for b in r.blocks}:
            store = records.setdefault(("block", branch, index), {})

            def keep(module, inputs, output, store=store):
                store[step.index] = output.detach().clone()

            stack.callback(blocks[index].register_forward_hook(keep).remove)
        yield


def _check_recorders(reasoner: Reasoner, schedule: tuple[flow.Step, ...], recorders: Sequence[Recorder]) -> None:
    for recorder in recorders:
        for step in recorder.steps or ():
            if not 0 <= step < len(schedule):
                raise MinicosError(f"step {step} does not exist: this run has steps 0 to {len(schedule) - 1}")
        for block in recorder.blocks:
            if not 0 <= block < len(reasoner.transformer.blocks):
                last = len(reasoner.transformer.blocks) - 1
                raise MinicosError(f"block {block} does not exist: this model has blocks 0 to {last}")
