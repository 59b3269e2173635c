"""Assignments: checks of students' code, and the instructor's cycle over nbgrader."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

from minicos.errors import MinicosError
from minicos.grading.checks import CELL_SECONDS, Check, cells_of_session, verify

ASSIGNMENTS = ("a1_denoiser", "a2_frames_or_steps", "a3_layers", "a4_ensemble")
VERDICTS_VARIABLE = "MINICOS_VERDICTS"  # while nbgrader runs a submission: the file that says how it was judged


def checks_of(assignment: str) -> dict[str, Check]:
    """An assignment's checks by name. Raises MinicosError for an unknown one."""
    if assignment not in ASSIGNMENTS:
        raise MinicosError(f"unknown assignment '{assignment}': choose from {', '.join(ASSIGNMENTS)}")
    return {check.name: check for check in importlib.import_module(f"minicos.grading.{assignment}").CHECKS}


def cell_of(check: str) -> str:
    """The name of the graded cell that calls a check."""
    return f"check-{check}"


def check(assignment: str, name: str) -> None:
    """What a graded cell calls: raises AssertionError with one line where the student's code is not right yet.

    While a submission is graded it repeats the verdict that was reached outside of this kernel, for the feedback.
    """
    told = os.environ.get(VERDICTS_VARIABLE)
    if told:
        message = json.loads(Path(told).read_text())[name]
    else:
        message = verify(checks_of(assignment)[name], cells_of_session(), cell_seconds=CELL_SECONDS).message
    assert not message, message
