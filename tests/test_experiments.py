"""Every experiment runs on every model, judges by its criterion, and goes on after a kill."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import random_network
from PIL import Image

from minicos import load
from minicos.cards import EVALUATION_FILE, weights_digest
from minicos.errors import MinicosError
from minicos.experiments import (
    EXPERIMENTS,
    chain_of_steps,
    ensemble,
    get_experiment,
    layers,
    perception_first,
    perturbation,
    self_correction,
)
from minicos.experiments.base import (
    ALL,
    FEW,
    FULL,
    QUICK,
    Scale,
    easiest,
    edge,
    evenly,
    judge,
    means,
    of_all,
    puzzles_for,
    scale_of,
    solid,
    together,
    with_lengths,
    without_few,
)
from minicos.experiments.chain_of_steps import left_open, mean_answer, nearest_answer, scattered
from minicos.experiments.perception_first import orders
from minicos.experiments.running import run_experiment
from minicos.experiments.self_correction import flip_together, shown, ways
from minicos.interventions import Renoise, Tokens, noise_at_frame
from minicos.measures import cell_probabilities
from minicos.model import CHECKPOINTS, save, to_latent_range
from minicos.replication import facts_of, findings_table, replicate
from minicos.runs import Batch, Run
from minicos.sampling import Trajectory, sample_runs
from minicos.tasks import get_task
from minicos.tasks.maze import FLOOR, PALETTE, PATH

TINY = Scale("quick", 3, 2, 3, quick=True)
KINDS = "re-noised", "broken and re-noised"


def two_lengths(table: pd.DataFrame, case: str = "puzzle") -> pd.DataFrame:
    """With a route of 8 to 11 moves for every second puzzle."""
    return table.assign(length=np.where(table[case] % 2, "8-11", "4-7"))


@pytest.fixture(scope="module")
def family(untrained_nano, tmp_path_factory) -> Path:
    """The folder of a nano that leaves occlusions to another network, both with random weights."""
    place = tmp_path_factory.mktemp("family")
    nano = load(untrained_nano)
    nano.settings = dataclasses.replace(nano.settings, siblings={"occlusion": "motion"})
    save(nano, place / "nano")
    save(random_network("micro-occlusion"), place / "motion")
    return place / "nano"


@pytest.fixture(params=["nano", "tiny_wan"], scope="module")
def reasoner(request, family, tiny_wan_folder):
    return load({"nano": family, "tiny_wan": tiny_wan_folder}[request.param])


@pytest.fixture(scope="module")
def folder(reasoner, tmp_path_factory) -> Path:
    """Where all experiments on one model are written: what one test has computed, another reads."""
    return tmp_path_factory.mktemp("replication")


@given(st.integers(0, 300), st.integers(1, 60))
def test_groups_keep_the_order_and_are_few_and_even(count, most):
    groups = evenly(range(count), most)
    assert list(itertools.chain(*groups)) == list(range(count))
    sizes = {len(group) for group in groups}
    assert max(sizes, default=0) <= most
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    assert (len(groups) - 1) * most < max(count, 1)


@given(st.lists(st.tuples(st.sampled_from(["maze", "rotation"]), st.sampled_from(["4-7", "12-15", "21+"]))))
def test_mazes_are_told_by_length_after_the_whole(puzzles):
    table = pd.DataFrame(puzzles, columns=["task", "length"]).assign(solved=True)
    found = with_lengths(table)
    assert of_all(found).drop(columns="length").equals(table.drop(columns="length"))
    counted = {key: len(rows) for key, rows in found.groupby(["task", "length"])}
    expected = {(task, ALL): sum(name == task for name, _ in puzzles) for task in ("maze", "rotation")}
    expected |= {("maze", length): puzzles.count(("maze", length)) for length in ("4-7", "12-15", "21+")}
    assert counted == {key: count for key, count in expected.items() if count}
    lengths = [length for task, length in counted if task == "maze"]
    assert lengths == [length for length in (ALL, "4-7", "12-15", "21+") if length in lengths]


def test_nothing_is_told_of_few_puzzles_of_a_length_but_of_few_in_all():
    summary = pd.DataFrame({"length": [ALL, "4-7", "8-11"], "n": [FEW - 1, FEW - 1, FEW]})
    assert without_few(summary)["length"].tolist() == [ALL, "8-11"]
    assert without_few(pd.DataFrame({"n": [1]}))["n"].tolist() == [1]  # of no mazes


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_with_one_case_one_expert_at_a_time_and_in_bfloat16(name, tiny_wan_bf16_folder, tmp_path):
    """The first try on a full model: nothing is to fail after hours, and nothing to be claimed of one puzzle."""
    reasoner = load(tiny_wan_bf16_folder).to("cpu", one_at_a_time=True)
    assert reasoner.transformer.dtype == torch.bfloat16
    result = run_experiment(get_experiment(name), reasoner, tmp_path, Scale("one", 1, 1, 1, quick=True))
    assert result.verdict.status == "unclear"
    assert not list(tmp_path.rglob("*.aside"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs_on_every_model(name, reasoner, folder):
    experiment, out = get_experiment(name), folder / name
    result = run_experiment(experiment, reasoner, out, TINY)
    assert result.verdict.text in (out / "verdict.md").read_text()
    assert result.seconds > 0
    summary = pd.read_csv(out / "summary.csv")
    assert len(summary) or result.verdict.status == "unclear"  # of nothing that can be judged
    assert (summary["n"] > 0).all()
    with Image.open(out / "figure.png") as image:
        assert min(image.size) > 400
        assert np.asarray(image.convert("L")).std() > 5
    assert "<svg" in (out / "figure.svg").read_text()
    before = {path: path.read_bytes() for path in out.rglob("*.csv")}
    assert run_experiment(experiment, reasoner, out, TINY).verdict == result.verdict
    assert before == {path: path.read_bytes() for path in out.rglob("*.csv")}


def test_a_replication_reports_every_experiment(reasoner, folder):
    findings = replicate(reasoner, folder, TINY, "minicos replicate")
    assert [finding.experiment for finding in findings] == list(EXPERIMENTS)
    report = json.loads((folder / "findings.json").read_text())
    assert report["model"] == reasoner.settings.name
    assert report["computed_by"] == [report["commit"]]
    table = findings_table(report)
    assert "A quick run" in (folder / "report.html").read_text()
    page = ElementTree.fromstring((folder / "report.html").read_text())
    for finding in findings:
        assert f"| `{finding.experiment}` |" in table
        section = page.find(f".//section[@id='{finding.experiment}']")
        image = section.find(".//img")
        assert (
            base64.b64decode(image.get("src").split(",")[1])
            == (folder / finding.experiment / "figure.png").read_bytes()
        )
        assert finding.text in image.get("alt")
        written = " ".join(section.itertext())
        assert all(text in written for text in (finding.paper, finding.criterion, finding.text, finding.status))
        rows = pd.read_csv(folder / finding.experiment / "summary.csv")
        assert len(section.findall(".//tbody/tr")) == len(rows)


def test_a_model_without_the_tasks_is_reported_as_not_run(untrained_nano, tmp_path):
    reasoner = load(untrained_nano)
    reasoner.settings = dataclasses.replace(reasoner.settings, tasks={"rotation-by-example": [90]}, siblings={})
    findings = replicate(reasoner, tmp_path, dataclasses.replace(TINY, quick=False), "minicos replicate")
    assert {finding.status for finding in findings} == {"not run"}
    assert "was trained on none of maze" in findings[0].text
    page = (tmp_path / "report.html").read_text()
    assert "not run" in page
    assert "A quick run" not in page


def test_an_unknown_experiment_lists_the_known_ones():
    with pytest.raises(MinicosError, match="unknown experiment 'teapot': choose from chain-of-steps"):
        get_experiment("teapot")


@pytest.mark.parametrize(
    ("numbers", "status"),
    [
        ((0.30, 0.20, 0.40), "shown"),
        ((0.01, -0.01, 0.03), "not shown"),
        ((0.05, 0.01, 0.09), "not shown"),
        ((-0.30, -0.33, -0.27), "not shown"),
        ((0.15, 0.05, 0.25), "unclear"),
        ((-0.10, -0.28, 0.08), "unclear"),  # below, but too wide to say so
    ],
)
def test_verdicts_follow_the_definition(numbers, status):
    found, text = judge(*numbers, criterion=0.1, n=50)
    assert found == status
    assert ("would settle" in text) == (status == "unclear")


@pytest.mark.parametrize("mean", [0.1, 0.1 + 1e-12, 0.1 - 1e-12])
def test_an_effect_at_its_criterion_asks_for_no_absurd_number_of_puzzles(mean):
    status, text = judge(mean, mean - 0.2, mean + 0.2, criterion=0.1, n=50)
    assert status == "unclear"
    assert text.endswith("; only more than 100,000 puzzles would settle it")


def test_the_number_that_would_settle_it_does():
    numbers = re.search(r"about (\d+) puzzles", judge(0.15, 0.05, 0.25, criterion=0.1, n=50)[1])
    half = 0.1 * (50 / int(numbers[1])) ** 0.5
    assert judge(0.15, 0.15 - half + 1e-9, 0.15 + half, criterion=0.1, n=int(numbers[1]))[0] == "shown"


def test_as_many_puzzles_again_would_settle_nothing():
    assert judge(1.0, 0.44, 1.0, criterion=0.5, n=3)[1].endswith("about 4 puzzles would settle it")


def test_parts_of_a_criterion_come_together():
    assert together(["shown", "shown"]) == "shown"
    assert together(["shown", "unclear"]) == "unclear"
    assert together(["unclear", "not shown"]) == "not shown"


def test_means_by_group_have_intervals():
    table = pd.DataFrame({"step": [0] * 40 + [1] * 40, "solved": [True, False] * 20 + [True] * 40, "x": range(80)})
    rows = means(table, ["step"], ["solved", "x"]).set_index("step")
    assert rows.loc[0, "solved"] == 0.5
    assert rows.loc[1, "solved_high"] == 1
    assert rows.loc[0, "x_low"] < 19.5 < rows.loc[0, "x_high"]
    assert (rows["n"] == 40).all()


def test_a_number_of_cases_keeps_the_proportions():
    assert scale_of(False, None) == FULL
    assert scale_of(True, None) == QUICK
    assert scale_of(False, 128) == Scale("full-128", 128, 64, 500)
    assert scale_of(True, 1) == Scale("quick-1", 1, 1, 1, quick=True)


def test_the_edge_of_a_shipped_checkpoint():
    assert edge(load("nano"), "maze") == 5
    assert edge(load("nano"), "maze-braided") == 5  # not trained on it: the smallest that can be held out


def test_puzzles_are_taken_where_an_experiment_needs_them(tmp_path):
    """Of a made-up evaluation: at the edge, where the model is solid, and for a quick look the easiest."""
    import shutil

    folder = shutil.copytree(CHECKPOINTS / "micro", tmp_path / "micro")
    report = json.loads((folder / EVALUATION_FILE).read_text())
    rates = {3: (1.0, 0.9), 4: (1.0, 0.4), 5: (0.97, 0.5), 6: (0.95, 0.3), 7: (0.6, 0.1)}
    report["rows"] = [row for row in report["rows"] if row["task"] == "maze" and row["trained"]]
    for row in report["rows"]:
        row["end"], row["step_0"] = rates[row["size"]]
        row["gap"] = row["end"] - row["step_0"]
    (folder / EVALUATION_FILE).write_text(json.dumps(report))
    reasoner = load(folder)
    assert (edge(reasoner, "maze"), solid(reasoner, "maze"), easiest(reasoner, "maze")) == (7, 6, 5)  # 4x4: too few
    for row in report["rows"]:
        if row["size"] == 6:  # within the range, and with the larger gap, but with less to be gained than 7
            row["end"], row["step_0"], row["gap"] = 0.89, 0.05, 0.84
    (folder / EVALUATION_FILE).write_text(json.dumps(report))
    assert edge(reasoner, "maze") == 7
    full, quick = Scale("full", 2, 1, 3), Scale("quick", 2, 1, 3, quick=True)
    assert {puzzle.size for puzzle in puzzles_for(reasoner, "maze", full, where=solid)} == {5}
    assert [puzzle.size for puzzle in puzzles_for(reasoner, "maze", quick, 3, where=solid)] == [5, 5, 5]


# --- chain-of-steps -------------------------------------------------------------------------------------------------


def blurred(frame):
    return (frame.astype(float) * 0.5 + 127).astype(np.uint8)


@pytest.mark.parametrize("name", ["maze-braided", "rotation-open"])
def test_the_null_has_the_errors_of_the_picture_at_other_places(name):
    task = get_task(name)
    puzzle = task.sample(0, 1)
    right = task.render(puzzle, 3)
    assert np.array_equal(scattered(right, right, puzzle, "x"), right)
    null = scattered(blurred(right), right, puzzle, "x")
    assert not np.array_equal(null, blurred(right))
    errors, moved = (np.abs(video.astype(int) - right).sum((1, 2, 3)) for video in (blurred(right), null))
    assert (moved <= errors).all()  # no colour has room for an error of 255 both ways
    assert (moved > 0.9 * errors).all()
    other = scattered(blurred(right), right, puzzle, "y")
    assert not np.array_equal(null, other)


def test_the_null_loses_no_error_to_the_range_of_colours():
    """What makes a cell of the route pale becomes a stray beside it, and the other way round."""
    task, rng, left = get_task("maze"), np.random.default_rng(0), []
    for index in range(40):
        puzzle = task.sample(0, index, size=6)
        right = task.render(puzzle, 2)[-1:]
        open_ = np.where(rng.random((6, 6)) < 0.3, rng.random((6, 6)), 0).repeat(4, 0).repeat(4, 1)[..., None]
        video = right.astype(float)
        for colour, other in ((PATH, FLOOR), (FLOOR, PATH)):
            cells = (right == PALETTE[colour]).all(-1)
            video[cells] = (right + open_ * (PALETTE[other].astype(float) - right))[cells]
        null = scattered(video.round().astype(np.uint8), right, puzzle, str(index))
        frames = (cell_probabilities(frame[0], puzzle) for frame in (right, video.round().astype(np.uint8), null))
        drawn, seen, kept = (np.nan_to_num(p) for p in frames)
        left.append((np.abs(seen - drawn).sum(), np.abs(kept - drawn).sum()))
    seen, kept = np.sum(left, axis=0)
    assert 0.9 * seen < kept < 1.1 * seen  # start and goal take some, and hold none


@pytest.mark.parametrize("name", ["maze-braided", "rotation-open"])
def test_a_blend_of_two_answers_leaves_more_open_than_its_null(name):
    task = get_task(name)
    extra = []
    for index in range(20):
        puzzle = task.sample(0, index, size=5 if name == "maze-braided" else 90)
        frames = [task.render(nearest, 2)[-1].astype(float) for nearest in _both(task, puzzle)]
        blend = ((frames[0] + frames[1]) / 2).astype(np.uint8)
        null = scattered(blend[None], frames[0][None].astype(np.uint8), puzzle, str(index))[0]
        extra.append(left_open(blend, puzzle)["whole"] - left_open(null, puzzle)["whole"])
    assert np.mean(extra) > 0.7


@pytest.mark.parametrize(("name", "size"), [("maze", 7), ("maze-braided", 6), ("rotation", 90), ("rotation-open", 90)])
def test_a_blend_of_all_right_answers_is_seen_as_several(name, size):
    """The positive control: a measure that does not find several in it could not find them in x0_hat."""
    task = get_task(name)
    for index in range(20):
        puzzle = task.sample(0, index, size=size)
        found, answers = left_open(mean_answer(puzzle), puzzle)["whole"], len(task.answers(puzzle))
        assert found == 1 if answers == 1 else found >= 2, (index, found, answers)


def _both(task, puzzle):
    from dataclasses import replace

    return [replace(puzzle, shown=i) for i in range(2)]


def test_the_nearest_answer_is_found_among_several():
    task = get_task("maze-braided")
    for index in range(20):
        puzzle = task.sample(0, index, size=5)
        for other in _both(task, puzzle):
            frame = blurred(task.render(other, 2, (60, 90))[-1])
            assert nearest_answer(frame, puzzle).shown == other.shown


# --- perturbation ---------------------------------------------------------------------------------------------------


STEP_COUNT, FRAME_COUNT = 12, 7


MIDDLE = perturbation.middle_of(STEP_COUNT, FRAME_COUNT)


def perturbed(loses, puzzles: int = 80, drop: tuple[str, ...] = ()) -> tuple[pd.DataFrame, np.ndarray]:
    """A table and features of made-up runs; `loses(family, at, puzzle)` says which answers are lost."""
    rng = np.random.default_rng(0)
    clean = rng.normal(size=(puzzles, STEP_COUNT, 8))
    rows, features = [], []
    conditions = perturbation.conditions(STEP_COUNT, FRAME_COUNT)
    for family, at, erased, first, _ in (condition for condition in conditions if condition[0] not in drop):
        for puzzle in range(puzzles):
            right = not loses(family, at, puzzle)
            labels = ("maze", 7, puzzle, family, at, erased, first, FRAME_COUNT - 1)
            rows.append((*labels, right, right))
            mine = rng.normal(size=clean[puzzle].shape) if family == "another seed" else clean[puzzle].copy()
            mine[first:] = mine[first:] if family == "clean" else rng.normal(size=mine[first:].shape)
            features.append(mine)
    columns = ["task", "size", "puzzle", "family", "at", "erased", "first", "last", "right", "solved"]
    return two_lengths(pd.DataFrame(rows, columns=columns)), np.stack(features)


@pytest.mark.parametrize(
    ("lost", "status"),
    [
        (("noise at step",), "shown"),
        ((), "not shown"),
        (("noise at step", perturbation.LAST_LONG), "not shown"),  # the damage explains it
        (("noise at step", perturbation.OTHERS, perturbation.INNER_LONG), "shown"),  # told, not judged
        (("noise at step", "noise at frame"), "not shown"),
        (("noise at other steps",), "not shown"),
    ],
)
def test_noise_at_a_step_is_judged_against_as_much_noise_at_a_frame(lost, status):
    experiment = get_experiment("perturbation")
    others = "noise at other steps" in lost

    def loses(family: str, at: int, puzzle: int) -> bool:
        return puzzle >= 4 and (family in lost or (others and family == "noise at step" and at != MIDDLE))

    table, features = perturbed(loses)
    summary = experiment.summarise({"maze": table}, {"maze": {"x0_hat": features}})
    verdict = experiment.verdict(summary)
    assert verdict.status == status
    assert "noise on last frame at one step 0 [" in verdict.text
    spared = 0.95 if perturbation.OTHERS in lost and perturbation.INNER_LONG not in lost else 0
    assert f"judged frame spared, maze {spared:g} [" in verdict.text
    assert len(experiment.plot(summary, "test").axes) == 4
    assert of_all(summary).set_index("family").loc[[*perturbation.SIDES], "n"].tolist() == [80, 80, 80]


def test_a_contrast_that_could_not_be_run_is_no_evidence():
    """A short schedule, or few frames, leaves the raw contrast alone, which damage explains."""
    experiment = get_experiment("perturbation")
    table, features = perturbed(lambda family, *_: family == "noise at step", drop=(perturbation.LAST_LONG,))
    verdict = experiment.verdict(experiment.summarise({"maze": table}, {"maze": {"x0_hat": features}}))
    assert verdict.status == "unclear"
    assert "matched, maze: unclear (not measured" in verdict.text


def trajectory_of(reasoner, runs, latents, **x0_hat) -> Trajectory:
    """Runs with these final latents; x0_hat: of a branch, the latents of every run at each step."""
    latents, steps = torch.stack(list(latents)), reasoner.schedule()
    records = {
        ("x0_hat", branch, None): dict(enumerate(map(torch.stack, of_steps))) for branch, of_steps in x0_hat.items()
    }
    return Trajectory(list(runs), steps, latents, reasoner.decode(latents), records)


def test_answers_are_read_from_what_is_guided_and_candidates_from_one_branch(untrained_nano):
    reasoner, task = load(untrained_nano), get_task("maze-braided")
    puzzle = next(p for p in (task.sample(0, i, size=5) for i in range(50)) if len(p.routes) > 1)
    right = to_latent_range(task.render(puzzle, 5)[None])[0]
    blend = to_latent_range(np.stack([[task.render(puzzle, 2)[0], *[mean_answer(puzzle)] * 4]]))[0]
    steps = reasoner.settings.steps
    told = trajectory_of(reasoner, [Run(puzzle)], [right], guided=[[right]] * steps, cond=[[blend]] * steps)
    (rows,) = chain_of_steps.measured(reasoner, told)
    assert [row["step"] for row in rows] == list(range(steps))
    assert all(row["solved"] and row["leans"] for row in rows)
    assert all(row["whole"] == row["blend_whole"] > 1 for row in rows)


def test_each_step_is_read_from_its_own_x0_hat_and_the_last_from_the_end(untrained_nano):
    reasoner, task = load(untrained_nano), get_task("maze")
    candidates = (task.sample(0, index, size=5) for index in range(50))
    puzzle = next(p for p in candidates if not task.on_the_way(task.partner(p).route, p))
    right, wrong = (to_latent_range(task.render(p, 5)[None])[0] for p in (puzzle, task.partner(puzzle)))
    steps, grey = reasoner.settings.steps, torch.zeros_like(right)
    watched = [grey, wrong, *[right] * (steps - 2)]
    runs = [Run(puzzle), Run(puzzle, 0, (Renoise((1,)),))]
    told = trajectory_of(reasoner, runs, [wrong, right], guided=[[latents, grey] for latents in watched])
    rows, after = self_correction.answers_shown(told, reasoner)
    assert [row["step"] for row in rows] == list(range(steps))
    assert [row["readable"] for row in rows] == [False, *[True] * (steps - 1)]
    assert [row["wrong"] for row in rows] == [False, True, *[False] * (steps - 3), True]
    assert [row["right"] for row in rows] == [False, False, *[True] * (steps - 3), False]
    assert [row["right"] for row in after] == [True]


def test_what_x0_hat_knows_is_read_beside_its_null(untrained_nano):
    reasoner, task = load(untrained_nano), get_task("maze")
    puzzle = next(p for p in (task.sample(0, i, size=5) for i in range(50)) if len(p.route) > 10)
    video = task.render(puzzle, 5)
    right, frozen = (to_latent_range(frames[None])[0] for frames in (video, video[[0, 0, 0, 0, 0]]))
    steps = reasoner.settings.steps
    told = trajectory_of(reasoner, [Run(puzzle)], [right], cond=[[frozen]] + [[right]] * (steps - 1))
    (rows,) = perception_first.known(told, reasoner)
    assert [row["where"] for row in rows] == [0, *[1] * (steps - 1)]
    assert [row["when"] for row in rows] == [0, *[1] * (steps - 1)]
    assert all(row["what"] == 1 for row in rows)
    assert all(row["null_where"] == row["null_when"] == 1 for row in rows[1:])  # there are no errors to scatter
    assert 0 < rows[0]["null_where"] < 1


def test_what_is_judged_is_the_whole_answer_but_where_the_last_frame_is_lost(untrained_nano):
    """A route without its last cells is on the way, and not right; of a run that cannot end, the frame before is."""
    task, reasoner = get_task("maze"), load(untrained_nano)
    puzzle = next(p for p in (task.sample(0, i, size=5) for i in range(50)) if len(p.route) > 10)
    video = task.render(puzzle, 5)
    early = np.concatenate([video[:4], video[3:4]])  # the route has not got to its end
    noise = noise_at_frame(reasoner.latent_frames - 1)
    runs = [Run(puzzle), Run(puzzle), Run(puzzle, 0, (noise,)), Run(puzzle, 0, (noise,))]
    videos = np.stack([video, early, early, video[[0, 0, 0, 0, 4]]])
    rows = perturbation.judged_frames(SimpleNamespace(runs=runs, video=videos), reasoner.frames_per_latent)
    assert [row["right"] for (row,) in rows] == [True, False, True, False]


def test_dissimilarity_is_of_the_steps_from_the_disturbed_one_on():
    table, features = perturbed(lambda *_: False)
    summary = get_experiment("perturbation").summarise({"maze": table}, {"maze": {"x0_hat": features}})
    of = summary.dropna(subset="dissimilarity").set_index("family")
    assert of.loc["clean", "dissimilarity"] == pytest.approx(0, abs=1e-9)
    others = of.drop(index="clean")
    assert others["dissimilarity"].between(0.8, 1.2).all()  # were earlier steps counted, late noise would look small
    assert others["of_another_seed"].between(0.8, 1.2).all()


def test_noise_is_told_by_the_length_of_the_route():
    """Puzzles of odd numbers, those with long routes, lose all by noise at a step; nothing else is ever lost."""
    table, features = perturbed(lambda family, at, puzzle: family == "noise at step" and at and puzzle % 2)
    summary = get_experiment("perturbation").summarise({"maze": table}, {"maze": {"x0_hat": features}})
    raw = summary[summary["family"] == perturbation.RAW_PAIR].set_index("length")
    assert raw["loss"].to_dict() == {ALL: 0.5, "4-7": 0, "8-11": 1}
    assert raw["n"].to_dict() == {ALL: 80, "4-7": 40, "8-11": 40}


@given(st.integers(3, 60), st.integers(3, 25))
def test_equal_damage_is_equal(steps, frames):
    found = perturbation.conditions(steps, frames)
    assert len({condition[:4] for condition in found}) == len(found)
    assert len({condition[4] for condition in found}) == len(found) - 1  # another seed is no intervention
    for family, _, erased, first, done in found:
        if family != "another seed" and erased and "share" not in family:
            (noise,) = done
            at = range(steps) if noise.steps is None else noise.steps
            some = range(frames) if noise.places.frames is None else noise.places.frames
            assert len(at) * len(some) == erased, family
            assert min(at) == first
            assert 0 <= min(at) <= max(at) < steps
    long = perturbation.LAST_LONG, perturbation.INNER_LONG
    assert all(erased == frames for family, _, erased, *_ in found if family in long)
    assert frames > steps or {family for family, *_ in found if family in long} == {*long}
    (middle,) = {at for family, at, *_ in found if family == perturbation.LAST}
    assert middle in {at for family, at, *_ in found if family == "noise at step"}
    assert all(done[0].steps[-1] == middle for family, *_, done in found if family in long)


# --- ensemble -------------------------------------------------------------------------------------------------------


def ensemble_table(right: dict[str, object], puzzles: int = 2000, task: str = "maze") -> pd.DataFrame:
    """Seed s solves every puzzle but those whose number is s modulo 4; `right` says what other conditions solve."""
    single = {seed: np.arange(puzzles) % 4 != seed for seed in ensemble.SEEDS}
    conditions = [*ensemble.conditions(6), *ensemble.not_judged(6), "outputs", "vote", "best of 3", "3x steps"]
    rows = []
    for condition in conditions:
        seeds = ensemble.SEEDS if condition == "single seeds" else (0,)
        for seed in seeds:
            solved = right.get(condition, single[seed])
            rows += [(task, 7, condition, 14, i, seed, bool(solved[i]), bool(solved[i])) for i in range(puzzles)]
    columns = ["task", "size", "condition", "evaluations", "puzzle", "seed", "right", "solved"]
    return two_lengths(pd.DataFrame(rows, columns=columns))


ALWAYS, NEVER = np.ones(2000, bool), np.zeros(2000, bool)
SOME = np.arange(2000) % 8 != 1  # more than any single seed


@pytest.mark.parametrize(
    ("right", "status", "best"),
    [
        ({}, "not shown", "initial noise"),
        ({"hidden states": ALWAYS}, "shown", "initial noise"),
        ({"hidden states": SOME, "initial noise": ALWAYS}, "not shown", "initial noise"),
        ({"hidden states": SOME, "initial noise, matched": ALWAYS}, "not shown", "initial noise, matched"),
        ({"hidden states": SOME, "velocity": ALWAYS}, "not shown", "velocity"),
        ({"hidden states": SOME, "x0_hat": ALWAYS}, "not shown", "x0_hat"),
        ({"hidden states": NEVER}, "not shown", "initial noise"),
    ],
)
def test_an_ensemble_is_judged_against_single_seeds_and_the_best_average(right, status, best):
    experiment = get_experiment("ensemble")
    summary = experiment.summarise({"main": ensemble_table(right)}, {})
    verdict = experiment.verdict(summary)
    assert verdict.status == status
    assert f"the average of {best}:" in verdict.text
    experiment.plot(summary, "test")


def test_an_ensemble_is_judged_on_one_right_answer_and_told_on_several_and_by_length():
    experiment, odd = get_experiment("ensemble"), np.arange(2000) % 2 == 1
    tables = {"main": ensemble_table({}), "several": ensemble_table({"hidden states": ALWAYS}, task=ensemble.SEVERAL)}
    summary = experiment.summarise(tables, {})
    verdict = experiment.verdict(summary)
    assert verdict.status == "not shown"
    assert "gain on maze-braided 0.25 [" in verdict.text
    assert len(experiment.plot(summary, "test").axes) == 2
    of_odd = experiment.summarise({"main": ensemble_table({"hidden states": odd})}, {})
    hidden = of_odd[of_odd["condition"] == "hidden states"].set_index("length")
    assert hidden["right"].to_dict() == {"4-7": 0, "8-11": 1, ALL: 0.5}
    assert hidden["n"].to_dict() == {"4-7": 1000, "8-11": 1000, ALL: 2000}


def test_means_votes_and_the_best_are_of_a_puzzles_own_undisturbed_seeds(untrained_nano):
    reasoner, task = load(untrained_nano), get_task("maze")
    puzzles = [task.sample(0, index, size=5) for index in range(4)]
    right = [to_latent_range(task.render(puzzle, 5)[None])[0] for puzzle in puzzles]
    wrong = [to_latent_range(task.render(task.partner(puzzle), 5)[None])[0] for puzzle in puzzles]
    grey, far = torch.zeros_like(right[0]), 3 * torch.randn(right[0].shape, generator=torch.Generator().manual_seed(0))
    seeds = [
        [wrong[0], right[0], right[0]],  # most are right
        [wrong[1], right[1], grey],  # a tie: the first decides
        [grey, grey, right[2]],  # what cannot be read has no vote
        [right[3] + far, right[3] - far, right[3]],  # together they mean the right one
    ]
    runs = [Run(puzzle, seed) for puzzle in puzzles for seed in ensemble.SEEDS]
    latents = [video for videos in seeds for video in videos]
    disturbed = Run(puzzles[1], 0, (noise_at_frame(1),))
    rows = ensemble.judged_together(trajectory_of(reasoner, [disturbed, *runs], [right[1], *latents]), reasoner)
    assert [len(of_run) for of_run in rows] == [1, *[1, 1, 4] * 4]
    made = [{row["condition"]: row["right"] for row in of_run[1:]} for of_run in rows[3::3]]
    assert [found["vote"] for found in made] == [True, False, True, True]
    assert [found["best of 3"] for found in made] == [True, True, True, True]
    assert [found["outputs"] for found in made] == [False, False, False, True]
    assert {row["evaluations"] for of_run in rows for row in of_run[1:]} == {3 * reasoner.settings.steps}


def test_an_average_that_changes_nothing_gains_nothing_whatever_its_seed_is_worth():
    """Seed 0 alone would look better or worse than three seeds; of the same seed with and without, nothing is left."""
    table = ensemble_table({})
    table.loc[(table["condition"] != "single seeds") | (table["seed"] == 0), ["right", "solved"]] = True
    gains = of_all(get_experiment("ensemble").summarise({"main": table}, {})).set_index("condition")
    for name in ("hidden states", "velocity", "x0_hat", "3x steps", "blocks 0 to 0"):
        assert gains.loc[name, "gain"] == 0
        assert gains.loc[name, "gain_high"] < 0.01
    assert gains.loc["vote", "gain"] == pytest.approx(1 / 6)  # of what has no seed, against the mean of all
    for name in ("initial noise", "initial noise, matched"):  # right always, as that seed is: but they are no seed's
        assert gains.loc[name, "behind_hidden"] == pytest.approx(-1 / 6)


def test_no_two_averages_are_the_same_run(untrained_nano):
    reasoner = load(untrained_nano)
    puzzle = get_task("maze").sample(0, 0, size=3)
    blocks = len(reasoner.transformer.blocks)
    done = ensemble.conditions(blocks) | ensemble.not_judged(blocks)
    done = {name: how for name, how in done.items() if not name.startswith("blocks")}  # one is the paper's
    runs = [Run(puzzle, 0, interventions) for interventions in done.values()]
    latents = sample_runs(reasoner, runs, schedule=reasoner.schedule(3)).latents
    for one, other in itertools.combinations(range(len(runs)), 2):
        assert not torch.equal(latents[one], latents[other]), (list(done)[one], list(done)[other])


# --- commitment -----------------------------------------------------------------------------------------------------


def commitment_table(committed_from: int, readable: int) -> pd.DataFrame:
    """60 runs of each task, of which `readable` have an answer; restarts come to it again from step committed_from on,
    before it as seldom as another seed: one time in three."""
    rows = []
    for task, puzzle in itertools.product(("maze-braided", "rotation-open"), range(60)):
        own = "x" if puzzle < readable else ""
        other = "x" if puzzle % 3 == 0 else "y"
        runs = [("run", 0, own), ("another seed", 0, other)]
        runs += [("x0_hat noised again", s, own if s >= committed_from else other) for s in (1, 5, 7, 11)]
        rows += [(task, 7, puzzle, *run, run[2] == "x") for run in runs]
    return two_lengths(pd.DataFrame(rows, columns=["task", "size", "puzzle", "family", "step", "answer", "right"]))


@pytest.mark.parametrize(
    ("committed_from", "status"), [(5, "shown"), (1, "not shown"), (7, "not shown"), (11, "not shown")]
)
@pytest.mark.parametrize("readable", [60, 45])
def test_commitment_is_judged_in_the_first_half_and_at_the_first_restart(committed_from, status, readable):
    """A run without an answer cannot stay with it: as many as there are, they change nothing."""
    experiment = get_experiment("commitment")
    summary = experiment.summarise({"all": commitment_table(committed_from, readable)}, {})
    whole = of_all(summary)
    assert set(whole["n"]) == {readable}
    assert whole[whole["step"] == 11]["commitment"].tolist() == [1, 1]
    assert experiment.verdict(summary).status == status
    assert len(experiment.plot(summary, "test").axes) == 2


def test_what_was_shown_in_training_is_told_and_not_judged():
    """Open rotations, whose blends the network has learned to leave."""
    table = commitment_table(5, 60)
    experiment = get_experiment("commitment")
    verdict = experiment.verdict(experiment.summarise({"all": table[table["task"] == "rotation-open"]}, {}))
    assert verdict.status == "unclear"
    assert "rotation-open, step 5 1 [" in verdict.text


def test_runs_without_any_answer_are_no_evidence():
    experiment = get_experiment("commitment")
    summary = experiment.summarise({"all": commitment_table(1, 0)}, {})
    assert summary.empty
    assert experiment.verdict(summary).status == "unclear"


# --- self-correction ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "together"),
    [
        (["f000", "f000", "f111", "f111"], True),
        (["f100", "f100", "f111", "f111"], True),  # the first frame was right all along
        (["f000", "f100", "f110", "f111"], False),
        (["f000", "f111", "f101", "f111"], False),  # one was lost again
    ],
)
def test_frames_that_flip_together(frames, together):
    assert flip_together(frames) == together


def test_the_ways_from_wrong_to_right_are_told_apart():
    columns = ["puzzle", "step", "right", "readable", "wrong", "frames"]
    right, wrong, blurred = (True, True, False, "f11"), (False, True, True, "f00"), (False, False, False, "f00")
    unfinished = (False, True, False, "f00")
    stories = {
        "corrected": [wrong, right],
        "decided": [blurred, right],
        "finished": [unfinished, right],
        "lost": [right, wrong],
        "blurred": [right, blurred],
    }
    rows = [(name, step, *state) for name, states in stories.items() for step, state in enumerate(states)]
    shares = {row["what"]: (row["share"], row["n"]) for row in ways(pd.DataFrame(rows, columns=columns))}
    assert shares["right at step 0"] == (0.4, 5)
    assert shares["right at the end"] == (0.6, 5)
    assert shares["readable and wrong, then right"] == (0.2, 5)
    assert shares["not readable before, then right"] == (0.2, 5)
    assert shares["unfinished, then right"] == (0.2, 5)
    assert shares["right, then readable and wrong at the end"] == (0.2, 5)
    assert shares["right, then undecided at the end"] == (0.2, 5)
    assert shares["readable and not right before the end"] == (0.4, 5)
    assert shares["right later: all frames in the same step"] == (1.0, 3)


def correction_table(corrected: int, stubborn: int, unfinished: int, blurred: int) -> pd.DataFrame:
    """Of 200 mazes some are corrected, some stay wrong, some can or cannot be read before they are right; the others
    always are right."""
    right = (True, True, False, "f11")
    first = [(False, True, True, "f00")] * corrected + [(False, True, False, "f00")] * unfinished
    first += [(False, False, False, "f00")] * blurred
    stories = [[state, right] for state in first] + [[(False, True, True, "f00")] * 2] * stubborn
    stories += [[right, right]] * (200 - len(stories))
    rows = [
        ("maze", 7, "run", n, step, *state) for n, states in enumerate(stories) for step, state in enumerate(states)
    ]
    broken = [
        ("maze", 7, f"{kind}/1", n, 1, kind == KINDS[0], True, False, "f11") for n in range(200) for kind in KINDS
    ]
    columns = ["task", "size", "family", "puzzle", "step", "right", "readable", "wrong", "frames"]
    return two_lengths(pd.DataFrame(rows + broken, columns=columns))


@pytest.mark.parametrize(
    ("corrected", "stubborn", "unfinished", "blurred", "status"),
    [
        (60, 0, 0, 20, "shown"),
        (0, 0, 80, 20, "not shown"),
        (0, 80, 0, 20, "not shown"),  # wrong answers are shown, and never corrected
        (0, 0, 5, 80, "unclear"),
        (2, 0, 3, 0, "unclear"),
    ],
)
def test_corrections_that_could_not_be_seen_are_not_called_absent(corrected, stubborn, unfinished, blurred, status):
    experiment = get_experiment("self-correction")
    summary = experiment.summarise({"maze": correction_table(corrected, stubborn, unfinished, blurred)}, {})
    verdict = experiment.verdict(summary)
    assert verdict.status == status
    assert ("too few show anything else before the end" in verdict.text) == (status == "unclear")
    assert "right later: all frames in the same step 1 [" in verdict.text
    assert "cost of breaking x0_hat before step 1 1 [" in verdict.text
    experiment.plot(summary, "test")


@pytest.mark.parametrize("name", ["maze", "bounce", "rotation-open"])
def test_what_is_blurred_or_not_finished_is_not_wrong(name):
    task = get_task(name)
    for index in range(10):
        puzzle = task.sample(0, index, split="test", size={"maze": 5, "bounce": 1, "rotation-open": 90}[name])
        video = task.render(puzzle, 7)
        blend = (video * 0.25 + 96).astype(np.uint8)  # towards grey, walls and all
        states = {"end": video, "blend": blend, "start": video[[0, 0]], "half": video[:3]}
        found = {state: shown(frames, puzzle) for state, frames in states.items()}
        assert (found["end"]["right"], found["end"]["wrong"]) == (True, False)
        assert not any(found[state]["right"] or found[state]["wrong"] for state in ("blend", "start", "half")), index
        if name == "maze" and (other := task.partner(puzzle)):
            on_the_way = other.route == puzzle.route[: len(other.route)]
            assert shown(task.render(other, 7), puzzle)["wrong"] == (not on_the_way)


# --- working memory --------------------------------------------------------------------------------------------------


def memory_table(remembered: int) -> pd.DataFrame:
    """40 pairs solved both ways and 5 not; taken over three times; `remembered` of the 40 keep A's answer."""
    rows = []
    for pair, screen in itertools.product(range(45), ("screen", "no screen")):
        solved = pair < 40
        runs = [("undisturbed", -1, "A", True), ("picture B", -1, "B" if solved else "", solved)]
        runs += [("latents taken over", s, "A" if pair < remembered or pair >= 40 else "B", False) for s in (1, 6, 11)]
        runs += [("empty frames erased", -1, "A", pair < 20)] if screen == "screen" else []
        columns = ("what", "step", "answer", "right")
        rows += [{"pair": pair, "screen": screen} | dict(zip(columns, run, strict=True)) for run in runs]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("remembered", "status"), [(36, "shown"), (4, "not shown"), (21, "unclear")])
