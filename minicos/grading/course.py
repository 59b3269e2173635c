"""The instructor's cycle over nbgrader: generate, collect, autograde, feedback, export.

nbgrader runs the notebooks and keeps the grades; the points of autograded cells come from our own checks, which run a
student's cells in another process (`arena`). What a student's code does to its notebook's kernel therefore changes no
grade. Everything but the sources and the releases lies in course/.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from minicos.errors import MinicosError
from minicos.files import replace_file
from minicos.grading import ASSIGNMENTS, VERDICTS_VARIABLE, cell_of, checks_of, kernel
from minicos.grading.checks import Verdict, verify
from minicos.grading.processes import end_group

if TYPE_CHECKING:
    from nbgrader.apps.api import NbGraderAPI

CONFIG_FILE = "nbgrader_config.py"
SECONDS = 180  # of one submission: a class must go on
MEMORY = 12 << 30
AT_ONCE = 2  # checks of one submission


@dataclass(frozen=True)
class Result:
    """What became of one submission. points: of the autograded cells; problem: why it could not be graded, or "".

    final: whether grading came to its end; else the machine may be what was wrong, and not the submission.
    """

    student: str
    points: float
    most: float
    problem: str
    messages: dict[str, str]
    final: bool = True


def root() -> Path:
    """The course's folder: the current one. Raises MinicosError where it is none."""
    here = Path.cwd()
    if not (here / CONFIG_FILE).exists():
        raise MinicosError(f"{here} has no {CONFIG_FILE}: run this in the folder of the course")
    return here


def solution_of(course: Path, name: str) -> Path:
    """An assignment's source. Raises MinicosError for an unknown one."""
    checks_of(name)
    return course / "solutions" / name / f"{name}.ipynb"


def api(course: Path) -> NbGraderAPI:
    """nbgrader, configured for this course."""
    # What SQLAlchemy and jupyter warn of is nothing that an instructor could mend.
    warnings.filterwarnings("ignore", module=r"(nbgrader|sqlalchemy|traitlets|jupyter|zmq|nbformat)\b")
    from nbgrader.apps.api import NbGraderAPI
    from traitlets.config import Config, PyFileConfigLoader

    (course / "course").mkdir(exist_ok=True)
    config = Config(PyFileConfigLoader(CONFIG_FILE, path=str(course)).load_config())
    config.CourseDirectory.root = str(course)
    # Several processes write grades: they wait for each other.
    config.CourseDirectory.db_url = f"sqlite:///{course / 'course' / 'gradebook.db'}?timeout=60"
    # nbgrader makes a gradebook by a program that pip has put beside Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return NbGraderAPI(config=config, log_level="CRITICAL")


def generate(course: Path, names: Iterable[str] = ASSIGNMENTS) -> None:
    """Write the releases into assignments/, and what is graded into the gradebook. Raises MinicosError for failures."""
    grader = api(course)
    for name in names:
        checks_of(name)
        _succeed(grader.generate_assignment(name, force=True), name)


