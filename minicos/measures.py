"""What is measured of runs: pure functions on arrays and puzzles. They know nothing of models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from minicos.errors import MinicosError
from minicos.tasks.base import WHITE
from minicos.tasks.maze import PALETTE, PATH, Cell, MazePuzzle
from minicos.tasks.rotation import TOLERANCE, RotationPuzzle, cell_colours, orientations, read_disc, turn_cells, wrap

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.floating]
Values = TypeVar("Values", Floats, "Tensor")

GROUPS = 16  # of a jackknife
EQUAL = 1e-9  # values that differ by less do so by rounding only
MOST_WAYS = 100
CANDIDATE = 0.25  # the cell probability from which on a cell belongs to a candidate route


# --- intervals ------------------------------------------------------------------------------------------------------


def wilson_interval(successes: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % Wilson interval of a rate, from booleans."""
    from scipy.stats import binomtest

    interval = binomtest(int(successes.sum()), len(successes)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Floats) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean, resampling its rows (puzzles); seeded.

    Where no row differs from another, every resample is the same, and a bootstrap would claim certainty. Then the rule
    of three: what n rows have not shown, a difference of one, may still happen in 1 - 0.05^(1/n) of all; cut off at -1
    and 1 for values that lie between, but for whole numbers, which are counts. nan where a row has not been measured.
    """
    from scipy.stats import bootstrap

    counts = np.issubdtype(np.asarray(values).dtype, np.integer)
    values = np.asarray(values, float)
    if np.isnan(values).any():
        return float("nan"), float("nan")
    if np.ptp(values) < EQUAL:
        value, unseen = float(values[0]), 1 - 0.05 ** (1 / len(values))
        limit = 1.0 if abs(value) <= 1 and not counts else np.inf
        return max(value - unseen, -limit), min(value + unseen, limit)
    result = bootstrap((values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def jackknife_interval(statistic: Callable[[NDArray[np.int_]], float], rows: int) -> tuple[float, float]:
    """95 % interval of what is no mean over rows (puzzles), from the numbers of the rows that it is computed of.

    The delete-a-group jackknife, with at most GROUPS random groups and a t distribution; seeded. A bootstrap would not
    do: in CKA a row that is drawn twice is like itself.
    """
    from scipy.stats import t

    everyone = np.arange(rows)
    groups = np.array_split(np.random.default_rng(0).permutation(rows), min(GROUPS, rows))
    values = np.array([statistic(np.setdiff1d(everyone, group)) for group in groups])
    count = len(groups)
    half = t.ppf(0.975, count - 1) * np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
    value = statistic(everyone)
    return float(value - half), float(value + half)


def paired_interval(one: Floats, other: Floats) -> tuple[float, float]:
    """95 % percentile bootstrap interval of mean(one) - mean(other), where row i of both is the same puzzle."""
    return mean_interval(np.asarray(one, float) - np.asarray(other, float))


# --- what a picture leaves open -------------------------------------------------------------------------------------


def cell_probabilities(frame: NDArray[np.uint8], puzzle: MazePuzzle) -> Floats:
    """p_c of every cell, (size, size): where its mean interior colour lies between white (0) and the path's (1).

    frame: (height, width, 3) of any size. Start and goal keep their colours and are nan.
    """
    n = puzzle.size
    units = puzzle.board.read(frame[None])[0].reshape(n, 4, n, 4, 3)
    interior = units[:, 1:3, :, 1:3].mean((1, 3))
    towards = PALETTE[PATH].astype(float) - np.array(WHITE, float)
    probabilities = ((interior - np.array(WHITE)) @ towards / (towards @ towards)).clip(0, 1)
    probabilities[puzzle.start] = probabilities[puzzle.goal] = np.nan
    return probabilities


def leans(frame: NDArray[np.uint8], puzzle: MazePuzzle | RotationPuzzle) -> bool:
    """Whether a right answer is what a picture is most like, legible or not.

    Of a maze every cell of a right route has to be more like the path (p_c) than any other cell is, however pale; of a
    rotation the orientation with the largest weight has to be right.
    """
    if isinstance(puzzle, MazePuzzle):
        probabilities = cell_probabilities(frame, puzzle)
        cells = {cell for cell in product(range(puzzle.size), repeat=2) if not np.isnan(probabilities[cell])}
        of_routes = ({*route} & cells for route in puzzle.routes)
        return any(
            min(probabilities[cell] for cell in route) > max((probabilities[cell] for cell in cells - route), default=0)
            for route in of_routes
        )
    angles, weights = angle_posterior(frame, puzzle)
    angle = int(angles[int(weights.argmax())])
    return any(abs(wrap(angle - turn)) <= TOLERANCE for turn in puzzle.turns)


def path_entropy(probabilities: Floats, puzzle: MazePuzzle) -> float:
    """Sum of the binary entropies of all open cells, in bits per move of the route."""
    p = probabilities[~np.isnan(probabilities)].clip(1e-12, 1 - 1e-12)
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p)).sum()
    return float(bits / (len(puzzle.route) - 1))


def candidates(probabilities: Floats, puzzle: MazePuzzle) -> int:
    """Routes that a picture leaves possible: the ends of what goes on from the start, and what parts and meets again.

    Routes that part and meet again leave a loop and no end of their own, so loops are counted beside the ends. The
    goal is no end where ways meet in it, and is counted then, too. 0 where nothing goes on from the start.
    """
    component = possible_cells(probabilities, puzzle)
    loops = sum(map(len, component.values())) // 2 - len(component) + 1
    without_goal = _reached(
        {c: [o for o in others if o != puzzle.goal] for c, others in component.items()}, puzzle.start
    )
    meet = len(without_goal & set(component.get(puzzle.goal, ()))) > 1
    return ends(probabilities, puzzle) + loops + meet


def whole_candidates(probabilities: Floats, puzzle: MazePuzzle) -> int:
    """Candidates that are whole answers: ways from the start to the goal through possible cells, none of them twice.

    Unlike an end, a way is seldom there by chance: errors at random places make ends. MOST_WAYS at most; at most 1 in a
    maze without loops.
    """
    component = possible_cells(probabilities, puzzle)
    if puzzle.goal not in component:  # else every way into every corner would be tried
        return 0

    def ways(way: tuple[Cell, ...]) -> Iterator[tuple[Cell, ...]]:
        if way[-1] == puzzle.goal:
            yield way
            return
        for cell in component[way[-1]]:
            if cell not in way:
                yield from ways((*way, cell))

    return sum(1 for _ in islice(ways((puzzle.start,)), MOST_WAYS))


def ends(probabilities: Floats, puzzle: MazePuzzle) -> int:
    """Leaves of what goes on from the start, without the start."""
    component = possible_cells(probabilities, puzzle)
    return sum(len(others) == 1 and cell != puzzle.start for cell, others in component.items())


def possible_cells(probabilities: Floats, puzzle: MazePuzzle) -> dict[Cell, list[Cell]]:
    """The start's component of cells with p_c >= CANDIDATE, each with its neighbours in it.

    The goal belongs to it once a neighbour does.
    """
    inside = {cell for cell in product(range(puzzle.size), repeat=2) if probabilities[cell] >= CANDIDATE}
    inside |= {puzzle.start, puzzle.goal}
    neighbours = {cell: [other for other in puzzle.neighbours(cell) if other in inside] for cell in inside}
    return {cell: neighbours[cell] for cell in _reached(neighbours, puzzle.start)}


def _reached(neighbours: Mapping[Cell, Sequence[Cell]], start: Cell) -> set[Cell]:
    found, waiting = {start}, [start]
    while waiting:
        fresh = [other for other in neighbours[waiting.pop()] if other not in found]
        found.update(fresh)
        waiting += fresh
    return found


def angle_posterior(frame: NDArray[np.uint8], puzzle: RotationPuzzle, every: int = 15) -> tuple[NDArray, Floats]:
    """How much of each orientation is in a picture: angles in degrees, and weights that sum to 1.

    The weights are the non-negative least squares mixture of the turned shape that comes closest to the panel: a blend
    of two orientations has two weights, one orientation one.
    """
    from scipy.optimize import nnls

    shape, colours, _ = puzzle.panels[-1]
    angles, coverage = orientations(every)
    # As differences from white, so that a pale picture has small weights and not a fit of its own.
    templates = turn_cells(coverage, cell_colours(shape, colours)) - np.array(WHITE)
    seen = read_disc(frame, puzzle) - np.array(WHITE)
    weights, _ = nnls(templates.reshape(len(angles), -1).T.astype(float), seen.ravel().astype(float))
    return angles, weights / weights.sum() if weights.sum() > 0 else np.full(len(angles), 1 / len(angles))


def order_known(scores: Floats, labels: NDArray) -> float:
    """Somers' D of pairs with different labels: the share that is in the right order minus the share in the wrong one.

    scores, labels: (rows,). 1 for a perfect order, 0 for none; 2 AUC - 1 with two labels. nan with a single label.
    """
    apart = labels[:, None].astype(float) - labels
    above = np.sign(scores[:, None] - scores)[apart > 0]
    return float(above.mean()) if above.size else float("nan")


def entropy_bits(weights: Floats) -> float:
    """Of weights that sum to 1."""
    positive = weights[weights > 0]
    return float(-(positive * np.log2(positive)).sum())


# --- runs against runs ----------------------------------------------------------------------------------------------


def commitment(stay: float, chance: float) -> float:
    """How often a restart comes to the same answer, beyond the agreement of independent seeds: (stay - a) / (1 - a).

    0 where restarting is as good as another seed, 1 where nothing changes the answer any more; nan where chance is 1.
    """
    return (stay - chance) / (1 - chance) if chance < 1 else float("nan")


def commitment_interval(stay: Floats, chance: Floats) -> tuple[float, float, float]:
    """The commitment of a group of puzzles and its 95 % bootstrap interval.

    stay, chance: (puzzles,), for each the share of its restarts, and of its independent seeds, that agree with the run.
    Where every resample has the same commitment, the rule of three, as in `mean_interval`.
    """
    value = commitment(float(np.mean(stay)), float(np.mean(chance)))
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(stay), (2000, len(stay)))
    stays, chances = np.asarray(stay)[rows].mean(1), np.asarray(chance)[rows].mean(1)
    draws = (stays - chances) / np.where(chances < 1, 1 - chances, np.nan)
    draws = draws[~np.isnan(draws)]
    if not draws.size:
        return value, float("nan"), float("nan")
    if np.ptp(draws) == 0:
        return value, *mean_interval(np.full(len(stay), value))
    low, high = np.percentile(draws, [2.5, 97.5])
    return value, float(low), float(high)


def cka(one: Floats, other: Floats, debiased: bool = True) -> float:
    """Linear centred kernel alignment of two sets of features of the same rows, (rows, features) each.

    1 for features that are equal up to rotation and scale. Debiased (Song et al. 2012; Kornblith et al. 2019, Nguyen et
    al. 2021): unrelated features give about 0 however many there are, which the plain estimate does not.
    Raises MinicosError for fewer than 4 rows, or for different numbers of them.
    """
    if len(one) != len(other) or len(one) < 4:
        raise MinicosError(f"CKA of {len(one)} and {len(other)} rows: it needs equally many, at least 4")
    first, second = (_gram(np.asarray(x, float).reshape(len(x), -1), debiased) for x in (one, other))
    inner = _hsic_debiased if debiased else lambda a, b: float((a * b).sum())
    return inner(first, second) / float(np.sqrt(inner(first, first) * inner(second, second)))


def _gram(features: Floats, debiased: bool) -> Floats:
    features = features - features.mean(0)
    gram = features @ features.T
    if debiased:
        np.fill_diagonal(gram, 0)
    return gram


def _hsic_debiased(k: Floats, l: Floats) -> float:  # noqa: E741
    """The unbiased estimate from kernels without diagonal, Song et al. (2012), equation 5."""
    n = len(k)
    rows_k, rows_l = k.sum(0), l.sum(0)
    total = (k * l).sum() + rows_k.sum() * rows_l.sum() / ((n - 1) * (n - 2)) - 2 * (rows_k @ rows_l) / (n - 2)
    return float(total / (n * (n - 3)))


# --- hidden states --------------------------------------------------------------------------------------------------


def token_energy(hidden: Values) -> Values:
    """L2 norm of every token over channels, divided by the mean over the block's tokens: (batch, tokens).

    hidden: (batch, tokens, width), an array or a tensor, and so is what is returned. Raw norms change with depth, so
    they cannot be compared between blocks.
    """
    norms = (hidden**2).sum(-1) ** 0.5
    return norms / norms.mean(-1)[..., None]


def probe(features: Floats, labels: NDArray, groups: NDArray, folds: int = 5) -> NDArray:
    """Labels predicted by a linear probe that never saw their group: out-of-fold, (rows,).

    features: (rows, features); labels: (rows,); groups: (rows,), for example the maze that a cell belongs to: cells of
    one maze know of each other, and a split that tears them apart leaks. Raises MinicosError for fewer groups than
    folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(groups.tolist())) < folds:
        raise MinicosError(f"a probe with {folds} folds needs at least as many groups")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return cross_val_predict(model, features, labels, groups=groups, cv=GroupKFold(folds))