def test_memory_is_judged_by_the_colours_that_come_out_of_solved_pairs(remembered, status):
    memory = get_experiment("working-memory")
    summary = memory.summarise({"occlusion": memory_table(remembered)}, {})
    taken = summary[summary["what"] == "latents taken over"]
    assert set(taken["n"]) == {40}
    assert set(taken["remembered"]) == {remembered / 40}
    assert set(taken["looked_up"]) == {(40 - remembered) / 40}
    assert summary[summary["what"] == "empty frames erased"]["right"].item() == pytest.approx(20 / 45)
    verdict = memory.verdict(summary)
    assert verdict.status == status
    assert "before step 6" in verdict.text
    assert f"without a screen, remembered {remembered / 40:.3g} [" in verdict.text
    assert "frames that show nothing erased 0.444 [" in verdict.text
    assert len(memory.plot(summary, "test").axes) == 2


# --- swap -----------------------------------------------------------------------------------------------------------


def swap_table(flipped: int, say: bool) -> pd.DataFrame:
    """40 pairs solved both ways and 5 not; at block 3 of 6 the goal's swap makes `flipped` of the 40 B's; B's whole
    velocity, all tokens after the last block, makes all B's if the step has a say."""
    rows = []
    for pair in range(45):
        common = {"task": "maze", "size": 5, "pair": pair, "blocks": 6}
        solved = pair < 40
        rows += [
            {**common, "donor": f"run {side}", "when": "-", "region": "-", "block": -1, "answer": side, "right": solved}
            for side in "AB"
        ]
        for block, donor, region in ((2, "B", "goal"), (3, "B", "goal"), (3, "noise", "all"), (5, "B", "all")):
            becomes = (say and region == "all" and donor == "B") or (region == "goal" and block == 3 and pair < flipped)
            answer = "B" if becomes else "" if donor == "noise" else "A"
            rows.append(
                {
                    **common,
                    "donor": donor,
                    "when": "first step",
                    "region": region,
                    "block": block,
                    "answer": answer,
                    "right": answer == "A",
                }
            )
    return two_lengths(pd.DataFrame(rows), case="pair")


