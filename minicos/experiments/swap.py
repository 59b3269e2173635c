"""Swap: hidden states of another puzzle put into a run, and whether the run's answer becomes the other's.

Pairs differ in one thing, the goal of a maze or the prompt of a rotation, and start from the same noise. The table has
three ways: the answer stays, becomes the other's, or neither. Swapping every token hands the rest of the pass over to
the other run, so that it flips is no finding: regions are. After the last block it is the other's own velocity: as much
as one step can do, and where that does not flip answers either, the step has no say and tells nothing about blocks.
Donors that have nothing to say (another seed, an unrelated puzzle from the pair's noise, noise) are the controls.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pandas as pd
from numpy.typing import NDArray

from minicos.evaluation import length_bin
from minicos.experiments.base import (
    Experiment,
    Scale,
    Verdict,
    bars,
    evenly,
    joined,
    judged,
    means,
    of_all,
    puzzles_for,
    solid,
    spread,
    tasks_of,
    with_lengths,
)
from minicos.experiments.commitment import answered
from minicos.interventions import NoiseHidden, SwapHidden, Tokens
from minicos.model import Reasoner
from minicos.runs import Intervention, Run
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, task_of
from minicos.tasks.base import PARTNER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGIONS = {"maze": ("all", "start", "goal", "path", "elsewhere"), "rotation": ("all", "shape", "elsewhere")}
TELLING = {"maze": "goal", "rotation": "shape"}  # where the pair's difference has to be known
LAST_FRAME = "last frame"
BLOCKS = 8  # at most: each costs two runs for every region and pair
# Each region its colour and mark; the controls share a colour.
REGION_STYLES = {
    "all": ("#56606B", "o"),
    "start": ("#E69F00", "v"),
    "goal": ("#D55E00", "s"),
    "shape": ("#D55E00", "s"),
    "path": ("#0072B2", "^"),
    "elsewhere": ("#009E73", "D"),
    LAST_FRAME: ("#000000", "P"),
}
DONOR_MARKS = {"another seed": "x", "unrelated puzzle": "+", "noise": "*"}
PAIRS_A_CHUNK = 2  # one where a video is a batch: a pair's hundred runs are ten gigabytes of video
FLIP = 0.25
SAY = 0.50  # what B's whole velocity has to flip, for the step to have a say


class Swap(Experiment):
    name = "swap"
    finding = "Swapping the hidden states of a middle block at the first step makes the answer the other puzzle's."
    paper = "Replacing the visual tokens at layer 20 of 40 at the first step flips the answer (rate not published)."
    picture = (
        "How often the answer becomes the other puzzle's, against the block whose hidden states were swapped, "
        "a line for each region, a point for each control; at the first step and at all steps. A dashed line: how "
        "often it becomes nobody's, where the pair differs."
    )
    criterion = (
        "At the middle block and the first step, swapping the region where the pair differs makes over "
        f"{100 * FLIP:g} % of the answers the other's (unclear where B's whole velocity at that step does not flip "
        f"over {100 * SAY:g} %)."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        found = []
        for task in tasks_of(reasoner, tuple(REGIONS)):
            network = reasoner.for_task(task)
            # Only pairs that are solved undisturbed say anything, so not at the edge.
            puzzles = puzzles_for(reasoner, task, scale, scale.puzzles + 1, where=solid)
            pairs = [
                (puzzle, partner, unrelated)
                for puzzle, unrelated in pairwise(puzzles)
                if (partner := task_of(puzzle).partner(puzzle))
            ]
            extent = len(network.transformer.blocks), network.latent_frames
            trials = [trials_of(*pair, i, *extent) for i, pair in enumerate(pairs[: scale.pairs])]
            groups = evenly(trials, min(PAIRS_A_CHUNK, network.settings.batch))
            chunks = [[trial for of_pair in group for trial in of_pair] for group in groups]
            found.append(Sweep(task, network, chunks, network.schedule(), answered))
        return found

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        parts = []
        for table in tables.values():
            table["answer"] = table["answer"].astype(str)
            clean = {side: table[table["donor"] == side].set_index("pair") for side in ("run A", "run B")}
            both = clean["run A"]["right"] & clean["run B"]["right"]
            swapped = table[~table["donor"].isin(clean) & table["pair"].isin(both.index[both])].copy()
            if swapped.empty:  # nothing is to be learned from pairs that were not solved in the first place
                continue
            a, b = (clean[side].loc[swapped["pair"], "answer"].to_numpy() for side in ("run A", "run B"))
            swapped["stays_a"], swapped["becomes_b"] = swapped["answer"] == a, swapped["answer"] == b
            swapped["neither"] = ~(swapped["stays_a"] | swapped["becomes_b"])
            by = ["task", "size", "length", "donor", "when", "region", "blocks", "block"]
            parts.append(means(with_lengths(swapped), by, ["stays_a", "becomes_b", "neither"]))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"n": []})

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        if summary.empty:
            return joined([])
        here = of_all(summary[(summary["donor"] == "B") & (summary["when"] == "first step")])
        here = here[here["block"] == here["blocks"] // 2]
        parts = []
        for _, row in here[here["region"] == here["task"].map(TELLING)].iterrows():
            status, numbers = judged(row, "becomes_b", FLIP)
            if status == "not shown" and not has_a_say(of_all(summary[summary["task"] == row["task"]])):
                status, numbers = "unclear", f"{numbers}; the step has no say here"
            parts.append((f"{row['task']}, {row['region']}", status, numbers))
        return joined(parts, controls(summary))

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        tasks = list(summary["task"].unique()) if "task" in summary else []
        figure = Figure(figsize=(11.5, 3.4 * max(1, len(tasks))), layout="constrained", dpi=150)
        for axes, task in zip(figure.subplots(max(1, len(tasks)), 2, squeeze=False), tasks, strict=False):
            for axis, when in zip(axes, ("first step", "all steps"), strict=True):
                here = of_all(summary[(summary["task"] == task) & (summary["when"] == when)])
                for (donor, region), rows in here.groupby(["donor", "region"]):
                    ours = donor == "B"
                    label = f"B's {region}" if ours else f"{donor}, {region}"
                    colour, mark = REGION_STYLES[region] if ours else ("#CC79A7", DONOR_MARKS[donor])
                    style = {"marker": mark, "linestyle": "-" if ours else ":", "color": colour}
                    _drawn(axis, rows, "becomes_b", label, style)
                    if ours and region == TELLING[task]:  # where flips become rare, is it A's answer again, or none?
                        style |= {"linestyle": "--", "markerfacecolor": "none"}
                        _drawn(axis, rows, "neither", f"{label}: nobody's", style)
                axis.set(xlabel="block", ylabel="becomes B's (dashed: nobody's), %", ylim=(-3, 103))
                axis.set_title(f"{task}, {when}", fontsize=9)
                axis.xaxis.get_major_locator().set_params(integer=True)
                if not here.empty:
                    axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
        figure.suptitle(f"{title}; bars: 95 %", fontsize=9)
        return figure


def _drawn(axis: Axes, rows: pd.DataFrame, column: str, label: str, style: dict[str, object]) -> None:
    axis.errorbar(rows["block"], 100 * rows[column], 100 * bars(rows, column), label=label, capsize=2, **style)


def trials_of(a: Puzzle, b: Puzzle, unrelated: Puzzle, index: int, blocks: int, frames: int) -> list[Trial]:
    """Runs A and B, and A with everything that is put into it."""
    found = [_trial(a, index, blocks, "run A", Run(a)), _trial(a, index, blocks, "run B", Run(b))]
    for block in blocks_of(blocks):
        for when, donor, region, intervention in conditions(a, b, unrelated, block, blocks, frames):
            run = Run(a, 0, (intervention,))
            found.append(_trial(a, index, blocks, donor, run, when=when, region=region, block=block))
    return found


def blocks_of(blocks: int) -> list[int]:
    """Every block; of a deep network BLOCKS of them, evenly spread, and the middle one, which is judged."""
    return sorted({blocks // 2, *spread(0, blocks - 1, BLOCKS)})


def conditions(
    a: Puzzle, b: Puzzle, unrelated: Puzzle, block: int, blocks: int, frames: int
) -> list[tuple[str, str, str, Intervention]]:
    """(when, donor, region, what is done) for one block.

    In the middle block, which is judged, also the controls, in the place of B's telling region and A's, as B's own, and
    B's last frame.
    """
    donor, telling = Run(b), Tokens(TELLING[a.task], other=b)
    stranger = replace(unrelated, key=f"{a.key}{PARTNER}/{unrelated.key}")  # denoised from the pair's noise, as B is
    found: list[tuple[str, str, str, Intervention]] = []
    for when, steps in (("first step", (0,)), ("all steps", None)):
        for region in REGIONS[a.task]:
            found.append((when, "B", region, SwapHidden(donor, block, steps, Tokens(region))))
        if block == blocks // 2:
            for name, other in (("another seed", Run(a, 1)), ("unrelated puzzle", Run(stranger))):
                found.append((when, name, TELLING[a.task], SwapHidden(other, block, steps, telling)))
            found.append((when, "noise", TELLING[a.task], NoiseHidden(block, steps, telling)))
    if block == blocks // 2:
        last = Tokens("all", (frames - 1,))
        found.append(("first step", "B", LAST_FRAME, SwapHidden(donor, block, (0,), last)))
    return found


def has_a_say(of_task: pd.DataFrame) -> bool:
    """Whether the first step can flip answers: by B's velocity, all tokens after the last block, over SAY of them."""
    first = of_task[(of_task["donor"] == "B") & (of_task["when"] == "first step") & (of_task["region"] == "all")]
    rows = first[first["block"] == first["blocks"] - 1]
    return any(judged(row, "becomes_b", SAY)[0] == "shown" for _, row in rows.iterrows())


