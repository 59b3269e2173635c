"""What every task shares: puzzles, scores, splits, and where a board lies on a canvas."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from minicos.errors import MinicosError

Split = Literal["train", "val", "test"]
Status = Literal["solved", "wrong", "invalid", "unreadable"]
Video = NDArray[np.uint8]  # (frames, height, width, 3)
Item = TypeVar("Item")

PARTNER = "/partner"  # what the key of the second one of a pair has after that of the first

SPLITS: tuple[Split, ...] = ("train", "val", "test")
STATUSES: tuple[Status, ...] = ("solved", "wrong", "invalid", "unreadable")

WHITE = (255, 255, 255)
# Palette colours are at least 165 apart, so a colour within this distance of one is nearer to it than to any other by
# a wide margin, while a half-and-half blend of two belongs to neither. In units of 8-bit RGB, Euclidean.
READABLE_DISTANCE = 80.0


@dataclass(frozen=True)
class Score:
    """The verdict on one video.

    status: solved, wrong (a legal video with another outcome), invalid (an illegal process) or unreadable.
    reason: one line for a person, empty when solved.
    answer: the last frame alone shows an accepted answer, whatever the frames before it show.
    """

    status: Status
    reason: str
    answer: bool

    @property
    def solved(self) -> bool:
        return self.status == "solved"


@dataclass(frozen=True, eq=False)
class Puzzle:
    """One instance of a task. `key` names it for ever: task, size, split, seed and index."""

    task: str
    key: str
    size: int
    prompt: str

    @property
    def noise_key(self) -> str:
        """What noise is drawn by: both of a pair (`Task.partner`) are denoised from the same noise."""
        return self.key.partition(PARTNER)[0]

    @property
    def frames(self) -> int | None:
        """How many frames its video has to have; None where the model decides."""
        return None

    def image(self, canvas: tuple[int, int] | None) -> NDArray[np.uint8]:
        """The given image, uint8 (height, width, 3), on a canvas of this height and width, or on the puzzle's own."""
        from minicos.tasks import task_of

        return task_of(self).render(self, 2, canvas)[0]