@pytest.mark.parametrize(
    ("flipped", "say", "status"),
    [(30, True, "shown"), (0, True, "not shown"), (10, True, "unclear"), (0, False, "unclear"), (30, False, "shown")],
)
def test_a_swap_is_judged_by_the_telling_region_of_solved_pairs(flipped, say, status):
    swap = get_experiment("swap")
    summary = swap.summarise({"maze": swap_table(flipped, say)}, {})
    assert (of_all(summary)["n"] == 40).all()
    verdict = swap.verdict(summary)
    assert verdict.status == status
    assert f"B's whole velocity at the first step makes B's {int(say)} [" in verdict.text
    assert ("has no say" in verdict.text) == (flipped == 0 and not say)
    assert np.allclose(summary[["stays_a", "becomes_b", "neither"]].sum(axis=1), 1)
    noise = summary[summary["donor"] == "noise"].iloc[0]
    assert (noise["neither"], noise["becomes_b"]) == (1, 0)
    assert len(swap.plot(summary, "test").axes) == 2


def test_what_is_swapped_is_controlled_where_it_acts():
    """At every block each region at both moments; and no control is the run itself."""
    from minicos.experiments.swap import LAST_FRAME, REGIONS, TELLING, blocks_of, conditions

    for name, size in (("maze", 5), ("rotation", 90)):
        task = get_task(name)
        puzzle, unrelated = (task.sample(0, index, size=size, split="test") for index in (0, 1))
        batch = Batch([Run(puzzle)], (7, 20, 20), (7, 5, 5))
        found = {
            (block, when, donor, region): done
            for block in blocks_of(6)
            for when, donor, region, done in conditions(puzzle, task.partner(puzzle), unrelated, block, 6, 7)
        }
        for block, when, region in itertools.product(range(6), ("first step", "all steps"), REGIONS[name]):
            assert (block, when, "B", region) in found
        for donor, when in itertools.product(
            ("another seed", "unrelated puzzle", "noise"), ("first step", "all steps")
        ):
            control, swapped = found[3, when, donor, TELLING[name]], found[3, when, "B", TELLING[name]]
            assert (control.block, control.steps) == (swapped.block, swapped.steps)
            own = None if donor == "noise" else control.donor.puzzle
            place = control.tokens.mask([0], batch, own)
            assert torch.equal(place, swapped.tokens.mask([0], batch, swapped.donor.puzzle))
            assert torch.equal(place.view(7, 5, 5)[0], batch.region(0, TELLING[name], task.partner(puzzle)))
        assert found[3, "first step", "B", LAST_FRAME].tokens == Tokens("all", (6,))
        assert all(done.needs(Run(puzzle)) for (_, _, donor, _), done in found.items() if donor != "noise")
        stranger = found[3, "first step", "unrelated puzzle", TELLING[name]].donor.puzzle
        assert (stranger.noise_key, stranger.prompt) == (puzzle.noise_key, unrelated.prompt)
        assert len({puzzle.key, task.partner(puzzle).key, stranger.key, unrelated.key}) == 4


