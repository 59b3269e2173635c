"""Self-correction: answers that change along the steps, each way apart, and repair of what was broken on purpose.

From a readable wrong answer to the right one is correction; from an unreadable blend, or a right answer that is not
finished, to the right one is only decision; and right answers can be lost. Where several answers are right hardly any
is wrong, so such a task stands in the table and is not judged. Where x0_hat can hardly be read before it is right, no
correction can be seen, which is no sign that there is none. In which steps the frames become right is told and not
judged: a frame has to be legible for that, and fuller frames become legible later. A broken estimate, re-noised, is
compared with the same estimate re-noised unbroken.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from minicos.experiments.base import (
    Experiment,
    Scale,
    Verdict,
    bars,
    grouped,
    joined,
    judged,
    labels_of,
    of_all,
    of_undisturbed,
    puzzles_for,
    spread,
    tasks_of,
    with_lengths,
)
from minicos.interventions import CorruptAndRenoise, Renoise
from minicos.measures import mean_interval, wilson_interval
from minicos.model import Reasoner
from minicos.runs import Run
from minicos.sampling import Recorder, Trajectory
from minicos.sweeps import Sweep, Trial
from minicos.tasks import Puzzle, task_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TASKS = ("maze", "rotation-open", "bounce")
SINGLE = ("maze", "bounce")  # one right answer
STEPS = 6
SHARE = 0.25  # of the tokens that are broken
CORRECTED = 0.10
FIXED, READ_BEFORE = "readable and wrong, then right", "readable and not right before the end"
AT_ONCE, COST = "right later: all frames in the same step", "cost of breaking"


class SelfCorrection(Experiment):
    name = "self-correction"
    finding = "Wrong answers of early steps are corrected later (in all frames at once: told, not judged)."
    paper = "Described with examples; no rates."
    picture = (
        "Left: shares of puzzles by the way their answer changes along the steps. Right: right answers at the "
        "end after x0_hat was re-noised, whole and broken, against the step."
    )
    criterion = (
        f"In over {100 * CORRECTED:g} % of puzzles with one right answer x0_hat shows a readable wrong answer at some "
        "step, and the right one at the end (unclear where too few show any before the end that can be read and is not "
        "right)."
    )

    def sweeps(self, reasoner: Reasoner, scale: Scale) -> list[Sweep]:
        found = []
        for task in tasks_of(reasoner, TASKS):
            network = reasoner.for_task(task)
            schedule = network.schedule()
            chunks = grouped(network, puzzles_for(reasoner, task, scale), partial(trials_of, steps=len(schedule)))
            measure, recorders = partial(answers_shown, reasoner=network), (Recorder("x0_hat"),)
            watched = partial(of_undisturbed, videos=len(schedule) - 1)
            found.append(Sweep(task, network, chunks, schedule, measure, recorders, watched=watched))
        return found

    def summarise(self, tables: dict[str, pd.DataFrame], features: dict[str, dict[str, NDArray]]) -> pd.DataFrame:
        rows = []
        for table in tables.values():
            for (task, size, length), of_length in with_lengths(table).groupby(["task", "size", "length"]):
                found = [*ways(of_length[of_length["family"] == "run"]), *repairs(of_length)]
                rows += [{"task": task, "size": size, "length": length, **row} for row in found]
        return pd.DataFrame(rows)

    def verdict(self, summary: pd.DataFrame) -> Verdict:
        parts, beside = [], []
        for task in SINGLE:
            of_task = of_all(summary[summary["task"] == task])
            of_task = of_task.rename(columns={"low": "share_low", "high": "share_high"})
            rows = of_task[of_task["step"] < 0].set_index("what")
            if FIXED in rows.index:
                status, numbers = judged(rows.loc[FIXED], "share", CORRECTED)
                if status == "not shown" and not could_be(rows.loc[READ_BEFORE]):
                    status, numbers = "unclear", f"{numbers}; too few show anything else before the end"
                parts.append((f"{task}: {FIXED}", status, numbers))
            for what in (READ_BEFORE, AT_ONCE):
                beside += [(f"{task}: {what}", row, "share") for _, row in rows[rows.index == what].iterrows()]
            costs = of_task[of_task["what"] == COST].sort_values("step")
            for _, row in costs.iloc[len(costs) // 2 :][:1].iterrows():
                beside.append((f"{task}: {COST} x0_hat before step {row['step']}", row, "share"))
        return joined(parts, beside)

    def plot(self, summary: pd.DataFrame, title: str) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.8), layout="constrained", dpi=150)
        left, right = figure.subplots(1, 2)
        colours = ("#0072B2", "#E69F00", "#000000")
        for offset, (task, colour, mark) in enumerate(zip(TASKS, colours, "os^", strict=True)):
            of_task = of_all(summary[summary["task"] == task])
            flips = of_task[of_task["step"] < 0]
            if flips.empty:
                continue
            place = np.arange(len(flips)) + 0.15 * offset
            left.errorbar(100 * flips["share"], place, xerr=_bars(flips), fmt=mark, color=colour, capsize=2, label=task)
            left.set_yticks(np.arange(len(flips)), labels=flips["what"], fontsize=7)
            for what, line in (("re-noised", "-"), ("broken and re-noised", "--")):
                rows = of_task[of_task["what"] == what]
                label = f"{task}, {what}"
                right.errorbar(
                    rows["step"],
                    100 * rows["share"],
                    _bars(rows),
                    fmt=mark + line,
                    color=colour,
                    capsize=2,
                    label=label,
                )
        left.set(xlabel="share, %", xlim=(-3, 103))
        left.invert_yaxis()
        left.legend(fontsize=7)
        right.set(xlabel="before denoising step", ylabel="right at the end, %", ylim=(-3, 103))
        right.legend(fontsize=7)
        figure.suptitle(f"{title}; bars: 95 %", fontsize=9)
        return figure


def _bars(rows: pd.DataFrame) -> NDArray:
    return 100 * bars(rows.rename(columns={"low": "share_low", "high": "share_high"}), "share")


def trials_of(puzzle: Puzzle, index: int, steps: int) -> list[Trial]:
    labels = labels_of(puzzle, index)
    found = [Trial(Run(puzzle), {**labels, "family": "run"})]
    for s in spread(1, steps - 1, STEPS):
        for family, done in (("re-noised", Renoise((s,))), ("broken and re-noised", CorruptAndRenoise(s, SHARE))):
            found.append(Trial(Run(puzzle, 0, (done,)), {**labels, "family": f"{family}/{s}"}))
    return found


def answers_shown(trajectory: Trajectory, reasoner: Reasoner) -> list[list[dict[str, object]]]:
    """Undisturbed runs: a row for each step, with what x0_hat shows. Others: one row, with the end.

    right: the last frame's answer; readable: it has one; wrong: it has, and neither a right one (in a picture that is
    not the given one) nor one on the way to it; frames: which frames hold it, a digit each.
    """
    rows: list[list[dict[str, object]]] = [[] for _ in trajectory.runs]
    undisturbed = [number for number, run in enumerate(trajectory.runs) if not run.interventions]
    *before, last = (step.index for step in trajectory.schedule)
    for step in before:  # one step at a time, and of these runs only: the videos of a full model are large
        for number, video in zip(
            undisturbed, reasoner.decode(trajectory.recorded("x0_hat")[step][undisturbed]), strict=True
        ):
            rows[number].append({"step": step, **shown(video, trajectory.puzzles[number])})
    for row, puzzle, video in zip(rows, trajectory.puzzles, trajectory.video, strict=True):
        row.append({"step": last, **shown(video, puzzle)})
    return rows


def shown(video: NDArray[np.uint8], puzzle: Puzzle) -> dict[str, object]:
    task = task_of(puzzle)
    holding = "".join(str(int(task.holds(video, puzzle, frame))) for frame in range(1, len(video)))
    right, answer = task.score(video, puzzle).answer, task.decode(video, puzzle)
    some_right = answer in task.answers(puzzle) or (answer is not None and task.on_the_way(answer, puzzle))
    wrong = not right and answer is not None and not some_right
    return {"right": right, "readable": answer is not None, "wrong": wrong, "frames": f"f{holding}"}


def ways(table: pd.DataFrame) -> list[dict[str, object]]:
    """The ways from step to step, as shares of puzzles, and how many flips are of all frames at once."""
    groups = [group.sort_values("step") for _, group in table.groupby("puzzle")]
    right, wrong, readable = (
        np.array([group[column].to_numpy() for group in groups]) for column in ("right", "wrong", "readable")
    )
    wrong_before, wrong_at_last, end = wrong.any(1), wrong[:, -1], right[:, -1]
    late = ~wrong_before & ~right[:, 0] & end
    unfinished = (readable & ~right & ~wrong).any(1)  # on the way to a right answer
    shares = {
        "right at step 0": right[:, 0],
        "right at the end": end,
        READ_BEFORE: (readable & ~right)[:, :-1].any(1),
        FIXED: wrong_before & end,
        "not readable before, then right": late & ~unfinished,
        "unfinished, then right": late & unfinished,
        "right, then readable and wrong at the end": right.any(1) & wrong_at_last,
        "right, then undecided at the end": right.any(1) & ~end & ~wrong_at_last,
    }
    frames_of = [group["frames"].tolist() for group, was in zip(groups, end & ~right[:, 0], strict=True) if was]
    shares[AT_ONCE] = np.array([flip_together(frames) for frames in frames_of if frames[0].count("0") > 1], bool)
    return [{"what": what, "step": -1, **_share(values)} for what, values in shares.items() if len(values)]


def could_be(read_before: pd.Series) -> bool:
    """Whether the criterion could have been met, had all been corrected that was read before the end and not right."""
    return bool(read_before["share_low"] > CORRECTED)


def _share(values: NDArray[np.bool_]) -> dict[str, object]:
    low, high = wilson_interval(values)
    return {"n": len(values), "share": float(values.mean()), "low": low, "high": high}


def flip_together(frames: list[str]) -> bool:
    """Whether all frames that are not right throughout become right for good in one and the same step."""
    holds = np.array([[digit == "1" for digit in row[1:]] for row in frames])  # the first character makes it a text
    since = [len(holds) - int(np.argmin(column[::-1])) if not column.all() else 0 for column in holds.T]
    return len({step for step in since if step > 0}) == 1


def repairs(table: pd.DataFrame) -> list[dict[str, object]]:
    """Right at the end after each kind of restart, and what breaking costs, puzzle by puzzle."""
    others = table[table["family"] != "run"]
    found: dict[int, dict[str, NDArray]] = {}
    for family, group in others.groupby("family"):
        what, step = family.split("/")
        found.setdefault(int(step), {})[what] = group.sort_values("puzzle")["right"].to_numpy()
    rows = []
    for step, kinds in sorted(found.items()):
        rows += [{"what": what, "step": step, **_share(values)} for what, values in sorted(kinds.items())]
        cost = kinds["re-noised"].astype(float) - kinds["broken and re-noised"].astype(float)
        low, high = mean_interval(cost)
        rows.append({"what": COST, "step": step, "n": len(cost), "share": cost.mean(), "low": low, "high": high})
    return rows
