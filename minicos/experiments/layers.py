"""Layers: where in the network the answer is, by token energy and by linear probes.

Energy is the norm of a token's hidden state, relative to the mean of its block, since raw norms change with depth. A
probe reads from one token of the last frame whether the route passes it. What a probe can read need not have been
worked out: the same probe is given the token's position, the given image at the token, the latents before the step, and
the hidden states of the same network before it had learned anything; and shuffled labels, of which nothing can be read.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from minicos.experiments.base import (
    ALL,
    Experiment,
    Scale,
    Verdict,
    chunked,
    joined,
    judged,
    labels_of,
    of_all,
    puzzles_for,
    spread,
    tasks_of,
    with_lengths,
)
from minicos.interventions import to_tokens
from minicos.measures import mean_interval, probe, token_energy
from minicos.model import Reasoner
from minicos.runs import Batch, Run
from minicos.sampling import Recorder, Trajectory, extents
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle
from minicos.tasks.base import pick, puzzle_rng
from minicos.variants import untrained

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASK = "maze"
STEPS = 6  # of the schedule, evenly spread
KINDS = ("path", "elsewhere")  # regions that tokens are probed in, which is what the probe has to tell
TOKENS = 8  # of each kind and puzzle, in the last frame
LABELS = np.repeat([True, False], TOKENS)
LEARNED, RANDOM = "trained", "untrained"
JUDGED = 0.75  # depth of the block that the criterion asks
READ, ENERGY = 0.10, 0.10
BEYOND, GROWTH = "read beyond the best baseline", "energy beyond the first block"
DEEPER = "read beyond the first block"  # not judged
HALF = torch.finfo(torch.float16).max  # what is kept; a few values of a large model go beyond it
BASELINES = {"position": "#E69F00", "given image": "#009E73", "latents": "#CC79A7", "shuffled labels": "#56606B"}


class Layers(Experiment):
    name = "layers"
    finding = "Early blocks hold the background, later ones work out the answer."
    paper = "Layers 0 to 9 of 40 hold background, later ones foreground and answer (maps of token energy; no rates)."
    picture = (
        "Against the block, a line for each denoising step: energy of the route relative to other tokens, and "
        "the share of tokens that a linear probe reads, with baselines as horizontal lines."
    )
    criterion = (
        f"At step 0, after the first block that is at least {100 * JUDGED:g} % deep, a probe reads the route over "
        f"{100 * READ:g} points better than from the best baseline (position, given image, latents, untrained network);"
        f" and there, relative to the background, the route's tokens have over {100 * ENERGY:g} % more energy than "
        "after the first block."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        (task,) = tasks_of(reasoner, (TASK,))
        network = reasoner.for_task(task)
        puzzles = puzzles_for(reasoner, task, scale)
        return [self._sweep(LEARNED, network, puzzles), self._sweep(RANDOM, untrained(network), puzzles)]

    def _sweep(self, name: str, network: Reasoner, puzzles: list[Puzzle]) -> Sweep:
        schedule, blocks = network.schedule(), tuple(range(len(network.transformer.blocks)))
        steps = tuple(spread(0, len(schedule) - 1, STEPS))
        trials = [Trial(Run(puzzle), labels_of(puzzle, i)) for i, puzzle in enumerate(puzzles)]
        recorders = Recorder("block", "cond", steps, blocks, hidden), Recorder("latents", "guided", steps, (), noisy)
        reduced = partial(probed, reasoner=network, blocks=blocks)
        return Sweep(
            name, network, chunked(network, trials), schedule, partial(numbered, steps=steps), recorders, reduced
        )

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        steps = sorted(set(tables[LEARNED]["step"]))
        puzzles = with_lengths(tables[LEARNED][tables[LEARNED]["step"] == steps[0]])
        lengths = {length: numbers.to_numpy() for length, numbers in puzzles.groupby("length")["puzzle"]}
        known = {name: hits(features[LEARNED][name]) for name in ("position", "given image")}
        known["shuffled labels"] = hits(features[LEARNED]["hidden"][:, 0, -1], shuffled=True)
        rows = [row("probe", share, name) for name, share in known.items()]
        for number, step in enumerate(steps):
            latents = hits(features[LEARNED]["latents"][:, number])
            rows.append(row("probe", latents, "latents", step))
            # Later the untrained network has latents of its own making, and is no baseline any more.
            names = (LEARNED, RANDOM) if number == 0 else (LEARNED,)
            of_step = {name: of_blocks(features[name], number) for name in names}
            for name, blocks in of_step.items():
                for block, (read, energy) in enumerate(blocks):
                    rows += [row("probe", read, name, step, block), row("energy", energy, name, step, block)]
            here = ceil(JUDGED * len(of_step[LEARNED])) - 1
            read, energy = of_step[LEARNED][here]
            baselines = [known["position"], known["given image"], latents]
            baselines += [blocks[here][0] for name, blocks in of_step.items() if name == RANDOM]
            first_read, first_energy = of_step[LEARNED][0]
            # By length, what is judged or told of it only; probes and baselines are of all lengths.
            for length, those in lengths.items():
                place = LEARNED, step, here, length
                rows.append(row(BEYOND, (read - max(baselines, key=np.mean))[those], *place))
                rows.append(row(DEEPER, (read - first_read)[those], *place))
                rows.append(row(GROWTH, (energy - first_energy)[those], *place))
        return pd.DataFrame(rows)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        parts = []
        first = of_all(summary[summary["step"] == 0])
        for what, criterion in ((BEYOND, READ), (GROWTH, ENERGY)):
            for _, found in first[first["what"] == what].iterrows():
                parts.append((what, *judged(found, "value", criterion)))
        return joined(parts, [(DEEPER, found, "value") for _, found in first[first["what"] == DEEPER].iterrows()])

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        summary = of_all(summary)
        figure = Figure(figsize=(10, 3.8), layout="constrained", dpi=150)
        panels = dict(zip(("energy", "probe"), figure.subplots(1, 2), strict=True))
        steps = sorted(set(summary["step"]) - {-1})
        shades = colormaps["viridis"](np.linspace(0, 0.85, len(steps)))
        for step, mark, colour in zip(steps, "osv^DP", shades, strict=False):
            for what, axis in panels.items():
                here = summary[(summary["step"] == step) & (summary["what"] == what)]
                for name, line in ((LEARNED, "-"), (RANDOM, ":")):
                    rows = here[here["source"] == name]
                    label = f"step {step}" if name == LEARNED else None
                    axis.plot(rows["block"], rows["value"], line + mark, color=colour, markersize=4, label=label)
                rows = here[(here["source"] == LEARNED) & (here["block"] >= 0)]
                band = rows["block"], rows["value_low"], rows["value_high"]
                axis.fill_between(*band, color=colour, alpha=0.2, linewidth=0)
        first = summary[(summary["what"] == "probe") & (summary["block"] < 0) & (summary["step"] <= 0)]
        for (name, colour), line in zip(BASELINES.items(), ("--", "-.", (0, (1, 1)), (0, (6, 3))), strict=True):
            value = first[first["source"] == name]["value"].iloc[0]
            panels["probe"].axhline(value, color=colour, linestyle=line, linewidth=1, label=name)
        panels["energy"].set(xlabel="block", ylabel="energy of the route's tokens over others'")
        panels["probe"].set(xlabel="block", ylabel="share of tokens read by a probe")
        panels["energy"].legend(fontsize=7)
        panels["probe"].legend(fontsize=6, ncols=2)
        notes = "solid: trained, dotted: untrained, at step 0; horizontal: baselines (latents: of step 0); bands: 95 %"
        figure.suptitle(f"{title}\n{notes}", fontsize=9)
        return figure


# --- what is kept of a run ------------------------------------------------------------------------------------------


def probed_tokens(batch: Batch) -> NDArray[np.int64]:
    """(runs, 2 TOKENS) indices among a frame's tokens: TOKENS on the route, then as many elsewhere; drawn by puzzle."""
    rows = []
    for row, run in enumerate(batch.runs):
        rng, chosen = puzzle_rng(f"{run.puzzle.key}/probed"), []
        for kind in KINDS:
            inside = np.flatnonzero(batch.region(row, kind).numpy()).tolist() or [0]
            chosen += [pick(inside, rng) for _ in range(TOKENS)]
        rows.append(chosen)
    return np.array(rows)


