"""Draws docs/training-PRESET.png from the curve that lies beside a shipped checkpoint.

Run: python benchmarks/curves.py PRESET [RUN ...]   (RUN: folders of retrainings, drawn over it and judged by the band)
"""

from __future__ import annotations

import sys
from pathlib import Path

from minicos.curves import CURVE_FILE, curve_of_run, read_curve, verdict
from minicos.model import CHECKPOINTS
from minicos.plots import training_curve

if __name__ == "__main__":
    name, *runs = sys.argv[1:]
    shipped = read_curve(CHECKPOINTS / name / CURVE_FILE)
    retrained = {Path(run).name: curve_of_run(Path(run)) for run in runs}
    for run, points in retrained.items():
        print(f"{run}: {verdict(points, shipped)}")
    path = Path(__file__).parent.parent / "docs" / f"training-{name}.png"
    training_curve(shipped, retrained, f"{name}: training").savefig(path)
    print(f"written: {path}")
