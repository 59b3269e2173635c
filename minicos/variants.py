"""Networks made from another one, as controls of what it has learned and of what it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from torch import nn

from minicos.causal import make_frame_causal
from minicos.errors import CannotRun
from minicos.model import Reasoner
from minicos.parallel import host_memory


def untrained(reasoner: Reasoner, seed: int = 0) -> Reasoner:
    """The same network before it has learned anything: new random weights in its blocks, for baselines.

    Raises CannotRun where a full model waits in host memory, and there is no room there for another.
    """
    if reasoner.one_at_a_time:
        _check_room_for_another(reasoner)
    fresh, device = copy(reasoner), "cpu" if reasoner.one_at_a_time else reasoner.device
    with torch.random.fork_rng(devices=[]), default_dtype(getattr(torch, reasoner.settings.dtype)):
        torch.manual_seed(seed)
        for part in ("transformer", "transformer_2"):
            learned = getattr(reasoner, part)
            if learned is not None:
                random = type(learned).from_config(learned.config).eval().requires_grad_(False)
                for new, old in zip(random.parameters(), learned.parameters(), strict=True):
                    new.data = new.data.to(old.dtype)  # one by one: some parts of a model in bf16 stay in float32
                setattr(fresh, part, random.to(device))
    return frame_causal(fresh) if reasoner.settings.causal else fresh


def _check_room_for_another(reasoner: Reasoner) -> None:
    def held(*parts: nn.Module | None) -> int:
        return sum(tensor.nbytes for part in parts if part is not None for tensor in part.state_dict().values())

    experts = held(reasoner.transformer, reasoner.transformer_2)
    needed = reasoner.processes * (2 * experts + held(reasoner.text_encoder))
    if host_memory() < needed:
        each = f" for {reasoner.processes} processes" if reasoner.processes > 1 else ""
        raise CannotRun(
            f"an untrained network beside {reasoner.settings.name} takes {needed / 1e9:.3g} GB of host memory{each}, "
            f"there are {host_memory() / 1e9:.3g}: fewer --devices, or another machine"
        )


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What new parameters are made of: a full expert in float32 is twice what a host with room for it needs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def frame_causal(reasoner: Reasoner) -> Reasoner:
    """The same weights, not a copy, with frame-causal attention (`causal.make_frame_causal`); the given one stays."""
    masked = reasoner.replica()
    for part in (masked.transformer, masked.transformer_2):
        if part is not None:
            make_frame_causal(part)
    return masked
