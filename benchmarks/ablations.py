"""What each part of the recipe is worth: nano and nano-rotation trained with one thing changed.

Run: python benchmarks/ablations.py --out DIR [--variants NAME ...]

Mazes are trained for MAZE_STEPS, fewer than were shipped, where there is room to be better or worse; rotations for as
many as shipped. Each is one training (seed 0) of its own folder in DIR; killed and run again, it goes on. Give two
processes half of the variants each and OMP_NUM_THREADS=1, and they train side by side. Printed: puzzles solved, in per
cent, at the end and by step 0, of 64 validation puzzles while it trains, and of 500 test puzzles after it, with 95 %
intervals (Wilson; of the gap, a bootstrap); and the loss over the last 500 steps, which depends on the noise levels
that are drawn. Mixed sizes in a batch are no variant: they would need padding, which no network here knows.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mixups import rate

from minicos.cards import TRAINING_FILE, percent
from minicos.curves import CURVE_FILE, read_curve
from minicos.evaluation import CHUNK, held_out, solve
from minicos.measures import paired_interval
from minicos.model import Reasoner, load
from minicos.parts import PRESETS, Preset
from minicos.recipes import RECIPES, Recipe, Stage
from minicos.training import RUN_FILE, SolvedRate, train

N, MAZE_STEPS = 500, 1500


@dataclass(frozen=True)
class Variant:
    """changed: what, in words. It is measured on the puzzles that its recipe validates it on."""

    changed: str
    preset: Preset
    recipe: Recipe


PRESET, ROTATIONS = PRESETS["nano"], RECIPES["nano-rotation"]
MAZES = replace(RECIPES["nano"], steps=MAZE_STEPS)
LARGE_ONLY = (Stage(1.0, {("maze", 5): 1}),)
VARIANTS = {
    "plain": Variant("96 x 6, nothing but fewer steps", PRESET, MAZES),
    "wide": Variant("144 x 3, about as many weights", replace(PRESET, heads=6, blocks=3, ffn_dim=288), MAZES),
    "deep": Variant("72 x 11, about as many weights", replace(PRESET, heads=3, blocks=11, ffn_dim=268), MAZES),
    "5x5-only": Variant("no curriculum: 5x5 from the start, nothing else", PRESET, replace(MAZES, stages=LARGE_ONLY)),
    "shift-1": Variant("noise levels drawn evenly (shift 1)", PRESET, replace(MAZES, shift=1.0)),
    **{
        f"rotation-{blocks}": Variant(f"rotations: 96 x {blocks}", replace(PRESET, blocks=blocks), ROTATIONS)
        for blocks in (2, 3)
    },
}


def trained(name: str, out: Path) -> Path:
    """The folder of this variant's checkpoint, trained as far as it was not yet."""
    PRESETS[name], RECIPES[name] = VARIANTS[name].preset, VARIANTS[name].recipe
    if not (out / TRAINING_FILE).exists():
        train(name, out, resume=(out / RUN_FILE).exists())
    return out


def row(name: str, folder: Path, task: str, size: int) -> str:
    reasoner, curve = load(folder), read_curve(folder / CURVE_FILE)
    logged = [(p.solved[f"solved_{task}_{size}"], p.solved[f"solved_{task}_{size}_step_0"]) for p in curve]
    on_the_way = ", ".join(f"{100 * end:.0f} ({100 * first:.0f})" for end, first in logged)
    weights = sum(parameter.numel() for parameter in reasoner.transformer.parameters())
    minutes = json.loads((folder / TRAINING_FILE).read_text())["seconds"] / 60
    what = VARIANTS[name].changed, f"{weights:,}", f"{minutes:.0f}", f"{task} {size}", on_the_way
    return f"| {' | '.join((*what, *measured(reasoner, task, size), f'{curve[-1].loss:.4f}'))} |"


def measured(reasoner: Reasoner, task: str, size: int) -> tuple[str, str, str]:
    """Of test puzzles: the rate at the end, at step 0, and the gap between them in points."""
    puzzles = held_out(task, size, N)
    outcomes = [o for start in range(0, N, CHUNK) for o in solve(reasoner, puzzles[start : start + CHUNK])]
    end, step_0 = (np.array(rates) for rates in zip(*((o.end.solved, o.step_0.solved) for o in outcomes), strict=True))
    gap = percent(float(end.mean() - step_0.mean()), paired_interval(end, step_0))
    return rate(end, digits=1), rate(step_0, digits=1), gap


def main(out: Path, names: list[str]) -> None:
    folders = {name: trained(name, out / name) for name in names}
    every = f"every {MAZES.validate_every} steps, n = {SolvedRate.PUZZLES}: end (step 0)"
    print(f"| changed | weights | minutes | puzzles | {every} | end, n = {N} | step 0 | gap | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, folder in folders.items():
        for task, size in VARIANTS[name].recipe.validate:
            print(row(name, folder, task, size))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    main(arguments.out, arguments.variants)
