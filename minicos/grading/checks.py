"""What a check is: inputs made now, a reference, and a comparison that says in one line what is wrong.

A check runs the student's cells in another process (`arena`), which gets the inputs and never the references, and
compares here what comes back. So it makes no difference what the student's code does to its own process.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from minicos.errors import MinicosError
from minicos.grading.processes import run_arena

SEED_VARIABLE = "MINICOS_GRADER_SEED"
SECONDS = 10.0  # of the student's code in one check
CELL_SECONDS = 2.0  # of each cell that was run in a session: it remembers those that were interrupted, too
LARGEST = 64 << 20  # bytes of a result

Inputs = Mapping[str, object]


@dataclass(frozen=True)
class Check:
    """One autograded exercise.

    name: of what the student writes, and of the cell that is graded. cases: from a generator, inputs by name.
    reference: the right result for such inputs, a tensor or a tuple of them. judge: in its place where many results are
    right, says what is wrong with one (inputs, arrays), "" if nothing. driver: Python that makes `result` from
    the student's names and the inputs; a call with all inputs in order if not given. kept: inputs that the student's
    function must leave as they were. slips: a hint, and the result
    that calls for it. given: right versions of what earlier exercises ask for, put in the place of the student's, so
    that a slip costs its own points only. forbidden: functions of libraries that would do the exercise. tolerance:
    absolute, relative to the largest value of the reference where that is above 1.
    """

    name: str
    points: float
    cases: Callable[[Generator], Sequence[Inputs]]
    reference: Callable[..., Tensor | tuple[Tensor, ...]] | None = None
    slips: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = field(default_factory=dict)
    driver: str = ""
    kept: tuple[str, ...] = ()
    given: tuple[Callable, ...] = ()
    forbidden: tuple[str, ...] = ()
    judge: Callable[[Inputs, list[NDArray]], str] | None = None
    tolerance: float = 1e-4


@dataclass(frozen=True)
class Verdict:
    """message: one line for the student; empty where all is right. stuck: the cells themselves never end, so that no
    other check has to try them.
    """

    passed: bool
    message: str = ""
    stuck: bool = False


def _given(check: Check) -> str:
    """As source; a module of such functions may use torch, and F for torch.nn.functional."""
    functions = [inspect.getsource(function) for function in check.given]
    return "\n".join(["import torch", "import torch.nn.functional as F", *functions]) if functions else ""


def verify(check: Check, cells: Sequence[str], seed: int | None = None, cell_seconds: float | None = None) -> Verdict:
    """Run a student's cells and judge what they define.

    seed: of the inputs; from the environment of the grader (MINICOS_GRADER_SEED), else fresh, when None. It reaches
    neither the student's code nor its process. cell_seconds: after which a cell is passed over, None for never.
    """
    if seed is None:
        given = os.environ.get(SEED_VARIABLE)
        seed = int.from_bytes(given.encode(), "big") % 2**63 if given else secrets.randbits(63)
    cases = check.cases(Generator().manual_seed(seed))
    verdict = _attempt(check, cases, cells, cell_seconds)
    if verdict.passed or verdict.stuck or not check.given:
        return verdict
    # The student's own earlier functions may want to be called in another way than ours.
    own = _attempt(replace(check, given=()), cases, cells, cell_seconds)
    return own if own.passed else verdict


def _attempt(check: Check, cases: Sequence[Inputs], cells: Sequence[str], cell_seconds: float | None) -> Verdict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_job(folder, check, cases, cells, cell_seconds)
        ended = _run(folder)
        if ended:
            return Verdict(False, f"{check.name}: {ended}", stuck=not (folder / "ran").stat().st_size)
        try:
            raised, found = _read_result(folder)
        except Exception:  # the student's process wrote them: anything can be in them
            return Verdict(False, f"{check.name}: your code ended the process before it returned anything")
    if raised.error:
        return Verdict(False, _explained(check, cells, raised))
    results = [[found[place] for place in sorted(found) if place[0] == number] for number in range(len(cases))]
    try:
        wrong = what_is_wrong(check, cases, results)
    except Exception as error:  # one check costs its own points at most, and says so
        wrong = f"this could not be judged ({type(error).__name__}): show it to your instructor"
    return Verdict(False, f"{check.name}: {wrong}") if wrong else Verdict(True)


def what_is_wrong(check: Check, cases: Sequence[Inputs], results: Sequence[list[NDArray]]) -> str:
    """In words, with a hint where a slip gives just this; "" where all is right.

    results: for each case what was returned, and after it the inputs that are to be kept, as they were left.
    """
    split = [len(found) - len(check.kept) for found in results]
    returned = [found[:end] for found, end in zip(results, split, strict=True)]
    left = [found[end:] for found, end in zip(results, split, strict=True)]
    wrong = next(filter(None, (_compare(check, *one) for one in zip(cases, returned, left, strict=True))), "")
    return wrong and (_hint(check, cases, returned) or wrong)


@dataclass(frozen=True)
class Raised:
    """error: of the function, "" if none; unwritten: it is the one that the release raises; failures: of cells, by
    their numbers.
    """

    error: str
    unwritten: bool
    failures: dict[int, str]


def _read_result(folder: Path) -> tuple[Raised, dict[tuple[int, ...], NDArray]]:
    """What was raised, and arrays by case and place. Raises whatever there is to raise: student code can have written
    anything.
    """
    words = json.loads((folder / "result.json").read_text())
    failures = {int(number): _one_line(text) for number, text in words["failures"].items()}
    raised = Raised(_one_line(words["error"]), bool(words["unwritten"]), failures)
    with ZipFile(folder / "result.npz") as file:
        if sum(part.file_size for part in file.infolist()) > LARGEST:
            raise ValueError("too large")
    with np.load(folder / "result.npz", allow_pickle=False) as file:
        found = {tuple(map(int, key.split("/"))): file[key].astype(np.float64) for key in file.files}
    return raised, found


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]


def _write_job(
    folder: Path, check: Check, cases: Sequence[Inputs], cells: Sequence[str], cell_seconds: float | None
) -> None:
    arrays: dict[str, NDArray] = {}

    def stored(value: object) -> object:
        if isinstance(value, Tensor):
            key = str(len(arrays))
            arrays[key] = value.numpy()
            return {"array": key}
        return {name: stored(part) for name, part in value.items()} if isinstance(value, Mapping) else value

    call = check.driver or f"result = {check.name}({', '.join(cases[0])})"
    libraries = [find_spec(name) for name in ("minicos", "diffusers", "sklearn")]
    job = {
        "cells": list(cells),
        "driver": f"{call}\nresult = [result, [{', '.join(check.kept)}]]" if check.kept else call,
        "cases": [{name: stored(value) for name, value in inputs.items()} for inputs in cases],
        "given": _given(check),
        "forbidden": check.forbidden,
        "seconds": SECONDS,
        "cell_seconds": cell_seconds,
        "off_limits": [str(Path(library.origin).parent) for library in libraries if library],
    }
    (folder / "job.json").write_text(json.dumps(job))
    np.savez(folder / "inputs.npz", **arrays)
    (folder / "ran").touch()  # empty until the cells are through


def _run(folder: Path) -> str:
    """Run the arena; why there is no result, "" where there is one."""
    code = run_arena(folder, SECONDS)
    if code is None:
        return (
            f"your code was still running after {SECONDS:.0f} s, all cells of the notebook together: "
            "is there a loop that does not end?"
        )
    if code:
        return f"your code ended the process (exit code {code}): does it call exit, or fill the memory?"
    return ""


def _explained(check: Check, cells: Sequence[str], raised: Raised) -> str:
    """What was raised; and where a name is missing, how the cell that should define it broke off."""
    if raised.unwritten:
        return f"{check.name} is not written yet: put your code in the place of `raise NotImplementedError`"
    if not (raised.error.startswith("NameError") and f"'{check.name}'" in raised.error):
        return f"{check.name} raised {raised.error}"
    defines = re.compile(rf"^\s*(?:def\s+{check.name}\b|class\s+{check.name}\b|{check.name}\s*=)", re.MULTILINE)
    own = [raised.failures[n] for n, source in enumerate(cells) if n in raised.failures and defines.search(source)]
    if own:
        return f"{check.name} is not defined; a cell broke off with {own[-1]}"
    return f"{check.name} is not defined: run its cell first"


def _compare(check: Check, inputs: Inputs, found: list[NDArray], kept: list[NDArray]) -> str:
    if check.judge:
        return check.judge(inputs, found)
    expected = arrays_of(check.reference(**copied(inputs)))
    if len(found) != len(expected):
        parts = ": is it a list of its parts?" if len(expected) == 1 and len(found) > 1 else ""
        return f"expected {_tensors(len(expected))}, got {len(found)}{parts}"
    for own, right in zip(found, expected, strict=True):
        if own.shape != right.shape:
            return f"expected the shape {right.shape}, got {own.shape}"
        if not np.isfinite(own).all():
            return "there are values that are no finite numbers"
    if _close(found, expected, check.tolerance):
        changed = [
            name
            for name, array in zip(check.kept, kept, strict=True)
            if not np.array_equal(array, inputs[name].double().numpy())
        ]
        return f"{changed[0]} must stay as it was given: work on a copy" if changed else ""
    largest = max(float(np.abs(own - right).max()) for own, right in zip(found, expected, strict=True))
    if all(right.ndim == 0 for right in expected):
        return f"the number is not right: it is off by {largest:.3g}"
    return f"the shape is right, the values are not: they differ by up to {largest:.3g}"


def _hint(check: Check, cases: Sequence[Inputs], results: Sequence[Sequence[NDArray]]) -> str:
    """Of the slip that would have given just these results, "" if none would."""
    for hint, slip in check.slips.items():
        expected = [arrays_of(slip(**copied(inputs))) for inputs in cases]
        if all(_close(*both, check.tolerance) for both in zip(results, expected, strict=True)):
            return hint
    return ""


def _tensors(count: int) -> str:
    return "one tensor" if count == 1 else f"{count} tensors"


def copied(inputs: Inputs) -> dict[str, object]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def arrays_of(result: Tensor | tuple[Tensor, ...]) -> list[NDArray]:
    parts = result if isinstance(result, tuple) else (result,)
    return [torch.as_tensor(part).detach().double().numpy() for part in parts]


def _close(found: Sequence[NDArray], expected: Sequence[NDArray], tolerance: float) -> bool:
    return all(
        own.shape == right.shape
        and np.abs(own - right).max(initial=0) <= tolerance * max(1, np.abs(right).max(initial=0))
        for own, right in zip(found, expected, strict=True)
    )


def cells_of_session() -> list[str]:
    """The code that was run in this notebook so far; of what was run again and again, the first and the last time.

    Raises MinicosError outside of a notebook.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        raise MinicosError("minicos.check works in a notebook only: open the assignment in JupyterLab")
    sources = [source for *_, source in shell.history_manager.get_range(raw=True, output=False)]
    return [s for n, s in enumerate(sources) if s not in sources[:n] or s not in sources[n + 1 :]]
