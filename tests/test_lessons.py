"""Every lesson runs top to bottom, in time, silently; and on a model of the full one's shape, too."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "lessons").glob("*.ipynb"))
LESSONS = NOTEBOOKS[:-1]  # the last is the lecture, which test_slides runs
SWITCHED = [path for path in LESSONS if path.stem[:2] != "03"]  # that one takes nano apart, whatever the switch says
pytestmark = pytest.mark.alone
SECONDS = 90  # that a lesson may take, from top to bottom


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    lesson = nbformat.read(path, 4)
    NotebookClient(lesson, timeout=SECONDS, resources={"metadata": {"path": folder}}).execute()
    return lesson


def outputs(lesson: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in lesson.cells for output in cell.get("outputs", [])]


def test_there_is_a_lesson_for_each_section():
    assert [path.stem[:2] for path in LESSONS] == [f"{number:02}" for number in range(1, 10)]


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_silently_and_its_pictures_have_words(path, tmp_path):
    lesson = executed(path, tmp_path)
    assert not [output.text for output in outputs(lesson) if output.get("name") == "stderr"]
    shown = "".join(output.data.get("text/html", "") for output in outputs(lesson) if "data" in output)
    pictures = re.findall(r"<img[^>]*>", shown)
    assert pictures
    assert all(re.search(r'alt="[^"]{20,}"', picture) for picture in pictures)


@pytest.mark.parametrize("path", SWITCHED, ids=lambda path: path.stem)
def test_a_lesson_runs_on_a_model_of_the_full_ones_shape(path, tiny_wan_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICOS_MODEL", str(tiny_wan_folder))
    text = str(outputs(executed(path, tmp_path)))
    assert {"02": "4 steps: ", "04": "step 3"}.get(path.stem[:2], "tiny-wan") in text  # it has four steps


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_is_committed_plain(path):
    lesson = nbformat.read(path, 4)
    nbformat.validate(lesson)
    assert lesson.metadata.kernelspec.name == "python3"
    code = [cell for cell in lesson.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert code[0].source.startswith("import minicos")
    assert not re.search(r"cuda|cpu|/home|/work|/tmp", "".join(cell.source for cell in lesson.cells))
