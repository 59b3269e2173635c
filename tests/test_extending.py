"""The program in docs/extending.md is whole, does what it says, and needs nothing but what is public."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch

import minicos
from minicos.experiments.base import Scale
from minicos.experiments.running import run_experiment
from minicos.runs import Run
from minicos.sampling import sample_runs

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL)
    module = sys.modules["reversed_frames"] = ModuleType("reversed_frames")  # where dataclasses look for their names
    exec(code, module.__dict__)
    yield module
    del sys.modules["reversed_frames"]


def test_frames_reversed_twice_are_in_their_order_again(program, untrained_nano):
    reasoner, step = minicos.load(untrained_nano), 3
    (puzzle,) = [minicos.get_task("maze").sample(0, 0, size=5)]
    once = (program.ReverseFrames(step),)
    runs = [Run(puzzle), Run(puzzle, 0, once), Run(puzzle, 0, once * 2)]
    recorder = minicos.Recorder("latents", steps=(step,))
    trajectory = sample_runs(reasoner, runs, schedule=reasoner.schedule(5), recorders=[recorder])
    plain, reversed_, again = trajectory.recorded("latents")[step]
    assert torch.equal(plain, again)
    assert torch.equal(reversed_[:, 0], plain[:, 0])
    assert torch.equal(reversed_[:, 1:], plain[:, [4, 3, 2, 1]])
    assert not torch.equal(reversed_, plain)


@pytest.mark.parametrize("model", ["untrained_nano", "tiny_wan_folder"])
def test_the_experiment_runs_on_every_model_and_goes_on(program, model, request, tmp_path):
    reasoner, tiny = minicos.load(request.getfixturevalue(model)), Scale("quick", 3, 2, 3, quick=True)
    result = run_experiment(program.ReversedFrames(), reasoner, tmp_path, tiny)
    of_all = result.summary[result.summary["length"] == "all"]
    assert set(of_all["kind"]) == {"reversed", "noised again"}
    assert (of_all["n"] == 3).all()
    assert result.verdict.text in (tmp_path / "verdict.md").read_text()
    before = (tmp_path / "maze" / "table.csv").read_bytes()
    pd.testing.assert_frame_equal(
        run_experiment(program.ReversedFrames(), reasoner, tmp_path, tiny).summary, result.summary
    )
    assert (tmp_path / "maze" / "table.csv").read_bytes() == before


def test_the_experiment_is_judged_by_what_reversing_costs_beyond_noise(program):
    """Reversing loses every maze; noise none, or as many."""
    rows = [("maze", 7, "4-7", puzzle, "undisturbed", -1, True) for puzzle in range(100)]
    experiment = program.ReversedFrames()
    for lost, status in ((0, "shown"), (100, "not shown")):
        disturbed = [
            ("maze", 7, "4-7", puzzle, kind, 6, kind == "noised again" and puzzle >= lost)
            for puzzle in range(100)
            for kind in ("reversed", "noised again")
        ]
        columns = ["task", "size", "length", "puzzle", "kind", "step", "right"]
        summary = experiment.summarise({"maze": pd.DataFrame(rows + disturbed, columns=columns)}, {})
        assert experiment.verdict(summary).status == status
