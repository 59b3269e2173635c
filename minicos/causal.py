"""Frame-causal attention: a frame looks at itself and at earlier ones. All frames together, or one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformer3DModel
from torch import Tensor, nn

from minicos.cpu import CPUAttnProcessor, attend


class FrameCausal:
    """What processors share where a token looks at its own frame and at earlier ones, never at a later one."""

    frames = 1

    def watch(self, transformer: WanTransformer3DModel, inputs: tuple) -> None:
        """Before each pass: how many frames the tokens are to be divided into."""
        self.frames = inputs[0].shape[2] // transformer.config.patch_size[0]


class FrameCausalProcessor(FrameCausal, WanAttnProcessor):
    """Wan's own, by a mask. plain: the processor that it hands the mask to."""

    def __init__(self, plain: WanAttnProcessor) -> None:
        super().__init__()
        self.plain = plain

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        mask = frame_causal_mask(self.frames, hidden_states.shape[1] // self.frames, hidden_states.device)
        return self.plain(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


class CPUFrameCausalProcessor(FrameCausal, CPUAttnProcessor):
    """One frame after the other, without a mask: what it would hide, with 7 frames 3/7 of the products, is left out."""

    def attended(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        tokens = query.shape[2] // self.frames
        frames = enumerate(query.split(tokens, 2), start=1)
        found = [attend(q, key[:, :, : count * tokens], value[:, :, : count * tokens]) for count, q in frames]
        return torch.cat(found, 2)


def frame_causal_mask(frames: int, tokens: int, device: torch.device | None = None) -> Tensor:
    """Bool (frames * tokens, frames * tokens), True where the row's token may look at the column's."""
    frame = torch.arange(frames, device=device).repeat_interleave(tokens)
    return frame[:, None] >= frame


def make_frame_causal(transformer: WanTransformer3DModel) -> None:
    """Let every block's self-attention look at no later frame. Attention to the text stays as it is."""
    plain = transformer.blocks[0].attn1.processor
    processor = CPUFrameCausalProcessor() if isinstance(plain, CPUAttnProcessor) else FrameCausalProcessor(plain)
    for block in transformer.blocks:
        block.attn1.set_processor(processor)
    # A bound method, not a closure: a deep copy of the transformer then watches with its own copy of the processor.
    transformer.register_forward_pre_hook(processor.watch)


class FrameMemory(CPUAttnProcessor):
    """Self-attention of one frame that passes alone: its queries look at the keys and values of earlier ones, too.

    Those are what they were in the last pass of each frame: no earlier frame looks at a later one, so they stay. It is
    what a frame-causal network does in a pass of all frames so far, at the price of one.

    frame: the number of the frame that passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.frame = 0
        self._seen: dict[nn.Module, dict[int, tuple[Tensor, Tensor]]] = {}

    def looked_at(self, attn: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        seen = self._seen.setdefault(attn, {})
        seen[self.frame] = key, value
        keys, values = zip(*(seen[frame] for frame in range(self.frame + 1)), strict=True)
        return torch.cat(keys, 1), torch.cat(values, 1)

    def place(self, rope: nn.Module, inputs: tuple[Tensor], _: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The rotary embedding of this frame, where the module takes any frame that comes alone for the first."""
        so_far = rope.forward(inputs[0].expand(-1, -1, self.frame + 1, -1, -1))
        cos, sin = (turn.unflatten(1, (self.frame + 1, -1))[:, -1] for turn in so_far)
        return cos, sin


@contextmanager
def frame_memory(transformer: WanTransformer3DModel) -> Iterator[FrameMemory]:
    """For as long as it lasts, the network takes one frame a pass, and remembers those before it."""
    memory, attentions = FrameMemory(), [block.attn1 for block in transformer.blocks]
    usual = [attention.processor for attention in attentions]
    hook = transformer.rope.register_forward_hook(memory.place)
    try:
        for attention in attentions:
            attention.set_processor(memory)
        yield memory
    finally:
        hook.remove()
        for attention, processor in zip(attentions, usual, strict=True):
            attention.set_processor(processor)
