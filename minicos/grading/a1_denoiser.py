"""Checks of the first assignment: flow matching, and a denoiser from its parts up to what the checkpoint puts out."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed, WanTransformerBlock
from torch import Generator, Tensor

from minicos import flow
from minicos.grading import a1_given
from minicos.grading.checks import Check, Inputs
from minicos.model import Reasoner, load

SHAPE = (3, 2, 4, 5, 6)  # batch, channels, frames, height, width: all different, so that no axis passes for another
ATTENTION = (
    "torch.nn.functional.scaled_dot_product_attention",
    "torch._C._nn.scaled_dot_product_attention",
    "torch.ops.aten.scaled_dot_product_attention",
    "torch.nn.functional.multi_head_attention_forward",
    "torch.nn.MultiheadAttention",
    *(
        f"{place}.{name}"
        for place in ("torch", "torch.ops.aten")
        for name in dir(torch)
        if "attention" in name and callable(getattr(torch, name))
    ),
)


def normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def uniform(count: int, generator: Generator) -> Tensor:
    """(count,), between 0.1 and 0.9."""
    return 0.1 + 0.8 * torch.rand(count, generator=generator)


def over_batch(sigma: Tensor) -> Tensor:
    return sigma.view(-1, 1, 1, 1, 1)


# --- flow matching --------------------------------------------------------------------------------------------------


def videos_and_noise(generator: Generator) -> list[Inputs]:
    return [{"x0": normal(SHAPE, generator), "noise": normal(SHAPE, generator)} for _ in range(2)]


def videos_noise_and_sigma(generator: Generator) -> list[Inputs]:
    return [{**case, "sigma": uniform(SHAPE[0], generator)} for case in videos_and_noise(generator)]


def latents_velocity_and_sigma(generator: Generator) -> list[Inputs]:
    return [
        {"latents": case["x0"], "velocity": case["noise"], "sigma": case["sigma"]}
        for case in videos_noise_and_sigma(generator)
    ]


def steps_to_take(generator: Generator) -> list[Inputs]:
    step = 0.2 + 0.3 * float(torch.rand((), generator=generator))
    return [
        {"latents": case["x0"], "velocity": case["noise"], "sigma": 0.9 - 0.1 * k, "next_sigma": 0.9 - 0.1 * k - step}
        for k, case in enumerate(videos_and_noise(generator))
    ]


def schedules(generator: Generator) -> list[Inputs]:
    steps = int(torch.randint(5, 30, (), generator=generator))
    return [{"steps": steps, "shift": 1.0}, {"steps": steps + 3, "shift": 3.0}, {"steps": 50, "shift": 5.0}]


def sigmas(steps: int, shift: float) -> Tensor:
    taken = flow.schedule(steps, shift)
    return torch.tensor([*(step.sigma for step in taken), taken[-1].next_sigma])


def two_velocities(generator: Generator) -> list[Inputs]:
    scale = 2 + 3 * float(torch.rand((), generator=generator))
    return [{"cond": case["x0"], "uncond": case["noise"], "scale": scale} for case in videos_and_noise(generator)]


# --- tokens and places ----------------------------------------------------------------------------------------------


def pictures(generator: Generator) -> list[Inputs]:
    return [
        {"video": normal((2, 3, 2, 8, 12), generator), "patch": 4},
        {"video": normal((*SHAPE[:2], 3, 4, 6), generator), "patch": 2},
    ]


def patches(video: Tensor, patch: int) -> Tensor:
    """(batch, channels, frames, height, width) to (batch, tokens, channels * patch * patch), by a convolution."""
    channels = video.shape[1]
    size = channels * patch * patch
    kernel = torch.eye(size).view(size, channels, 1, patch, patch)
    return F.conv3d(video, kernel, stride=(1, patch, patch)).flatten(2).transpose(1, 2)


def grids(generator: Generator) -> list[Inputs]:
    found = []
    for head_dim in (24, 32):  # one that can be divided by 6, one that cannot
        frames, rows, columns = (torch.randperm(5, generator=generator)[:3] + 2).tolist()
        more = 12 * int(torch.randint(3, (), generator=generator))
        found.append({"frames": frames, "rows": rows, "columns": columns, "head_dim": head_dim + more})
    return found


def angles(frames: int, rows: int, columns: int, head_dim: int) -> Tensor:
    """(tokens, head_dim / 2), of diffusers' own rotary embedding; up to whole turns."""
    cos, sin = WanRotaryPosEmbed(head_dim, (1, 1, 1), 64)(torch.zeros(1, 1, frames, rows, columns))
    return torch.atan2(sin, cos)[0, :, 0, 0::2].float()


