"""What makes a Wan small: presets, a VAE that is the identity, a text encoder that is a table of words.

The transformer needs nothing here: it is diffusers' own WanTransformer3DModel, with the sizes of a preset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
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
    "shallow-rotation": replace(_NANO, blocks=2),  # too few for a turn in one pass: the steps have something to add
    "micro": _MICRO,
    "micro-rotation": replace(_MICRO, blocks=4, shift=5.0),  # as it is trained
    "micro-occlusion": _MOTION,
    "micro-bounce": _MOTION,
    "micro-causal": replace(_MICRO, causal=True),
    "micro-causal-rotation": replace(_MICRO, blocks=4, shift=5.0, causal=True),
    # For one GPU: wide enough for its matrix units, heads of a size that its attention kernels like.
    "mini": replace(_MICRO, heads=4, head_dim=64, blocks=10, ffn_dim=1024, freq_dim=128),
}


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