# --- chain-of-steps and budget: rates ---------------------------------------------------------------------------------


def steps_table(late: set[str], puzzles: int = 100) -> pd.DataFrame:
    """Twelve steps of four tasks. `late` names what is only there at the end: answers, last frames that can be read, or
    other frames."""
    rows = []
    for task, step, puzzle in itertools.product(chain_of_steps.TASKS, (0, 11), range(puzzles)):
        leaning = step == 11 or "answer" not in late
        answer = leaning and (step == 11 or "legible" not in late)
        solved = answer and (step == 11 or "frames" not in late)
        several = 2 if task in chain_of_steps.SEVERAL and (step == 0 or late & {"choice", "crispness"}) else 1
        blur = int(step == 0 and "crispness" in late)  # in the picture and in its null
        rows.append(
            (task, 7, "8-11", step, 1.0, puzzle, solved, answer, leaning, 0.0, several + blur, 1 + blur, 2) + (1,) * 3
        )
    columns = ["task", "size", "length", "step", "sigma", "puzzle", "solved", "answer", "leans", "entropy"]
    columns += [f"{kind}{what}" for what in ("whole", "candidates") for kind in ("", "null_", "blend_")]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize(
    ("late", "status", "leaning", "answers"),
    [
        ({"answer"}, "shown", 1, 1),
        ({"legible"}, "not shown", 0, 1),
        ({"frames"}, "not shown", 0, 0),
        (set(), "not shown", 0, 0),
        ({"answer", "choice"}, "not shown", 1, 1),  # several candidates, and never fewer
        ({"answer", "crispness"}, "not shown", 1, 1),  # fewer, but no fewer than in a picture that is as blurred
    ],
)
def test_the_gap_of_the_steps_is_told_apart_from_legibility(late, status, leaning, answers):
    experiment = get_experiment("chain-of-steps")
    verdict = experiment.verdict(experiment.summarise({"all": steps_table(late)}, {}))
    assert verdict.status == status
    assert re.search(rf"gap on maze, leaning: [a-z ]+ \({leaning} \[", verdict.text)
    assert f"gap on maze, right last frames {answers} [" in verdict.text
    assert "ends of ways of maze beyond the null 0 [" in verdict.text


