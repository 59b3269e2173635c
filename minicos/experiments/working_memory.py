"""Working memory: do the latents remember what is hidden, or is it looked up in the given picture again and again?

The first frame is given, clean, at every step: what goes behind a screen can be looked up there. So the picture is
exchanged under way: before a step a run under picture B goes on with the latents of a run under picture A, whose cells
have each other's colours. What comes out in A's colours was remembered, what comes out in B's was looked up. The same
without a screen says whether hiding matters; erasing the frames that show nothing, whether these carry it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minicos.evaluation import held_out
from minicos.experiments.base import (
    Experiment,
    Scale,
    Verdict,
    bars,
    grouped,
    joined,
    judged,
    means,
    solid,
    spread,
    tasks_of,
)
from minicos.experiments.commitment import answered
from minicos.interventions import Noise, Places, TakeLatents
from minicos.model import Reasoner
from minicos.runs import Run
from minicos.sweeps import Sweep, Trial
from minicos.tasks import get_task
from minicos.tasks.occlusion import OcclusionPuzzle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "occlusion"
STEPS = 6
REMEMBERED = 0.5
SCREENS = ("screen", "no screen")


class WorkingMemory(Experiment):
    name = "working-memory"
    finding = "What is hidden keeps its place and comes out again: the model remembers it from step to step."
    paper = "Described with examples; no rates."
    picture = (
        "Left: whose colours come out when a run takes over another one's latents, against the step, with a screen and "
        "without. Right: right answers with and without a screen, and with the frames that show nothing erased."
    )
    criterion = (
        "Behind a screen, with the latents taken over in the middle of the steps: in over "
        f"{100 * REMEMBERED:g} % of pairs the colours that come out are the latents', not the given picture's."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        (task,) = tasks_of(reasoner, (TASK,))
        network = reasoner.for_task(task)
        schedule = network.schedule()
        puzzles = held_out(task, max(1, solid(reasoner, task)), scale.pairs)

        def trials(puzzle: OcclusionPuzzle, index: int) -> list[Trial]:
            empty = puzzle.empty_frames(network.latent_frames, network.frames_per_latent)
            return trials_of(puzzle, index, len(schedule), empty)

        return [Sweep(task, network, grouped(network, puzzles, trials), schedule, answered)]

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        table = tables[TASK]
        table["answer"] = table["answer"].astype(str)
        by = ["screen", "what", "step"]
        rates = means(table[~table["what"].isin(("picture B", "latents taken over"))], by, ["right"])
        return pd.concat([rates, taken_over(table, by)], ignore_index=True)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        taken = summary[(summary["what"] == "latents taken over") & (summary["screen"] == SCREENS[0])]
        taken = taken.sort_values("step")
        if taken.empty:
            return joined([])
        middle = taken.iloc[len(taken) // 2]
        part = (f"latents taken over before step {middle['step']}", *judged(middle, "remembered", REMEMBERED))
        return joined([part], controls(summary, middle["step"]))

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=150)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        taken = summary[summary["what"] == "latents taken over"]
        for screen, mark, line in zip(SCREENS, "os", ("-", "--"), strict=True):
            rows = taken[taken["screen"] == screen]
            for whose, colour in (("remembered", "#0072B2"), ("looked_up", "#D55E00")):
                label = f"{whose.replace('_', ' ')}, {screen}"
                left.errorbar(
                    rows.get("step", []), *_percent(rows, whose), fmt=mark + line, color=colour, capsize=2, label=label
                )
        if taken.empty:
            left.text(0.5, 0.5, "no pair came out right both ways", ha="center", transform=left.transAxes)
        left.set(xlabel="latents taken over before step", ylabel="pairs solved both ways, %", ylim=(-3, 103))
        left.legend(fontsize=7)
        rates = summary[summary["what"] != "latents taken over"]
        right.errorbar(range(len(rates)), *_percent(rates, "right"), fmt="o", color="#000000", capsize=3)
        labels = [f"{row['what']},\n{row['screen']}" for _, row in rates.iterrows()]
        right.set_xticks(range(len(rates)), labels, fontsize=7)
        right.set(ylabel="right answers, %", ylim=(-3, 103), xlim=(-0.5, len(rates) - 0.5))
        figure.suptitle(f"{title}; bars: 95 %", fontsize=9)
        return figure


def controls(summary: pd.DataFrame, step: int) -> list[tuple[str, pd.Series, str]]:
    """Told beside the verdict: the same step without a screen, and right answers with and without what is hidden."""
    rows = [
        ("taken over there without a screen, remembered", "latents taken over", SCREENS[1], step, "remembered"),
        ("right answers undisturbed", "undisturbed", SCREENS[0], -1, "right"),
        ("with the frames that show nothing erased", "empty frames erased", SCREENS[0], -1, "right"),
    ]
    found = []
    for words, what, screen, at, column in rows:
        here = summary[(summary["what"] == what) & (summary["screen"] == screen) & (summary["step"] == at)]
        found += [(words, row, column) for _, row in here.iterrows()]
    return found


def _percent(rows: pd.DataFrame, column: str) -> tuple[NDArray, NDArray]:
    """Means, and how far their intervals reach below and above."""
    if column not in rows:
        return np.empty(0), np.empty((2, 0))
    return 100 * rows[column].to_numpy(), 100 * bars(rows, column)


def trials_of(a: OcclusionPuzzle, index: int, steps: int, empty: tuple[int, ...]) -> list[Trial]:
    """With the screen and without: the runs under both pictures, and those under B that go on with A's latents.

    empty: the frames in which nothing is to be seen, behind the screen; none where there are none.
    """
    task = get_task(a.task)
    labels = {"task": a.task, "size": a.size, "pair": index}
    found = []
    for screen, one in zip(SCREENS, (a, task.unscreened(a)), strict=True):
        other = task.partner(one)
        runs = [("undisturbed", -1, Run(one)), ("picture B", -1, Run(other))]
        for s in spread(1, steps - 1, STEPS):
            runs.append(("latents taken over", s, Run(other, 0, (TakeLatents(Run(one), s),))))
        if screen == SCREENS[0] and empty:
            runs.append(("empty frames erased", -1, Run(one, 0, (Noise(places=Places(frames=empty)),))))
        found += [Trial(run, {**labels, "screen": screen, "what": what, "step": step}) for what, step, run in runs]
    return found


def taken_over(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Whose colours came out, of the pairs that come out right under either picture."""
    found = []
    for _, of_screen in table.groupby("screen"):
        a, b = (of_screen[of_screen["what"] == what].set_index("pair") for what in ("undisturbed", "picture B"))
        solved = a.index[a["right"] & b["right"]]
        taken = of_screen[(of_screen["what"] == "latents taken over") & of_screen["pair"].isin(solved)].copy()
        for column, runs in (("remembered", a), ("looked_up", b)):
            taken[column] = taken["answer"].to_numpy() == runs.loc[taken["pair"], "answer"].to_numpy()
        taken["neither"] = ~(taken["remembered"] | taken["looked_up"])
        found.append(taken)
    return means(pd.concat(found), by, ["remembered", "looked_up", "neither"])
