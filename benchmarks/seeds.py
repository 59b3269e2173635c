"""Rates of shipped checkpoints and of a second training seed. Run: python benchmarks/seeds.py

docs/seeds holds what `minicos evaluate --model RUN --n N` wrote of the retrainings (`minicos train --preset PRESET
--seed SEED --out RUN`), whose weights are not shipped: PRESET-SEED.json. Difference: the other seed minus the shipped
one, in points, and in standard errors of two independent rates (an estimate: the first puzzles are the same), each rate
taken with Wilson's two pseudo-counts so that 0 and 100 % have an error too.
"""

from __future__ import annotations

import json
from pathlib import Path

from minicos.cards import EVALUATION_FILE, Row, percent, rows_of
from minicos.model import CHECKPOINTS

SEEDS = Path(__file__).parent.parent / "docs" / "seeds"
LEAST = 5  # below it no maze is held out; turns are in degrees
RETRAINED = {
    "micro": 2,
    "micro-causal": 2,
    "micro-rotation": 1,
    "micro-causal-rotation": 1,
    "shallow-rotation": 1,
}  # by which seed

Key = tuple[str, int, bool]


def rows_by_key(path: Path) -> dict[Key, Row]:
    rows = rows_of(json.loads(path.read_text()))
    return {(r.task, r.size, r.rollout): r for r in rows if r.length == "all" and r.trained and r.size >= LEAST}


def rate(row: Row) -> str:
    return f"{percent(row.end, row.end_interval)}, n = {row.n}"


def variance(row: Row) -> float:
    p = (row.end * row.n + 2) / (row.n + 4)
    return p * (1 - p) / (row.n + 4)


if __name__ == "__main__":
    head = "preset", "how", "puzzles", "seed 0", "other seed", "difference", "standard errors", "gap", "gap, other seed"
    print(f"| {' | '.join(head)} |")
    print("|" + " --- |" * len(head))
    for preset, seed in RETRAINED.items():
        shipped = rows_by_key(CHECKPOINTS / preset / EVALUATION_FILE)
        again = rows_by_key(SEEDS / f"{preset}-{seed}.json")
        for (task, size, rollout), row in shipped.items():
            other = again[task, size, rollout]
            apart = other.end - row.end
            errors = abs(apart) / (variance(row) + variance(other)) ** 0.5
            how = "frame by frame" if rollout else "jointly"
            cells = f"`{preset}`", how, f"{task} {size}", rate(row), rate(other), f"{100 * apart:+.1f}", f"{errors:.1f}"
            cells += percent(row.gap, row.gap_interval), percent(other.gap, other.gap_interval)
            print(f"| {' | '.join(cells)} |")
