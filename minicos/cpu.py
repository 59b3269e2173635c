"""What a CPU is slow at in diffusers' network, said in other words: equal within 1e-5 of its largest output."""

from __future__ import annotations

from math import pi, sqrt

import torch
import torch.nn.functional as F
from diffusers.models.normalization import FP32LayerNorm
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformer3DModel, WanTransformerBlock
from torch import Tensor, nn

CACHE = 250_000  # weights of attention at once: 1 MB, about half of what a core keeps at hand
SUMS = 1e-30, 1e34  # of unshifted weights: what float32 holds, with room for the values that they are multiplied with


class CPUAttnProcessor(WanAttnProcessor):
    """Wan's attention, in float32 and without image tokens, in fewer passes over memory.

    RoPE turns pairs of channels; diffusers does it on every second channel, which a CPU reads and writes slowly. As
    complex numbers the pairs are turned in one go.
    """

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key = (
            _normalised(states, norm)
            for states, norm in ((attn.to_q(hidden_states), attn.norm_q), (attn.to_k(source), attn.norm_k))
        )
        value = attn.to_v(source)
        query, key, value = (states.unflatten(2, (attn.heads, -1)) for states in (query, key, value))
        if rotary_emb is not None:
            cos, sin = rotary_emb  # (1, tokens, 1, head_dim), each value twice
            turn = torch.complex(cos[..., 0::2], sin[..., 0::2])
            query, key = (_turned(states, turn) for states in (query, key))
        key, value = self.looked_at(attn, key, value)
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        attended = self.attended(query, key, value, attention_mask)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))

    def looked_at(self, attn: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries of a pass look at, both (batch, tokens, heads, head_dim): its own keys and values."""
        return key, value

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What the queries find, each (batch, heads, tokens, head_dim)."""
        return attend(query, key, value, mask)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, each (batch, heads, tokens, head_dim), as torch's own function gives it."""
    attended = None
    if mask is None and query.device.type == "cpu" and not torch.is_grad_enabled():
        attended = _attend_unshifted(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask) if attended is None else attended


def _attend_unshifted(query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
    """The same by exp(q k^T / sqrt(head_dim)) alone, a few heads at a time; None where that leaves float32's range.

    A softmax takes the largest product of each row from all of them first, which is a pass of its own, and changes the
    result only where exp would overflow or vanish. A column of ones beside the values gives the sums to divide by.
    """
    batch_and_heads, scale = query.shape[:2], query.shape[-1] ** -0.5
    query, key, value = (states.flatten(0, 1) for states in (query, key, F.pad(value, (0, 1), value=1.0)))
    sums, nothing = query.new_empty(*query.shape[:2], value.shape[-1]), query.new_empty(())
    heads = max(1, CACHE // (query.shape[1] * key.shape[1]))
    for q, k, v, out in zip(*(states.split(heads) for states in (query, key.mT, value, sums)), strict=True):
        torch.bmm(torch.baddbmm(nothing, q, k, beta=0, alpha=scale).exp_(), v, out=out)
    weighted, total = sums[..., :-1], sums[..., -1:]
    least, largest = total.aminmax()
    return (weighted / total).unflatten(0, batch_and_heads) if SUMS[0] < least and largest < SUMS[1] else None


def _normalised(states: Tensor, norm: nn.RMSNorm) -> Tensor:
    """torch's own is put together from five passes on a CPU."""
    # x w / sqrt(|x|^2 / width + eps)
    square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square() / states.shape[-1]
    return (states * (square + norm.eps).rsqrt()).mul_(norm.weight)


def _turned(states: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(states.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs.mul_(turn)).flatten(-2)


def _projected(states: Tensor, layer: nn.Linear, gelu: bool = False) -> Tensor | None:
    """layer(states), with GELU (approximate="tanh") after it, by oneDNN, while the product is still in the cache.

    It is what torch.compile makes of such layers on a CPU; by another name torch does not have it. None where it cannot
    be used: with gradients, on another device, and where torch was built without oneDNN.
    """
    if torch.is_grad_enabled() or states.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    after = ("gelu", [], "tanh") if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(states, layer.weight, layer.bias, *after)


class CPULinear(nn.Linear):
    """torch's own puts the bias down first, which is a pass of its own."""

    def forward(self, input: Tensor) -> Tensor:
        projected = _projected(input, self)
        return super().forward(input) if projected is None else projected


class CPUGELU(nn.Module):
    """diffusers' GELU (approximate="tanh") after the same projection, which torch is slow at.

    Where oneDNN is not to be had: (1 + tanh z) / 2 is the logistic function of 2 z, and torch has vector code for that
    one alone on a CPU. In place where it can be: a new tensor costs more than the arithmetic.
    """

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        fused = _projected(hidden_states, self.proj, gelu=True)
        if fused is not None:
            return fused
        hidden_states = self.proj(hidden_states)
        # GELU(x) = x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
        slope = 2 * sqrt(2 / pi)
        start = hidden_states.new_tensor(slope)
        gate = torch.addcmul(start, hidden_states, hidden_states, value=0.044715 * slope).mul_(hidden_states).sigmoid_()
        return gate * hidden_states


class CPUBlock(WanTransformerBlock):
    """diffusers' block in float32, where to scale and shift is one pass over memory, and so is to gate and add."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor, rotary_emb: tuple[Tensor, Tensor]
    ) -> Tensor:
        # temb: (1 or batch, 6, width), or (batch, tokens, 6, width) where tokens have timesteps of their own
        temb = temb if temb.ndim == 4 else temb[:, None]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + temb).unbind(2)
        attended = self.attn1(_modulated(hidden_states, self.norm1, scale, shift), None, None, rotary_emb)
        hidden_states = torch.addcmul(hidden_states, attended, gate)
        hidden_states = hidden_states + self.attn2(self.norm2(hidden_states), encoder_hidden_states, None, None)
        fed = self.ffn(_modulated(hidden_states, self.norm3, ffn_scale, ffn_shift))
        return torch.addcmul(hidden_states, fed, ffn_gate)


def _modulated(states: Tensor, norm: FP32LayerNorm, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(states) (1 + scale) + shift. Where all videos are equally noisy, these are a norm's own weights."""
    if scale.numel() == states.shape[-1]:
        return F.layer_norm(states, norm.normalized_shape, 1 + scale.flatten(), shift.flatten(), norm.eps)
    return torch.addcmul(shift, norm(states), 1 + scale)


def quicken(*transformers: WanTransformer3DModel) -> None:
    """Exchange what a CPU is slow at."""
    for block in (block for transformer in transformers for block in transformer.blocks):
        block.attn1.set_processor(CPUAttnProcessor())
        block.attn2.set_processor(CPUAttnProcessor())
        block.ffn.net[0] = CPUGELU(block.ffn.net[0].proj)
        for layer in (layer for layer in block.modules() if type(layer) is nn.Linear):
            layer.__class__ = CPULinear
        block.__class__ = CPUBlock
