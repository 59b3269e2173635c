"""Occlusions and bounces: what is right is judged right, and every known way of cheating is named."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicos.tasks import bounce, get_task, occlusion
from minicos.tasks.base import nearest_colour, split_of
from minicos.tasks.bounce import BALL, WALL
from minicos.tasks.cells import SIDE, draw_cells
from minicos.tasks.occlusion import FLOOR, OBJECTS, SCREEN

PALETTES = {"occlusion": occlusion.PALETTE, "bounce": bounce.PALETTE}
SIZES = [(name, size) for name in PALETTES for size in get_task(name).sizes]
FRAMES = 7  # nothing moves by more than a cell a frame


@functools.cache
def puzzle_of(name, index, size):
    return get_task(name).sample(0, index, size=size)


def puzzles_of(name, count, sizes):
    return [puzzle_of(name, index, size) for size in sizes for index in range(count)]


def score(puzzle, video):
    return get_task(puzzle.task).score(video, puzzle)


def rendered(puzzle):
    return get_task(puzzle.task).render(puzzle, FRAMES)


def check_cheat(puzzles, cheat, status, words, answer):
    """All puzzles that allow the cheat (for the others it gives None) get this verdict."""
    videos = [(puzzle, cheat(puzzle)) for puzzle in puzzles]
    verdicts = [score(puzzle, video) for puzzle, video in videos if video is not None]
    assert [v for v in verdicts if (v.status, v.answer) != (status, answer) or words not in v.reason] == []
    assert len(verdicts) >= 15


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), SIZES)
def test_oracle_one_frozen_zero_random_zero(name, size):
    task, rng, palette, verdicts = get_task(name), np.random.default_rng(0), PALETTES[name], Counter()
    for puzzle in puzzles_of(name, 100, [size]):
        video = rendered(puzzle)
        coloured = draw_cells(rng.integers(0, len(palette), (len(video), SIDE, SIDE)), palette, None)
        verdicts["oracle", task.score(video, puzzle).status] += 1
        verdicts["frozen", task.score(video[:1].repeat(len(video), axis=0), puzzle).status] += 1
        verdicts["random", task.score(rng.integers(0, 256, video.shape, np.uint8), puzzle).status] += 1
        verdicts["random", task.score(coloured, puzzle).status] += 1
        verdicts["decoded", (task.decode(video, puzzle),) == task.answers(puzzle)] += 1
    right = {
        ("oracle", "solved"),
        ("frozen", "wrong"),
        ("random", "unreadable"),
        ("random", "invalid"),
        ("decoded", True),
    }
    assert verdicts == dict.fromkeys(right, 100)


@settings(max_examples=100)
@given(st.sampled_from(SIZES), st.integers(0, 99), st.integers(2, 40), st.floats(0, 40), st.integers(0, 2**31))
def test_the_oracle_solves_also_under_mild_noise(kind, index, frames, strength, seed):
    puzzle = puzzle_of(kind[0], index, kind[1])
    video = get_task(puzzle.task).render(puzzle, frames)
    noisy = video + np.random.default_rng(seed).normal(0, strength, video.shape)
    assert score(puzzle, noisy.clip(0, 255).round().astype(np.uint8)).solved


@pytest.mark.parametrize(("name", "size"), [("occlusion", 1), ("occlusion", 4), ("bounce", 1), ("bounce", 3)])
def test_every_split_holds_only_its_own_motions(name, size):
    task, seen = get_task(name), {}
    for split in ("train", "val", "test"):
        puzzles = [task.sample(1, index, size=size, split=split) for index in range(40)]
        seen[split] = {task.structure(p) for puzzle in puzzles for p in (puzzle, task.partner(puzzle))}
        assert {split_of(structure) for structure in seen[split]} == {split}
    assert sum(map(len, seen.values())) == len(set.union(*seen.values()))
    assert min(map(len, seen.values())) >= 4


@pytest.mark.parametrize("name", PALETTES)
def test_half_and_half_is_of_no_colour(name):
    for one, other in itertools.combinations(PALETTES[name].astype(float), 2):
        assert np.linalg.norm(one - other) >= 165
        assert nearest_colour((one + other) / 2, PALETTES[name]) == -1
    puzzles = puzzles_of(name, 15, [2])
    check_cheat(puzzles, lambda p: rendered(p) // 2 + rendered(p)[:1] // 2, "unreadable", "no palette colour", False)


# --- occlusions -----------------------------------------------------------------------------------------------------


def tracks_of(puzzle, moves):
    """Of every coloured cell that moves so far: its column in each of 7 frames, before the turn of the board."""
    return [[start + int(frame * moves / 6 + 0.5) for frame in range(7)] for _, start, _ in puzzle.items]


def acted(puzzle, tracks, *changes):
    """The video in which the coloured cells take these columns (None: nowhere), behind the screen; and changes."""
    cells = np.full((7, SIDE, SIDE), FLOOR)
    for (lane, _, colour), track in zip(puzzle.items, tracks, strict=True):
        for picture, column in zip(cells, track, strict=True):
            if column is not None:
                picture[lane, column] = colour
    cells[:, :, puzzle.screen : puzzle.screen + puzzle.size] = SCREEN
    for frame, lane, column, colour in changes:
        cells[frame, lane, column] = colour
    return draw_cells(np.rot90(cells, puzzle.quarter_turns, (1, 2)), occlusion.PALETTE, None)


def first(change):
    """A cheat by the first coloured cell: from its track and the column after the screen to another track, or None."""

    def cheat(puzzle):
        track, *others = tracks_of(puzzle, puzzle.moves)
        changed = change(track, puzzle.screen + puzzle.size)
        return None if changed is None else acted(puzzle, [changed, *others])

    return cheat


def third_frame(change):
    """A cheat by changes in frame 3: puzzle, lane, start and colour of the first coloured cell to column and colour."""
    return lambda p: acted(p, tracks_of(p, p.moves), *[(3, *where) for where in change(p, *p.items[0])])


def comes_out_as(change):
    """A cheat by other items: those that come out, once the first one of those that went in is hidden."""

    def cheat(puzzle):
        hidden = [puzzle.hides(column) for column in tracks_of(puzzle, puzzle.moves)[0]].index(True)
        other = rendered(replace(puzzle, items=change(puzzle.items)))
        return np.concatenate([rendered(puzzle)[:hidden], other[hidden:]])

    return cheat


def in_another_colour(items):
    (lane, start, _), *others = items
    return ((lane, start, min({*OBJECTS} - {colour for _, _, colour in items})), *others)


def in_another_lane(items):
    (_, start, colour), *others = items
    return ((min({*range(SIDE)} - {lane for lane, _, _ in items}), start, colour), *others)


def screen_moved(puzzle, *_):
    return [(slice(None), puzzle.screen, FLOOR), (slice(None), puzzle.screen + puzzle.size, SCREEN)]


def doubled(puzzle, lane, start, colour):
    return [(lane, start, colour), (lane, start + puzzle.moves, colour)]


CHEATS = {  # status, what the reason says, whether the last frame shows the answer
    "out in another colour": (comes_out_as(in_another_colour), "invalid", " turned ", False),
    "out in another lane": (comes_out_as(in_another_lane), "invalid", " turned ", False),
    "colours exchanged": (comes_out_as(occlusion.exchanged), "invalid", " turned ", False),
    "on the screen": (third_frame(lambda p, lane, _, c: [(lane, p.screen, c)]), "invalid", "frame 3: cell", True),
    "screen moved": (third_frame(screen_moved), "invalid", "frame 3: cell", True),
    "doubled": (third_frame(doubled), "invalid", " cells instead of one", True),
    "not out": (first(lambda t, after: [c if c < after else None for c in t]), "wrong", "does not come out", False),
    "out and gone": (first(lambda t, after: [*t[:6], None] if t[5] >= after else None), "invalid", " in frame ", False),
    "too late": (first(lambda t, _: [t[0], t[0], *t[:4], t[6]]), "invalid", " is not at one speed in frame 2", True),
    "too early": (first(lambda t, _: [t[0], *t[3:], t[6], t[6]]), "invalid", " in frame ", True),
    "leaps, then rests": (first(lambda t, _: [t[0], *t[6:] * 6]), "invalid", " is not at one speed in frame 1", True),
    "back": (first(lambda t, _: [max(0, 2 * t[0] - c) for c in t] if t[0] else None), "invalid", " moves back ", False),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_wrong_way_behind_the_screen_is_named(name):
    check_cheat(puzzles_of("occlusion", 30, (1, 2, 3, 4)), *CHEATS[name])


def test_without_a_screen_nothing_may_be_hidden_and_the_distance_counts():
    puzzles = puzzles_of("occlusion", 30, [0])
    check_cheat(puzzles, first(lambda t, _: [*t[:3], None, *t[4:]]), "invalid", " is gone in frame 3", True)
    check_cheat(puzzles, first(lambda t, _: [*t[:6], None]), "invalid", " is gone in the last frame", False)
    check_cheat(puzzles, lambda p: acted(p, tracks_of(p, p.moves - 1)), "wrong", " cells instead of ", False)


def test_the_size_of_an_occlusion_is_the_width_of_its_screen_and_unscreened_hides_nothing():
    task = get_task("occlusion")
    for puzzle in puzzles_of("occlusion", 40, range(5)):
        bare, video = task.unscreened(puzzle), rendered(puzzle)
        assert np.array_equal(video, acted(puzzle, tracks_of(puzzle, puzzle.moves)))
        cells, open_cells = (nearest_colour(v[:, 2::4, 2::4], occlusion.PALETTE) for v in (video, rendered(bare)))
        screen = cells == SCREEN
        assert (screen == screen[0]).all()
        assert sorted((screen[0].all(0).sum(), screen[0].all(1).sum())) == [0, puzzle.size]
        assert screen.sum() == 7 * SIDE * puzzle.size
        for _, _, colour in puzzle.items:
            seen = (cells == colour).any((1, 2))
            assert seen[[0, -1]].all()
            assert (~seen).sum() >= puzzle.size  # no column takes it less than a frame
            assert (open_cells == colour).any((1, 2)).all()
        assert (cells == open_cells)[~screen].all()
        assert (bare.size, bare.prompt, task.answers(bare)) == (0, puzzle.prompt, task.answers(puzzle))
        assert score(bare, rendered(bare)).solved


@pytest.mark.parametrize(("frames", "per_latent"), [(7, 1), (7, 4), (21, 4)])
def test_a_latent_frame_is_empty_where_all_its_frames_are(frames, per_latent):
    """Wan's stand for four each; the first for itself."""
    task, found = get_task("occlusion"), 0
    for index in range(20):
        puzzle = task.sample(0, index, size=4)
        video = task.render(puzzle, (frames - 1) * per_latent + 1).astype(int)
        coloured = (video.max(-1) - video.min(-1) > 50).any((1, 2))
        of_latents = [coloured[:1], *coloured[1:].reshape(-1, per_latent)]
        empty = puzzle.empty_frames(frames, per_latent)
        assert empty == tuple(frame for frame, seen in enumerate(of_latents) if not seen.any())
        found += len(empty)
    assert found > 0


