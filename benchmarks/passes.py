"""What the experiments would cost on the full model: passes counted, GPU-hours by the paces of docs/full-scale.md.

Run: python benchmarks/passes.py [--cases 20]

Counted on a network of the full model's blocks, latent frames, steps and guidance, one video at once, and of no width:
nothing passes through it. For each experiment: runs, passes of one video (all steps, both branches of guidance), videos
that are decoded (the end of every run, and each x0_hat that is looked at), and hours at SECONDS.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from diffusers import WanTransformer3DModel

from minicos.experiments import EXPERIMENTS
from minicos.experiments.base import scale_of
from minicos.full import full_models
from minicos.model import Reasoner
from minicos.parts import PixelVAE, WordEncoder
from minicos.tasks import vocabulary

MODEL, BLOCKS = "vbvr-wan2.2", 40
SECONDS = {"pass": 5.64, "video": 5.0}  # assumed


def hollow() -> Reasoner:
    """Of the full model's layout, as narrow as can be."""

    def expert() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=1,
            attention_head_dim=12,
            in_channels=36,
            out_channels=16,
            text_dim=8,
            freq_dim=16,
            ffn_dim=8,
            num_layers=BLOCKS,
        )

    settings = replace(full_models()[MODEL].settings, batch=1)
    vae = PixelVAE(z_dim=16, scale_factor_temporal=4, scale_factor_spatial=8)
    return Reasoner(settings, expert(), expert(), vae, WordEncoder(vocabulary(), 8, 32))


def main(cases: int) -> None:
    reasoner, scale = hollow(), scale_of(False, cases)
    print("| experiment | runs | passes | videos decoded | GPU-hours |")
    print("| --- | --- | --- | --- | --- |")
    total = 0.0
    for name, experiment in EXPERIMENTS.items():
        sweeps = experiment.sweeps(reasoner, scale)
        runs = sum(len(chunk) for sweep in sweeps for chunk in sweep.chunks)
        passes = sum(sweep.evaluations() for sweep in sweeps)
        videos = sum(sweep.videos() for sweep in sweeps)
        hours = (passes * SECONDS["pass"] + videos * SECONDS["video"]) / 3600
        total += hours
        print(f"| {name} | {runs:,} | {passes:,} | {videos:,} | {hours:.0f} |", flush=True)
    print(f"\nAll in all {total:,.0f} GPU-hours.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    main(parser.parse_args().cases)
