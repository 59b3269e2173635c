"""Mazes: what is right is judged right, and every known way of cheating is named."""

from __future__ import annotations

import itertools
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from minicos.tasks import get_task
from minicos.tasks.base import split_of
from minicos.tasks.maze import FLOOR, GOAL, PALETTE, PATH, START, WALL, maze_structure

FRAMES = 7
tasks = st.sampled_from(["maze", "maze-braided"])
sizes = st.integers(3, 16)
indices = st.integers(0, 10**9)


def puzzle_of(name="maze", size=5, index=0, split="test"):
    return get_task(name).sample(0, index, size=size, split=split)


def cell_units(row, column):
    return slice(4 * row + 1, 4 * row + 3), slice(4 * column + 1, 4 * column + 3)


def paint(frame, one, other, colour=PALETTE[PATH]):
    """Draw the opening between two neighbouring cells."""
    (r0, c0), (r1, _) = sorted((one, other))
    if r0 == r1:
        frame[4 * r0 + 1 : 4 * r0 + 3, 4 * c0 + 3 : 4 * c0 + 5] = colour
    else:
        frame[4 * r0 + 3 : 4 * r0 + 5, 4 * c0 + 1 : 4 * c0 + 3] = colour


def video_of(puzzle, routes):
    """A video whose frame f shows the trail routes[f]."""
    video = PALETTE[puzzle.scene][None].repeat(len(routes), axis=0)
    for frame, route in zip(video, routes, strict=True):
        for before, cell in itertools.pairwise(route):
            paint(frame, before, cell)
            if cell not in (puzzle.start, puzzle.goal):
                frame[cell_units(*cell)] = PALETTE[PATH]
    return video


def score(puzzle, video):
    return get_task(puzzle.task).score(video, puzzle)


def passages(puzzle):
    right = {((r, c), (r, c + 1)) for r, c in np.argwhere(puzzle.right).tolist()}
    return right | {((r, c), (r + 1, c)) for r, c in np.argwhere(puzzle.down).tolist()}


# --- puzzles --------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(sizes, indices)
def test_a_maze_is_a_spanning_tree(size, index):
    puzzle = puzzle_of(size=size, index=index)
    edges = passages(puzzle)
    assert len(edges) == size * size - 1
    reached, queue = {puzzle.start}, deque([puzzle.start])
    while queue:
        here = queue.popleft()
        for a, b in edges:
            for one, other in ((a, b), (b, a)):
                if one == here and other not in reached:
                    reached.add(other)
                    queue.append(other)
    assert len(reached) == size * size


@settings(max_examples=60)
@given(tasks, sizes, indices)
def test_routes_are_walks_of_one_length_from_start_to_goal(name, size, index):
    puzzle = puzzle_of(name, size, index)
    edges = passages(puzzle)
    assert len(puzzle.routes) >= (2 if name == "maze-braided" else 1)
    assert len(set(puzzle.routes)) == len(puzzle.routes)
    for route in puzzle.routes:
        assert (route[0], route[-1]) == (puzzle.start, puzzle.goal)
        assert len(route) == len(puzzle.route) >= size
        assert all(tuple(sorted(move)) in edges for move in itertools.pairwise(route))


def test_three_algorithms_give_different_route_lengths():
    from minicos.tasks.base import puzzle_rng
    from minicos.tasks.maze import TREES, _distances, _neighbours

    longest = []
    for tree in TREES:
        spans = []
        for i in range(60):
            moves, _ = _distances(_neighbours(8, tree(8, puzzle_rng(f"{i}"))), (0, 0))
            spans.append(max(moves.values()))
        longest.append(np.mean(spans))
    backtracker, prim, wilson = longest
    assert backtracker > wilson + 3 > prim + 6


def test_every_split_holds_only_its_own_structures():
    task = get_task("maze")
    seen = {
        split: {task.structure(task.sample(1, i, size=5, split=split)) for i in range(300)}
        for split in ("train", "val", "test")
    }
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    assert not seen["val"] & seen["test"]
    assert all({split_of(s) for s in structures} == {split} for split, structures in seen.items())


@settings(max_examples=30)
@given(tasks, sizes, indices, st.integers(0, 3), st.booleans())
def test_the_structure_is_the_same_for_every_symmetric_image(name, size, index, turns, mirror):
    puzzle = puzzle_of(name, size, index)
    right, down = puzzle.right, puzzle.down
    for _ in range(turns):
        right, down = np.rot90(down, -1), np.rot90(right, -1)
    if mirror:
        right, down = right[:, ::-1], down[:, ::-1]
    assert maze_structure(right, down) == get_task(name).structure(puzzle)