def heads_and_angles(generator: Generator) -> list[Inputs]:
    turn = angles(2, 3, 2, 12)
    return [{"x": normal((2, 3, len(turn), 12), generator), "angles": turn}]


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """x: (batch, heads, tokens, head_dim); neighbouring channels are the two coordinates of a point."""
    points = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(points * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def turned_by_halves(x: Tensor, angles: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()], -1)


# --- attention and the block ----------------------------------------------------------------------------------------


def queries_keys_values(generator: Generator) -> list[Inputs]:
    query = normal((2, 3, 7, 8), generator)
    return [{"query": query, "key": normal((2, 3, 5, 8), generator), "value": normal((2, 3, 5, 8), generator)}]


def unscaled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


def over_queries(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-2) @ value


def random_blocks(generator: Generator) -> list[Inputs]:
    heads, head_dim, ffn = 2, 12, 40
    block = WanTransformerBlock(heads * head_dim, ffn, heads, cross_attn_norm=True)
    weights = {name: 0.3 * normal(tuple(value.shape), generator) for name, value in block.state_dict().items()}
    turn = angles(2, 3, 2, head_dim)
    return [
        {
            "hidden": normal((2, len(turn), heads * head_dim), generator),
            "text": normal((2, 4, heads * head_dim), generator),
            "time": normal((2, 6, heads * head_dim), generator),
            "angles": turn,
            "weights": weights,
            "heads": heads,
        }
    ]


@torch.no_grad()
def block_output(hidden: Tensor, text: Tensor, time: Tensor, angles: Tensor, weights: dict, heads: int) -> Tensor:
    """By diffusers' own block."""
    ffn = len(weights["ffn.net.0.proj.bias"])
    block = WanTransformerBlock(hidden.shape[-1], ffn, heads, cross_attn_norm=True)
    block.load_state_dict(weights)
    cos, sin = (part.repeat_interleave(2, -1)[None, :, None] for part in (angles.cos(), angles.sin()))
    return block.eval()(hidden, text, time, (cos, sin))


def without_time(hidden: Tensor, time: Tensor, **rest: object) -> Tensor:
    return block_output(hidden=hidden, time=torch.zeros_like(time), **rest)


def without_text(weights: dict, **rest: object) -> Tensor:
    silent = {name: torch.zeros_like(w) if name.startswith("attn2.to_out") else w for name, w in weights.items()}
    return block_output(weights=silent, **rest)


def without_places(angles: Tensor, **rest: object) -> Tensor:
    return block_output(angles=torch.zeros_like(angles), **rest)


# --- the shipped checkpoint ------------------------------------------------------------------------------------------


@cache
def shipped() -> Reasoner:
    return load("nano")


def given_to_nano(generator: Generator) -> list[Inputs]:
    reasoner = shipped()
    words = reasoner.text_encoder([get_prompt()]).repeat(2, 1, 1)
    inputs = normal((2, 7, 5, 12, 12), generator)
    times = 1000 * uniform(2, generator)
    weights = {name: value.clone() for name, value in reasoner.transformer.state_dict().items()}
    return [{"inputs": inputs, "timestep": times, "text": words.detach(), "weights": weights, "heads": 4}]


def get_prompt() -> str:
    from minicos.tasks import get_task

    return get_task("maze").prompts()[0]


@torch.no_grad()
def velocity_of_nano(inputs: Tensor, timestep: Tensor, text: Tensor, **_: object) -> Tensor:
    return shipped().transformer(inputs, timestep, text, return_dict=False)[0]


