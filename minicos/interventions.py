"""What changes a run: noise, re-noising, swapped and averaged hidden states.

Each is a small frozen dataclass; a run has a list of them. None as steps, frames or blocks means all of them, an empty
tuple none: then nothing is changed, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from minicos.model import Branch
from minicos.runs import Address, Batch, Intervention, Run, Site
from minicos.tasks import Puzzle

Some = tuple[int, ...] | None


def _among(index: int, some: Some) -> bool:
    return some is None or index in some


@dataclass(frozen=True)
class Places:
    """Which latents: of these frames, a share of the tokens, drawn anew for every seed, puzzle and step."""

    frames: Some = None
    share: float = 1.0

    def mask(self, rows: list[int], batch: Batch, at: Address) -> Tensor:
        """Bool (rows, 1, frames, height, width), True where latents are to be changed."""
        chosen = torch.tensor([_among(frame, self.frames) for frame in range(batch.grid[0])])
        mask = chosen.view(1, -1, 1, 1).expand(len(rows), *batch.grid)
        if self.share < 1:
            lots = torch.special.ndtr(batch.noise(rows, batch.grid, at.step.index, "places"))  # normal to uniform
            mask = mask & (lots < self.share)
        _, down, across = (size // tokens for size, tokens in zip(batch.extent, batch.grid, strict=True))
        return mask.repeat_interleave(down, 2).repeat_interleave(across, 3)[:, None]


@dataclass(frozen=True)
class Noise(Intervention):
    """Overwrite latents with fresh unit noise before a step (paper: noise at step, noise at frame).

    Any set of steps, frames and positions; the paper's two are below. At step 0 it merely changes the seed.
    """

    steps: Some = None
    places: Places = Places()

    def indices(self) -> dict[str, Some]:
        return {"step": self.steps, "frame": self.places.frames}

    def acts(self, at: Address) -> bool:
        return at.site == "latents" and _among(at.step.index, self.steps) and self.places.frames != ()

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        noise = batch.noise(rows, tuple(value.shape[1:]), at.step.index, "noise").to(value)
        return torch.where(self.places.mask(rows, batch, at).to(value.device), noise, value[rows])


def noise_at_step(step: int) -> Noise:
    """Every frame, at one step: as many frame-steps erased as there are frames."""
    return Noise(steps=(step,))


def noise_at_frame(frame: int) -> Noise:
    """One frame, at every step: as many frame-steps erased as there are steps."""
    return Noise(places=Places(frames=(frame,)))


@dataclass(frozen=True)
class Renoise(Intervention):
    """Before a step, put the last step's x0_hat back to the noise level sigma_s with fresh noise.

    Erases what latents know beyond x0_hat, and stays on the path that the model was trained on, which unit noise does
    not: the control of Noise, and the first form of a restart. draw: tells restarts of one run apart.
    """

    steps: Some
    places: Places = Places()
    draw: int = 0

    def indices(self) -> dict[str, Some]:
        return {"step": self.steps, "frame": self.places.frames}

    def acts(self, at: Address) -> bool:
        return at.site == "latents" and _among(at.step.index, self.steps) and self.places.frames != ()

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        noise = batch.noise(rows, tuple(value.shape[1:]), at.step.index, f"renoise {self.draw}").to(value)
        clean = torch.zeros_like(noise) if batch.x0_hat is None else batch.x0_hat[rows]
        # x' = (1 - sigma) x0_hat + sigma noise
        fresh = (1 - at.step.sigma) * clean + at.step.sigma * noise
        return torch.where(self.places.mask(rows, batch, at).to(value.device), fresh, value[rows])


@dataclass(frozen=True)
class NoiseUp(Intervention):
    """Before a step, take latents from the noise level they have up to the step's own: the second form of a restart.

    Goes with a schedule that turns back there (`flow.turned_back`); where the levels agree it changes nothing.
    """

    step: int
    draw: int = 0

    def indices(self) -> dict[str, Some]:
        return {"step": (self.step,)}

    def acts(self, at: Address) -> bool:
        return at.site == "latents" and at.step.index == self.step

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        low, high = batch.sigma, at.step.sigma
        if high <= low:
            return value[rows]
        noise = batch.noise(rows, tuple(value.shape[1:]), self.step, f"noise up {self.draw}").to(value)
        # Of x = (1 - low) x0 + low e, scaled so that x0 has the weight 1 - high; the rest of the variance is fresh.
        scale = (1 - high) / (1 - low)
        return scale * value[rows] + sqrt(high**2 - (scale * low) ** 2) * noise


@dataclass(frozen=True)
class CorruptAndRenoise(Intervention):
    """Before a step, shuffle a share of the tokens of the last x0_hat among themselves, and re-noise all to sigma_s.

    Does the model repair what is broken (the recovery test of "Think before you paint")? The control is Renoise at the
    same step, which breaks nothing.
    """

    step: int
    share: float

    def indices(self) -> dict[str, Some]:
        return {"step": (self.step,)}

    def acts(self, at: Address) -> bool:
        return at.site == "latents" and at.step.index == self.step and self.share > 0

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        broken = Batch(batch.runs, batch.extent, batch.grid, batch.sigma, batch.x0_hat)
        if batch.x0_hat is not None:
            broken.x0_hat = batch.x0_hat.clone()
            broken.x0_hat[rows] = self._shuffled(batch.x0_hat[rows], rows, batch, at)
        return Renoise((self.step,)).change(value, rows, broken, at)

    def _shuffled(self, x0_hat: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        lots = batch.noise(rows, batch.grid, at.step.index, "shuffle").flatten(1)
        tokens = to_tokens(x0_hat, batch)
        for row, order in enumerate(lots):
            chosen = order.argsort()[: round(self.share * order.numel())].to(tokens.device)
            tokens[row, chosen] = tokens[row, chosen.roll(1)]
        return from_tokens(tokens, batch)


def to_tokens(latents: Tensor, batch: Batch) -> Tensor:
    """(rows, channels, frames, height, width) to (rows, tokens, values), tokens in frame-row-column order; a copy."""
    (frames, down, across), rows = batch.grid, len(latents)
    sides = [size // tokens for size, tokens in zip(batch.extent, batch.grid, strict=True)]
    split = latents.reshape(rows, -1, frames, sides[0], down, sides[1], across, sides[2])
    return split.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(rows, frames * down * across, -1).clone()


def from_tokens(tokens: Tensor, batch: Batch) -> Tensor:
    """The inverse of to_tokens."""
    (frames, down, across), rows = batch.grid, len(tokens)
    sides = [size // count for size, count in zip(batch.extent, batch.grid, strict=True)]
    split = tokens.reshape(rows, frames, down, across, -1, *sides)
    return split.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(rows, -1, *batch.extent)


@dataclass(frozen=True)
class Tokens:
    """Which hidden states of a pass: in these frames, a region of the puzzle's task (`Task.regions`, or "all").

    other: another puzzle, where whose region lies belongs to it too; the donor's where None, if there is a donor.
    """

    region: str = "all"
    frames: Some = None
    other: Puzzle | None = None

    def mask(self, rows: list[int], batch: Batch, donor: Puzzle | None = None) -> Tensor:
        """Bool (rows, tokens, 1). A goal that is swapped is the one that goes and, with a donor, the one that comes."""
        other = self.other or donor
        frames = torch.tensor([_among(frame, self.frames) for frame in range(batch.grid[0])])
        regions = torch.stack([batch.region(row, self.region, other) for row in rows])
        return (frames.view(1, -1, 1, 1) & regions[:, None]).flatten(1)[..., None]


@dataclass(frozen=True)
class SwapHidden(Intervention):
    """Replace the output of one block by another run's, at the same step (paper: latent swap).

    donor: the other run, denoised beside this one. branch: of guidance; both where None. An undisturbed donor with the
    run's own puzzle and seed is the run itself, which is a null.
    """

    donor: Run
    block: int
    steps: Some = (0,)
    tokens: Tokens = Tokens()
    branch: Branch | None = None

    def indices(self) -> dict[str, Some]:
        return {"step": self.steps, "block": (self.block,), "frame": self.tokens.frames}

    def needs(self, run: Run) -> tuple[Run, ...]:
        return () if is_itself(self.donor, run) else (self.donor,)

    def acts(self, at: Address) -> bool:
        here = at.site == "block" and at.block == self.block and _among(at.step.index, self.steps)
        return here and self.tokens.frames != () and self.branch in (None, at.branch)

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        mask = self.tokens.mask(rows, batch, self.donor.puzzle).to(value.device)
        return torch.where(mask, value[sources(self.donor, rows, batch)], value[rows])


@dataclass(frozen=True)
class TakeLatents(Intervention):
    """Before a step, put another run's latents in the place of this one's: what it goes on with, under its own picture.

    donor: the other run, denoised beside this one. An undisturbed donor with the run's own puzzle and seed is a null.
    """

    donor: Run
    step: int
    places: Places = Places()

    def indices(self) -> dict[str, Some]:
        return {"step": (self.step,), "frame": self.places.frames}

    def needs(self, run: Run) -> tuple[Run, ...]:
        return () if is_itself(self.donor, run) else (self.donor,)

    def acts(self, at: Address) -> bool:
        return at.site == "latents" and at.step.index == self.step and self.places.frames != ()

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        mask = self.places.mask(rows, batch, at).to(value.device)
        return torch.where(mask, value[sources(self.donor, rows, batch)], value[rows])


def is_itself(donor: Run, run: Run) -> bool:
    """Whether a donor is the undisturbed run of the same puzzle and seed."""
    return donor == Run(run.puzzle, run.seed)


def sources(donor: Run, rows: list[int], batch: Batch) -> list[int]:
    """Where the donor is, for each of these rows: its own row where it is itself, for rows that are equal in exact
    arithmetic may differ in the last bits.
    """
    return [row if is_itself(donor, batch.runs[row]) else batch.row_of(donor) for row in rows]


@dataclass(frozen=True)
class NoiseHidden(Intervention):
    """Replace the output of one block by noise, each token with the norm that it had: what any swap would break.

    branch: of guidance; both where None.
    """

    block: int
    steps: Some = (0,)
    tokens: Tokens = Tokens()
    branch: Branch | None = None

    def indices(self) -> dict[str, Some]:
        return {"step": self.steps, "block": (self.block,), "frame": self.tokens.frames}

    def acts(self, at: Address) -> bool:
        here = at.site == "block" and at.block == self.block and _among(at.step.index, self.steps)
        return here and self.tokens.frames != () and self.branch in (None, at.branch)

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        noise = batch.noise(rows, tuple(value.shape[1:]), at.step.index, f"hidden {at.branch} {self.block}").to(value)
        noise *= value[rows].norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
        return torch.where(self.tokens.mask(rows, batch).to(value.device), noise, value[rows])


@dataclass(frozen=True)
class Average(Intervention):
    """Replace what a run has at a site by the mean over runs of the same puzzle with other seeds (paper: ensemble).

    The paper's ensemble is site "block", blocks 20 to 29 of 40, steps (0,), 3 seeds. Its controls are the other sites.
    Each run keeps its own latents unless the site is "latents". matched: scale the mean to the mean norm of what it was
    made of (hidden states: of each token; otherwise of each video); for initial noise that is about sqrt(seeds).
    branch: of guidance, for hidden states; both where None.
    """

    seeds: tuple[int, ...]
    site: Site = "block"
    blocks: Some = None
    steps: Some = (0,)
    matched: bool = False
    branch: Branch | None = None

    def indices(self) -> dict[str, Some]:
        return {"step": self.steps, "block": self.blocks}

    def needs(self, run: Run) -> tuple[Run, ...]:
        return tuple(Run(run.puzzle, seed, run.interventions) for seed in self.seeds)

    def acts(self, at: Address) -> bool:
        here = at.site == self.site and _among(at.step.index, self.steps)
        return here and (self.site != "block" or (_among(at.block, self.blocks) and self.branch in (None, at.branch)))

    def change(self, value: Tensor, rows: list[int], batch: Batch, at: Address) -> Tensor:
        return torch.stack([self._mean(value[self._peers(batch.runs[row], batch)]) for row in rows])

    def _peers(self, run: Run, batch: Batch) -> list[int]:
        return [batch.row_of(peer) for peer in self.needs(run)]

    def _mean(self, values: Tensor) -> Tensor:
        if (values == values[:1]).all():  # the mean of equal numbers can differ from them in the last bit
            return values[0]
        mean = values.mean(0)
        if not self.matched:
            return mean
        axes = (-1,) if self.site == "block" else tuple(range(-mean.ndim, 0))
        norms = torch.linalg.vector_norm(values, dim=axes, keepdim=True).mean(0)
        return mean * (norms / torch.linalg.vector_norm(mean, dim=axes, keepdim=True))
