"""Causal twin: the same network with frame-causal attention, trained on the same puzzles for as long.

If reasoning went along frames, a network that looks at earlier frames only, and works them out one after the other,
should lose nothing. The mask alone does not make a chain of frames, since all frames are still denoised together; so
the twin is run both ways, jointly and frame by frame, with as many steps for each frame; as earlier frames are
remembered, that costs about the same (`sampling.rollout`). The control is the network's own weights under the mask,
which it never learned to live with; and the twin's own joint denoising, which tells what the mask and its training have
lost from what going frame by frame has. Mazes with several right answers are told beside: a frame that is done has
chosen one for those after it. And at equal solved rate, on the puzzles that both solve: what does noise cost each of
them?
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pandas as pd
from numpy.typing import NDArray

from minicos.experiments.base import (
    Experiment,
    Scale,
    Verdict,
    chunked,
    edge,
    joined,
    judged,
    labels_of,
    means,
    of_all,
    puzzles_for,
    solid,
    tasks_of,
    with_lengths,
)
from minicos.experiments.perturbation import judged_frames
from minicos.interventions import noise_at_frame, noise_at_step
from minicos.model import Reasoner
from minicos.runs import Intervention, Run
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle
from minicos.variants import frame_causal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASK, SEVERAL = "maze", "maze-braided"  # of the second, with several right answers, it is told and not judged
JOINT, MASKED, TWIN, ROLLOUT = "network", "network, masked", "twin", "twin, frame by frame"
STYLES = {JOINT: ("#0072B2", "o"), MASKED: ("#56606B", "x"), TWIN: ("#E69F00", "s"), ROLLOUT: ("#D55E00", "^")}
AHEAD = 0.10


class CausalTwin(Experiment):
    name = "causal-twin"
    finding = (
        "Reasoning does not go along frames: a network that looks at earlier frames only, and works out one after the "
        "other, solves less."
    )
    paper = "Not in the paper. HDR (arXiv:2607.15278): bidirectional 60.0 %, causal and autoregressive 34.2 %."
    picture = (
        "Solved rates of the network, of the network under a causal mask, and of its causal twin denoised "
        "jointly and frame by frame, at the edge, where it is solid, and on mazes with several right answers; and "
        "right answers under noise of the puzzles that both solve."
    )
    criterion = (
        "Of mazes with one right answer, at the edge and with as many steps (for each frame), the network solves over "
        f"{100 * AHEAD:g} points more than its causal twin does frame by frame."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        (task,) = tasks_of(reasoner, (TASK,))
        network = reasoner.for_task(task)
        twin = network.causal_twin()
        places = [(where.__name__, puzzles_for(network, task, scale, where=where)) for where in (edge, solid)]
        if places[0][1][0].size == places[1][1][0].size:  # in a quick run, and of a model that was not evaluated
            places.pop()
        most_solved = places[-1]
        if SEVERAL in (network.settings.tasks or (SEVERAL,)):
            places.append(("edge", puzzles_for(network, SEVERAL, scale)))
        ways = [(JOINT, network), (MASKED, frame_causal(network))]
        ways += [(TWIN, twin), (ROLLOUT, twin)] if twin else []
        found = [sweep_of(model, way, trials_of(*place, way)) for place in places for way, model in ways]
        done = {
            "noise at frame": noise_at_frame(network.latent_frames // 2),
            "noise at step": noise_at_step(len(network.schedule()) // 2),
        }
        for way, model in ((JOINT, network), (TWIN, twin)) if twin else ():
            for family, noise in done.items():
                found.append(sweep_of(model, way, trials_of(*most_solved, way, family, (noise,))))
        return found

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        table = pd.concat(tables.values(), ignore_index=True)
        plain = table[table["family"] == "run"]
        clean = {way: plain[plain["way"] == way] for way in (JOINT, TWIN)}
        case = ["task", "where", "puzzle"]
        solved = {way: rows.set_index(case)["solved"] for way, rows in clean.items()}
        keys = pd.MultiIndex.from_frame(table[case])
        table["behind"] = solved[JOINT].loc[keys].to_numpy().astype(float) - table["solved"].astype(float)
        by = ["task", "where", "size", "length", "way", "family"]
        parts = [means(with_lengths(table[table["family"] == "run"]), by, ["solved", "right", "behind"])]
        rolled = plain[plain["way"] == ROLLOUT].copy()
        if len(rolled):
            jointly = solved[TWIN].loc[pd.MultiIndex.from_frame(rolled[case])].to_numpy().astype(float)
            rolled["beyond_joint"] = rolled["solved"].astype(float) - jointly
            beyond = means(with_lengths(rolled), by, ["beyond_joint"]).drop(columns="n")
            parts[0] = parts[0].merge(beyond, how="left", on=by)
        noised = table[table["family"] != "run"]
        if len(noised):
            both = solved[JOINT] & solved[TWIN].reindex(solved[JOINT].index, fill_value=False)
            noised = noised[both.loc[pd.MultiIndex.from_frame(noised[case])].to_numpy()]
            parts += [means(with_lengths(noised), by, ["solved", "right"])] if len(noised) else []
        return pd.concat(parts, ignore_index=True)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        summary = of_all(summary)
        runs = summary[(summary["where"] == "edge") & (summary["family"] == "run")]
        at_edge, several = (runs[runs["task"] == task].set_index("way") for task in (TASK, SEVERAL))
        if ROLLOUT not in at_edge.index:
            return Verdict("unclear", "Nothing to judge by: no causal twin of this network was trained.")
        row, jointly = at_edge.loc[ROLLOUT], at_edge.loc[TWIN]
        part = (f"mazes of size {row['size']}, one training of each", *judged(row, "behind", AHEAD))
        beside = [
            ("denoised jointly the twin is behind by", jointly, "behind"),
            ("frame by frame it solves more than jointly by", row, "beyond_joint"),
        ]
        for _, noised in summary[summary["family"] != "run"].iterrows():
            what = f"right after {noised['family']}, of those that both solve: {noised['way']}"
            beside.append((what, noised, "right"))
        for words, way in (("frame by frame", ROLLOUT), ("denoised jointly", TWIN)):
            what = f"on {SEVERAL} the twin, {words}, is behind by"
            beside += [(what, row, "behind") for _, row in several[several.index == way].iterrows()]
        return joined([part], beside)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        summary = of_all(summary)
        places = list(summary.groupby(["task", "where"]).groups)
        figure = Figure(figsize=(4 * len(places) + 4, 3), layout="constrained", dpi=150)
        axes = figure.subplots(1, len(places) + 1)
        for axis, (task, where) in zip(axes, places, strict=False):
            here = summary[(summary["task"] == task) & (summary["where"] == where) & (summary["family"] == "run")]
            _bars(axis, here, "solved", list(here["way"]))
            axis.set(xlabel="solved, %")
            axis.set_title(f"{where}: {task} {here['size'].iloc[0]}, n = {here['n'].iloc[0]}", fontsize=9)
        noised = summary[summary["family"] != "run"]
        _bars(axes[-1], noised, "right", [f"{row['way']}, {row['family']}" for _, row in noised.iterrows()])
        axes[-1].set(xlabel="still right, %")
        axes[-1].set_title("of the mazes that both solve", fontsize=9)
        figure.suptitle(f"{title}; bars: 95 %", fontsize=9)
        return figure


def sweep_of(model: Reasoner, way: str, trials: list[Trial]) -> Sweep:
    labels = trials[0].labels
    name = "-".join(str(labels[key]) for key in ("task", "where", "way", "family")).replace(", ", "-").replace(" ", "-")
    measure = partial(judged_frames, per_latent=model.frames_per_latent)
    return Sweep(name, model, chunked(model, trials), model.schedule(), measure, frame_by_frame=way == ROLLOUT)


def trials_of(
    where: str,
    puzzles: list[Puzzle],
    way: str,
    family: str = "run",
    interventions: tuple[Intervention, ...] = (),
) -> list[Trial]:
    labels = {"where": where, "way": way, "family": family}
    return [Trial(Run(p, 0, interventions), labels_of(p, i) | labels) for i, p in enumerate(puzzles)]


def _bars(axis: Axes, rows: pd.DataFrame, column: str, names: list[str]) -> None:
    for place, (_, row) in enumerate(rows.iterrows()):
        colour, mark = STYLES[row["way"]]
        errors = [[100 * (row[column] - row[f"{column}_low"])], [100 * (row[f"{column}_high"] - row[column])]]
        axis.errorbar(100 * row[column], place, xerr=errors, fmt=mark, color=colour, capsize=2)
    axis.set_yticks(range(len(rows)), labels=names, fontsize=7)
    axis.set_xlim(-3, 103)
    axis.invert_yaxis()