def budget_table(solved: float, leaning: float) -> pd.DataFrame:
    """With 64 steps all are solved; with one `solved` of them are, and `leaning` lean to the right answer. Of the task
    with two right answers none is with one step, which is not judged."""
    rows = []
    for task, steps, puzzle in itertools.product(("maze", "rotation-open"), (1, 64), range(100)):
        rate = solved if task == "maze" else 0
        good, likelier = (steps == 64 or puzzle < 100 * share for share in (rate, leaning))
        rows.append((task, 7, True, 3.0, steps, puzzle, good, good, likelier))
    columns = ["task", "size", "own", "shift", "steps", "puzzle", "solved", "answer", "leans"]
    return two_lengths(pd.DataFrame(rows, columns=columns))


@pytest.mark.parametrize(
    ("solved", "leaning", "status"),
    [(0.0, 0.5, "shown"), (0.0, 1.0, "not shown"), (0.5, 1.0, "not shown"), (1.0, 1.0, "not shown")],
)
def test_a_budget_is_judged_by_the_most_steps_against_one(solved, leaning, status):
    experiment = get_experiment("budget")
    verdict = experiment.verdict(experiment.summarise({"all": budget_table(solved, leaning)}, {}))
    assert verdict.status == status
    assert f"gain on maze, leaning: {status if leaning < 1 else 'not shown'} ({1 - leaning:g} [" in verdict.text
    assert "gain on rotation-open 1 [" in verdict.text


