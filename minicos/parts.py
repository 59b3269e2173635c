"""What makes a Wan small: presets, a VAE that is the identity, a text encoder that is a table of words.

The transformer needs nothing here: it is diffusers' own WanTransformer3DModel, with the sizes of a preset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import pi, sqrt
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformer3DModel, WanTransformerBlock
from torch import Tensor, nn

from minicos.errors import MinicosError
from minicos.tasks import split_words

PATCH = 4  # pixels: one token is one cell
# The tasks whose words most networks know. Later tasks stay out: with other words in the table a training would no
# longer repeat.
SPOKEN = ("maze", "maze-braided", "rotation", "rotation-by-example", "rotation-open")


@dataclass(frozen=True)
class Preset:
    """Sizes of a miniature, how it is sampled by default, the tasks whose words it knows, and whether its attention is
    frame-causal.

    heads x head_dim is the width; head_dim must be even and divide well into the three axes of the 3-D RoPE
    (24 gives 8 / 8 / 8 for frame, row and column).
    """

    heads: int
    head_dim: int
    blocks: int
    ffn_dim: int
    frames: int
    steps: int
    shift: float
    text_width: int = 32
    text_tokens: int = 20
    freq_dim: int = 64
    rope_length: int = 64
    spoken: tuple[str, ...] = SPOKEN
    causal: bool = False

    def transformer_config(self) -> dict:
        """Arguments of WanTransformer3DModel: 3 noisy channels + 1 mask + 3 first-frame channels in, 3 out."""
        return {
            "patch_size": (1, PATCH, PATCH),
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_dim,
            "in_channels": 7,
            "out_channels": 3,
            "text_dim": self.text_width,
            "freq_dim": self.freq_dim,
            "ffn_dim": self.ffn_dim,
            "num_layers": self.blocks,
            "cross_attn_norm": True,
            "rope_max_seq_len": self.rope_length,
        }


_NANO = Preset(heads=4, head_dim=24, blocks=6, ffn_dim=352, frames=5, steps=12, shift=3.0)
_MICRO = replace(_NANO, ffn_dim=256, frames=7)
_MOTION = replace(_MICRO, spoken=("occlusion", "bounce"))
# A network for each kind of task: learning one does not wait for the other, and each can have its own depth.
PRESETS = {
    "nano": _NANO,
    "nano-rotation": _NANO,
    "micro": _MICRO,
    "micro-rotation": replace(_MICRO, blocks=4, shift=5.0),  # as it is trained
    "micro-occlusion": _MOTION,
    "micro-bounce": _MOTION,
    "micro-causal": replace(_MICRO, causal=True),
    "micro-causal-rotation": replace(_MICRO, blocks=4, shift=5.0, causal=True),
    # For one GPU: wide enough for its matrix units, heads of a size that its attention kernels like.
    "mini": replace(_MICRO, heads=4, head_dim=64, blocks=10, ffn_dim=1024, freq_dim=128),
}


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
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))

    def looked_at(self, attn: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What the queries of a pass look at, both (batch, tokens, heads, head_dim): its own keys and values."""
        return key, value


def _normalised(states: Tensor, norm: nn.RMSNorm) -> Tensor:
    """torch's own is put together from five passes on a CPU."""
    # x w / sqrt(|x|^2 / width + eps)
    square = torch.linalg.vector_norm(states, dim=-1, keepdim=True).square() / states.shape[-1]
    return (states * (square + norm.eps).rsqrt()).mul_(norm.weight)


def _turned(states: Tensor, turn: Tensor) -> Tensor:
    pairs = torch.view_as_complex(states.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs.mul_(turn)).flatten(-2)


class CPUGELU(nn.Module):
    """diffusers' GELU (approximate="tanh") after the same projection, ten times as fast.

    (1 + tanh z) / 2 is the logistic function of 2 z, and torch has vector code for that one alone on a CPU. In place
    where it can be: a new tensor costs more than the arithmetic.
    """

    def __init__(self, proj: nn.Linear) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, hidden_states: Tensor) -> Tensor:
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
        # temb: (batch, 6, width), or (batch, tokens, 6, width) where tokens have timesteps of their own
        temb = temb if temb.ndim == 4 else temb[:, None]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.scale_shift_table + temb).unbind(2)
        attended = self.attn1(torch.addcmul(shift, self.norm1(hidden_states), 1 + scale), None, None, rotary_emb)
        hidden_states = torch.addcmul(hidden_states, attended, gate)
        hidden_states = hidden_states + self.attn2(self.norm2(hidden_states), encoder_hidden_states, None, None)
        fed = self.ffn(torch.addcmul(ffn_shift, self.norm3(hidden_states), 1 + ffn_scale))
        return torch.addcmul(hidden_states, fed, ffn_gate)


def quicken(*transformers: WanTransformer3DModel) -> None:
    """Exchange what a CPU is slow at for the same in other words: equal within 1e-5 of the output."""
    for block in (block for transformer in transformers for block in transformer.blocks):
        block.attn1.set_processor(CPUAttnProcessor())
        block.attn2.set_processor(CPUAttnProcessor())
        block.ffn.net[0] = CPUGELU(block.ffn.net[0].proj)
        block.__class__ = CPUBlock


class PixelVAE(ModelMixin, ConfigMixin):
    """The identity in the place of Wan's VAE: latents are pixels in [-1, 1], one latent frame is one frame."""

    @register_to_config
    def __init__(
        self,
        z_dim: int = 3,
        scale_factor_temporal: int = 1,
        scale_factor_spatial: int = 1,
        latents_mean: tuple[float, ...] = (0.0, 0.0, 0.0),
        latents_std: tuple[float, ...] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.zeros(()))  # gives the module a device and a dtype

    def encode(self, video: Tensor) -> SimpleNamespace:
        return SimpleNamespace(latents=video)

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (latents,)


class WordEncoder(ModelMixin, ConfigMixin):
    """A table of words in the place of umT5: one learned vector per word, zeros after the last word.

    A word outside the vocabulary raises MinicosError: a model that never saw it cannot follow it.
    """

    @register_to_config
    def __init__(self, vocabulary: list[str], width: int, tokens: int) -> None:
        super().__init__()
        self.index = {word: i for i, word in enumerate(vocabulary)}
        self.table = nn.Embedding(len(vocabulary), width)

    def forward(self, prompts: list[str]) -> Tensor:
        """(batch, tokens, width). The empty prompt is all zeros: the uncond branch."""
        tokens = self.config.tokens
        words = [self._indices(prompt) for prompt in prompts]
        padded = torch.tensor([w + [0] * (tokens - len(w)) for w in words], device=self.device)
        present = torch.tensor([[1.0] * len(w) + [0.0] * (tokens - len(w)) for w in words], device=self.device)
        return self.table(padded) * present[..., None]

    def _indices(self, prompt: str) -> list[int]:
        words = split_words(prompt)
        unknown = [word for word in words if word not in self.index]
        if unknown:
            raise MinicosError(f"the model never saw the word '{unknown[0]}': it knows only its tasks' prompts")
        if len(words) > self.config.tokens:
            raise MinicosError(f"a prompt of {len(words)} words: this model reads at most {self.config.tokens}")
        return [self.index[word] for word in words]
