"""Answers to the first assignment that students might give: by name, what each cell holds instead of the solution."""

from __future__ import annotations

# Every cell here is wrong in one way, and costs the points of its own exercise.
WRONG = {
    "signs and axes": {
        "interpolate": """
def interpolate(x0, noise, sigma):
    sigma = sigma.view(-1, 1, 1, 1, 1)
    return sigma * x0 + (1 - sigma) * noise""",
        "target_velocity": """
def target_velocity(x0, noise):
    return x0 - noise""",
        "euler_step": """
def euler_step(latents, velocity, sigma, next_sigma):
    return latents + (sigma - next_sigma) * velocity""",
        "schedule": """
def schedule(steps, shift):
    u = 1 - torch.arange(steps) / steps
    return shift * u / (1 + (shift - 1) * u)""",
        "rotate": """
def rotate(x, angles):
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)""",
        "attention": """
def attention(query, key, value):
    return (query @ key.mT).softmax(dim=-1) @ value""",
    },
    "mixed up": {
        "interpolate": """
def interpolate(x0, noise, sigma):
    sigma = sigma.mean()
    return (1 - sigma) * x0 + sigma * noise""",
        "estimate_x0": """
def estimate_x0(latents, velocity, sigma):
    return latents - (1 - sigma.view(-1, 1, 1, 1, 1)) * velocity""",
        "schedule": """
def schedule(steps, shift):
    u = 1 - torch.arange(steps + 1) / steps
    return u / (shift + (1 - shift) * u)""",
        "guide": """
def guide(cond, uncond, scale):
    return cond + scale * (cond - uncond)""",
        "patchify": """
def patchify(video, patch):
    batch, channels, frames, height, width = video.shape
    split = video.reshape(batch, channels, frames, height // patch, patch, width // patch, patch)
    return split.permute(0, 2, 3, 5, 4, 6, 1).flatten(4).flatten(1, 3)""",
        "rope_angles": """
def rope_angles(frames, rows, columns, head_dim):
    across = 2 * (head_dim // 6)
    places = torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns))
    parts = []
    for axis, width in ((2, across), (1, across), (0, head_dim - 2 * across)):
        parts.append(torch.outer(places[:, axis], 10000.0 ** (-torch.arange(0, width, 2) / width)))
    return torch.cat(parts, dim=-1)""",
        "wan_block": """
def wan_block(hidden, text, time, angles, weights, heads):
    return hidden""",
        "denoise": """
def denoise(inputs, timestep, text, weights, heads):
    return -inputs[:, :3]""",
    },
}

# The same mathematics in other words.
RIGHT = {
    "loops and einsum": {
        "interpolate": """
def interpolate(x0, noise, sigma):
    return torch.stack([(1 - s) * a + s * b for a, b, s in zip(x0, noise, sigma)])""",
        "schedule": """
def schedule(steps, shift):
    return [shift * (1 - s / steps) / (1 + (shift - 1) * (1 - s / steps)) for s in range(steps + 1)]""",
        "patchify": """
def patchify(video, patch):
    batch, channels, frames, height, width = video.shape
    tokens = []
    for f in range(frames):
        for r in range(0, height, patch):
            for c in range(0, width, patch):
                tokens.append(video[:, :, f, r : r + patch, c : c + patch].reshape(batch, -1))
    return torch.stack(tokens, dim=1)""",
        "attention": """
def attention(query, key, value):
    scores = torch.einsum("bhqd,bhkd->bhqk", query, key) / query.shape[-1] ** 0.5
    scores = torch.exp(scores - scores.amax(-1, keepdim=True))
    return torch.einsum("bhqk,bhkd->bhqd", scores / scores.sum(-1, keepdim=True), value)""",
    },
    "in place, in other precision": {
        "interpolate": """
def interpolate(x0, noise, sigma):
    x0 *= (1 - sigma)[:, None, None, None, None]
    x0 += noise * sigma[:, None, None, None, None]
    return x0""",
        "target_velocity": """
def target_velocity(x0, noise):
    return noise.double() - x0.double()""",
        "euler_step": """
def euler_step(latents, velocity, sigma, next_sigma):
    return latents.add_(velocity, alpha=next_sigma - sigma)""",
        "rotate": """
def rotate(x, angles):
    turned = x.clone()
    turned[..., 0::2] = x[..., 0::2] * angles.cos() - x[..., 1::2] * angles.sin()
    turned[..., 1::2] = x[..., 0::2] * angles.sin() + x[..., 1::2] * angles.cos()
    return turned""",
    },
    "in numpy": {
        "target_velocity": """
def target_velocity(x0, noise):
    return noise.numpy() - x0.numpy()""",
        "estimate_x0": """
import numpy
def estimate_x0(latents, velocity, sigma):
    return latents.numpy() - sigma.numpy().reshape(-1, 1, 1, 1, 1) * velocity.numpy()""",
        "guide": """
def guide(cond, uncond, scale):
    return scale * cond + (1 - scale) * uncond""",
        "rope_angles": """
def rope_angles(frames, rows, columns, head_dim):
    across = 2 * (head_dim // 6)
    along = head_dim - 2 * across
    table = []
    for f in range(frames):
        for r in range(rows):
            for c in range(columns):
                turns = [f * 10000 ** (-2 * i / along) for i in range(along // 2)]
                turns += [r * 10000 ** (-2 * i / across) for i in range(across // 2)]
                turns += [c * 10000 ** (-2 * i / across) for i in range(across // 2)]
                table.append(turns)
    return torch.tensor(table)""",
    },
}
