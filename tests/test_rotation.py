"""Rotations: what is right is judged right, and every known way of cheating is named."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from minicos.tasks import get_task
from minicos.tasks.base import split_of
from minicos.tasks.rotation import (
    COLOURS,
    PANEL,
    READ_EVERY,
    cropped,
    draw_panel,
    images,
    shape_structure,
    turned_by,
    unsteady,
    wrap,
)

VARIANTS = ["rotation", "rotation-open", "rotation-by-example"]
FRAMES = 7
variants = st.sampled_from(VARIANTS)
indices = st.integers(0, 10**9)


def puzzle_of(name, index, **difficulty):
    return get_task(name).sample(0, index, split="test", **difficulty)


def turned(puzzle, angles, shape=None, colours=None):
    """A video of the puzzle whose last panel shows the shape at these angles."""
    video = get_task(puzzle.task).render(puzzle, len(angles))
    own_shape, own_colours, _ = puzzle.panels[-1]
    for frame, angle in zip(video, angles, strict=True):
        frame[:, -PANEL:] = draw_panel(own_shape if shape is None else shape, colours or own_colours, angle, PANEL)
    return video


def steady(turn, frames=5):
    return [turned_by(turn, frame, frames) for frame in range(frames)]


def score(puzzle, video):
    return get_task(puzzle.task).score(video, puzzle)


@settings(max_examples=100)
@given(variants, indices)
def test_shapes_are_connected_and_have_no_symmetry(name, index):
    shape = puzzle_of(name, index).panels[-1][0]
    assert 4 <= (shape > 0).sum() <= 7
    assert ndimage.label(shape > 0)[1] == 1
    assert len({cropped(image) for image in images(shape)}) == 8
    assert split_of(shape_structure(shape)) == "test"


@pytest.mark.parametrize(
    ("angle", "text"), [(None, ""), (80, "90"), (-100, "-90"), (65, "65"), (-170, "180"), (175, "180"), (-10, "0")]
)
def test_angles_that_are_judged_alike_are_spelled_alike(angle, text):
    assert get_task("rotation").spelled(angle) == text


@pytest.mark.parametrize("name", VARIANTS)
def test_the_size_of_a_rotation_is_its_angle(name):
    task = get_task(name)
    for size in task.sizes:
        puzzles = [task.sample(0, i, size=size) for i in range(40)]
        assert {task.length(p) for p in puzzles} == {p.size for p in puzzles} == {size}
        assert {sign for p in puzzles for sign in np.sign(p.turns)} == {-1, 1}


def test_every_split_holds_only_its_own_shapes():
    task = get_task("rotation")
    seen = {
        split: {task.structure(task.sample(1, i, split=split)) for i in range(500)}
        for split in ("train", "val", "test")
    }
    assert not seen["train"] & (seen["test"] | seen["val"])
    assert not seen["val"] & seen["test"]
    assert len(seen["test"]) > 30


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("frames", [3, 5, 7])
def test_decode_inverts_render(name, frames):
    task = get_task(name)
    for index in range(700):
        puzzle = task.sample(2, index)
        video = task.render(puzzle, frames)
        assert (task.decode(video, puzzle) - puzzle.turn) % 360 == 0


@settings(max_examples=50)
@given(variants, indices, st.integers(4, 12), st.floats(0, 15), st.integers(0, 2**31))
def test_the_oracle_solves_also_under_mild_noise(name, index, frames, strength, seed):
    puzzle = puzzle_of(name, index)
    video = get_task(name).render(puzzle, frames)
    noise = np.random.default_rng(seed).normal(0, strength, video.shape)
    assert score(puzzle, (video + noise).clip(0, 255).round().astype(np.uint8)).solved


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("canvas", [(480, 832), (301, 257)])
def test_large_videos_are_read_under_blur_and_noise(name, canvas):
    task = get_task(name)
    for index in range(3):
        puzzle = task.sample(3, index)
        video = task.render(puzzle, 5, canvas).astype(float)
        blurred = ndimage.gaussian_filter(video, (0, 2, 2, 0))
        noisy = (blurred + np.random.default_rng(0).normal(0, 10, video.shape)).clip(0, 255).round().astype(np.uint8)
        assert abs(wrap(task.decode(noisy, puzzle) - puzzle.turn)) <= READ_EVERY
        assert task.score(noisy, puzzle).solved


@pytest.mark.parametrize("name", VARIANTS)
def test_oracle_one_frozen_zero_random_zero(name):
    task, rng, verdicts = get_task(name), np.random.default_rng(0), Counter()
    for index in range(100):
        puzzle = task.sample(0, index, split="test")
        video = task.render(puzzle, FRAMES)
        verdicts["oracle", task.score(video, puzzle).status] += 1
        verdicts["frozen", task.score(video[:1].repeat(FRAMES, axis=0), puzzle).status] += 1
        verdicts["random", task.score(rng.integers(0, 256, video.shape, np.uint8), puzzle).solved] += 1
    assert verdicts == {("oracle", "solved"): 100, ("frozen", "wrong"): 100, ("random", False): 100}


def test_both_directions_of_an_open_rotation_are_right_and_half_a_turn_is_not():
    for index in range(30):
        puzzle = puzzle_of("rotation-open", index)
        for turn in (90, -90):
            assert score(puzzle, turned(puzzle, steady(turn))).solved
        for turn in (180, 45, 0):
            assert score(puzzle, turned(puzzle, steady(turn))).status == "wrong"


def test_the_named_direction_counts():
    for index in range(40):
        puzzle = puzzle_of("rotation", index)
        assert score(puzzle, turned(puzzle, steady(puzzle.turn))).solved
        other_way = score(puzzle, turned(puzzle, steady(-puzzle.turn)))
        assert other_way.status == "wrong"
        assert other_way.answer == (abs(puzzle.turn) == 180)


def test_a_leap_a_way_back_and_a_blend_are_not_solved():
    for index in range(30):
        puzzle = puzzle_of("rotation-open", index)
        assert score(puzzle, turned(puzzle, [0, 0, 0, 90, 90])).status == "invalid"
        assert score(puzzle, turned(puzzle, [0, 45, 20, 60, 90])).status == "invalid"
        blend = turned(puzzle, steady(90)).astype(float) + turned(puzzle, steady(-90))
        verdict = score(puzzle, (blend / 2).round().astype(np.uint8))
        assert verdict.status == "unreadable"
        assert not verdict.answer


def test_another_shape_another_colour_or_another_example_is_invalid():
    for index in range(30):
        puzzle = puzzle_of("rotation-by-example", index)
        shape, (one, other), _ = puzzle.panels[-1]
        angles = steady(puzzle.turn)
        recoloured = turned(puzzle, angles, colours=(next(c for c in COLOURS if c not in (one, other)), other))
        mirrored = turned(puzzle, angles, shape=shape[:, ::-1])
        wiped = turned(puzzle, angles)
        wiped[2, :, :PANEL] = 255
        for video in (recoloured, mirrored, wiped):
            assert score(puzzle, video).status == "invalid"


@given(st.lists(st.integers(0, 179), min_size=2, max_size=8), st.sampled_from([-1, 1]))
def test_a_steady_turn_may_vary_but_not_leap(steps, direction):
    assert bool(unsteady([direction * s for s in steps])) == (max(steps) > 270 / len(steps) + 15)


@given(st.integers(3, 81), st.sampled_from([45, -90, 135, -180]))
def test_the_ground_truth_arrives_and_rests(frames, turn):
    angles = [turned_by(turn, frame, frames) for frame in range(frames)]
    assert (angles[0], angles[-1]) == (0, turn)
    assert not unsteady([round(b - a) for a, b in itertools.pairwise(angles)])


@given(st.integers(-2000, 2000))
def test_wrap(degrees):
    assert -180 < wrap(degrees) <= 180
    assert (wrap(degrees) - degrees) % 360 == 0


def test_the_chosen_direction_is_told_where_both_are_right():
    task = get_task("rotation-open")
    puzzles = [task.sample(0, i) for i in range(20)]
    choices = [task.choice(task.render(puzzle, 7), puzzle) for puzzle in puzzles]
    assert choices == ["clockwise" if puzzle.turn > 0 else "counterclockwise" for puzzle in puzzles]
    assert len(set(choices)) == 2
    assert task.choice(np.zeros_like(task.render(puzzles[0], 7)), puzzles[0]) == ""  # nothing to read
    single = get_task("rotation").sample(0, 0)
    assert get_task("rotation").choice(task.render(single, 7), single) == ""
