"""Measures give what is known beforehand: on oracles, on blends made by hand, on unrelated numbers."""

from __future__ import annotations

import dataclasses

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import gaussian_filter

from minicos.errors import MinicosError
from minicos.measures import (
    CANDIDATE,
    MOST_WAYS,
    angle_posterior,
    candidates,
    cell_probabilities,
    cka,
    commitment,
    commitment_interval,
    ends,
    entropy_bits,
    jackknife_interval,
    leans,
    mean_interval,
    order_known,
    paired_interval,
    path_entropy,
    probe,
    token_energy,
    whole_candidates,
    wilson_interval,
)
from minicos.tasks import get_task

MAZE, BRAIDED = get_task("maze"), get_task("maze-braided")


def blend(*frames, weights=None):
    weights = weights or [1 / len(frames)] * len(frames)
    mixed = sum(w * frame.astype(float) for w, frame in zip(weights, frames, strict=True))
    return mixed.round().astype(np.uint8)


# --- mazes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canvas", [None, (120, 200)])
def test_the_right_answer_is_certain_and_one_candidate(canvas):
    for index in range(30):
        puzzle = MAZE.sample(0, index, size=5)
        frame = MAZE.render(puzzle, 5, canvas)[-1]
        p = cell_probabilities(frame, puzzle)
        on_route = {cell for cell in np.ndindex(5, 5) if p[cell] > 0.9}
        assert on_route == set(puzzle.route[1:-1])
        assert np.isnan(p[puzzle.start])
        assert path_entropy(p, puzzle) == pytest.approx(0, abs=1e-3 if canvas is None else 0.2)
        assert candidates(p, puzzle) == 1


def test_the_given_image_has_no_candidate_unless_the_goal_is_next():
    for index in range(30):
        puzzle = MAZE.sample(0, index, size=5)
        p = cell_probabilities(MAZE.render(puzzle, 5)[0], puzzle)
        assert path_entropy(p, puzzle) == pytest.approx(0, abs=1e-3)
        assert candidates(p, puzzle) == 0


def test_a_blend_of_two_routes_costs_a_bit_for_every_cell_in_doubt():
    for index in range(40):
        puzzle = BRAIDED.sample(0, index, size=5)
        first, second = puzzle.routes[:2]
        frames = [BRAIDED.render(_showing(puzzle, shown), 5)[-1] for shown in (0, 1)]
        p = cell_probabilities(blend(*frames), puzzle)
        doubtful = set(first) ^ set(second)
        assert path_entropy(p, puzzle) == pytest.approx(len(doubtful) / (len(first) - 1), rel=0.02)
        assert all(p[cell] == pytest.approx(0.5, abs=0.01) for cell in doubtful)


@pytest.mark.parametrize(("name", "size"), [("maze", 5), ("maze-braided", 6), ("rotation", 90), ("rotation-open", 90)])
def test_a_pale_answer_leans_to_itself_and_other_answers_do_not(name, size):
    """What cannot be read any more, pale or blurred, still says which answer it is most like."""
    task = get_task(name)
    for index in range(10):
        puzzle = task.sample(0, index, size=size)
        for shown in range(len(task.answers(puzzle))):
            right = task.render(dataclasses.replace(puzzle, shown=shown), 2)
            pale = (0.3 * right[-1] + 0.7 * 255).astype(np.uint8)
            blurred = gaussian_filter(right[-1].astype(float), (1, 1, 0)).astype(np.uint8)
            assert leans(right[-1], puzzle)
            assert leans(pale, puzzle)
            assert leans(blurred, puzzle)
            assert not task.score(np.stack([right[0], pale]), puzzle).answer
            assert not leans(right[0], puzzle)
        if name.startswith("maze") and len(puzzle.route) > 2:
            broken, (row, column) = task.render(puzzle, 2)[-1].copy(), puzzle.route[1]
            broken[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3] = 255
            assert not leans(broken, puzzle)
        if name == "rotation":
            assert not leans(task.render(task.partner(puzzle), 2)[-1], puzzle)