# --- perception-first -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [None, (120, 200)])
def test_the_right_video_knows_what_where_and_when_and_a_copy_of_the_image_only_what(canvas):
    task = get_task("maze")
    for index in range(10):
        puzzle = task.sample(0, index, size=5)
        right = task.render(puzzle, 7, canvas)
        assert orders(right, right, puzzle) == {"what": 1, "where": 1, "when": 1}
        frozen = orders(np.repeat(right[:1], 7, axis=0), right, puzzle)
        assert frozen == {"what": 1, "where": 0, "when": 0}
        at_once = orders(np.concatenate([right[:1], np.repeat(right[-1:], 6, axis=0)]), right, puzzle)
        assert at_once == {"what": 1, "where": 1, "when": 0}


# --- layers ---------------------------------------------------------------------------------------------------------


def layer_features(informative: bool, puzzles: int = 80) -> dict:
    """Of 2 steps and 4 blocks; with something to read in the third block only, where route tokens have more energy."""
    rng = np.random.default_rng(0)
    tokens = len(layers.LABELS)
    features = {
        "hidden": rng.normal(size=(puzzles, 2, 4, tokens, 6)),
        "energy": np.ones((puzzles, 2, 4, tokens)),
        "latents": rng.normal(size=(puzzles, 2, tokens, 5)),
        "given image": rng.normal(size=(puzzles, tokens, 5)),
        "position": rng.normal(size=(puzzles, tokens, 5)),
    }
    if informative:
        features["hidden"][:, :, 2, :, 0] += 3 * layers.LABELS
        features["energy"][:, :, 2] += 0.5 * layers.LABELS
    return features