CHECKS = (
    Check(
        "interpolate",
        6,
        videos_noise_and_sigma,
        lambda x0, noise, sigma: flow.interpolate(x0, noise, over_batch(sigma)),
        {
            "at sigma = 0 there must be no noise at all, at sigma = 1 nothing else: the two weights are swapped": (
                lambda x0, noise, sigma: flow.interpolate(noise, x0, over_batch(sigma))
            )
        },
    ),
    Check(
        "target_velocity",
        5,
        videos_and_noise,
        flow.target_velocity,
        {"the sign: along this velocity sigma would fall, not grow": lambda x0, noise: x0 - noise},
    ),
    Check(
        "estimate_x0",
        6,
        latents_velocity_and_sigma,
        lambda latents, velocity, sigma: flow.estimate_x0(latents, velocity, over_batch(sigma)),
        {
            "the sign: this walks towards the noise": (
                lambda latents, velocity, sigma: latents + over_batch(sigma) * velocity
            ),
            "how far is it from sigma down to 0?": (
                lambda latents, velocity, sigma: latents - (1 - over_batch(sigma)) * velocity
            ),
        },
    ),
    Check(
        "euler_step",
        5,
        steps_to_take,
        lambda latents, velocity, sigma, next_sigma: latents + (next_sigma - sigma) * velocity,
        {
            "the sign: this step goes back towards the noise": (
                lambda latents, velocity, sigma, next_sigma: latents + (sigma - next_sigma) * velocity
            ),
            "this goes all the way to sigma = 0 in one step": (
                lambda latents, velocity, sigma, next_sigma: latents - sigma * velocity
            ),
        },
    ),
    Check(
        "schedule",
        8,
        schedules,
        sigmas,
        {
            "the shift must spend more of the steps at high noise, not fewer": lambda steps, shift: sigmas(
                steps, 1 / shift
            )
        },
    ),
    Check(
        "guide",
        5,
        two_velocities,
        flow.guide,
        {
            "at scale 1 the result must be the cond velocity": (
                lambda cond, uncond, scale: cond + scale * (cond - uncond)
            ),
            "cond and uncond are swapped": lambda cond, uncond, scale: cond + scale * (uncond - cond),
        },
    ),
    Check(
        "patchify",
        8,
        pictures,
        patches,
        {
            "the values of a token: channels first, then rows, then columns": (
                lambda video, patch: (
                    patches(video, patch)
                    .unflatten(-1, (video.shape[1], patch, patch))
                    .permute(0, 1, 3, 4, 2)
                    .flatten(2)
                )
            ),
            "the tokens of a frame: row by row": (
                lambda video, patch: (
                    patches(video.transpose(3, 4), patch)
                    .unflatten(-1, (video.shape[1], patch, patch))
                    .transpose(-1, -2)
                    .flatten(2)
                )
            ),
        },
        forbidden=("torch.nn.functional.conv3d", "torch.conv3d", "torch.nn.Conv3d"),
    ),
    Check(
        "rope_angles",
        8,
        grids,
        angles,
        driver=(
            "result = torch.as_tensor(rope_angles(frames, rows, columns, head_dim))\n"
            "result = torch.atan2(torch.sin(result), torch.cos(result))"
        ),
    ),
    Check(
        "rotate",
        8,
        heads_and_angles,
        turned,
        {
            "it is neighbouring channels that belong together, not the two halves": turned_by_halves,
            "the direction: a positive angle turns the first coordinate towards the second": (
                lambda x, angles: turned(x, -angles)
            ),
        },
    ),
    Check(
        "attention",
        8,
        queries_keys_values,
        F.scaled_dot_product_attention,
        {
            "large products make the softmax too sharp: what are they divided by?": unscaled,
            "the weights of one query, over all keys, must add up to 1": over_queries,
        },
        forbidden=ATTENTION,
    ),
    Check(
        "wan_block",
        15,
        random_blocks,
        block_output,
        {
            "time makes no difference to the result": without_time,
            "the prompt makes no difference to the result": without_text,
            "the tokens' places make no difference to the result": without_places,
        },
        given=(a1_given.rotate, a1_given.attention),
        forbidden=ATTENTION,
        tolerance=1e-3,
    ),
    Check(
        "denoise",
        10,
        given_to_nano,
        velocity_of_nano,
        {
            "the sign of the velocity": lambda **inputs: -velocity_of_nano(**inputs),
        },
        given=(a1_given.patchify, a1_given.rope_angles, a1_given.rotate, a1_given.attention, a1_given.wan_block),
        tolerance=1e-3,
    ),
)