def test_routes_that_part_and_meet_again_are_several_candidates():
    """One more than there are loops, wherever the routes meet again; by their ends alone they would be one or none."""
    for index in range(60):
        puzzle = BRAIDED.sample(0, index, size=6)
        first, second = puzzle.routes[:2]
        frames = [BRAIDED.render(_showing(puzzle, shown), 5)[-1] for shown in (0, 1)]
        assert candidates(cell_probabilities(frames[0], puzzle), puzzle) == 1
        p = cell_probabilities(blend(*frames), puzzle)
        passages = {
            frozenset((c, o)) for c in {*first, *second} for o in puzzle.neighbours(c) if o in {*first, *second}
        }
        assert candidates(p, puzzle) == 2 + len(passages) - len({*first, *second}) >= 2
        assert ends(p, puzzle) <= 1


def test_whole_candidates_are_the_ways_through_to_the_goal():
    rng = np.random.default_rng(0)
    for index in range(60):
        task = (MAZE, BRAIDED)[index % 2]
        puzzle = task.sample(0, index, size=5)
        right = cell_probabilities(task.render(puzzle, 2)[-1], puzzle)
        assert whole_candidates(right, puzzle) == 1
        mean = np.mean([task.render(_showing(puzzle, i), 2)[-1] for i in range(len(puzzle.routes))], 0)
        if len(puzzle.routes) < 4:  # a cell of one route in four, rounded, is no longer possible
            assert whole_candidates(cell_probabilities(mean, puzzle), puzzle) >= len(puzzle.routes)
        some = rng.random((5, 5))
        cells = {c for c in np.ndindex(5, 5) if some[c] >= CANDIDATE or c in (puzzle.start, puzzle.goal)}
        graph = networkx.Graph((c, o) for c in cells for o in puzzle.neighbours(c) if o in cells)
        graph.add_nodes_from(cells)
        ways = [*networkx.all_simple_paths(graph, puzzle.start, puzzle.goal)]
        assert whole_candidates(some, puzzle) == len(ways)


def test_a_goal_that_is_cut_off_has_no_way_and_is_told_at_once():
    puzzle = BRAIDED.sample(0, 0, size=16)
    size = (16, 15)
    cut = dataclasses.replace(puzzle, right=np.ones(size, bool), down=np.ones(size[::-1], bool))
    p = np.ones((16, 16))
    assert cut.start not in cut.neighbours(cut.goal)
    for cell in cut.neighbours(cut.goal):
        p[cell] = 0
    assert whole_candidates(p, cut) == 0


def test_whole_candidates_are_counted_up_to_a_number():
    puzzle = BRAIDED.sample(0, 0, size=8)
    open_everywhere = dataclasses.replace(puzzle, right=np.ones((8, 7), bool), down=np.ones((7, 8), bool))
    assert whole_candidates(np.ones((8, 8)), open_everywhere) == MOST_WAYS


def _showing(puzzle, shown):
    from dataclasses import replace

    return replace(puzzle, shown=shown)


def test_candidates_are_the_ends_of_what_goes_on_from_the_start():
    for index in range(60):
        puzzle = MAZE.sample(0, index, size=5)
        everything = np.full((5, 5), 0.3)
        ends = [c for c in np.ndindex(5, 5) if len(puzzle.neighbours(c)) == 1 and c != puzzle.start]
        assert candidates(everything, puzzle) == len(ends)
        cut = everything.copy()
        cut[puzzle.route[1]] = 0.2  # the way to the goal is cut right behind the start
        others = [n for n in puzzle.neighbours(puzzle.start) if n != puzzle.route[1]]
        assert (candidates(cut, puzzle) == 0) == (not others and len(puzzle.route) > 2)


# --- rotations ------------------------------------------------------------------------------------------------------