# --- round trips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["maze", "maze-braided"])
@pytest.mark.parametrize(("size", "count"), [(3, 1000), (5, 1000), (7, 400), (16, 60)])
def test_decode_inverts_render(name, size, count):
    task = get_task(name)
    for index in range(count):
        puzzle = task.sample(2, index, size=size)
        video = task.render(puzzle, FRAMES)
        assert task.decode(video, puzzle) == puzzle.route
        assert (video[0] == PALETTE[puzzle.scene]).all()


@settings(max_examples=60)
@given(tasks, sizes, indices, st.integers(2, 12), st.floats(0, 18), st.integers(0, 2**31))
def test_the_oracle_solves_also_under_mild_noise(name, size, index, frames, strength, seed):
    puzzle = puzzle_of(name, size, index)
    video = get_task(name).render(puzzle, frames)
    noise = np.random.default_rng(seed).normal(0, strength, video.shape)
    noisy = (video + noise).clip(0, 255).round().astype(np.uint8)
    assert score(puzzle, noisy).solved


@pytest.mark.parametrize("size", [3, 5, 7, 10, 16])
@pytest.mark.parametrize("canvas", [(480, 832), (480, 480), (301, 257)])
def test_large_videos_are_read_under_blur_and_noise(size, canvas):
    task = get_task("maze")
    puzzle = task.sample(3, 0, size=size)
    video = task.render(puzzle, 3, canvas).astype(float)
    unit = min(canvas) / (4 * size)
    blurred = ndimage.gaussian_filter(video, (0, unit / 5, unit / 5, 0))
    noisy = blurred + np.random.default_rng(0).normal(0, 12, video.shape)
    noisy = noisy.clip(0, 255).round().astype(np.uint8)
    assert task.decode(noisy, puzzle) == puzzle.route
    assert task.score(noisy, puzzle).solved


def covered(puzzle, canvas, rows, columns):
    """Where a rectangle of units, in fractions of them, lies on a canvas."""
    top, left, tall, _ = puzzle.board.box(*canvas)
    edges = [[round(tall / (4 * puzzle.size) * edge) for edge in sorted(pair)] for pair in (rows, columns)]
    return tuple(slice(start + low, start + high) for start, (low, high) in zip((top, left), edges, strict=True))


def growing(puzzle, frames, canvas):
    """The video of a trail that grows evenly in straight lines: most frames show a part of a move."""
    moves = list(itertools.pairwise(puzzle.route))
    video = get_task("maze").render(puzzle, 2, canvas)[:1].repeat(frames, 0)
    for frame in range(frames):
        way = frame * len(moves) / (frames - 1)
        for move, (here, there) in enumerate(moves):
            part = min(max(way - move, 0), 1) * (2 if there == puzzle.goal else 4)  # units; the goal stays red
            sides = []
            for a, b in zip(here, there, strict=True):
                edge = 4 * a + 2 + (b - a)  # of the first cell's floor, on the way to the second
                sides.append((edge, edge + part * (b - a)) if a != b else (edge - 1, edge + 1))
            if part > 0:
                video[frame][covered(puzzle, canvas, *sides)] = PALETTE[PATH]
    return video