def layer_table(puzzles: int = 80) -> pd.DataFrame:
    rows = [("maze", puzzle, step) for puzzle in range(puzzles) for step in (0, 5)]
    return two_lengths(pd.DataFrame(rows, columns=["task", "puzzle", "step"]))


@pytest.mark.parametrize("name", ["position", "given image", "latents"])
def test_what_can_be_read_without_the_network_was_not_learned(name):
    experiment = get_experiment("layers")
    table = layer_table()
    features = {"trained": layer_features(True), "untrained": layer_features(False)}
    features["trained"][name][..., 0] += 3 * layers.LABELS
    verdict = experiment.verdict(experiment.summarise({"trained": table, "untrained": table}, features))
    assert verdict.status == "not shown"


def test_what_a_probe_reads_is_told_by_the_length_of_the_puzzles_own_route():
    """Short routes have something to read, long ones nothing."""
    learned, nothing = (layer_features(informative) for informative in (True, False))
    short = layer_table().drop_duplicates("puzzle")["length"].to_numpy() == "4-7"
    for name in ("hidden", "energy"):
        learned[name][~short] = nothing[name][~short]
    found = get_experiment("layers").summarise({"trained": layer_table()}, {"trained": learned, "untrained": nothing})
    found = found[(found["step"] == 0) & found["what"].isin([layers.BEYOND, layers.GROWTH])]
    found = found.set_index(["what", "length"])
    assert found["n"].loc[layers.BEYOND].to_dict() == {ALL: 80, "4-7": 40, "8-11": 40}
    assert found["value_low"][layers.BEYOND, "4-7"] > 0.3 > found["value_high"][layers.BEYOND, "8-11"]
    assert found["value"][layers.GROWTH, "4-7"] == pytest.approx(0.5)
    assert found["value"][layers.GROWTH, "8-11"] == 0


@pytest.mark.parametrize(("informative", "status"), [(True, "shown"), (False, "not shown")])
def test_layers_are_judged_by_what_the_network_has_learned(informative, status):
    experiment = get_experiment("layers")
    table = layer_table()
    features = {"trained": layer_features(informative), "untrained": layer_features(False)}
    summary = experiment.summarise({"trained": table, "untrained": table}, features)
    assert experiment.verdict(summary).status == status
    assert len(experiment.plot(summary, "test").axes) == 2
    # An untrained network that can be read as well is the best baseline: nothing was learned.
    both = {"trained": layer_features(informative), "untrained": layer_features(informative)}
    same = experiment.summarise({"trained": table, "untrained": table}, both)
    assert experiment.verdict(same).status == "not shown"


def test_probed_tokens_lie_where_their_labels_say():

    task = get_task("maze")
    puzzles = [task.sample(0, index, size=5) for index in range(5)]
    batch = Batch([Run(puzzle) for puzzle in puzzles], (7, 20, 20), (7, 5, 5))
    for puzzle, tokens in zip(puzzles, layers.probed_tokens(batch), strict=True):
        for label, token in zip(layers.LABELS, tokens, strict=True):
            cell = divmod(int(token), 5)
            assert (cell in puzzle.route) == label
            assert cell not in (puzzle.start, puzzle.goal)


# --- causal-twin ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Path:
    """A micro with random weights, and its causal twin beside it."""
    folder = tmp_path_factory.mktemp("family")
    for seed, name in enumerate(("micro", "micro-causal")):
        save(random_network(name, seed), folder / name)
    return folder / "micro"


def test_a_network_finds_its_causal_twin_and_a_twin_has_none(twins, untrained_nano):
    twin = load(twins).causal_twin()
    assert twin.settings.name == "micro-causal"
    assert twin.settings.causal
    assert twin.causal_twin() is None
    assert load(untrained_nano).causal_twin() is None


