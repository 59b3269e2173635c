"""What every task promises."""

from __future__ import annotations

import subprocess
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
from scipy import ndimage

from minicos.errors import MinicosError
from minicos.plots import write_mp4
from minicos.tasks import TASKS, get_task
from minicos.tasks.base import Board

FINGERPRINT = """
import hashlib
from minicos.tasks import TASKS
digest = hashlib.sha256()
for name, task in TASKS.items():
    for split in ("train", "test"):
        for index in range(40):
            puzzle = task.sample(7, index, split=split)
            digest.update(task.render(puzzle, 5).tobytes() + puzzle.prompt.encode() + puzzle.key.encode())
print(digest.hexdigest())
"""


def test_the_same_seed_and_index_give_the_same_bytes_in_another_process():
    command = [sys.executable, "-c", FINGERPRINT]
    runs = {
        subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
    assert len(runs.pop().strip()) == 64


@pytest.mark.parametrize("name", TASKS)
def test_no_two_puzzles_have_the_same_key(name):
    task = get_task(name)
    asked = [(seed, index, size) for seed in range(2) for index in range(2) for size in (None, *task.sizes)]
    keys = {task.sample(seed, index, size=size).key for seed, index, size in asked}
    assert len(keys) == len(asked)


@pytest.mark.parametrize("name", TASKS)
def test_seed_and_index_both_matter(name):
    task = get_task(name)
    keys = {task.render(task.sample(s, i), 5).tobytes() for s in range(5) for i in range(20)}
    assert len(keys) > 90


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("frames", "canvas"), [(5, None), (81, (48, 64)), (2, (480, 832))])
def test_render_gives_what_was_asked_for(name, frames, canvas):
    task = get_task(name)
    puzzle = task.sample(0, 0)
    if canvas is not None and any(np.greater(task.canvas(puzzle), canvas)):
        canvas = (480, 832)
    video = task.render(puzzle, frames, canvas)
    assert video.dtype == np.uint8
    assert video.shape == (frames, *(canvas or task.canvas(puzzle)), 3)


@pytest.mark.parametrize("name", TASKS)
def test_prompts_are_complete(name):
    task = get_task(name)
    assert {task.sample(0, i).prompt for i in range(200)} == set(task.prompts())


@pytest.mark.parametrize("name", TASKS)
def test_bad_videos_are_refused_in_one_line(name):
    task = get_task(name)
    puzzle = task.sample(0, 0)
    good = task.render(puzzle, 5)
    for bad in (good[0], good[:1], good.astype(float), good[..., :2], "video", good[:, :8, :8]):
        with pytest.raises(MinicosError) as caught:
            task.score(bad, puzzle)
        assert "\n" not in str(caught.value)


def test_unknown_names_sizes_and_splits_are_refused():
    with pytest.raises(MinicosError, match="unknown task 'sudoku'"):
        get_task("sudoku")
    with pytest.raises(MinicosError, match="no size 2"):
        get_task("maze").sample(0, 0, size=2)
    with pytest.raises(MinicosError, match="unknown split"):
        get_task("maze").sample(0, 0, split="exam")


def test_a_board_reads_what_it_draws_at_any_size():
    rng = np.random.default_rng(0)
    for _ in range(40):
        rows, columns = rng.integers(1, 30, 2)
        board = Board(int(rows), int(columns))
        units = rng.integers(0, 256, (2, rows, columns, 3), np.uint8)
        height, width = (
            rows * rng.integers(3, 9) + rng.integers(0, 9),
            columns * rng.integers(3, 9) + rng.integers(0, 9),
        )
        canvas = board.draw(units, int(height), int(width))
        assert np.abs(board.read(canvas, core=0.3) - units).max() < 1e-3


