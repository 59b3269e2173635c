"""What each part of the recipe is worth: nano trained with one thing changed, as many steps and tokens as shipped.

Run: python benchmarks/ablations.py --out DIR [--variants NAME ...]

Each is one training (seed 0) of its own folder in DIR; killed and run again, it goes on. Give two processes half of the
variants each and OMP_NUM_THREADS=1, and they train side by side. Printed: 5x5 mazes solved, in per cent, of 64
validation puzzles while it trains, and of 500 test puzzles after it, at the end and by step 0, with 95 % intervals
(Wilson); and the loss over the last 500 steps, which depends on the noise levels that are drawn. Mixed sizes in a batch
are no variant: they would need padding, which no network here knows.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from mixups import rate

from minicos.cards import TRAINING_FILE
from minicos.curves import CURVE_FILE, read_curve
from minicos.evaluation import CHUNK, held_out, solve
from minicos.model import load
from minicos.parts import PRESETS, Preset
from minicos.recipes import RECIPES, Recipe, Stage
from minicos.training import RUN_FILE, SolvedRate, train

PRESET, RECIPE = PRESETS["nano"], RECIPES["nano"]
TASK, SIZE, N = "maze", 5, 500
LARGE_ONLY = (Stage(1.0, {(TASK, SIZE): 1}),)
VARIANTS: dict[str, tuple[str, Preset, Recipe]] = {
    "nano-as-shipped": ("96 x 6, as shipped", PRESET, RECIPE),
    "nano-wide": ("144 x 3, about as many weights", replace(PRESET, heads=6, blocks=3, ffn_dim=288), RECIPE),
    "nano-deep": ("72 x 11, about as many weights", replace(PRESET, heads=3, blocks=11, ffn_dim=268), RECIPE),
    "nano-5x5-only": ("no curriculum: 5x5 from the start, nothing else", PRESET, replace(RECIPE, stages=LARGE_ONLY)),
    "nano-mixed": ("no curriculum: all sizes from the start", PRESET, replace(RECIPE, stages=RECIPE.stages[1:])),
    "nano-shift-1": ("noise levels drawn evenly (shift 1)", PRESET, replace(RECIPE, shift=1.0)),
    "nano-shift-10": ("more noise (shift 10)", PRESET, replace(RECIPE, shift=10.0)),
}


def trained(name: str, out: Path) -> Path:
    """The folder of this variant's checkpoint, trained as far as it was not yet."""
    _, PRESETS[name], RECIPES[name] = VARIANTS[name]
    if not (out / TRAINING_FILE).exists():
        train(name, out, resume=(out / RUN_FILE).exists())
    return out


def row(name: str, folder: Path) -> str:
    reasoner, puzzles = load(folder), held_out(TASK, SIZE, N)
    outcomes = [o for start in range(0, N, CHUNK) for o in solve(reasoner, puzzles[start : start + CHUNK])]
    moments = [o.end.solved for o in outcomes], [o.step_0.solved for o in outcomes if o.step_0]
    ends = [rate(np.array(solved), digits=1) for solved in moments]
    curve = read_curve(folder / CURVE_FILE)
    logged = [point.solved[f"solved_{TASK}_{SIZE}"] for point in curve]
    weights = sum(parameter.numel() for parameter in reasoner.transformer.parameters())
    minutes = json.loads((folder / TRAINING_FILE).read_text())["seconds"] / 60
    on_the_way = ", ".join(f"{100 * share:.0f}" for share in logged)
    cells = VARIANTS[name][0], f"{weights:,}", f"{minutes:.0f}", on_the_way, *ends, f"{curve[-1].loss:.4f}"
    return f"| {' | '.join(cells)} |"


def main(out: Path, names: list[str]) -> None:
    folders = {name: trained(name, out / name) for name in names}
    every = f"every {RECIPE.validate_every} steps, n = {SolvedRate.PUZZLES}"
    print(f"| changed | weights | minutes | {every} | end, n = {N} | step 0 | loss |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, folder in folders.items():
        print(row(name, folder))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    main(arguments.out, arguments.variants)
