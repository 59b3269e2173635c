"""Assignments as notebooks, and a class of submissions through nbgrader."""

from __future__ import annotations

import base64
import csv
import json
import re
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import answers_a1
import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from submissions import NAME, ROOT, notebook, with_answers

from minicos.errors import MinicosError
from minicos.grading import ASSIGNMENTS, VERDICTS_VARIABLE, cell_of, checks_of, course, landlock
from minicos.grading.pictures import HEAD, add_pictures

pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]  # a class is graded in one fixture
NUMBER = r"[-+]?\d+(?:\.\d+)?"


# --- the notebooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_points_agree_and_every_check_has_its_cell(name):
    graded = {
        c.metadata.nbgrader.grade_id: c for c in notebook(name).cells if c.metadata.get("nbgrader", {}).get("grade")
    }
    checks = checks_of(name)
    for check in checks.values():
        cell = graded[cell_of(check.name)]
        assert cell.metadata.nbgrader.points == check.points
        assert cell.source == f'minicos.check("{name}", "{check.name}")'
    written = [cell for cell in graded.values() if cell.cell_type == "markdown"]
    assert len(graded) == len(checks) + len(written)
    assert sum(cell.metadata.nbgrader.points for cell in graded.values()) == 100


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_minutes_of_a_part_are_those_of_its_exercises(name):
    cells = notebook(name).cells
    found = re.findall(r"^### (\d).*· (\d+) minutes", "\n".join(cell.source for cell in cells), re.MULTILINE)
    rows = re.findall(r"^\| (\d) [^|]*\|[^|]*\| (\d+) \|", cells[0].source, re.MULTILINE)
    assert sum(int(minutes) for _, minutes in rows) <= 120
    for part, minutes in rows[:-1]:  # the last part is written answers
        assert int(minutes) == sum(int(m) for other, m in found if other == part)


def test_the_tables_of_the_readmes_agree_with_the_notebooks():
    for name in ASSIGNMENTS:
        graded = [c for c in notebook(name).cells if c.metadata.get("nbgrader", {}).get("grade")]
        written = [c.metadata.nbgrader.points for c in graded if c.cell_type == "markdown"]
        checks = checks_of(name).values()
        row = f"| `{name}` | {len(checks)} | {sum(c.points for c in checks):g} | {len(written)} | {sum(written):g} |"
        assert row in (ROOT / "solutions" / "README.md").read_text()
        assert f"[`{name}`]({name}/{name}.ipynb)" in (ROOT / "assignments" / "README.md").read_text()


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_exercises_show_what_should_come_out(name):
    """Above each cell that shows something, the picture or the text that the solution comes to."""
    released = notebook(name, "assignments")
    shown = "".join(cell.source.partition(HEAD)[2] for cell in released.cells)
    pictures = {key: data for cell in released.cells for key, data in cell.get("attachments", {}).items()}
    drawn = [cell.id for cell in released.cells if "alt" in cell.metadata]
    assert sorted(pictures) == sorted(f"{cell}.png" for cell in drawn)
    assert all(re.search(rf"!\[.{{20,}}\]\(attachment:{cell}.png\)", shown) for cell in drawn)
    assert len(drawn) + shown.count("```text") > 3
    for data in pictures.values():
        with Image.open(BytesIO(base64.b64decode(data["image/png"]))) as image:
            assert min(image.size) > 100
    assert len(nbformat.writes(released)) < 300_000


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_numbers_that_exercises_show_are_those_that_come_out(name, tmp_path):
    """Up to one puzzle of ten: another processor has other last bits."""
    path = tmp_path / f"{name}.ipynb"
    nbformat.write(notebook(name), path)
    add_pictures(path)
    shown, come_out = (
        [re.findall(r"```text\n(.*?)```", cell.source, re.DOTALL) for cell in found.cells if cell.id.startswith("ask-")]
        for found in (notebook(name), nbformat.read(path, 4))
    )
    assert re.sub(rf"\s*{NUMBER}", " #", str(shown)) == re.sub(rf"\s*{NUMBER}", " #", str(come_out))
    values = [[float(number) for number in re.findall(NUMBER, str(texts))] for texts in (shown, come_out)]
    assert values[0] == pytest.approx(values[1], abs=10, rel=0.1)