def test_a_report_names_the_weights_of_the_twin_too(twins):
    assert set(facts_of(load(twins), QUICK, "")["weights"]) == {"micro", "micro-causal"}


def test_each_way_of_the_causal_twin_is_the_network_that_it_names(twins):
    reasoner = load(twins)
    sweeps = get_experiment("causal-twin").sweeps(reasoner, Scale("quick", 2, 2, 2, quick=True))
    labels = [sweep.chunks[0][0].labels for sweep in sweeps]
    of_way = {of["way"]: sweep for of, sweep in zip(labels, sweeps, strict=True) if of["family"] == "run"}
    (blind,) = (of_way["network, masked"].reasoner,)
    assert of_way["network"].reasoner is reasoner
    assert weights_digest(blind) == weights_digest(reasoner)
    assert of_way["twin"].reasoner is of_way["twin, frame by frame"].reasoner is reasoner.causal_twin()
    assert weights_digest(reasoner.causal_twin()) != weights_digest(reasoner)
    assert [way for way, sweep in of_way.items() if sweep.frame_by_frame] == ["twin, frame by frame"]
    for way, looks_ahead in (("network", True), ("network, masked", False), ("twin", False)):
        network, puzzle = of_way[way].reasoner, of_way[way].chunks[0][0].run.puzzle
        condition = network.condition([puzzle])
        latents = torch.randn(1, 3, *condition.channels.shape[2:], generator=torch.Generator().manual_seed(0))
        later = latents.clone()
        later[:, :, -1] += 1
        with torch.no_grad():
            one, other = (network.velocity(x, 500.0, condition, "cond")[:, :, :-1] for x in (latents, later))
        assert torch.allclose(one, other, atol=1e-5) != looks_ahead
    noised = [(of["way"], of["family"]) for of in labels if of["family"] != "run"]
    assert sorted(noised) == sorted(itertools.product(("network", "twin"), ("noise at frame", "noise at step")))


def test_a_place_is_run_once_where_the_edge_is_as_large_as_what_is_solid(twins, monkeypatch):
    experiment, scale = get_experiment("causal-twin"), Scale("full", 2, 2, 2)
    for sizes, places in (({"edge": 5, "solid": 5}, {"edge"}), ({"edge": 7, "solid": 5}, {"edge", "solid"})):
        for where in (edge, solid):

            def of(reasoner, task, size=sizes[where.__name__]):
                return size

            of.__name__ = where.__name__
            monkeypatch.setattr(f"minicos.experiments.causal_twin.{where.__name__}", of)
        labels = [sweep.chunks[0][0].labels for sweep in experiment.sweeps(load(twins), scale)]
        several = [of for of in labels if of["task"] == "maze-braided"]
        assert {of["where"] for of in labels if of not in several} == places
        assert len(labels) == 4 * len(places) + 4 + 4
        assert {of["family"] for of in several} == {"run"}
        assert {of["size"] for of in labels if of["family"] != "run"} == {5}


def test_the_causal_twin_is_run_both_ways(twins, tmp_path):
    result = run_experiment(get_experiment("causal-twin"), load(twins), tmp_path, Scale("quick", 4, 2, 4, quick=True))
    plain = result.summary[result.summary["family"] == "run"]
    assert set(plain["way"]) == {"network", "network, masked", "twin", "twin, frame by frame"}
    assert len(plain) == 2 * 4  # of mazes with one right answer, and with several
    assert result.verdict.status in ("not shown", "unclear")  # neither has learned anything


@pytest.mark.parametrize(("behind", "status"), [(0.6, "shown"), (0.0, "not shown")])
def test_the_twin_is_judged_frame_by_frame_at_the_edge(behind, status):
    rows = []
    for where in ("edge", "solid"):
        for way in ("network", "network, masked", "twin", "twin, frame by frame"):
            for puzzle in range(300):
                lost = puzzle < 300 * behind and way == "twin, frame by frame" and where == "edge"
                lost |= puzzle >= 200 and way == "twin" and where == "solid"
                rows.append(("maze", where, 7, way, "run", puzzle, not lost, not lost))
    ways = {"network": 0.5, "network, masked": 0, "twin": 0.5, "twin, frame by frame": 1}
    several = [("maze-braided", "edge", 7, way, "run", p, p < 300 * r) for way, r in ways.items() for p in range(300)]
    rows += [(*row, row[-1]) for row in several]
    rows += [
        ("maze", "solid", 7, way, "noise at frame", p, p > 9, p > 9) for way in ("network", "twin") for p in range(300)
    ]
    table = two_lengths(
        pd.DataFrame(rows, columns=["task", "where", "size", "way", "family", "puzzle", "solved", "right"])
    )
    experiment = get_experiment("causal-twin")
    summary = experiment.summarise({"all": table}, {})
    verdict = experiment.verdict(summary)
    assert verdict.status == status
    assert "jointly the twin is behind by 0 [" in verdict.text
    assert f"solves more than jointly by {0 - behind:.3g} [" in verdict.text
    assert "right after noise at frame, of those that both solve: network 0.95 [" in verdict.text
    assert "on maze-braided the twin, frame by frame, is behind by -0.5 [" in verdict.text
    noised = summary[summary["family"] == "noise at frame"]
    assert set(of_all(noised)["n"]) == {200}
    assert len(experiment.plot(summary, "test").axes) == 4
    by_length = summary[(summary["task"] == "maze") & (summary["way"] == "twin, frame by frame")]
    assert set(by_length["length"]) == {ALL, "4-7", "8-11"}


# --- by length ------------------------------------------------------------------------------------------------------


def known_table(puzzles: int = 60) -> pd.DataFrame:
    """What x0_hat and its null know of mazes, from the tenth puzzle on more and more; the first has no order."""
    what = [f"{null}{kind}" for null in ("", "null_") for kind in perception_first.WHAT]
    rng = np.random.default_rng(0)
    rows = [
        ("maze", 7, puzzle, step, 1.0, *(rng.random(len(what)) * max(0, puzzle - 9) / 60 if puzzle else [np.nan] * 6))
        for puzzle, step in itertools.product(range(puzzles), (0, 5))
    ]
    return pd.DataFrame(rows, columns=["task", "size", "puzzle", "step", "sigma", *what])


# Tables in which the first cases differ from the last ones, and whatever column numbers the cases.
MADE_UP = {
    "chain-of-steps": (lambda: steps_table({"answer"}).assign(entropy=lambda table: table["puzzle"] / 100), "puzzle"),
    "budget": (lambda: budget_table(0.2, 0.7), "puzzle"),
    "commitment": (lambda: commitment_table(5, 45), "puzzle"),
    "perception-first": (known_table, "puzzle"),
    "self-correction": (lambda: correction_table(60, 20, 40, 20), "puzzle"),
    "swap": (lambda: swap_table(30, say=True), "pair"),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_of_a_length_is_told_what_its_puzzles_alone_would_give(name):
    """Of the first third of the cases, which have short routes, and of the others."""
    made, case = MADE_UP[name]
    table = made()
    table["length"] = np.where(table[case] < table[case].max() / 3, "4-7", "8-11")

    def told(table: pd.DataFrame, length: str) -> pd.DataFrame:
        summary = get_experiment(name).summarise({"all": table.copy()}, {})
        rows = summary[(summary["length"] == length) & summary["task"].str.startswith("maze")]
        return rows.drop(columns="length").reset_index(drop=True)

    for length in ("4-7", "8-11"):
        found = told(table, length)
        assert len(found)
        pd.testing.assert_frame_equal(found, told(table[table["length"] == length], ALL))
    short, long = (told(table, length).drop(columns="n") for length in ("4-7", "8-11"))
    assert not short.equals(long)
    whole = told(table, ALL)
    pd.testing.assert_frame_equal(whole, told(table.assign(length="4-7"), ALL))
