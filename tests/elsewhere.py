"""Runs every intervention, recorder and experiment on a device that is not there, whose tensors know where they are
and hold nothing: what does not meet on one device raises an error. A program of its own, since torch then knows of one
more device.

Run: python tests/elsewhere.py FOLDER   (a pipeline with two experts); prints a line for each of them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from minicos import load
from minicos.evaluation import solve, solve_frame_by_frame
from minicos.experiments import EXPERIMENTS
from minicos.experiments.base import Experiment, Scale
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
from minicos.recipes import RECIPES
from minicos.runs import Intervention, Run
from minicos.sampling import Denoising, Recorder
from minicos.tasks import get_task
from minicos.training import Batches, FlowMatching, build

DEVICE = "elsewhere:0"
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


class Hooks(torch._C._acc.PrivateUse1Hooks):
    """What autograd asks of it."""

    def is_available(self) -> bool:
        return True

    def is_built(self) -> bool:
        return True

    def has_primary_context(self, number: int) -> bool:
        return True


def moved(module: nn.Module, device: torch.device | str) -> nn.Module:
    """In the place of `Module.to`, which cannot move tensors that hold nothing."""
    for owner in module.modules():
        for name, value in owner._parameters.items():
            there = value if value is None else torch.empty(value.shape, dtype=value.dtype, device=device)
            owner._parameters[name] = there if there is None else nn.Parameter(there, value.requires_grad)
        for name, value in owner._buffers.items():
            owner._buffers[name] = (
                value if value is None else torch.empty(value.shape, dtype=value.dtype, device=device)
            )
    return module


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


def run_experiment(reasoner: Reasoner, experiment: Experiment) -> None:
    """The first chunk of each of its sweeps, and what is measured of it: an expert at a time, as of a full model."""
    for sweep in experiment.sweeps(reasoner, Scale("tiny", 3, 2, 3, quick=True)):
        runs = [trial.run for trial in sweep.chunks[0]]
        denoising = Denoising(sweep.reasoner, runs, schedule=sweep.schedule, recorders=sweep.recorders)
        while denoising.done < len(sweep.schedule):
            denoising.advance()
        trajectory = denoising.trajectory()
        assert trajectory.latents.device == reasoner.device
        assert len(sweep.measure(trajectory)) == len(runs)
        if sweep.features is not None:
            assert all(len(values) == len(runs) for values in sweep.features(trajectory).values())


def learn(name: str) -> None:
    """A step of training, a validation, and a rollout where the network is causal."""
    recipe = replace(RECIPES[name], tokens=500)
    module = FlowMatching(build(name, 0, recipe), recipe).to(DEVICE)
    batch = next(
        b for b in Batches(recipe, 7, 0, recipe.steps, 0, 1) if "answers" in b or (b["history"] and "causal" in name)
    )
    batch = {what: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for what, value in batch.items()}
    losses = module.losses(batch)
    assert losses.device == torch.device(DEVICE)
    losses.mean().backward()
    puzzles = [get_task("rotation").sample(0, index, size=90) for index in range(2)]
    reasoner = module.averaged_reasoner()
    for way in (solve, *([solve_frame_by_frame] if reasoner.settings.causal else [])):
        assert len(way(reasoner, puzzles)) == 2


if __name__ == "__main__":
    torch.utils.rename_privateuse1_backend("elsewhere")
    torch._C._acc.register_python_privateuseone_device_guard(Guard())
    torch._C._acc.register_python_privateuseone_hook(Hooks())
    seeding = SimpleNamespace(_is_in_bad_fork=lambda: False, manual_seed_all=lambda seed: None)
    torch._register_device_module("elsewhere", seeding)
    reasoner = load(sys.argv[1])
    # There is nothing to look at, and nothing to compare.
    torch.Tensor.numpy = lambda values: np.zeros(values.shape, np.uint8)
    torch.Tensor.__bool__ = lambda value: False
    nn.Module.to = moved
    with FakeTensorMode():
        for name in ("micro-rotation", "micro-causal-rotation"):
            learn(name)
            print(name, flush=True)
        reasoner.to(DEVICE)
        for intervention in INTERVENTIONS:
            watch(reasoner, intervention)
            print(type(intervention).__name__, getattr(intervention, "site", ""), flush=True)
        reasoner.to(DEVICE, one_at_a_time=True)
        for name, experiment in EXPERIMENTS.items():
            run_experiment(reasoner, experiment)
            print(name, flush=True)