def test_pictures_are_taken_from_the_solution_and_take_the_place_of_older_ones(tmp_path):
    code = "from matplotlib import pyplot as plt\nplt.plot([0, {}])\nplt.show()\nprint('n = {}')"
    cells = [
        nbformat.v4.new_markdown_cell(
            "### Draw a line\n\n<details><summary>Hint</summary>plot</details>", id="ask-line"
        ),
        nbformat.v4.new_code_cell(code.format(1, 1), id="see-line", metadata={"alt": "a line that rises"}),
    ]
    path = tmp_path / "lines.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    assert add_pictures(path) == 1
    first = nbformat.read(path, 4)
    assert "Hint" in first.cells[0].source
    assert "![a line that rises](attachment:see-line.png)" in first.cells[0].source
    assert "```text\nn = 1\n```" in first.cells[0].source
    assert first.cells[1].outputs == []
    before = path.read_bytes()
    add_pictures(path)
    assert path.read_bytes() == before

    first.cells[1].source, first.cells[1].metadata.alt = code.format(-1, 2), "a line that falls"
    nbformat.write(first, path)
    add_pictures(path)
    second = nbformat.read(path, 4)
    assert (second.cells[0].source.count(HEAD), second.cells[0].source.count("n = ")) == (1, 1)
    assert second.cells[0].attachments != first.cells[0].attachments

    assert "![a line that falls](attachment:see-line.png)" in second.cells[0].source
    del second.cells[1].metadata["alt"]
    nbformat.write(second, path)
    with pytest.raises(MinicosError, match="see-line shows a picture: its metadata has to say"):
        add_pictures(path)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_notebooks_hold_no_output_no_path_and_no_private_kernel(name):
    for folder in ("solutions", "assignments"):
        found = notebook(name, folder)
        assert found.metadata.kernelspec.name == "python3"
        assert not any(cell.get("outputs") for cell in found.cells)
        text = (ROOT / folder / name / f"{name}.ipynb").read_text()
        assert not any(path in text for path in ("/home/", "/root", "/Users/", str(ROOT), "C:\\\\"))
    assert "SOLUTION" not in (ROOT / "assignments" / name / f"{name}.ipynb").read_text()
    assert [p.name for p in (ROOT / "assignments" / name).iterdir()] == [f"{name}.ipynb"]


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_solution_runs_and_writes_nothing_to_stderr(name, tmp_path):
    solution = notebook(name)
    NotebookClient(solution, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    streams = [
        output for cell in solution.cells for output in cell.get("outputs", []) if output.output_type == "stream"
    ]
    assert not [stream.text for stream in streams if stream.name == "stderr"]


def test_the_second_assignment_runs_on_a_wan(tiny_wan_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MINICOS_MODEL", str(tiny_wan_folder))
    solution = notebook("a2_frames_or_steps")
    NotebookClient(solution, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = next(cell for cell in solution.cells if cell["id"] == "setup").outputs
    told = "".join(output.text for output in outputs if output.get("name") == "stdout")
    assert told.startswith("tiny-wan: 4 steps, 2 latent frames")


WRONG = answers_a1.WRONG["signs and axes"]

# --- through nbgrader -------------------------------------------------------------------------------------------------


COURSE = f"""
import hashlib, json, os, pathlib, sqlite3, psutil
if {VERDICTS_VARIABLE!r} in os.environ:
    course = pathlib.Path(os.environ[{VERDICTS_VARIABLE!r}]).parent
"""
BRIBE = f"""{COURSE}
    book = sqlite3.connect(course / "gradebook.db", timeout=30)
    book.execute("update grade set extra_credit = 92, manual_score = 4, needs_manual_grade = 0")
    book.commit()
"""
FORGERY = f"""{COURSE}
    own = course / "submitted" / "forged" / {NAME!r} / "{NAME}.ipynb"
    result = {{"student": "forged", "points": 92, "most": 92, "problem": "", "messages": {{}}}}
    result["sha256"] = hashlib.sha256(own.read_bytes()).hexdigest()
    try:
        (course / "results" / {NAME!r} / "forged.json").write_text(json.dumps(result))
    finally:
        psutil.Process().parent().kill()
"""


def submissions() -> dict[str, object]:
    """A class: notebooks by student."""
    found = {"solution": notebook(NAME), "release": notebook(NAME, "assignments")}
    found["wrong"] = with_answers(WRONG)
    edited = notebook(NAME, "assignments")
    without_test = notebook(NAME)
    without_test.cells = [cell for cell in without_test.cells if cell["id"] != "check-guide"]
    patched = notebook(NAME, "assignments")
    patched.cells[1].source = "import minicos.grading\nminicos.check = minicos.grading.check = lambda *a: None"
    for cell in edited.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.source, cell.metadata.nbgrader.points = "pass", 1000
    ended = notebook(NAME)
    ended.cells.insert(3, nbformat.v4.new_code_cell("import os\nos._exit(1)"))
    endless = notebook(NAME)
    endless.cells.insert(3, nbformat.v4.new_code_cell("while True: pass"))
    if landlock.version():
        found["bribed"] = notebook(NAME, "assignments")
        found["bribed"].cells.insert(1, nbformat.v4.new_code_cell(BRIBE))
    forged = notebook(NAME, "assignments")
    forged.cells.insert(1, nbformat.v4.new_code_cell(FORGERY))
    return found | {
        "edited": edited, "untested": without_test, "patched": patched, "ended": ended, "endless": endless,
        "broken": "{", "forged": forged,
    }  # fmt: skip


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """A course whose grading was killed after the first submission, and gone on with."""
    place = tmp_path_factory.mktemp("course")
    for name in ("nbgrader_config.py", "solutions"):
        (place / name).symlink_to(ROOT / name)
    course.generate(place)
    arrived = place / "arrived"
    arrived.mkdir()
    for student, content in submissions().items():
        path = arrived / f"{student}.ipynb"
        path.write_text(content) if isinstance(content, str) else nbformat.write(content, path)
    assert sorted(course.collect(place, NAME, arrived)) == sorted(submissions())
    script = (
        "import os, signal; from pathlib import Path; from minicos.grading import course\n"
        f"course.autograde(Path.cwd(), {NAME!r}, 2, lambda: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=place).returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in place.glob("course/results/*/*.json")}
    assert before, "the kill came after one submission was done"
    results = {result.student: result for result in course.autograde(place, NAME, 2)}
    assert before == {path: path.stat().st_mtime_ns for path in before}, "what was done is not done again"
    return place, results


def test_only_what_broke_off_is_graded_again(tmp_path, monkeypatch):
    results = {
        "done": course.Result("done", 5.0, 100.0, "", {}),
        "broken": course.Result("broken", 0.0, 100.0, "it is no notebook", {}),
        "slept": course.Result("slept", 0.0, 100.0, "not done after 180 s", {}, final=False),
    }
    (tmp_path / "course").mkdir()
    (tmp_path / "course" / "gradebook.db").touch()
    for student, result in results.items():
        path = tmp_path / "course" / "submitted" / student / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(student)
        course._write_result(tmp_path, NAME, result)
    again = []
    monkeypatch.setattr(course, "_in_own_process", lambda place, name, student, **_: again.append(student))
    steps = []
    assert course.autograde(tmp_path, NAME, 1, lambda: steps.append(1)) == [results[name] for name in sorted(results)]
    assert again == ["slept"]
    assert len(steps) == 3


def test_everyone_gets_what_is_theirs(graded):
    _, results = graded
    most = sum(check.points for check in checks_of(NAME).values())
    lost = sum(checks_of(NAME)[name].points for name in WRONG)
    points = {student: result.points for student, result in results.items()}
    assert points["solution"] == most
    assert points["wrong"] == most - lost
    assert points["untested"] == most, "a deleted test cell takes no points away"
    for student in {"release", "edited", "patched", "endless", "broken", "forged", "bribed"} & set(points):
        assert points[student] == 0, student
    assert not results["solution"].problem
    assert "no notebook" in results["broken"].problem
    assert points["ended"] == 0


def test_the_gradebook_says_the_same(graded, tmp_path):
    place, results = graded
    course.export(place, tmp_path / "grades.csv")
    with (tmp_path / "grades.csv").open() as file:
        scores = {row["student_id"]: row for row in csv.DictReader(file) if row["assignment"] == NAME}
    for student, result in results.items():
        if not result.problem:
            assert float(scores[student]["score"]) == result.points, student
            assert float(scores[student]["max_score"]) == 100


def test_feedback_shows_what_was_wrong(graded):
    place, _ = graded
    course.feedback(place, NAME)
    page = (place / "course" / "feedback" / "wrong" / NAME / f"{NAME}.html").read_text()
    assert "along this velocity sigma would fall" in page


def test_a_release_comes_out_byte_for_byte_as_it_is_committed(graded):
    place, _ = graded
    for name in ASSIGNMENTS:
        path = Path("assignments") / name / f"{name}.ipynb"
        assert (place / path).read_bytes() == (ROOT / path).read_bytes(), "run make assignments"


def test_bad_input_is_one_line(tmp_path, graded, monkeypatch):
    place, _ = graded
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MinicosError, match=r"no nbgrader_config\.py"):
        course.root()
    with pytest.raises(MinicosError, match="unknown assignment"):
        course.collect(place, "a9", tmp_path)
    with pytest.raises(MinicosError, match="holds no submissions"):
        course.collect(place, NAME, tmp_path)
    assert json.loads((place / "course" / "results" / NAME / "solution.json").read_text())["points"] > 0
