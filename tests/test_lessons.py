"""Every lesson runs top to bottom, in time, silently; two of them on a model of the full one's shape, too."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "lessons").glob("*.ipynb"))
LESSONS = NOTEBOOKS[:-1]  # the last is the lecture, which test_slides runs
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


@pytest.mark.parametrize("name", ["02_diffusion_review", "06_emergent_behaviours"])
def test_a_lesson_runs_on_a_model_of_the_full_ones_shape(name, tiny_wan_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICOS_MODEL", str(tiny_wan_folder))
    (path,) = (path for path in LESSONS if path.stem == name)
    text = str(outputs(executed(path, tmp_path)))
    assert "4 steps: " in text if name.startswith("02") else "tiny-wan" in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_lesson_is_committed_plain(path):
    lesson = nbformat.read(path, 4)
    nbformat.validate(lesson)
    assert lesson.metadata.kernelspec.name == "python3"
    code = [cell for cell in lesson.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert code[0].source.startswith("import minicos")
    assert not re.search(r"cuda|cpu|/home|/work|/tmp", "".join(cell.source for cell in lesson.cells))
