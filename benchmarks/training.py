"""How well a training step uses the processor. Run: python benchmarks/training.py [PRESET]   (default: mini)

The rate of a training step (floating-point operations of its matrix products and attention, counted by torch, per
second) as a share of the rate at which the same device multiplies two large matrices of the same type, measured in the
same run; and where the time goes. bfloat16 on a CUDA device, float32 on a CPU, as in `minicos train`. Each row is the
mean of REPEATS measurements with a 95 % t interval.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from scipy import stats
from torch.utils.flop_counter import FlopCounterMode

from minicos.cards import provenance
from minicos.parts import PATCH, PRESETS
from minicos.recipes import RECIPES
from minicos.training import Batches, FlowMatching, build

REPEATS = 10
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
SIDE = 8192 if DEVICE == "cuda" else 1536  # of the matrices: large enough to reach the device's full rate


def seconds(work: Callable[[], object]) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def matmul_rate() -> float:
    """Operations per second of one large matrix product."""
    return 2 * SIDE**3 / seconds(lambda: torch.mm(left, right))


def training_step() -> tuple[float, float, float]:
    """Seconds of the forward pass, the backward pass, and the optimisers with the moving average."""
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss: list[torch.Tensor] = []
    forward = seconds(lambda: loss.append(loss_of_batch()))
    backward = seconds(loss[0].backward)
    return forward, backward, seconds(update)


def loss_of_batch() -> torch.Tensor:
    with torch.autocast("cuda", torch.bfloat16) if DEVICE == "cuda" else nullcontext():
        return module.losses(batch).mean()


def update() -> None:
    for optimizer in optimizers:
        optimizer.step()
    module.averaged.update_parameters(module.learned)


def operations() -> int:
    """Of one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        loss_of_batch().backward()
    return counter.get_total_flops()


def show(what: str, unit: str, values: np.ndarray) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    print(f"| {what} | {values.mean():.3g} [{low:.3g}, {high:.3g}] {unit} | {len(values)} |", flush=True)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "mini"
    recipe = RECIPES[name]
    module = FlowMatching(build(name, 0, recipe), recipe).to(DEVICE)
    optimizers = module.configure_optimizers()
    # The last batch of the recipe; whichever size it is of, it has the recipe's number of tokens.
    made = Batches(recipe, PRESETS[name].frames, 0, 0, 0, 1).batch(recipe.steps - 1)
    batch = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in made.items()}
    left, right = (torch.randn(SIDE, SIDE, device=DEVICE, dtype=TYPE) for _ in range(2))
    count = operations()
    for _ in range(3):
        matmul_rate(), training_step()  # warm up
    # Step and product in turn, so that a busy moment of the machine meets both.
    pairs = [(matmul_rate(), training_step()) for _ in range(REPEATS)]
    rates, steps = np.array([rate for rate, _ in pairs]), np.array([step for _, step in pairs])
    tokens = batch["video"][:, 0].numel() / PATCH**2
    print("| what | mean [95 %] | n |\n| --- | --- | --- |")
    for part, label in enumerate(("forward pass", "backward pass", "optimisers and moving average")):
        show(label, "s", steps[:, part])
    show(f"tokens of `{name}` trained", "/s", tokens / steps.sum(1))
    show("a training step's matrix products and attention", "TFLOP/s", count / steps.sum(1) / 1e12)
    show(f"one product of {SIDE} x {SIDE} matrices, {TYPE}", "TFLOP/s", rates / 1e12)
    show("training step as a share of the product", "%", 100 * count / steps.sum(1) / rates)
    made_on = provenance()
    print(f"\n{tuple(batch['video'].shape)} a batch, on {made_on['machine']}, torch {made_on['torch']}")
