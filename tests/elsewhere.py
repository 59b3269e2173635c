"""Runs every intervention and recorder on a device that is not there, whose tensors know where they are and hold nothing:
what does not meet on one device raises an error. A program of its own, since torch then knows of one more device.

Run: python tests/elsewhere.py FOLDER   (a pipeline with two experts); prints one line for each intervention.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minicos import load
from minicos.interventions import (
    Average,
    CorruptAndRenoise,
    Noise,
    NoiseHidden,
    NoiseUp,
    Places,
    Renoise,
    SwapHidden,
    TakeLatents,
    Tokens,
)
from minicos.model import Reasoner
from minicos.runs import Intervention, Run
from minicos.sampling import Denoising, Recorder
from minicos.tasks import get_task

STEPS, SITES, BRANCHES = 4, ("latents", "velocity", "x0_hat"), ("guided", "uncond")
ONE, OTHER = (get_task("maze").sample(0, index, size=4) for index in range(2))
INTERVENTIONS = [
    Noise(steps=(1,), places=Places(frames=(1,), share=0.5)),
    Renoise(steps=(0, 2)),
    NoiseUp(step=2),
    CorruptAndRenoise(step=2, share=0.5),
    TakeLatents(Run(OTHER), 2),
    NoiseHidden(block=1, steps=None),
    SwapHidden(Run(OTHER), block=1, steps=None, tokens=Tokens("goal", (1,))),
    *(Average((0, 1, 2), site=site, steps=None, matched=True) for site in (*SITES, "block")),
]


class Guard(torch._C._acc.DeviceGuard):
    """Of the device for which torch keeps a place free."""

    def type_(self) -> object:
        return torch._C._autograd.DeviceType.PrivateUse1


def moved(reasoner: Reasoner, device: torch.device) -> Reasoner:
    """Its weights are there, as far as anything is."""
    for part in (reasoner.transformer, reasoner.transformer_2, reasoner.vae, reasoner.text_encoder):
        for module in part.modules():
            for name, value in module._parameters.items():
                there = value if value is None else torch.empty(value.shape, dtype=value.dtype, device=device)
                module._parameters[name] = there if there is None else nn.Parameter(there, requires_grad=False)
            for name, value in module._buffers.items():
                there = value if value is None else torch.empty(value.shape, dtype=value.dtype, device=device)
                module._buffers[name] = there
    reasoner.device = device
    return reasoner


def watch(reasoner: Reasoner, intervention: Intervention) -> None:
    """Half of the steps, what is put aside and taken up again, and the other half; then all is where it belongs."""
    recorders = [Recorder(site, branch) for site in SITES for branch in BRANCHES]
    recorders.append(Recorder("block", "cond", blocks=(0, 2)))
    schedule = reasoner.schedule(STEPS)
    runs = [Run(ONE, 0, (intervention,)), Run(OTHER), Run(ONE)]
    first = Denoising(reasoner, runs, schedule=schedule, recorders=recorders)
    while first.done < STEPS // 2:
        first.advance()
    aside = first.put_aside()
    assert {aside[what].device.type for what in ("latents", "x0_hat")} == {"cpu"}
    second = Denoising(reasoner, runs, schedule=schedule, recorders=recorders)
    second.go_on_from(aside)
    while second.done < STEPS:
        second.advance()
    run = second.trajectory()
    assert (run.latents.device, run.latents.dtype) == (reasoner.device, torch.float32)
    assert run.video.shape == (3, 5, *reasoner.settings.canvas, 3)
    for site in SITES:
        for branch in BRANCHES:
            kept = run.recorded(site, branch)
            assert {(value.device.type, value.dtype) for value in kept.values()} == {("cpu", torch.float32)}
    states = run.recorded("block", "cond", 2)[STEPS - 1]
    assert (states.device.type, states.dtype) == ("cpu", torch.bfloat16)


if __name__ == "__main__":
    torch.utils.rename_privateuse1_backend("elsewhere")
    torch._C._acc.register_python_privateuseone_device_guard(Guard())
    loaded = load(sys.argv[1])
    # There is nothing to look at, and nothing to compare.
    torch.Tensor.numpy = lambda pixels: np.zeros(pixels.shape, np.uint8)
    torch.Tensor.__bool__ = lambda value: False
    with FakeTensorMode():
        reasoner = moved(loaded, torch.device("elsewhere:0"))
        for intervention in INTERVENTIONS:
            watch(reasoner, intervention)
            print(type(intervention).__name__, getattr(intervention, "site", ""), flush=True)
