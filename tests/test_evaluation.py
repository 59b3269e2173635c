"""What is evaluated, and how it is counted."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from networks import random_network

from minicos.cards import cells, commit, rows_of
from minicos.errors import MinicosError
from minicos.evaluation import Difficulty, Outcome, difficulties, evaluate, outcomes_of, summarise
from minicos.experiments.base import edge
from minicos.model import load, save
from minicos.runs import Run
from minicos.sampling import Trajectory, rollout
from minicos.tasks import get_task
from minicos.tasks.base import Score


def settings_with(reasoner, **changes):
    reasoner.settings = replace(reasoner.settings, **changes)
    return reasoner


def test_what_takes_long_is_evaluated_on_a_fifth(untrained_nano):
    nano = settings_with(load(untrained_nano), tasks={"maze": [5, 7, 8], "rotation": [90, 180]})
    counts = {(d.task, d.size): (d.trained, d.n) for d in difficulties(nano, 1000)}
    assert counts == {
        ("maze", 5): (True, 1000),
        ("maze", 7): (True, 1000),
        ("maze", 8): (True, 200),
        ("maze", 9): (False, 200),
        ("maze", 10): (False, 200),
        ("rotation", 90): (True, 1000),
        ("rotation", 180): (True, 1000),
    }


def test_a_causal_model_is_evaluated_frame_by_frame_too(tmp_path, monkeypatch):
    save(random_network("micro-causal"), tmp_path)
    rolled = []

    def counted(reasoner, puzzles, seed):
        rolled.extend(puzzles)
        return rollout(reasoner, puzzles, seed)

    monkeypatch.setattr("minicos.evaluation.rollout", counted)
    causal = settings_with(load(tmp_path), tasks={"maze": [3], "rotation-open": [90]}, steps=2)
    rows = [row for row in evaluate(causal, 5) if row.length == "all"]
    assert [(row.task, row.size, row.n, row.rollout) for row in rows] == [
        ("maze", 3, 5, False),
        ("maze", 4, 1, False),
        ("maze", 5, 1, False),
        ("maze", 3, 1, True),
        ("rotation-open", 90, 5, False),
        ("rotation-open", 90, 1, True),
    ]
    for row in rows:
        assert (row.gap is None) == (row.step_0 is None) == row.rollout
        assert ("frame by frame" in cells(row)[0]) == row.rollout
    assert [(puzzle.task, puzzle.size) for puzzle in rolled] == [("maze", 3), ("rotation-open", 90)]


def test_what_was_chosen_is_counted_for_solved_puzzles_only():
    task = get_task("rotation-open")
    puzzles = [task.sample(0, i) for i in range(12)]
    videos = np.stack([task.render(puzzle, 7) for puzzle in puzzles])
    videos[:2] = videos[:2, :1]  # the first two stand still
    outcomes = outcomes_of(Trajectory([Run(p) for p in puzzles], (), None, videos), [Score("wrong", "", False)] * 12)
    row = summarise(Difficulty(task.name, 90, True, 12), "all", outcomes)
    clockwise = sum(puzzle.turn > 0 for puzzle in puzzles[2:])
    assert row.chosen == {"clockwise": clockwise, "counterclockwise": 10 - clockwise}
    assert cells(row)[-1] == f"clockwise {clockwise}, counterclockwise {10 - clockwise}"
    assert (row.end, row.step_0, row.gap) == (pytest.approx(10 / 12), 0, pytest.approx(10 / 12))


def test_rows_survive_json():
    import json
    from dataclasses import asdict

    outcome = Outcome(get_task("maze").sample(0, 0, size=3), Score("solved", "", True), None, "")
    rows = [summarise(Difficulty("maze", 3, True, 2, rollout=True), "all", [outcome] * 2)]
    assert rows_of({"rows": json.loads(json.dumps([asdict(row) for row in rows]))}) == rows


def test_a_copy_in_another_projects_folder_does_not_give_that_projects_commit(tmp_path, monkeypatch):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    own = tmp_path / "cards.py"
    own.touch()
    monkeypatch.setattr("minicos.cards.__file__", str(own))
    assert commit.__wrapped__().startswith("unknown")
    for command in (["add", "cards.py"], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch(r"[0-9a-f]{40}", commit.__wrapped__())


def test_a_damaged_evaluation_is_one_line(tmp_path):
    save(random_network("nano"), tmp_path / "nano")
    (tmp_path / "nano" / "evaluation.json").write_text('{"rows": [{"task"')
    with pytest.raises(MinicosError, match=r"evaluation.json is damaged .*evaluate again"):
        edge(load(tmp_path / "nano"), "maze")