def test_the_structure_of_an_occlusion_is_its_motion_in_every_symmetric_image():
    structure = get_task("occlusion").structure
    for puzzle in puzzles_of("occlusion", 20, (0, 3)):
        mirrored = replace(puzzle, items=tuple((SIDE - 1 - lane, start, c) for lane, start, c in puzzle.items))
        images = [replace(p, quarter_turns=turns) for p in (puzzle, mirrored) for turns in range(4)]
        video = rendered(images[0])
        turned = {np.rot90(v, turns, (1, 2)).tobytes() for v in (video, video[:, ::-1]) for turns in range(4)}
        assert {rendered(image).tobytes() for image in images} == turned
        images += [get_task("occlusion").partner(puzzle), get_task("occlusion").unscreened(puzzle)]
        assert {structure(image) for image in images} == {structure(puzzle)}
        for change in ({"moves": puzzle.moves - 1}, {"items": puzzle.items[1:]}):
            assert structure(replace(puzzle, **change)) != structure(puzzle)


# --- bounces --------------------------------------------------------------------------------------------------------


def rolled(puzzle, way, *changes):
    """The video in which the ball takes these cells and rests on the last; and changes: frame, cell, colour."""
    cells = puzzle.scene[None].repeat(FRAMES, axis=0)
    for picture, cell in zip(cells, [*way, *way[-1:] * FRAMES], strict=False):
        picture[cell] = BALL
    for frame, cell, colour in changes:
        cells[frame][cell] = colour
    return draw_cells(cells, bounce.PALETTE, None)


