"""The explorer shows what runs leave behind: nulls change nothing, runs are kept, every widget changes a picture."""

from __future__ import annotations

from dataclasses import replace
from html import unescape

import nbformat
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbclient import NotebookClient

import minicos
from minicos import views
from minicos.errors import MinicosError
from minicos.explorer import Choice, Explorer, explore
from minicos.interventions import Average, SwapHidden
from minicos.panel import Panel
from minicos.runs import Run
from minicos.sampling import sample
from minicos.tasks import TASKS, get_task
from minicos.teaching import Picture


@pytest.fixture(params=["nano", "tiny_wan"], scope="module")
def explorer(request, untrained_nano, tiny_wan_folder):
    """Of a miniature, and of a two-expert Wan with guidance and a VAE that takes four frames together."""
    return Explorer({"nano": untrained_nano, "tiny_wan": tiny_wan_folder}[request.param])


@pytest.fixture(scope="module")
def nano(untrained_nano):
    return Explorer(untrained_nano)


def equal(one, other):
    return np.array_equal(one.estimates, other.estimates) and np.array_equal(one.energy, other.energy)


# --- what is run ----------------------------------------------------------------------------------------------------


def test_where_nothing_is_done_both_are_one_run_and_no_run_is_made_twice(explorer):
    told = []
    explorer.progress = told.append
    choice = explorer.choice(index=1, seed=5)
    clean, disturbed = explorer.recordings(choice)
    assert clean is disturbed
    steps = len(clean.schedule)
    assert told == [(step + 1) / steps for step in range(steps)]
    assert explorer.recordings(explorer.choice(index=1, seed=5))[0] is clean
    assert len(told) == steps
    assert explorer.recordings(explorer.choice(index=1, seed=5, steps=1))[0] is clean
    assert len(told) == 2 * steps


def test_a_recording_is_of_the_run_that_sample_makes(explorer):
    choice = explorer.choice(seed=3)
    recording, _ = explorer.recordings(choice)
    network, puzzle = explorer.network(choice.task), recording.run.puzzle
    run = sample(network, [puzzle], seed=3)
    assert np.array_equal(recording.estimates[-1], run.video[0][:: network.frames_per_latent])
    task = get_task(choice.task)
    assert recording.score == recording.scores[-1] == task.score(run.video[0], puzzle)
    assert recording.answer == task.decode(run.video[0], puzzle)
    assert recording.estimates.shape[:2] == (len(run.schedule), network.latent_frames)


def test_energy_is_a_map_of_every_block_relative_to_its_mean(explorer):
    choice = explorer.choice()
    recording, _ = explorer.recordings(choice)
    steps, frames = recording.estimates.shape[:2]
    assert recording.energy.shape[:3] == (steps, explorer.depth(choice.task), frames)
    assert recording.energy.mean((2, 3, 4)) == pytest.approx(1, abs=1e-5)
    assert recording.energy.std((3, 4)).max() > 0


def test_noise_at_a_step_changes_that_step_and_later_ones_only(explorer):
    clean, disturbed = explorer.recordings(explorer.choice(steps=[2]))
    for step in range(len(clean.schedule)):
        same = np.array_equal(clean.energy[step], disturbed.energy[step])
        assert same == (step < 2)
    assert np.array_equal(clean.estimates[:2], disturbed.estimates[:2])


def test_noise_at_a_frame_acts_from_the_first_step_on(explorer):
    clean, disturbed = explorer.recordings(explorer.choice(frames=1))
    assert not np.array_equal(clean.energy[0], disturbed.energy[0])


def test_a_swap_from_itself_is_a_null_and_from_another_puzzle_it_is_not(explorer):
    clean, itself = explorer.recordings(explorer.choice(swap=0))
    assert itself is not clean
    assert equal(clean, itself)
    for swap in (1, "pair"):
        choice = explorer.choice(swap=swap, block=1)
        _, other = explorer.recordings(choice)
        assert np.allclose(clean.energy[0, 0], other.energy[0, 0], atol=1e-4)  # the block before it
        assert not np.allclose(clean.energy[0, 1], other.energy[0, 1], atol=1e-3)


