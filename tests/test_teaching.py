"""What lessons call: pictures have words, a live finding says its n and its criterion, and nothing reaches stderr."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import asdict

import pytest
from matplotlib.figure import Figure

import minicos
from minicos.errors import MinicosError
from minicos.experiments import get_experiment
from minicos.model import save
from minicos.replication import weights_of
from minicos.teaching import stored
from minicos.training import build


@pytest.fixture
def maze_puzzles():
    return [minicos.get_task("maze").sample(0, i, size=4) for i in range(2)]


def test_a_picture_needs_words():
    with pytest.raises(MinicosError, match="alt"):
        minicos.show(Figure(), " ")
    shown = minicos.show(Figure(), 'a "dot" < a line')
    assert 'alt="a &quot;dot&quot; &lt; a line"' in shown._repr_html_()


def test_a_film_takes_videos_of_different_lengths(maze_puzzles):
    task = minicos.get_task("maze")
    videos = {str(frames): task.render(maze_puzzles[0], frames) for frames in (2, 5)}
    assert minicos.film(videos, "two videos").png.startswith(b"\x89PNG")


def test_a_strip_says_its_verdicts(untrained_nano, maze_puzzles):
    reasoner = minicos.load(untrained_nano)
    run = minicos.sample(reasoner, maze_puzzles[:2], recorders=[minicos.Recorder("x0_hat")])
    last = len(run.schedule) - 1
    assert (
        f"step {last} {minicos.get_task('maze').score(run.video[1], maze_puzzles[1]).status}"
        in minicos.strip(reasoner, run, row=1).alt
    )
    with pytest.raises(MinicosError, match="not recorded"):
        minicos.strip(reasoner, minicos.sample(reasoner, maze_puzzles[:1]))


def test_a_live_finding_stands_beside_the_stored_one(untrained_nano, tmp_path, capfd):
    folder = tmp_path / "nano"
    shutil.copytree(untrained_nano, folder)
    reasoner = minicos.load(folder)
    live = minicos.live("chain-of-steps", cases=2, model=reasoner)  # not loaded a second time
    assert capfd.readouterr().err == ""
    assert live.rows()[1][2] == "not stored"
    assert get_experiment("chain-of-steps").criterion in repr(live)
    assert live.live.networks == ("nano",)
    finding = {**asdict(live.live), "text": "what the full run said", "n": [256, 256]}
    report = {"weights": weights_of(reasoner), "findings": [finding]}
    (folder / "findings.json").write_text(json.dumps(report))
    assert stored(reasoner, get_experiment("chain-of-steps")).text == "what the full run said"
    assert stored(reasoner, get_experiment("budget")) is None
    for change in ({"status": "not run"}, {"criterion": "another one"}):
        (folder / "findings.json").write_text(json.dumps(report | {"findings": [{**report["findings"][0], **change}]}))
        assert stored(reasoner, get_experiment("chain-of-steps")) is None
    (folder / "findings.json").write_text(json.dumps(report))
    save(build("nano", seed=1), folder)  # trained anew: what the old weights did is not quoted
    assert stored(minicos.load(folder), get_experiment("chain-of-steps")) is None


def test_what_cannot_be_shown_is_refused(untrained_nano, maze_puzzles):
    with pytest.raises(MinicosError, match="no video to show"):
        minicos.film({}, "nothing")
    reasoner = minicos.load(untrained_nano)
    run = minicos.sample(reasoner, maze_puzzles, recorders=[minicos.Recorder("x0_hat", steps=(0, 3))])
    assert re.findall(r"step (\d+) [a-z]+", minicos.strip(reasoner, run).alt) == ["0", "3"]
    with pytest.raises(MinicosError, match="row 2 does not exist: this run has rows 0 to 1"):
        minicos.strip(reasoner, run, row=2)
    with pytest.raises(MinicosError, match="0 cases: at least 1 puzzle"):
        minicos.live("chain-of-steps", cases=0, model=str(untrained_nano))


def test_an_unknown_finding_is_refused():
    with pytest.raises(MinicosError, match="unknown experiment"):
        minicos.live("chain-of-thought")