class Task(ABC):
    """A kind of puzzle. Tasks have no state: everything about an instance is in its Puzzle."""

    name: ClassVar[str]
    sizes: ClassVar[tuple[int, ...]]
    length_unit: ClassVar[str]

    @abstractmethod
    def sample(self, seed: int, index: int, *, size: int | None = None, split: Split = "train") -> Puzzle:
        """The puzzle number `index` of the stream `seed`; equal arguments give equal puzzles on every machine.

        Raises MinicosError for an unknown size or split.
        """

    @abstractmethod
    def canvas(self, puzzle: Puzzle) -> tuple[int, int]:
        """Height and width in pixels at which one token of the miniature (4 x 4 pixels) is one cell."""

    @abstractmethod
    def render(self, puzzle: Puzzle, frames: int, canvas: tuple[int, int] | None = None) -> Video:
        """The ground-truth video, uint8 (frames, height, width, 3); frame 0 is the given image."""

    @abstractmethod
    def decode(self, video: Video, puzzle: Puzzle) -> object | None:
        """The answer that the last frame shows, None where it cannot be read. Of the puzzle it uses only the grid."""

    @abstractmethod
    def score(self, video: Video, puzzle: Puzzle) -> Score:
        """Judge outcome and process of a video of any size, uint8 (frames, height, width, 3), frames >= 2."""

    def partner(self, puzzle: Puzzle) -> Puzzle | None:
        """The other one of a pair with another answer: a maze with the same walls and start, or the same shape with
        another prompt. None where there is none.
        """
        return None

    @abstractmethod
    def answers(self, puzzle: Puzzle) -> tuple:
        """Every right answer; `puzzle.shown` is the index of the one that `render` shows."""

    def on_the_way(self, answer: object, puzzle: Puzzle) -> bool:
        """Whether what `decode` has read is a right answer that has not got to its end: not right, and not wrong."""
        return False

    def spelled(self, answer: object | None) -> str:
        """What `decode` has read as a text, equal for answers that are judged alike; "" where there is none."""
        return "" if answer is None else str(answer).replace(" ", "")

    def choice(self, video: Video, puzzle: Puzzle) -> str:
        """Which of several right answers a solved video shows, by a name for all puzzles; "" where none has a name."""
        return ""

    @abstractmethod
    def holds(self, video: Video, puzzle: Puzzle, frame: int) -> bool:
        """Whether this frame alone shows a right answer, as far as it should have got by then, one frame's step at most
        ahead or behind. For runs whose later frames were destroyed.
        """

    @abstractmethod
    def length(self, puzzle: Puzzle) -> int:
        """How far the right answer goes, in `length_unit`: moves of a route, degrees of a turn."""

    @abstractmethod
    def structure(self, puzzle: Puzzle) -> bytes:
        """What may not be shared between splits, equal for all 8 symmetric images of it."""

    @abstractmethod
    def regions(self, puzzle: Puzzle) -> dict[str, NDArray[np.bool_]]:
        """Parts of the given image by name, each (board rows, board columns) in units; together they are the board.

        What is small and telling comes first, and "elsewhere" last.
        """

    def region(self, puzzle: Puzzle, name: str, rows: int, columns: int) -> NDArray[np.bool_]:
        """Which of rows x columns tokens lie at least half in a region, or most of all where none does.

        "all" is every token. Raises MinicosError for an unknown region.
        """
        if name == "all":
            return np.ones((rows, columns), bool)
        regions = self.regions(puzzle)
        if name not in regions:
            known = ", ".join(["all", *regions])
            raise MinicosError(f"task '{self.name}' has no region '{name}': choose from {known}")
        where = regions[name]
        fine = max(1, -(-where.shape[0] // rows), -(-where.shape[1] // columns))  # pixels a token, at least one a unit
        drawn = Board(*where.shape).draw(
            np.where(where, 0, 255)[None, ..., None].repeat(3, -1).astype(np.uint8), rows * fine, columns * fine
        )
        covered = 1 - drawn[0, ..., 0].reshape(rows, fine, columns, fine).mean((1, 3)) / 255
        return (covered > 0) & (covered >= min(0.5, covered.max()))

    def region_of_both(self, one: Puzzle, other: Puzzle, name: str, rows: int, columns: int) -> NDArray[np.bool_]:
        """The tokens of a region in either of two puzzles, where no earlier one (in the order of `regions`) lies.

        Of mazes that differ in the goal alone, "goal" is both goals and "elsewhere" what is elsewhere in both. Raises
        MinicosError for puzzles of two kinds, or of two canvases.
        """
        if type(one) is not type(other) or self.canvas(one) != self.canvas(other):
            puzzles = f"{one.task} {one.size} and {other.task} {other.size}"
            raise MinicosError(f"{puzzles} have no region in common: take puzzles of one kind and canvas")
        if name == "all":
            return self.region(one, name, rows, columns)
        taken = np.zeros((rows, columns), bool)
        for region in self.regions(one):
            either = self.region(one, region, rows, columns) | self.region(other, region, rows, columns)
            if region == name:
                return either & ~taken
            taken |= either
        return self.region(one, name, rows, columns)  # which says that there is no such region

    @abstractmethod
    def prompts(self) -> tuple[str, ...]:
        """Every prompt that a puzzle of this task can have."""

    def splittable(self, size: int) -> bool:
        """Whether there are enough structures of this size to hold some out."""
        return True

    def _key(self, seed: int, index: int, size: int | None, split: Split) -> str:
        """What a sampled puzzle is called, and drawn from."""
        return f"{self.name}/{'any' if size is None else size}/{split}/{seed}/{index}"

    def _checked(self, size: int | None, split: str, rng: Random) -> int:
        if split not in SPLITS:
            raise MinicosError(f"unknown split '{split}': expected one of {', '.join(SPLITS)}")
        if size is None:
            return pick(self.sizes, rng)
        if size not in self.sizes:
            known = ", ".join(map(str, self.sizes))
            raise MinicosError(f"task '{self.name}' has no size {size}: choose from {known}")
        return size


def split_of(structure: bytes) -> Split:
    """Four fifths train, a tenth val, a tenth test, by a hash of the structure: never by index."""
    bucket = int.from_bytes(hashlib.blake2b(structure, digest_size=8).digest(), "big") % 10
    return "test" if bucket == 0 else "val" if bucket == 1 else "train"


def puzzle_rng(key: str) -> Random:
    """Random numbers for one puzzle. Only `random()` may be used: Python guarantees its stream across versions."""
    return Random(key)


def shuffled(count: int, rng: Random) -> list[int]:
    """The numbers below `count` in random order."""
    return sorted(range(count), key=lambda _: rng.random())


def pick(items: Sequence[Item], rng: Random) -> Item:
    """One of the items, each equally likely."""
    return items[int(rng.random() * len(items))]


def check_video(video: Video) -> None:
    """Raise MinicosError unless `video` is uint8 (frames >= 2, height, width, 3)."""
    if not (isinstance(video, np.ndarray) and video.dtype == np.uint8 and video.ndim == 4 and video.shape[3] == 3):
        found = f"{getattr(video, 'dtype', type(video).__name__)} {getattr(video, 'shape', '')}"
        raise MinicosError(f"a video is a uint8 array (frames, height, width, 3), not {found}")
    if video.shape[0] < 2:
        raise MinicosError("a video needs at least 2 frames: frame 0 is the given image")


@dataclass(frozen=True)
class Board:
    """A board of `rows` x `columns` square units, as large as fits, centred on a canvas; margins stay white.

    All tasks draw and read through this, so a board means the same at 20 x 20 pixels and at 480 x 832.
    """

    rows: int
    columns: int

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the board in pixels."""
        unit = min(height / self.rows, width / self.columns)
        if unit < 1:
            raise MinicosError(
                f"a canvas of {height} x {width} pixels is too small: this board needs {self.rows} x {self.columns}"
            )
        tall, wide = int(unit * self.rows), int(unit * self.columns)
        return (height - tall) // 2, (width - wide) // 2, tall, wide

    def draw(self, units: Video, height: int, width: int) -> Video:
        """Enlarge (frames, rows, columns, 3) to (frames, height, width, 3) with crisp edges."""
        if (height, width) == (self.rows, self.columns):
            return units
        top, left, tall, wide = self.box(height, width)
        row = (np.arange(tall) * 2 + 1) * self.rows // (2 * tall)
        column = (np.arange(wide) * 2 + 1) * self.columns // (2 * wide)
        canvas = np.full((len(units), height, width, 3), 255, np.uint8)
        canvas[:, top : top + tall, left : left + wide] = units[:, row][:, :, column]
        return canvas

    def read(self, video: Video, core: float = 1.0) -> NDArray[np.float32]:
        """Mean colour of every unit, (frames, rows, columns, 3).

        `core` is the share of a unit's side that counts: below 1, blurred edges of large videos are left out.
        """
        _, height, width, _ = video.shape
        if (height, width) == (self.rows, self.columns):
            return video.astype(np.float32)
        top, left, tall, wide = self.box(height, width)
        board = video[:, top : top + tall, left : left + wide]
        means = _window_means(board, self.rows, tall, core, axis=1)
        return _window_means(means, self.columns, wide, core, axis=2).astype(np.float32)


def _window_means(values: NDArray, count: int, extent: int, core: float, axis: int) -> NDArray[np.float64]:
    """Means over the central part of `count` equal windows along `axis`, by differences of cumulative sums."""
    edges = np.arange(count + 1) * extent / count
    margin = (1 - core) / 2 * extent / count
    low = np.ceil(edges[:-1] + margin - 0.5).astype(int)
    high = np.maximum(np.ceil(edges[1:] - margin - 0.5).astype(int), low + 1)
    sums = np.cumsum(values, axis=axis, dtype=np.float64)
    sums = np.concatenate([np.zeros_like(sums.take([0], axis=axis)), sums], axis=axis)
    shape = [1] * values.ndim
    shape[axis] = count
    return (sums.take(high, axis=axis) - sums.take(low, axis=axis)) / (high - low).reshape(shape)


def nearest_colour(colours: NDArray, palette: NDArray) -> NDArray[np.int64]:
    """Index of the nearest palette colour, -1 where none is within READABLE_DISTANCE. Last axis: RGB."""
    distance = np.linalg.norm(colours[..., None, :].astype(np.float32) - palette.astype(np.float32), axis=-1)
    nearest = distance.argmin(-1)
    return np.where(distance.min(-1) <= READABLE_DISTANCE, nearest, -1)
