"""Flow matching, the only mathematics that sampling and training share. The equation stands above each line.

sigma is the noise level: 1 is pure noise, 0 the clean video. Tensors may have any shape; a sigma is a float, or a
tensor that broadcasts against them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minicos.errors import MinicosError

if TYPE_CHECKING:
    from torch import Tensor

TIMESTEPS = 1000  # the transformer is told sigma as a timestep between 0 and 1000


@dataclass(frozen=True)
class Step:
    """One denoising step: from `sigma` down to `next_sigma`; the transformer is told `timestep`."""

    index: int
    sigma: float
    next_sigma: float
    timestep: float


def shift_sigma(u, shift: float):
    """Spend more of the steps at high noise: the schedule of Wan and of the paper's setup.

    u: in [0, 1], float or tensor; shift > 0 (1 leaves u as it is, the paper uses 5).
    """
    # sigma = shift u / (1 + (shift - 1) u)
    return shift * u / (1 + (shift - 1) * u)


def schedule(steps: int, shift: float) -> tuple[Step, ...]:
    """`steps` Euler steps from sigma 1 to 0, evenly spaced before the shift.

    Raises MinicosError for fewer than one step, or a shift that is not positive.
    """
    if steps < 1:
        raise MinicosError(f"{steps} denoising steps: at least 1 is needed")
    if not shift > 0:
        raise MinicosError(f"a shift of {shift}: it must be positive (the paper uses 5)")
    # u_s = 1 - s / N
    sigmas = [shift_sigma(1 - s / steps, shift) for s in range(steps + 1)]
    return tuple(Step(s, sigmas[s], sigmas[s + 1], sigmas[s] * TIMESTEPS) for s in range(steps))


def turned_back(steps: tuple[Step, ...], at: int, to: int) -> tuple[Step, ...]:
    """A schedule that comes to step `at`, and there begins again with step `to`; numbered anew.

    What it goes on with at `at` has to be noised up to the level of `to` first (`interventions.NoiseUp`).
    """
    walk = [*steps[:at], *steps[to:]]
    return tuple(replace(step, index=index) for index, step in enumerate(walk))


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """The straight path from the clean latents to noise (paper, setup)."""
    # x_sigma = (1 - sigma) x0 + sigma x1,   x1 ~ N(0, I)
    return (1 - sigma) * x0 + sigma * noise


def target_velocity(x0: Tensor, noise: Tensor) -> Tensor:
    """What the network learns to predict: the derivative of the path by sigma."""
    # v = dx_sigma / dsigma = x1 - x0
    return noise - x0


def estimate_x0(latents: Tensor, velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """x0_hat: where the straight line through `latents` with this velocity meets sigma = 0 (paper, section 3)."""
    # x0_hat = x_sigma - sigma v
    return latents - sigma * velocity


def expected_x0(latents: Tensor, answers: Tensor, sigma: Tensor) -> Tensor:
    """The mean of the clean latents that may have led to `latents`, where those are one of a few, all as likely: what
    the best x0_hat is.

    latents: (batch, ...); answers: (batch, answers, ...); sigma: (batch,), over 0.
    """
    # E[x0 | x_sigma] = sum_k w_k x0_k,   w_k ~ exp(-|x_sigma - (1 - sigma) x0_k|^2 / (2 sigma^2))
    level = sigma.view(-1, 1, *[1] * (latents.ndim - 1))
    distance = (latents[:, None] - (1 - level) * answers).square().flatten(2).sum(2)
    weights = (-distance / (2 * sigma[:, None] ** 2)).softmax(1)
    return (weights.view(*weights.shape, *[1] * (latents.ndim - 1)) * answers).sum(1)


def euler_step(latents: Tensor, velocity: Tensor, step: Step) -> Tensor:
    """One deterministic Euler step."""
    # x_{sigma'} = x_sigma + (sigma' - sigma) v
    return latents + (step.next_sigma - step.sigma) * velocity


def guide(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho and Salimans 2022): extrapolate from the uncond towards the cond velocity."""
    # v = v_uncond + g (v_cond - v_uncond)
    return uncond + scale * (cond - uncond)
