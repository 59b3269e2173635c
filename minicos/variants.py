"""Networks made from another one, as controls of what it has learned and of what it is."""

from __future__ import annotations

from copy import copy, deepcopy

import torch

from minicos.causal import make_frame_causal
from minicos.model import Reasoner


def untrained(reasoner: Reasoner, seed: int = 0) -> Reasoner:
    """The same network before it has learned anything: new random weights in its blocks, for baselines."""
    fresh = copy(reasoner)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for part in ("transformer", "transformer_2"):
            learned = getattr(reasoner, part)
            if learned is not None:
                random = type(learned).from_config(learned.config).eval().requires_grad_(False)
                for new, old in zip(random.parameters(), learned.parameters(), strict=True):
                    new.data = new.data.to(old)  # one by one: some parts of a model in bf16 stay in float32
                setattr(fresh, part, random.to(learned.device))
    return frame_causal(fresh) if reasoner.settings.causal else fresh


def frame_causal(reasoner: Reasoner) -> Reasoner:
    """The same weights under the frame-causal mask (`causal.make_frame_causal`); the given network stays as it is."""
    masked = copy(reasoner)
    for part in ("transformer", "transformer_2"):
        if getattr(reasoner, part) is not None:
            setattr(masked, part, deepcopy(getattr(reasoner, part)))
            make_frame_causal(getattr(masked, part))
    return masked