def collect(course: Path, name: str, folder: Path) -> list[str]:
    """Copy submissions to where nbgrader looks for them; the students. Raises MinicosError where there is none.

    folder: holds STUDENT.ipynb or STUDENT/NAME.ipynb; nothing else is taken along.
    """
    checks_of(name)
    found = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
    found |= {path.parent.name: path for path in sorted(folder.glob(f"*/{name}.ipynb"))}
    if not found:
        raise MinicosError(f"{folder} holds no submissions: expected STUDENT.ipynb or STUDENT/{name}.ipynb")
    for student, path in found.items():
        place = _submitted(course, student, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    return list(found)


def autograde(course: Path, name: str, jobs: int, advance: Callable[[], None] = lambda: None) -> list[Result]:
    """Grade all collected submissions, several at once, each in a process of its own with a limit of time and memory.

    One that was graded before and has not changed is left as it is; so an interrupted run is taken up where it was, and
    one whose grading broke off is graded again.
    """
    most = sum(check.points for check in checks_of(name).values())
    students = students_of(course, name)
    if not (course / "course" / "gradebook.db").exists():
        raise MinicosError("there is no gradebook yet: run minicos grade generate first")
    known = {student: _result(course, name, student) for student in students}
    waiting = [student for student, result in known.items() if result is None or not result.final]
    for _ in range(len(students) - len(waiting)):
        advance()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            grade = partial(_in_own_process, course, name, most=most, threads=max(1, (os.cpu_count() or 1) // jobs))
            for done in as_completed([pool.submit(grade, one) for one in waiting]):
                done.result()
                advance()
        finally:  # Ctrl-C: those under way are graded to the end
            pool.shutdown(wait=False, cancel_futures=True)
    return [_result(course, name, student) for student in students]


def students_of(course: Path, name: str) -> list[str]:
    """Whose submissions were collected. Raises MinicosError where there are none."""
    checks_of(name)
    folder = course / "course" / "submitted"
    students = sorted(path.parent.parent.name for path in folder.glob(f"*/{name}/{name}.ipynb"))
    if not students:
        raise MinicosError(f"no submission of {name} was collected: minicos grade collect {name} FOLDER")
    return students


def _in_own_process(course: Path, name: str, student: str, most: float, threads: int) -> None:
    """What a worker leaves counts only if it comes to its end: student code could end it, and leave what it likes."""
    problem = ""
    _result_file(course, name, student).unlink(missing_ok=True)
    worker = Popen(
        [sys.executable, "-m", "minicos.grading.course", name, student],
        cwd=course,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        start_new_session=True,  # a signal to its group reaches nobody else
    )
    try:
        if worker.wait(SECONDS):
            problem = f"grading broke off (exit code {worker.returncode})"
    except TimeoutExpired:
        problem = f"not done after {SECONDS} s"
    finally:
        _end(worker)
    if problem or _result(course, name, student) is None:
        problem = problem or "grading left no result"
        _write_result(course, name, Result(student, 0.0, most, problem, {}, final=False))


def _end(worker: Popen) -> None:
    """It, and the kernels that it has started."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        family = [*psutil.Process(worker.pid).children(recursive=True), psutil.Process(worker.pid)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    end_group(worker)


def grade_one(course: Path, name: str, student: str) -> Result:
    """Judge one submission and enter it into the gradebook. Raises MinicosError where the notebook cannot be read."""
    verdicts = judge(name, cells_of(_submitted(course, student, name)))
    grader, told = api(course), course / "course" / f".{name}-{student}.json"
    told.write_text(json.dumps({check: verdict.message for check, verdict in verdicts.items()}))
    os.environ[VERDICTS_VARIABLE] = str(told)
    try:
        with TemporaryDirectory() as folder:
            kernel.put_in_place(Path(folder))
            outcome = grader.autograde(name, student, force=True, create=True)
    finally:
        told.unlink()
    problem = "" if outcome["success"] else "nbgrader could not run the notebook"
    points = {check.name: check.points * verdicts[check.name].passed for check in checks_of(name).values()}
    if not problem:
        _enter(grader, name, student, points)
    messages = {check: verdict.message for check, verdict in verdicts.items() if not verdict.passed}
    most = sum(check.points for check in checks_of(name).values())
    result = Result(student, 0.0 if problem else sum(points.values()), most, problem, messages, final=not problem)
    _write_result(course, name, result)
    return result


def _enter(grader: NbGraderAPI, name: str, student: str, points: dict[str, float]) -> None:
    """Points of every check into the gradebook."""
    from nbgrader.api import Grade, MissingEntry

    with grader.gradebook as book:
        for check, score in points.items():
            try:
                grade = book.find_grade(cell_of(check), name, name, student)
            except MissingEntry:  # the student has deleted the cell
                cell, notebook = book.find_grade_cell(cell_of(check), name, name), (name, name, student)
                grade = Grade(cell=cell, notebook=book.find_submission_notebook(*notebook))
                book.db.add(grade)
            grade.auto_score, grade.needs_manual_grade = score, False
        book.db.commit()


def judge(name: str, cells: Sequence[str]) -> dict[str, Verdict]:
    """Every check of an assignment on a student's cells; where the cells never end, no other check runs them again."""
    first, *others = checks_of(name).values()
    verdicts = {first.name: verify(first, cells)}
    if verdicts[first.name].stuck:
        return {check.name: verdicts[first.name] for check in (first, *others)}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return verdicts | dict(
            zip((c.name for c in others), pool.map(partial(verify, cells=cells), others), strict=True)
        )


def cells_of(path: Path) -> list[str]:
    """The code of a notebook. Raises MinicosError where it cannot be read."""
    try:
        cells = json.loads(path.read_text())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MinicosError(f"{path} is no notebook ({type(error).__name__}): ask for it again") from None


def feedback(course: Path, name: str) -> None:
    """HTML for every graded student, in course/feedback."""
    checks_of(name)
    _succeed(api(course).generate_feedback(name, force=True), name)


def export(course: Path, path: Path) -> None:
    """All grades as CSV."""
    from nbgrader.plugins import CsvExportPlugin

    with api(course).gradebook as book:
        CsvExportPlugin(to=str(path)).export(book)


def _submitted(course: Path, student: str, name: str) -> Path:
    return course / "course" / "submitted" / student / name / f"{name}.ipynb"


def _result_file(course: Path, name: str, student: str) -> Path:
    return course / "course" / "results" / name / f"{student}.json"


def _result(course: Path, name: str, student: str) -> Result | None:
    """What is known of a submission as it is now."""
    try:
        found = json.loads(_result_file(course, name, student).read_text())
    except (OSError, ValueError):
        return None
    same = found.pop("sha256") == _digest(_submitted(course, student, name))
    return Result(**found) if same else None


def _write_result(course: Path, name: str, result: Result) -> None:
    path = _result_file(course, name, result.student)
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = _digest(_submitted(course, result.student, name))
    replace_file(path, (json.dumps({**asdict(result), "sha256": digest}, indent=1) + "\n").encode())


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _succeed(outcome: dict, name: str) -> None:
    if not outcome["success"]:
        reasons = [line for line in (outcome["error"] or outcome["log"] or "").splitlines() if line.strip()]
        raise MinicosError(f"{name}: nbgrader failed: {reasons[-1] if reasons else 'it does not say why'}")


def _worker(name: str, student: str) -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    course = root()
    try:
        grade_one(course, name, student)
    except MinicosError as error:
        most = sum(check.points for check in checks_of(name).values())
        _write_result(course, name, Result(student, 0.0, most, str(error), {}))


if __name__ == "__main__":
    _worker(*sys.argv[1:])