def controls(summary: pd.DataFrame) -> list[tuple[str, pd.Series, str]]:
    """What is told beside the verdict: how much the first step has to say at all, and what swaps at all steps do."""
    found = []
    for task, rows in of_all(summary).groupby("task"):
        telling, blocks = TELLING[task], rows["blocks"].iloc[0]
        for words, when, donor, region, block, column in (
            ("B's whole velocity at the first step makes B's", "first step", "B", "all", blocks - 1, "becomes_b"),
            (f"its {telling} at all steps makes B's", "all steps", "B", telling, blocks // 2, "becomes_b"),
            ("and neither's", "all steps", "B", telling, blocks // 2, "neither"),
            ("where noise makes neither's", "all steps", "noise", telling, blocks // 2, "neither"),
        ):
            here = (rows["when"] == when) & (rows["donor"] == donor) & (rows["region"] == region)
            found += [(f"{task}: {words}", row, column) for _, row in rows[here & (rows["block"] == block)].iterrows()]
    return found


def _trial(
    a: Puzzle, index: int, blocks: int, donor: str, run: Run, when: str = "-", region: str = "-", block: int = -1
) -> Trial:
    # The length is that of A's route: B's goal is another one.
    labels = {"task": a.task, "size": a.size, "length": length_bin(a), "pair": index, "blocks": blocks}
    return Trial(run, {**labels, "donor": donor, "when": when, "region": region, "block": block})
