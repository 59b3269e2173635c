"""How quickly `minicos.explore` answers, beside a plain run of its puzzle. Run: python benchmarks/explorer.py

A scrub: another step or frame of runs that are kept, until the widgets have their pictures; the way to the browser is
not in it. A disturbed run: noise at one more step, until the panel shows it; before each, a plain run of the puzzle
with nothing recorded. The panel is a reader's, without a front end.
"""

from __future__ import annotations

import time
from functools import partial

import numpy as np

from minicos.cards import provenance
from minicos.explorer import Explorer
from minicos.panel import Panel
from minicos.sampling import sample

SCRUBS = 50
RUNS = 5
COLUMNS = (
    "model and puzzle",
    f"scrub, ms: p50, max (n = {SCRUBS})",
    "p50 / plain run",
    f"disturbed run, s: median [range] (n = {RUNS})",
    "median / plain run",
    f"plain run, s: median [range] (n = {RUNS})",
)
TARGETS = "100 ms for a scrub, 3 s for a disturbed run"


def seconds(act: partial) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def put(widget, value: object) -> float:
    return seconds(partial(setattr, widget, "value", value))


def middle(values: list[float]) -> str:
    return f"{np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def row(model: str) -> tuple[str, ...]:
    explorer = Explorer(model)
    panel = Panel(explorer, explorer.choice())
    puzzle, buttons = panel.recordings[0].run.puzzle, panel.noise_steps.children
    put(buttons[-1], True)  # warm up; from here on the two runs differ
    sliders = [(panel.step, panel.frame)[scrub % 2] for scrub in range(SCRUBS)]
    scrubs = [put(slider, (slider.value + 1) % (slider.max + 1)) for slider in sliders]
    run = partial(sample, explorer.network(puzzle.task), [puzzle])
    plain, disturbed = zip(*((seconds(run), put(button, True)) for button in buttons[:RUNS]), strict=True)
    scrub, one = np.median(scrubs), np.median(plain)
    ratios = f"{scrub / one:.3f}", f"{np.median(disturbed) / one:.2f}"
    name, scrubbed = f"{model}, {puzzle.task} {puzzle.size}", f"{1000 * scrub:.1f}, {1000 * max(scrubs):.1f}"
    return name, scrubbed, ratios[0], middle(disturbed), ratios[1], middle(plain)


if __name__ == "__main__":
    for cells in (COLUMNS, ["---"] * len(COLUMNS), row("nano"), row("micro")):
        print(f"| {' | '.join(cells)} |")
    print(f"\ntargets: {TARGETS}; on {provenance()['machine']}, torch {provenance()['torch']}")