def test_one_orientation_has_one_weight_and_a_blend_two():
    task = get_task("rotation-open")
    for index in range(10):
        puzzle = task.sample(0, index)
        ends = [task.render(_showing(puzzle, shown), 7)[-1] for shown in (0, 1)]
        angles, weights = angle_posterior(ends[0], puzzle)
        assert angles[weights.argmax()] == puzzle.turns[0] % 360
        assert weights.max() > 0.97
        angles, weights = angle_posterior(blend(*ends, weights=[0.7, 0.3]), puzzle)
        by_angle = dict(zip(angles.tolist(), weights.tolist(), strict=True))
        assert by_angle[puzzle.turns[0] % 360] == pytest.approx(0.7, abs=0.05)
        assert by_angle[puzzle.turns[1] % 360] == pytest.approx(0.3, abs=0.05)
        assert weights.sum() == pytest.approx(1)


def test_entropy_in_bits():
    assert entropy_bits(np.array([1.0, 0, 0])) == 0
    assert entropy_bits(np.full(8, 1 / 8)) == pytest.approx(3)


# --- runs against runs ----------------------------------------------------------------------------------------------


def test_commitment_is_0_at_chance_and_1_when_nothing_changes():
    assert commitment(0.4, 0.4) == 0
    assert commitment(1.0, 0.4) == 1
    assert commitment(0.2, 0.4) < 0
    assert np.isnan(commitment(1.0, 1.0))


def test_the_interval_of_a_commitment_holds_it():
    rng = np.random.default_rng(0)
    stay, chance = rng.binomial(4, 0.8, 100) / 4, rng.binomial(4, 0.3, 100) / 4
    value, low, high = commitment_interval(stay, chance)
    assert value == pytest.approx((stay.mean() - chance.mean()) / (1 - chance.mean()))
    assert low < value < high < 1
    assert high - low < 0.2
    assert all(np.isnan(commitment_interval(np.ones(5), np.ones(5))))


@pytest.mark.parametrize("stays", [0, 1])
def test_runs_that_all_do_the_same_leave_room_for_one_that_does_not(stays):
    """A bootstrap of equal rows would claim certainty: here it is the rule of three, 1 - 0.05^(1 / n)."""
    chance = np.random.default_rng(0).binomial(4, 0.3, 59) / 4
    value, low, high = commitment_interval(np.ones(59) if stays else chance, chance)
    assert value == stays
    assert high - low == pytest.approx(0.0495 if stays else 2 * 0.0495, abs=1e-3)
    few = commitment_interval(np.ones(3), np.zeros(3))
    assert few[1] < 0.5


def test_cka_is_one_for_the_same_features_turned_and_scaled_and_differs_else():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 20))
    turn, _ = np.linalg.qr(rng.normal(size=(20, 20)))
    for debiased in (True, False):
        assert cka(x, 3 * x @ turn + 5, debiased) == pytest.approx(1)
    partly = np.hstack([x[:, :10], rng.normal(size=(64, 10))])
    assert 0.2 < cka(x, partly) < 0.8


def test_debiased_cka_of_unrelated_features_is_about_zero_and_the_plain_one_is_not():
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(48, 300)), rng.normal(size=(48, 300))) for _ in range(30)]
    assert abs(np.mean([cka(x, y) for x, y in pairs])) < 0.02
    assert np.mean([cka(x, y, debiased=False) for x, y in pairs]) > 0.7


def test_debiased_hsic_is_the_mean_over_distinct_rows():
    """Against the definition: kernel products over quadruples of different rows (n = 7: 840 of them)."""
    from itertools import permutations

    from minicos.measures import _gram, _hsic_debiased

    rng = np.random.default_rng(2)
    k, l = (_gram(rng.normal(size=(7, 3)), True) for _ in range(2))  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(7), 4)]
    assert _hsic_debiased(k, l) == pytest.approx(np.mean(terms))


def test_a_jackknife_of_a_mean_is_its_t_interval():
    values = np.random.default_rng(0).normal(size=12)
    low, high = jackknife_interval(lambda rows: values[rows].mean(), 12)  # a row a group
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 11, values.mean(), stats.sem(values)))