def test_an_ensemble_of_equal_seeds_is_a_null_and_of_three_it_is_not(explorer):
    choice = explorer.choice(ensemble=True)
    clean, ensemble = explorer.recordings(choice)
    (average,) = ensemble.run.interventions
    equal_seeds = Average((0, 0, 0), blocks=average.blocks)
    assert equal(clean, explorer.recording(Run(clean.run.puzzle, 0, (equal_seeds,))))
    assert average.seeds == (0, 1, 2)
    assert not equal(clean, ensemble)


def test_everything_at_once_is_done_in_the_order_it_is_said_in(nano):
    choice = nano.choice(steps=(1, 3), frames=(2,), swap="pair", region="goal", block=2, ensemble=True)
    _, run = nano.runs(choice)
    kinds = [type(intervention).__name__ for intervention in run.interventions]
    assert kinds == ["Noise", "Noise", "Noise", "SwapHidden", "Average"]
    swap = next(i for i in run.interventions if isinstance(i, SwapHidden))
    assert (swap.block, swap.tokens.region, swap.steps) == (2, "goal", (0,))
    assert swap.donor.puzzle.goal != run.puzzle.goal
    assert views.done_words(choice) == (
        "noise at step 1, noise at step 3, noise at frame 2, goal of block 2 from its pair at step 0, "
        "ensemble of 3 seeds at step 0"
    )


def test_puzzles_are_what_the_model_was_trained_on(untrained_nano, tiny_wan_folder):
    assert Explorer(untrained_nano).sizes()["maze"] == [3, 4, 5]
    shipped = Explorer("nano")
    assert set(shipped.sizes()) == set(shipped.reasoner.tasks())
    assert shipped.choice().task == "maze"
    # A model that says nothing gets every task whose picture its canvas of 32 x 32 has room for.
    everything = Explorer(tiny_wan_folder).sizes()
    assert max(everything["maze"]) == 8
    assert "rotation-by-example" not in everything
    assert set(everything) < set(TASKS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"task": "sudoku"}, "has no task 'sudoku': choose from maze"),
        ({"size": 9}, "has no size 9 of maze: choose from 3, 4, 5"),
        ({"steps": (12,)}, "step 12 does not exist: this run has steps 0 to 11"),
        ({"frames": -1}, "frame -1 does not exist"),
        ({"block": 99}, "block 99 does not exist"),
        ({"index": 100}, "puzzle 100 does not exist"),
        ({"swap": 100}, "puzzle 100 does not exist"),
        ({"seed": -1}, "seed -1 does not exist"),
        ({"region": "walls"}, "has no region 'walls': choose from all, start"),
        ({"steps": "last"}, "steps are whole numbers"),
        ({"frames": (1, 2.5)}, "frames are whole numbers"),
        ({"size": "5"}, "size is a whole number, not '5'"),
        ({"block": None}, "block is a whole number, not None"),
        ({"index": 1.5}, "index is a whole number, not 1.5"),
        ({"swap": "its pair"}, "swap is a whole number, not 'its pair'"),
        ({"noise": 3}, "nothing to choose is called 'noise': choose from task, size"),
    ],
    ids=str,
)
def test_what_there_is_not_is_refused_in_one_line(nano, given, message):
    with pytest.raises(MinicosError, match=message) as refused:
        nano.choice(**given)
    assert "\n" not in str(refused.value)


def test_a_pair_is_refused_where_there_is_none():
    explorer = Explorer("nano")
    with pytest.raises(MinicosError, match="is not one of a pair: swap from another puzzle"):
        explorer.choice(task="rotation-open", swap="pair")