def of_last_frame(tokens: Tensor, batch: Batch) -> Tensor:
    """(runs, tokens, values) to (runs, 2 TOKENS, values)."""
    frame = tokens[:, -batch.grid[1] * batch.grid[2] :]
    index = torch.from_numpy(probed_tokens(batch)).to(frame.device)
    return frame.gather(1, index[..., None].expand(-1, -1, frame.shape[-1]))


def hidden(states: Tensor, batch: Batch) -> Tensor:
    """Hidden states of the probed tokens, and their energy as one value more."""
    energy = token_energy(states.float())[..., None]
    return torch.cat([of_last_frame(states, batch).float(), of_last_frame(energy, batch)], -1)


def noisy(latents: Tensor, batch: Batch) -> Tensor:
    return of_last_frame(to_tokens(latents, batch), batch)


def probed(trajectory: Trajectory, reasoner: Reasoner, blocks: tuple[int, ...]) -> dict[str, NDArray]:
    """Features of the probed tokens, (runs, ..., 2 TOKENS, values) each; hidden: of (steps, blocks)."""
    condition = reasoner.condition(trajectory.puzzles)
    batch = Batch(trajectory.runs, *extents(reasoner, condition))
    image = condition.channels[:, -reasoner.latent_channels :, :1].expand(-1, -1, batch.extent[0], -1, -1)
    states = torch.stack([stacked(trajectory, "block", "cond", block) for block in blocks], 2).cpu()
    return {
        "hidden": states[..., :-1].clamp(-HALF, HALF).half().numpy(),
        "energy": states[..., -1].float().numpy(),
        "latents": stacked(trajectory, "latents").cpu().half().numpy(),
        "given image": noisy(image, batch).cpu().half().numpy(),
        "position": np.eye(batch.grid[1] * batch.grid[2], dtype=np.float16)[probed_tokens(batch)],
    }