def straight_on(puzzle):
    """Through a bar, to the edge of the board."""
    start, way = np.array(puzzle.route[0]), np.subtract(puzzle.route[1], puzzle.route[0])
    line = [tuple(cell.tolist()) for n in range(SIDE) if ((cell := start + n * way) % SIDE == cell).all()]
    return rolled(puzzle, line) if puzzle.walls & {*line} and line[-1] != puzzle.route[-1] else None


def leap(puzzle):
    """To the target at once, where that is more than two moves away, and rest."""
    far = np.abs(np.subtract(puzzle.route[0], puzzle.route[-1])).max() > 2
    return rolled(puzzle, [puzzle.route[0]] * 6 + [puzzle.route[-1]]) if far else None


def aside(puzzle):
    """Over another cell than one on the way, where the way leads straight on."""
    for place, ((r0, c0), (r1, c1)) in enumerate(zip(puzzle.route, puzzle.route[2:], strict=False), start=1):
        if r0 != r1 and c0 != c1 and puzzle.scene[r0, c1] != WALL and (r0, c1) not in puzzle.route:
            return rolled(puzzle, [*puzzle.route[:place], (r0, c1), *puzzle.route[place + 1 :]])
    return None


def too_late(puzzle):
    """By two frames, where there are two to spare."""
    return rolled(puzzle, [*puzzle.route[:1] * 2, *puzzle.route]) if len(puzzle.route) + 2 <= FRAMES else None