# --- what is drawn --------------------------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_a_picture_that_is_fitted_keeps_its_shape_and_its_colours(tall, wide, height, width):
    picture = np.full((tall, wide, 3), (0, 90, 220), np.uint8)
    fitted = views.fitted(picture, height, width)
    assert fitted.shape == (height, width, 3)
    inside = (fitted == (0, 90, 220)).all(-1)
    assert (inside | (fitted == 255).all(-1)).all()
    rows, columns = inside.any(1).sum(), inside.any(0).sum()
    assert rows == height or columns == width
    scale = min(height / tall, width / wide)
    assert abs(rows - scale * tall) <= 1
    assert abs(columns - scale * wide) <= 1


def test_the_grid_has_every_estimate_in_its_place_and_stripes_where_there_is_noise(explorer):
    recording, _ = explorer.recordings(explorer.choice())
    steps, frames = recording.estimates.shape[:2]
    height, width = views.cell_size(recording)
    plain = views.grid(recording, range(steps), ((), ()))
    striped = views.grid(recording, range(steps), ((1,), (0,)))
    for step in range(steps):
        for frame in range(frames):
            place = np.s_[step * height : (step + 1) * height, frame * width : (frame + 1) * width]
            inner = np.s_[views.MARGIN : -views.MARGIN, views.MARGIN : -views.MARGIN]
            drawn = views.fitted(recording.estimates[step, frame], height - 2 * views.MARGIN, width - 2 * views.MARGIN)
            assert np.array_equal(plain[place][inner], drawn)
            assert np.array_equal(striped[place][inner], drawn)
            noise = (striped[place] == views.STRIPE).all(-1).any()
            assert noise == (step == 1 or frame == 0)


def test_a_token_map_is_lighter_where_there_is_more_energy():
    energy = np.linspace(0.5, 2, 12, dtype=np.float32).reshape(3, 4)
    lightness = views.token_map(energy, 0.5, 2).astype(int).sum(-1).ravel()
    assert (np.diff(lightness) > 0).all()


def test_words_say_verdict_reason_and_answer(nano):
    recording, _ = nano.recordings(nano.choice())
    score, said = recording.score, views.verdict(recording)
    assert score.status in said
    assert score.reason in said
    assert views.answer_words(recording) in said
    task, puzzle = get_task("maze"), recording.run.puzzle
    right = task.render(puzzle, 5)
    oracle = replace(recording, score=task.score(right, puzzle), answer=task.decode(right, puzzle))
    assert views.verdict(oracle) == f"✓ solved. Answer: {' '.join(map(str, puzzle.route))}"
    assert views.answer_words(replace(recording, answer=None)) == "none can be read"


# --- the panel ------------------------------------------------------------------------------------------------------


def shown(panel):
    """Everything that is to be seen of a panel."""
    return [html.value for html in (panel.words, panel.verdicts, *panel.grids, *panel.seen, *panel.maps)]


@pytest.mark.parametrize(
    "start",
    [
        {},
        {"size": 3, "index": 7, "seed": 2, "steps": (0, 4), "frames": (2,), "block": 1, "ensemble": True},
        {"swap": "pair", "region": "goal"},
        {"swap": 3, "region": "elsewhere", "block": 0},
    ],
    ids=str,
)
def test_a_panel_begins_with_what_was_chosen(untrained_nano, start):
    panel = explore(untrained_nano, static=False, **start)
    choice = panel.choice()
    assert choice == Explorer(untrained_nano).choice(**start)
    assert all(getattr(choice, name) == value for name, value in start.items())


def test_every_widget_changes_what_is_to_be_seen(nano):
    panel = Panel(nano, nano.choice())
    settings = {
        "step": 3,
        "frame": 1,
        "block": 0,
        "index": 4,
        "seed": 1,
        "size": 4,
        "swap": True,
        "donor": 7,
        "region": "goal",
        "ensemble": True,
    }
    for name, value in settings.items():
        before = shown(panel)
        getattr(panel, name).value = value
        assert shown(panel) != before, name
        assert panel.bar.value == 100
    for box in (panel.noise_steps, panel.noise_frames):
        before = shown(panel)
        box.children[2].value = True
        assert shown(panel) != before
        assert box.children[2].description.startswith("✱")
    clean, disturbed = panel.recordings
    assert panel.choice() == Choice("maze", 4, 0, 4, 1, (2,), (2,), 7, "goal", True)
    assert panel.recordings == nano.recordings(panel.choice())
    assert views.verdict(clean) in unescape(panel.verdicts.value)
    assert views.verdict(disturbed) in unescape(panel.verdicts.value)