@pytest.mark.parametrize("name", TASKS)
def test_every_frame_of_the_oracle_holds_and_frozen_or_foreign_ones_do_not(name):
    task = get_task(name)
    for index in range(15):
        puzzle, other = (task.sample(0, i, size=task.sizes[:5][-1]) for i in (index, index + 100))
        video = task.render(puzzle, 7)
        assert all(task.holds(video, puzzle, frame) for frame in range(7))
        assert not task.holds(video[:1].repeat(7, 0), puzzle, 6)
        assert not task.holds(np.concatenate([video[:1], task.render(other, 7)[1:]]), puzzle, 5)
        noise = np.random.default_rng(index).integers(0, 256, video.shape, np.uint8)
        assert task.holds(np.concatenate([noise[:1], video[1:]]), puzzle, 6)  # whatever frame 0 has become
        assert not task.holds(np.concatenate([video[:1], noise[1:]]), puzzle, 4)


@pytest.mark.parametrize("name", ["maze", "maze-braided", "rotation", "occlusion", "bounce"])
def test_partners_share_what_they_should_and_have_another_answer(name):
    task = get_task(name)
    found = 0
    for index in range(30):
        puzzle = task.sample(0, index, size=task.sizes[:4][-1])
        partner = task.partner(puzzle)
        if partner is None:
            continue
        found += 1
        assert task.partner(puzzle).key == partner.key != puzzle.key
        one, other = task.render(puzzle, 7), task.render(partner, 7)
        assert task.score(other, partner).solved
        assert not task.score(other, puzzle).answer
        assert not set(task.answers(puzzle)) & set(task.answers(partner))
        if name in ("rotation", "bounce"):
            assert np.array_equal(one[0], other[0])
            assert puzzle.prompt != partner.prompt
        elif name == "occlusion":
            assert puzzle.prompt == partner.prompt
            assert (one[0] != other[0]).any(-1).sum() == 16 * len(
                puzzle.items
            )  # every coloured cell, in another colour
            assert (one == 255).all(-1).tobytes() == (other == 255).all(-1).tobytes()  # at the same places
        else:
            assert puzzle.prompt == partner.prompt
            assert (one[0] != other[0]).any(-1).sum() == 8  # two cells of 2 x 2 units: the old goal and the new
    assert found > 20


def test_an_open_rotation_has_no_partner():
    task = get_task("rotation-open")
    assert task.partner(task.sample(0, 0)) is None


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("size", [(480, 832), (544, 736)])
def test_a_video_of_the_full_models_size_is_read_after_compression_and_resizing(name, size, tmp_path):
    """H.264 with its colour subsampling, then smoothly resized, as a video from elsewhere may have been."""
    task = get_task(name)
    puzzle = task.sample(0, 0, size=min(task.sizes, key=lambda other: abs(other - 8)))
    write_mp4(task.render(puzzle, 9, size), tmp_path / "video.mp4", 16)
    read = imageio.imread(tmp_path / "video.mp4")
    smaller = ndimage.zoom(read, (1, 0.8, 0.8, 1), order=1)
    for video in (read, smaller):
        assert task.score(video, puzzle).solved
        assert task.decode(video, puzzle) == task.decode(task.render(puzzle, 9), puzzle)
    assert not task.score(np.repeat(smaller[:1], 9, axis=0), puzzle).solved


@pytest.mark.parametrize("name", TASKS)
def test_a_whole_video_of_the_full_model_is_read_with_smooth_edges(name, tmp_path):
    """81 frames of 480 x 832, as Wan2.2 gives them: drawn twice as large, averaged down, blurred, compressed."""
    task = get_task(name)
    puzzle = task.sample(0, 1, size=min(task.sizes, key=lambda other: abs(other - 8)))
    frames, height, width = 81, 480, 832
    smooth = np.empty((frames, height, width, 3), np.uint8)
    shift = np.array([1, 1])  # edges between pixels, too
    for number, large in enumerate(task.render(puzzle, frames, (2 * height, 2 * width))):
        moved = np.roll(large, shift, axis=(0, 1)).reshape(height, 2, width, 2, 3).mean((1, 3))
        smooth[number] = ndimage.gaussian_filter(moved, (1, 1, 0)).round()
    write_mp4(smooth, tmp_path / "video.mp4", 16)
    read = imageio.imread(tmp_path / "video.mp4")
    assert read.shape == smooth.shape
    assert task.score(read, puzzle).solved
    assert task.decode(read, puzzle) == task.decode(task.render(puzzle, 9), puzzle)
