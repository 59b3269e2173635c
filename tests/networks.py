"""Networks that have learned nothing, and yet answer something: what `build` makes predicts zero for every input."""

from __future__ import annotations

import torch

from minicos.model import Reasoner
from minicos.training import build


def random_network(name: str, seed: int = 0) -> Reasoner:
    """Of a preset, with random weights in its last layer, too."""
    reasoner = build(name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    torch.nn.init.normal_(reasoner.transformer.proj_out.weight, std=0.05, generator=generator)
    return reasoner