def test_scrubbing_runs_nothing(nano):
    panel = Panel(nano, nano.choice(steps=(4,)))
    told, nano.progress = [], lambda share: told.append(share)
    for step in range(12):
        panel.step.value = step
        for name, html, recording in zip(("Clean", "Disturbed"), panel.seen, panel.recordings, strict=True):
            assert views.frame_words(name, recording, step, panel.frame.value) in unescape(html.value)
    assert told == []


def test_the_bar_follows_the_steps_of_a_new_run(nano):
    panel = Panel(nano, nano.choice())
    seen = []
    panel.bar.observe(lambda change: seen.append(change["new"]), "value")
    panel.seed.value = 77
    assert seen == [round(100 * (step + 1) / 12) for step in range(12)]


def test_a_panel_goes_from_task_to_task_and_keeps_what_both_have():
    panel = explore("nano", static=False, size=5, steps=(4,), block=2, swap="pair", region="goal")
    panel.task.value = "rotation-open"
    choice = panel.choice()
    assert (choice.task, choice.size, choice.steps) == ("rotation-open", 90, (4,))
    assert (choice.swap, choice.region) == (0, "all")  # there is neither a pair nor a goal
    assert panel.recordings[0].run.puzzle.task == "rotation-open"
    assert panel.size.options == (90,)


def test_a_panel_of_two_experts(tiny_wan_folder):
    panel = explore(tiny_wan_folder, static=False)
    assert (len(panel.noise_steps.children), len(panel.noise_frames.children)) == (4, 2)
    before = shown(panel)
    panel.noise_steps.children[3].value = True
    assert shown(panel) != before


# --- the static twin ------------------------------------------------------------------------------------------------


def test_without_a_front_end_there_is_a_figure_with_words(untrained_nano, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    twin = explore(untrained_nano, steps=(4,))
    assert isinstance(twin, Picture)
    assert twin.png.startswith(b"\x89PNG")
    explorer = Explorer(untrained_nano)
    clean, disturbed = explorer.recordings(explorer.choice(steps=(4,)))
    assert f"Clean: {views.verdict(clean)}" in twin.alt
    assert f"Disturbed, noise at step 4: {views.verdict(disturbed)}" in twin.alt
    monkeypatch.setenv("JPY_SESSION_NAME", "course/lesson.ipynb")
    assert isinstance(explore(untrained_nano), Panel)
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert isinstance(explore(untrained_nano), Picture)


def test_the_twin_has_the_clean_run_above_the_disturbed_one(explorer):
    choice = explorer.choice(frames=(1,))
    clean, disturbed = explorer.recordings(choice)
    above, _, below, _ = views.twin_figure(clean, disturbed, choice).axes[:4]
    titles = [axis.get_title(loc="left").replace("\n", " ") for axis in (above, below)]
    assert titles[0].startswith(f"clean. {views.marked(clean.score)}")
    assert titles[1].startswith(f"disturbed: noise at frame 1. {views.marked(disturbed.score)}")
    pictures = [axis.images[0].get_array() for axis in (above, below)]
    stripes = [(picture == views.STRIPE).all(-1).any() for picture in pictures]
    assert stripes == [False, True]


def test_a_headless_notebook_shows_the_figure(untrained_nano, tmp_path, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setenv("MINICOS_MODEL", str(untrained_nano))
    cell = nbformat.v4.new_code_cell("import minicos\nminicos.explore()")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    (output,) = notebook.cells[0].outputs
    assert '<img src="data:image/png' in output.data["text/html"]
    assert "Clean: " in output.data["text/html"]


def test_it_is_found_in_the_package():
    assert minicos.explore is explore