def test_the_interval_of_a_cka_holds_what_many_rows_say():
    rng = np.random.default_rng(0)

    def features(rows):
        shared = rng.normal(size=(rows, 4))
        return tuple(np.hstack([shared, rng.normal(size=(rows, 4))]) for _ in range(2))

    one, other = features(2000)
    truth, held = cka(one, other), 0
    for _ in range(60):
        one, other = features(64)
        low, high = jackknife_interval(lambda rows, one=one, other=other: cka(one[rows], other[rows]), 64)
        held += low <= truth <= high
    assert 50 <= held <= 60  # 57 are expected of 95 %


def test_cka_of_too_few_or_unequal_rows_is_refused():
    for one, other in [((3, 2), (3, 2)), ((8, 2), (9, 2))]:
        with pytest.raises(MinicosError, match="at least 4"):
            cka(np.zeros(one), np.zeros(other))


# --- hidden states --------------------------------------------------------------------------------------------------


def test_token_energy_does_not_depend_on_a_blocks_scale():
    hidden = np.random.default_rng(0).normal(size=(3, 10, 8))
    energy = token_energy(hidden)
    assert energy.shape == (3, 10)
    assert np.allclose(energy.mean(-1), 1)
    assert np.allclose(token_energy(7 * hidden), energy)
    assert np.allclose(token_energy(torch.from_numpy(hidden)).numpy(), energy)


def test_a_probe_does_not_profit_from_knowing_the_group():
    """Labels belong to groups and features tell the group only: a split by rows reads them off, ours cannot."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    labels = rng.integers(0, 2, 40)[groups]
    features = rng.normal(size=(40, 30))[groups] + 0.01 * rng.normal(size=(400, 30))
    assert (probe(features, labels, groups) == labels).mean() < 0.65
    assert (probe(features, labels, np.arange(400)) == labels).mean() > 0.9
    informative = np.hstack([features, labels[:, None] + 0.1 * rng.normal(size=(400, 1))])
    assert (probe(informative, labels, groups) == labels).mean() > 0.9
    with pytest.raises(MinicosError, match="groups"):
        probe(features, labels, np.zeros(400))


# --- intervals ------------------------------------------------------------------------------------------------------


def test_wilson_interval_against_known_values():
    low, high = wilson_interval(np.array([True] * 8 + [False] * 2))
    assert (low, high) == (pytest.approx(0.490, abs=0.001), pytest.approx(0.943, abs=0.001))


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_a_paired_interval_holds_the_difference_and_knows_pairs(n, seed):
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 2, n)
    low, high = paired_interval(one, one)
    assert -low == high == 1 - 0.05 ** (1 / n)
    other = rng.integers(0, 2, n)
    low, high = paired_interval(one, other)
    assert low <= one.mean() - other.mean() <= high
    assert mean_interval((one - other).astype(float)) == (low, high)


def test_rows_that_do_not_differ_are_no_certainty():
    """The rule of three: about 3 / n."""
    assert mean_interval(np.zeros(300)) == pytest.approx((-0.01, 0.01), abs=1e-4)
    assert mean_interval(np.ones(30)) == pytest.approx((0.905, 1.0), abs=1e-3)  # a share is at most 1
    assert mean_interval(np.ones(30, int)) == pytest.approx((0.905, 1.095), abs=1e-3)  # a count may be 2
    assert mean_interval(np.full(30, 2.5)) == pytest.approx((2.405, 2.595), abs=1e-3)


def test_order_known_is_somers_d():
    from scipy.stats import somersd

    rng = np.random.default_rng(0)
    for labels in (rng.integers(0, 2, 30), rng.integers(0, 5, 30)):
        scores = rng.integers(0, 6, 30).astype(float)
        assert order_known(scores, labels) == pytest.approx(somersd(labels, scores).statistic)
        assert order_known(labels.astype(float), labels) == 1
        assert order_known(-labels.astype(float), labels) == -1
    assert np.isnan(order_known(np.arange(3.0), np.ones(3)))