@pytest.mark.parametrize("size", [4, 7])
def test_a_trail_may_grow_evenly_in_large_videos(size):
    task, canvas, frames = get_task("maze"), (240, 416), 33
    for index in range(2):
        puzzle = task.sample(5, index, size=size)
        video = growing(puzzle, frames, canvas)
        blurred = ndimage.gaussian_filter(video.astype(float), (0, 1.5, 1.5, 0))
        noisy = blurred + np.random.default_rng(index).normal(0, 12, video.shape)
        for seen in (video, noisy.clip(0, 255).round().astype(np.uint8)):
            assert task.score(seen, puzzle).solved
            assert task.holds(seen, puzzle, frames // 2)
        # But it has to arrive, and nothing else may be begun beside it.
        moves = len(puzzle.route) - 1
        assert not task.score(video[: int((moves - 0.5) / moves * (frames - 1)) + 1], puzzle).solved
        row, column = next(cell for cell in np.ndindex(size, size) if cell not in puzzle.route)
        for share in (1, 0.5):
            wrong = video.copy()
            floor = (4 * row + 1, 4 * row + 1 + 2 * share), (4 * column + 1, 4 * column + 3)
            wrong[frames // 2][covered(puzzle, canvas, *floor)] = PALETTE[PATH]
            assert not task.score(wrong, puzzle).solved


@pytest.mark.parametrize(("share", "read"), [(0.28, True), (0.5, False)])
def test_a_tint_that_can_be_read_is_not_taken_for_a_half_drawn_move(share, read):
    task, puzzle = get_task("maze"), puzzle_of()
    video = task.render(puzzle, FRAMES, (240, 416))
    row, column = next(cell for cell in np.ndindex(5, 5) if cell not in puzzle.route)
    tint = (1 - share) * PALETTE[FLOOR].astype(float) + share * PALETTE[PATH]
    for frame in range(1, FRAMES):
        floor = (4 * row + 1, 4 * row + 3), (4 * column + 1, 4 * column + 3)
        video[frame][covered(puzzle, (240, 416), *floor)] = tint
    assert task.score(video, puzzle).status == ("solved" if read else "unreadable")
    assert task.decode(video, puzzle) == (puzzle.route if read else None)


def test_a_half_drawn_move_is_unreadable_at_the_native_size():
    puzzle = puzzle_of()
    video = get_task("maze").render(puzzle, FRAMES)
    assert score(puzzle, video).solved
    video[3][cell_units(*puzzle.route[1])] = PALETTE[[FLOOR, PATH]].mean(0)
    assert score(puzzle, video).status == "unreadable"


def test_a_scorer_that_knows_only_colours_finds_its_way():
    """Start, goal, walls and one connected path in a 480 x 480 video, found by hue alone, without our reader."""
    task = get_task("maze")
    for index in range(20):
        puzzle = task.sample(4, index, size=4 + index % 4)
        last = task.render(puzzle, 5, (480, 480))[-1].astype(int)
        red, green, blue = np.moveaxis(last, -1, 0)
        masks = {
            "green": (green > 120) & (red < 80) & (blue < 80),
            "red": (red > 150) & (green < 80) & (blue < 80),
            "orange": (red > 200) & (green > 110) & (green < 200) & (blue < 80),
            "black": (red < 50) & (green < 50) & (blue < 50),
        }
        labels = {name: ndimage.label(mask)[1] for name, mask in masks.items()}
        assert labels["green"] == labels["red"] == labels["orange"] == 1
        start, orange, goal = (ndimage.binary_dilation(masks[c]) for c in ("green", "orange", "red"))
        assert (start & orange).any()
        assert (goal & orange).any()
        cell = 480 / puzzle.size
        for colour, place in (("green", puzzle.start), ("red", puzzle.goal)):
            centre = ndimage.center_of_mass(masks[colour])
            assert tuple(int(x // cell) for x in centre) == place
        given = task.render(puzzle, 5, (480, 480))[0]
        assert np.array_equal(masks["black"], (given < 50).all(-1))  # no wall is painted over, none is new
        assert not (masks["orange"] & ~(given > 200).all(-1)).any()  # the path lies on white floor
        assert masks["black"][0].all()
        assert masks["black"][:, -1].all()


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["maze", "maze-braided"])
def test_oracle_one_frozen_zero_random_zero(name):
    task = get_task(name)
    rng = np.random.default_rng(0)
    verdicts = Counter()
    for index in range(100):
        puzzle = task.sample(0, index, size=5, split="test")
        video = task.render(puzzle, FRAMES)
        verdicts["oracle", task.score(video, puzzle).status] += 1
        verdicts["frozen", task.score(video[:1].repeat(FRAMES, axis=0), puzzle).status] += 1
        verdicts["random", task.score(rng.integers(0, 256, video.shape, np.uint8), puzzle).status] += 1
        palette_noise = PALETTE[rng.integers(0, 5, video.shape[:3])]
        verdicts["palette", task.score(palette_noise, puzzle).solved] += 1
    assert verdicts == {
        ("oracle", "solved"): 100,
        ("frozen", "wrong"): 100,
        ("random", "unreadable"): 100,
        ("palette", False): 100,
    }


def test_every_accepted_route_is_solved():
    task = get_task("maze-braided")
    for index in range(50):
        puzzle = task.sample(0, index, size=5)
        for route in puzzle.routes:
            trails = [route[: 1 + round(f * (len(route) - 1) / 6)] for f in range(7)]
            assert score(puzzle, video_of(puzzle, trails)).solved


def walled_neighbour(puzzle):
    """A move of the route's cells through a wall, if there is one: (position on the route, cell behind the wall)."""
    edges = passages(puzzle)
    for i, (r, c) in enumerate(puzzle.route[:-1]):
        for cell in ((r, c + 1), (r + 1, c), (r, c - 1), (r - 1, c)):
            inside = 0 <= cell[0] < puzzle.size and 0 <= cell[1] < puzzle.size
            if inside and cell not in puzzle.route and tuple(sorted(((r, c), cell))) not in edges:
                return i, cell
    return None


def test_a_shortcut_through_a_wall_is_invalid():
    found = 0
    for index in range(60):
        puzzle = puzzle_of(index=index)
        if (behind := walled_neighbour(puzzle)) is None:
            continue
        found += 1
        place, cell = behind
        trail = (*puzzle.route[: place + 1], cell)
        verdict = score(puzzle, video_of(puzzle, [trail[: 1 + f] for f in range(len(trail))] + [trail]))
        assert verdict.status == "invalid"
        assert "wall" in verdict.reason
    assert found > 20


def test_a_jump_is_invalid():
    for index in range(30):
        puzzle = puzzle_of(index=index)
        video = get_task("maze").render(puzzle, FRAMES)
        cell = puzzle.route[len(puzzle.route) // 2]
        video[1:][(slice(None), *cell_units(*cell))] = PALETTE[FLOOR]
        assert score(puzzle, video).status == "invalid"
        assert not score(puzzle, video).answer


def test_the_whole_route_in_frame_one_is_invalid_but_the_answer_is_right():
    for index in range(30):
        puzzle = puzzle_of(index=index, size=6)
        verdict = score(puzzle, video_of(puzzle, [puzzle.route[:1]] + [puzzle.route] * 6))
        assert verdict.status == "invalid"
        assert "leaps" in verdict.reason
        assert verdict.answer


def test_a_longer_legal_route_is_wrong():
    task, found = get_task("maze-braided"), 0
    for index in range(400):
        puzzle = task.sample(0, index, size=4)
        edges = passages(puzzle)
        longer = longer_route(puzzle, edges)
        if longer is None:
            continue
        found += 1
        trails = [longer[: 1 + round(f * (len(longer) - 1) / 6)] for f in range(7)]
        verdict = score(puzzle, video_of(puzzle, trails))
        assert (verdict.status, verdict.answer) == ("wrong", False)
        assert "longer" in verdict.reason
    assert found > 50


def longer_route(puzzle, edges):
    """Some simple path from start to goal that is longer than the shortest ones, if there is one."""
    stack = [(puzzle.start,)]
    while stack:
        path = stack.pop()
        if path[-1] == puzzle.goal:
            if len(path) > len(puzzle.route):
                return path
            continue
        r, c = path[-1]
        for cell in ((r, c + 1), (r + 1, c), (r, c - 1), (r - 1, c)):
            if cell not in path and tuple(sorted((path[-1], cell))) in edges:
                stack.append((*path, cell))
    return None


def test_a_shrinking_trail_is_invalid():
    for index in range(20):
        puzzle = puzzle_of(index=index)
        lengths = [1, 2, 3, 2, *range(3, len(puzzle.route) + 1)]
        verdict = score(puzzle, video_of(puzzle, [puzzle.route[:n] for n in lengths]))
        assert verdict.status == "invalid"
        assert "shrinks" in verdict.reason
        assert verdict.answer


def test_a_switch_from_one_right_route_to_another_is_invalid():
    task = get_task("maze-braided")
    for index in range(20):
        puzzle = task.sample(0, index, size=5)
        first, last = puzzle.routes[0], puzzle.routes[-1]
        trails = [first[:n] for n in range(1, len(first))] + [last]
        verdict = score(puzzle, video_of(puzzle, trails))
        assert verdict.status == "invalid"
        assert "no prefix" in verdict.reason
        assert verdict.answer


@pytest.mark.parametrize(
    ("place", "colour", "status"),
    [("start", FLOOR, "invalid"), ("goal", PATH, "invalid"), ("goal", WALL, "invalid"), ("wall", FLOOR, "invalid")],
)
def test_a_scene_that_changes_is_invalid(place, colour, status):
    for index in range(10):
        puzzle = puzzle_of(index=index)
        video = get_task("maze").render(puzzle, FRAMES)
        if place == "wall":
            (r, c), *_ = np.argwhere(~puzzle.right).tolist()
            paint(video[3], (r, c), (r, c + 1), PALETTE[colour])
        else:
            video[3][cell_units(*getattr(puzzle, place))] = PALETTE[colour]
        assert score(puzzle, video).status == status


def test_a_moved_border_is_not_overlooked():
    puzzle = puzzle_of(index=0)
    video = get_task("maze").render(puzzle, FRAMES)
    video[2, 0, 1:3] = PALETTE[PATH]
    assert score(puzzle, video).status in ("invalid", "unreadable")


def test_half_orange_is_unreadable():
    puzzle = puzzle_of(index=1)
    video = get_task("maze").render(puzzle, FRAMES)
    cell = puzzle.route[1]
    video[-1][cell_units(*cell)] = (PALETTE[FLOOR].astype(int) + PALETTE[PATH]) // 2
    verdict = score(puzzle, video)
    assert (verdict.status, verdict.answer) == ("unreadable", False)
    assert f"frame {FRAMES - 1}" in verdict.reason


def test_colours_stay_apart():
    distance = np.linalg.norm(PALETTE[:, None].astype(float) - PALETTE, axis=-1)
    assert distance[~np.eye(5, dtype=bool)].min() >= 160
    assert [START, GOAL, PATH] == [2, 3, 4]
