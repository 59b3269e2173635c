"""Puzzles with one right answer, or a stated set of them. Only numpy here: tasks know nothing of models."""

import re
from collections.abc import Iterable

from minicos.errors import MinicosError
from minicos.tasks.base import SPLITS, STATUSES, Puzzle, Score, Split, Status, Task, Video
from minicos.tasks.bounce import BounceTask
from minicos.tasks.maze import MazeTask
from minicos.tasks.occlusion import OcclusionTask
from minicos.tasks.rotation import NamedRotation, OpenRotation, RotationByExample

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        MazeTask("maze", braided=False),
        MazeTask("maze-braided", braided=True),
        NamedRotation(),
        RotationByExample(),
        OpenRotation(),
        OcclusionTask(),
        BounceTask(),
    )
}

__all__ = ["SPLITS", "STATUSES", "TASKS", "Puzzle", "Score", "Split", "Status", "Task", "Video", "get_task", "task_of"]


def get_task(name: str) -> Task:
    """The task of this name; raises MinicosError for an unknown one."""
    if name not in TASKS:
        raise MinicosError(f"unknown task '{name}': choose from {', '.join(TASKS)}")
    return TASKS[name]


def task_of(puzzle: Puzzle) -> Task:
    """The task that this puzzle is an instance of."""
    return TASKS[puzzle.task]


def split_words(prompt: str) -> list[str]:
    """Lower-case words and numbers; punctuation is dropped."""
    return re.findall(r"[a-z]+|\d+", prompt.lower())


def vocabulary(tasks: Iterable[str] = tuple(TASKS)) -> list[str]:
    """Every word of these tasks' prompts, sorted."""
    return sorted({word for task in tasks for prompt in get_task(task).prompts() for word in split_words(prompt)})
