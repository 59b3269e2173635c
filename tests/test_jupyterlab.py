"""What a student does, in a real JupyterLab: open an assignment, run it, press Validate, read the verdict."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from minicos.grading import checks_of

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]  # Validate runs the whole notebook
ROOT = Path(__file__).parents[1]
NAME = "a1_denoiser"  # the quickest
FAILED = "The following cell failed:"


@pytest.fixture
def course(lab):
    """The lab, on the folder of a course."""
    shutil.copyfile(ROOT / "nbgrader_config.py", lab.folder / "nbgrader_config.py")
    for kind in ("assignments", "solutions"):
        shutil.copytree(ROOT / kind / NAME, lab.folder / kind / NAME, dirs_exist_ok=True)
    return lab


def verdict(lab) -> str:
    """What the dialog says that Validate opens."""
    lab.page.get_by_role("button", name="Validate").click()
    return lab.page.get_by_role("dialog").inner_text()


def test_the_release_stops_at_the_first_check_and_validate_names_every_exercise(course):
    course.open(f"assignments/{NAME}/{NAME}.ipynb")
    course.run_all()
    assert course.page.get_by_text("AssertionError: interpolate is not written yet").count() == 1
    assert course.page.get_by_text("is not written yet").count() == 1
    text = verdict(course)
    checks = checks_of(NAME)
    for name in checks:
        assert f"AssertionError: {name} is not written yet" in text
    assert text.count("You did not provide a response.") == 2
    assert text.count(FAILED) == len(checks) + 2
    assert course.errors == []


def test_the_solution_passes_validate(course):
    course.open(f"solutions/{NAME}/{NAME}.ipynb")
    text = verdict(course)
    assert "Success! Your notebook passes all the tests." in text
    assert FAILED not in text
    assert course.errors == []
