"""Checks are proved: right answers get their points, wrong ones lose their own, and cheats earn nothing."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import replace

import answers_a1
import answers_a2
import answers_a3
import answers_a4
import pytest
import torch
from mistakes import CANDIDATES, MISTAKES
from submissions import NAME, ROOT, code, failed, notebook, with_answers

from minicos.errors import MinicosError
from minicos.grading import ASSIGNMENTS, a1_given, checks_of, course, landlock, processes
from minicos.grading.checks import SEED_VARIABLE, Verdict, arrays_of, copied, verify, what_is_wrong

ANSWERS = dict(zip(ASSIGNMENTS, (answers_a1, answers_a2, answers_a3, answers_a4), strict=True))


def answers(kind: str):
    """(assignment, answers) for every set of answers of this kind."""
    return [
        pytest.param(name, cells, id=f"{name}: {title}")
        for name, module in ANSWERS.items()
        for title, cells in getattr(module, kind).items()
    ]


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_untouched_release_earns_nothing(name):
    messages = failed(name, code(notebook(name, "assignments").cells))
    assert set(messages) == set(checks_of(name))
    assert all("is not written yet" in message for message in messages.values())


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_solution_earns_everything(name):
    assert failed(name, code(notebook(name).cells)) == {}


@pytest.mark.parametrize(("name", "cells"), answers("WRONG"))
def test_wrong_answers_lose_their_own_points_and_no_others(name, cells):
    messages = failed(name, code(with_answers(cells, name).cells))
    assert set(messages) == set(cells)
    for exercise, message in messages.items():
        assert message.startswith(f"{exercise}")
        assert "\n" not in message


@pytest.mark.parametrize(("name", "cells"), answers("RIGHT"))
def test_right_answers_in_other_words_earn_their_points(name, cells):
    written = code(with_answers(cells, name).cells)
    for exercise in cells:
        assert verify(checks_of(name)[exercise], written) == Verdict(True)


CHEATS = {
    "takes the library's function": "from minicos.flow import interpolate",
    "calls the library": "import minicos.flow\ndef interpolate(*a): return minicos.flow.interpolate(*a)",
    "finds the library again": (
        "import sys\nfor name in [n for n in sys.modules if n.startswith('minicos')]: del sys.modules[name]\n"
        "from minicos.flow import interpolate"
    ),
    "reads the solution": (
        f"import json\ncells = json.load(open({str(ROOT / 'solutions' / NAME / (NAME + '.ipynb'))!r}))['cells']\n"
        "exec(next(''.join(c['source']) for c in cells if c['id'] == 'interpolate'))"
    ),
    "reads the library's source": f"exec(open({str(ROOT / 'minicos' / 'flow.py')!r}).read())",
    "another process": (
        "import subprocess, sys\n"
        "def interpolate(*a): return subprocess.check_output([sys.executable, '-c', 'import minicos'])"
    ),
    "always equal": (
        "class Equal:\n    def __eq__(self, other): return True\n    def __array__(self, *a, **k): return self\n"
        "def interpolate(*a): return Equal()"
    ),
    "patched comparison": (
        "torch.allclose = torch.equal = lambda *a, **k: True\nnp.abs = lambda *a: np.zeros(1)\n"
        "def interpolate(x0, noise, sigma): return x0"
    ),
    "patched grader": (
        "import minicos, minicos.grading\nminicos.check = minicos.grading.check = lambda *a: None\n"
        "def interpolate(x0, noise, sigma): return x0"
    ),
    "seed from the environment": (
        "import os\nseed = os.environ['MINICOS_GRADER_SEED']\ndef interpolate(x0, noise, sigma): return x0 * len(seed)"
    ),
    "looks for a reference": (
        "import gc, sys\ndef interpolate(x0, noise, sigma):\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in frame.f_locals.values():\n"
        "            if torch.is_tensor(value) and value.shape == x0.shape and id(value) not in (id(x0), id(noise)):\n"
        "                return value\n        frame = frame.f_back\n    return max(\n"
        "        (o for o in gc.get_objects() if torch.is_tensor(o) and o.shape == x0.shape), key=id)"
    ),
    "leaves early": "import os\nos._exit(0)",
    "writes the result": (
        "import pathlib, json, os\nfor p in pathlib.Path('.').glob('*'): p.write_text('{}')\n"
        "def interpolate(x0, noise, sigma): return x0"
    ),
    "exits": "import sys\ndef interpolate(*a): sys.exit(0)",
    "writes without end": "def interpolate(*a):\n    while True: print('x' * 10**7)",
    "fills the memory": "def interpolate(*a):\n    full = []\n    while True: full.append(torch.zeros(10**9))",
    "kills its group": "import os\nos.kill(0, 9)",
    "an error of many lines": (
        "class Error(Exception): pass\nError.__name__ = 'a\\nb'\ndef interpolate(*a): raise Error('c\\nd')"
    ),
    "no tensor": "def interpolate(*a): return 'the right answer'",
    "the inputs": "def interpolate(x0, noise, sigma): return noise",
}


@pytest.mark.parametrize("source", CHEATS.values(), ids=CHEATS)
def test_cheats_earn_nothing_and_are_told_so_in_one_line(source, monkeypatch):
    monkeypatch.setenv(SEED_VARIABLE, "a secret")
    verdict = verify(checks_of(NAME)["interpolate"], [source])
    assert not verdict.passed
    assert verdict.message.startswith("interpolate")
    assert "\n" not in verdict.message


SOLUTION = ROOT / "solutions" / NAME / f"{NAME}.ipynb"
TAKE = "\nimport json\nexec(next(''.join(c['source']) for c in json.loads(text)['cells'] if c['id'] == 'interpolate'))"
# What student code can do to the interpreter that it shares with our hook.
BREAKOUTS = {
    "changes the hook": (
        "import sys\narena = sys.modules['__main__']\narena.isinstance = lambda *a: False\n"
        f"text = open({str(SOLUTION)!r}).read()\ndel arena.isinstance{TAKE}"
    ),
    "lies about the path": (
        "import os, sys\nos.path.realpath = lambda p, **k: sys.prefix + '/x'\n"
        f"text = open({str(SOLUTION)!r}).read(){TAKE}"
    ),
    "reads by another library": (
        f"import os\npath = {str(SOLUTION)!r}\nraw = torch.from_file(path, size={SOLUTION.stat().st_size}, "
        f"dtype=torch.uint8)\ntext = bytes(raw.tolist()).decode(){TAKE}"
    ),
    "another process": (
        "import os\nfrom multiprocessing.util import spawnv_passfds\nends, begins = os.pipe()\nos.dup2(begins, 1)\n"
        f"spawnv_passfds(b'/bin/cat', [b'cat', {str(SOLUTION).encode()!r}], [0, 1, 2])\nos.close(begins)\nos.close(1)\n"
        f"text = b''.join(iter(lambda: os.read(ends, 1 << 16), b'')){TAKE}"
    ),
}


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
@pytest.mark.parametrize("source", BREAKOUTS.values(), ids=BREAKOUTS)
def test_the_kernel_holds_what_the_interpreter_cannot(source, tmp_path, monkeypatch):
    verdict = verify(checks_of(NAME)["interpolate"], [source])
    assert not verdict.passed
    assert "\n" not in verdict.message
    # The control: the same arena without Landlock gives the points away.
    monkeypatch.setattr(processes, "ARENA", tmp_path / "arena.py")
    monkeypatch.setattr(processes, "_waiting", [])
    (tmp_path / "arena.py").write_text((ROOT / "minicos" / "grading" / "arena.py").read_text())
    (tmp_path / "landlock.py").write_text("def read_only(roots, closed): return False")
    assert verify(checks_of(NAME)["interpolate"], [source]) == Verdict(True)


NO_ERROR = {"error": "", "unwritten": False, "failures": {}}


@pytest.mark.parametrize(
    ("words", "arrays"),
    [
        ({}, "{'0/0': 1.0}"),
        (NO_ERROR | {"error": []}, "{'0/0': 1.0}"),
        (NO_ERROR | {"failures": {"a": "b"}}, "{'0/0': 1.0}"),
        (NO_ERROR, "{'x': 1.0}"),
        (NO_ERROR, "{'0/0': 'text'}"),
        (NO_ERROR, "{'0/0': np.zeros(1 << 24)}"),
    ],
)
def test_what_student_code_writes_as_its_result_is_not_trusted(words, arrays):
    source = (
        f"import gc, io, os\nbuffer = io.BytesIO()\nnp.savez_compressed(buffer, **{arrays})\n"
        "for file in gc.get_objects():\n"
        "    if type(file) is io.BufferedWriter and 'result.npz' in str(file):\n"
        "        file.write(buffer.getvalue()); file.flush()\n"
        "    if type(file) is io.TextIOWrapper and 'result.json' in str(file):\n"
        f"        file.write({json.dumps(words)!r}); file.flush()\nos._exit(0)"
    )
    verdict = verify(checks_of(NAME)["interpolate"], [source])
    assert verdict.message == "interpolate: your code ended the process before it returned anything"


@pytest.mark.parametrize(
    "call",
    [
        "torch.nn.functional.scaled_dot_product_attention(q, k, v)",
        "torch.ops.aten.scaled_dot_product_attention(q, k, v)",
        "torch._C._nn.scaled_dot_product_attention(q, k, v)",
        "torch._scaled_dot_product_attention_math(q, k, v)[0]",
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]",
    ],
)
def test_attention_is_not_handed_to_torch(call):
    verdict = verify(checks_of(NAME)["attention"], [f"def attention(q, k, v): return {call}"])
    assert "not allowed here" in verdict.message


@pytest.mark.parametrize(
    ("name", "check", "source"),
    [
        (
            "a3_layers",
            "ridge_scores",
            "from sklearn.linear_model import Ridge\n"
            "def ridge_scores(a, y, b, penalty): return Ridge(alpha=penalty).fit(a, y).predict(b)",
        ),
        (
            "a3_layers",
            "folds_of",
            "def folds_of(groups, folds):\n    import sklearn.model_selection as m\n"
            "    return [n for n, _ in enumerate(m.GroupKFold(folds).split(groups, groups=groups))]",
        ),
        (
            "a2_frames_or_steps",
            "wilson",
            "import scipy.stats\ndef wilson(right, n):\n"
            "    return list(scipy.stats.binomtest(int(right), int(n)).proportion_ci(method='wilson'))",
        ),
    ],
)
def test_the_work_is_not_handed_to_other_libraries(name, check, source):
    message = verify(checks_of(name)[check], [source]).message
    assert "write this part yourself" in message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("groups[:] = torch.arange(len(groups)) % folds; return groups", "more than one fold"),
        ("return torch.arange(len(groups)) % folds\nmax = lambda *a: 1", "more than one fold"),
        ("return torch.unique(groups, return_inverse=True)[1] % folds + 1", "counted from 0"),
        ("return torch.unique(groups, return_inverse=True)[1] % folds // 2", "more groups than others"),
        ("return (torch.unique(groups, return_inverse=True)[1] % folds)[:, None]", "a fold for every row"),
    ],
)
def test_folds_are_judged_where_the_student_cannot_reach(body, message):
    assert message in verify(checks_of("a3_layers")["folds_of"], [f"def folds_of(groups, folds): {body}"]).message


@pytest.mark.parametrize(("name", "source", "hint"), MISTAKES, ids=[hint for *_, hint in MISTAKES])
def test_a_likely_mistake_has_a_message_of_its_own(name, source, hint):
    message = verify(checks_of(name)[re.search(r"def (\w+)", source)[1]], [source]).message
    assert hint in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("check", "hint"),
    [
        pytest.param(check, hint, id=f"{name}: {check.name}: {hint}")
        for name in ASSIGNMENTS
        for check in checks_of(name).values()
        for hint in check.slips
    ],
)
def test_every_slip_gets_its_own_hint(check, hint):
    cases = check.cases(torch.Generator().manual_seed(0))
    results = [
        [*arrays_of(check.slips[hint](**copied(inputs))), *arrays_of(tuple(inputs[name] for name in check.kept))]
        for inputs in cases
    ]
    assert what_is_wrong(check, cases, results) == hint


def test_a_check_that_breaks_costs_its_own_points_and_says_so():
    check = replace(checks_of(NAME)["interpolate"], reference=lambda **inputs: 1 / 0)
    message = verify(check, ["def interpolate(clean, noise, sigma): return clean"]).message
    assert message == "interpolate: this could not be judged (ZeroDivisionError): show it to your instructor"


@pytest.mark.parametrize("threshold", [0.2, 0.3, 0.5])
def test_another_threshold_is_noticed(threshold):
    source = CANDIDATES.replace("0.25", str(threshold))
    assert not verify(checks_of("a2_frames_or_steps")["candidates"], [source], seed=0).passed
    assert verify(checks_of("a2_frames_or_steps")["candidates"], [CANDIDATES]) == Verdict(True)


def test_a_later_exercise_may_use_earlier_ones_that_are_called_in_another_way():
    cells = code(notebook(NAME).cells)
    own = "def attention(q, k, v, mask): return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v"
    block = inspect.getsource(a1_given.wan_block).replace(
        "attention(query, key, value)", "attention(q=query, k=key, v=value, mask=None)"
    )
    assert verify(checks_of(NAME)["wan_block"], [*cells, own, block]) == Verdict(True)
    without_scale = own.replace(" / q.shape[-1] ** 0.5", "")
    assert not verify(checks_of(NAME)["wan_block"], [*cells, without_scale, block]).passed


def test_a_submission_sees_nothing_of_the_one_before():
    check, right = checks_of(NAME)["interpolate"], code(notebook(NAME).cells)
    spoilt = "import builtins\ntorch.Tensor.__mul__ = torch.add\nbuiltins.kept = 1\ndef interpolate(*a): return a[0]"
    assert not verify(check, [spoilt]).passed
    assert verify(check, right) == Verdict(True)
    assert "'kept' is not defined" in verify(check, ["def interpolate(*a): return kept"]).message


def test_a_process_that_was_killed_is_replaced():
    check, right = checks_of(NAME)["interpolate"], code(notebook(NAME).cells)
    assert verify(check, right) == Verdict(True)
    for arena in processes._waiting:
        arena.kill()
        arena.wait()
    assert verify(check, right) == Verdict(True)


def test_a_process_that_another_thread_takes_at_once_is_not_ended(monkeypatch):
    class Waiting(list):
        def append(self, arena):
            taken.append(arena)

    taken = []
    monkeypatch.setattr(processes, "_waiting", Waiting())
    assert verify(checks_of(NAME)["interpolate"], code(notebook(NAME).cells)) == Verdict(True)
    (arena,) = taken
    assert arena.poll() is None
    processes.end_group(arena)


def test_a_process_that_does_not_start_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "arena.py").write_text("raise MemoryError")
    monkeypatch.setattr(processes, "ARENA", tmp_path / "arena.py")
    monkeypatch.setattr(processes, "_waiting", [])
    with pytest.raises(MinicosError, match="did not start: is there enough memory"):
        verify(checks_of(NAME)["interpolate"], [])


def test_where_forks_are_not_safe_each_job_has_a_process_of_its_own(tmp_path, monkeypatch):
    source = (ROOT / "minicos" / "grading" / "arena.py").read_text()
    assert 'sys.platform != "linux"' in source
    (tmp_path / "arena.py").write_text(source.replace('sys.platform != "linux"', "True"))
    (tmp_path / "landlock.py").write_text((ROOT / "minicos" / "grading" / "landlock.py").read_text())
    monkeypatch.setattr(processes, "ARENA", tmp_path / "arena.py")
    monkeypatch.setattr(processes, "_waiting", [])
    check = checks_of(NAME)["interpolate"]
    assert verify(check, code(notebook(NAME).cells)) == Verdict(True)
    assert "ended the process (exit code 3)" in verify(check, ["import os\nos._exit(3)"]).message
    assert processes._waiting == []


def test_a_cell_that_was_interrupted_does_not_stand_in_the_way():
    cells = ["while True: pass", "def target_velocity(x0, noise): return noise - x0"]
    assert verify(checks_of(NAME)["target_velocity"], cells, cell_seconds=1.0) == Verdict(True)


def test_cells_that_never_end_are_not_run_for_every_check():
    verdicts = course.judge(NAME, ["while True: pass"])
    assert set(verdicts) == set(checks_of(NAME))
    assert len({id(verdict) for verdict in verdicts.values()}) == 1
    assert all("loop" in verdict.message and not verdict.passed for verdict in verdicts.values())


def test_the_message_says_which_cell_broke_off():
    check = checks_of(NAME)["interpolate"]
    verdict = verify(check, ["import torch\nx = 1 / 0\ndef interpolate(*a): pass"])
    assert verdict.message == (
        "interpolate is not defined; a cell broke off with ZeroDivisionError: division by zero (line 2 of your cell)"
    )
    assert verify(check, []).message == "interpolate is not defined: run its cell first"
    elsewhere = verify(check, ["def interpolate(*a) pass", "video = 1 / 0"])
    assert "SyntaxError" in elsewhere.message, "not how the cell after it broke off"
    assert "is `return` missing?" in verify(check, ["def interpolate(*a): pass"]).message
    wrong_shape = verify(check, ["def interpolate(x0, noise, sigma): return x0[:, :1]"])
    assert "expected the shape (3, 2, 4, 5, 6), got (3, 1, 4, 5, 6)" in wrong_shape.message


def test_a_magic_line_does_no_harm():
    for line in ("%matplotlib inline", "torch.stack?", "?torch.stack", "display(torch.zeros(2))"):
        cell = f"{line}\ndef target_velocity(x0, noise): return noise - x0"
        assert verify(checks_of(NAME)["target_velocity"], [cell]).passed
    no_magic = "def target_velocity(x0, noise):\n    return (noise - x0) * (\n        4\n        % 3\n    )"
    assert verify(checks_of(NAME)["target_velocity"], [no_magic]).passed