def too_early(puzzle):
    """Two moves a frame, where that soon makes more than one too many."""
    return rolled(puzzle, [*puzzle.route[::2], puzzle.route[-1]]) if len(puzzle.route) > 4 else None


def changed(change):
    """A cheat by one change: from the puzzle to frame, cell and colour."""
    return lambda p: rolled(p, p.route, change(p))


ROLLS = {
    "through a wall": (straight_on, "invalid", "the ball is in the wall", False),
    "leaps": (leap, "invalid", "frame 6: the ball leaps", True),
    "to another target": (lambda p: rolled(p, p.other), "wrong", ", its target is ", False),
    "stops before": (lambda p: rolled(p, p.route[:-1]), "wrong", " (black), its target is ", False),
    "by another way": (aside, "invalid", "off its way", True),
    "moves back": (lambda p: rolled(p, [*p.route[:2], p.route[3], *p.route[2:]]), "invalid", "moves back", True),
    "too late": (too_late, "invalid", "off its way", True),
    "too early": (too_early, "invalid", "off its way", True),
    "doubled": (changed(lambda p: (5, p.route[0], BALL)), "invalid", "frame 5: 2 balls", True),
    "gone": (changed(lambda p: (1, p.route[1], bounce.FLOOR)), "invalid", "frame 1: 0 balls", True),
    "target recoloured": (changed(lambda p: (6, p.other[-1], p.scene[p.route[-1]])), "invalid", " turned ", True),
    "wall away": (changed(lambda p: (6, min(p.walls), bounce.FLOOR)), "invalid", " turned black", True),
}


@pytest.mark.parametrize("name", ROLLS)
def test_a_wrong_way_to_a_target_is_named(name):
    puzzles = [puzzle for puzzle in puzzles_of("bounce", 150, range(1, 4)) if len(puzzle.route) < FRAMES]
    check_cheat(puzzles, *ROLLS[name])


def test_the_ball_keeps_off_white_and_turns_where_it_is_ahead_as_often_as_its_size_says():
    for puzzle in puzzles_of("bounce", 60, range(4)):
        partner = get_task("bounce").partner(puzzle)
        assert np.array_equal(rendered(puzzle)[0], rendered(partner)[0])
        assert partner.prompt != puzzle.prompt
        white = np.pad(puzzle.scene == WALL, 1, constant_values=True)
        for p in (puzzle, partner):
            rows, columns = np.transpose(p.route) + 1
            down, right = np.diff(rows), np.diff(columns)
            assert {*down, *right} <= {-1, 1}
            assert not white[rows, columns].any()
            assert not (white[rows[1:], columns[:-1]] & white[rows[:-1], columns[1:]]).any()  # nor between two corners
            r, c, down_to, right_to = rows[1:-1], columns[1:-1], rows[1:-1] + down[:-1], columns[1:-1] + right[:-1]
            ahead = white[down_to, c] | white[r, right_to] | white[down_to, right_to]
            assert np.array_equal(ahead, (down[1:] != down[:-1]) | (right[1:] != right[:-1]))
            assert ahead.sum() == p.size
            assert {*p.route} & {*p.targets} == {p.route[-1]}
            assert f" {'down' if down[0] > 0 else 'up'} and {'right' if right[0] > 0 else 'left'} " in p.prompt


def test_the_structure_of_a_bounce_is_the_same_in_every_symmetric_image():
    structure = get_task("bounce").structure
    for puzzle in puzzles_of("bounce", 20, range(4)):
        board = np.arange(SIDE * SIDE).reshape(SIDE, SIDE)
        for image in [np.rot90(b, turns) for b in (board, board.T) for turns in range(4)]:
            places = {cell: tuple(np.argwhere(image == board[cell])[0].tolist()) for cell in bounce.EVERY_CELL}
            route, walls = (tuple(places[cell] for cell in cells) for cells in (puzzle.route, puzzle.walls))
            direction = route[1][0] - route[0][0], route[1][1] - route[0][1]
            assert bounce.roll(frozenset(walls), route[0], direction)[: len(route)] == route
            assert structure(replace(puzzle, walls=frozenset(walls), route=route)) == structure(puzzle)
        for change in ({"route": puzzle.route[:-1]}, {"walls": puzzle.walls - {min(puzzle.walls)}}):
            assert structure(replace(puzzle, **change)) != structure(puzzle)