def stacked(trajectory: Trajectory, *place: object) -> Tensor:
    """What was recorded there, (runs, steps, ...)."""
    return torch.stack(list(trajectory.recorded(*place).values()), 1)


def numbered(trajectory: Trajectory, steps: tuple[int, ...]) -> list[list[dict[str, object]]]:
    """The table only says which steps the features are of."""
    return [[{"step": step} for step in steps] for _ in trajectory.runs]


# --- what is made of it ---------------------------------------------------------------------------------------------


def hits(features: NDArray, shuffled: bool = False) -> NDArray:
    """Share of each puzzle's tokens that a linear probe tells, (puzzles,); features: (puzzles, 2 TOKENS, values)."""
    puzzles = len(features)
    if puzzles < 2:  # of one maze nothing can be held back
        return np.full(puzzles, np.nan)
    labels = np.tile(LABELS, (puzzles, 1))
    if shuffled:
        labels = np.random.default_rng(0).permuted(labels, axis=1)
    groups = np.repeat(np.arange(puzzles), len(LABELS))
    folds = min(5, puzzles)
    read = probe(features.reshape(puzzles * len(LABELS), -1).astype(np.float32), labels.ravel(), groups, folds)
    return (read.reshape(labels.shape) == labels).mean(1)


def of_blocks(features: dict[str, NDArray], step: int) -> list[tuple[NDArray, NDArray]]:
    """For each block, by puzzle: share of tokens read, and the route's energy over that of other tokens."""
    found = []
    for block in range(features["hidden"].shape[2]):
        energy = features["energy"][:, step, block]
        ratio = energy[:, LABELS].mean(1) / energy[:, ~LABELS].mean(1)
        found.append((hits(features["hidden"][:, step, block]), ratio))
    return found


def row(
    what: str, values: NDArray, source: str, step: int = -1, block: int = -1, length: str = ALL
) -> dict[str, object]:
    """The mean of some puzzles; step, block: -1 where it is of none."""
    low, high = mean_interval(values)
    named = {"what": what, "source": source, "length": length, "step": step, "block": block, "n": len(values)}
    return {**named, "value": float(np.mean(values)), "value_low": low, "value_high": high}
