"""What earlier exercises of the first assignment come to, for the checks of later ones: nobody pays twice for a slip.

Their source is run after the student's cells, in the check of a later exercise only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def patchify(video, patch):
    return F.unfold(video.transpose(1, 2).flatten(0, 1), patch, stride=patch).mT.reshape(
        len(video), -1, video.shape[1] * patch * patch
    )


def rope_angles(frames, rows, columns, head_dim):
    across = 2 * (head_dim // 6)
    places = torch.cartesian_prod(*(torch.arange(float(count)) for count in (frames, rows, columns)))
    widths = (head_dim - 2 * across, across, across)
    return torch.cat(
        [places[:, axis, None] * 10000.0 ** (-torch.arange(0, width, 2) / width) for axis, width in enumerate(widths)],
        dim=-1,
    )


def rotate(x, angles):
    points = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(points * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def attention(query, key, value):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


def wan_block(hidden, text, time, angles, weights, heads):
    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def attend(name, x, source, places):
        width = (x.shape[-1],)
        query = F.rms_norm(linear(x, f"{name}.to_q"), width, weights[f"{name}.norm_q.weight"], 1e-6)
        key = F.rms_norm(linear(source, f"{name}.to_k"), width, weights[f"{name}.norm_k.weight"], 1e-6)
        parts = (query, key, linear(source, f"{name}.to_v"))
        query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        if places is not None:
            query, key = rotate(query, places), rotate(key, places)
        joined = attention(query, key, value)
        return linear(joined.transpose(1, 2).flatten(2), f"{name}.to_out.0")

    def norm(x, weight=None, bias=None):
        return F.layer_norm(x, (x.shape[-1],), weight, bias, 1e-6)

    shift, scale, gate, later_shift, later_scale, later_gate = (weights["scale_shift_table"] + time).chunk(6, 1)
    x = norm(hidden) * (1 + scale) + shift
    hidden = hidden + gate * attend("attn1", x, x, angles)
    x = norm(hidden, weights["norm2.weight"], weights["norm2.bias"])
    hidden = hidden + attend("attn2", x, text, None)
    x = norm(hidden) * (1 + later_scale) + later_shift
    return hidden + later_gate * linear(F.gelu(linear(x, "ffn.net.0.proj"), approximate="tanh"), "ffn.net.2")
