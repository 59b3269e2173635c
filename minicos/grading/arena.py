"""A process in which a student's code is run: it has inputs and no references, and nobody to hand the work to.

Run as `python -I arena.py`; every line that it reads from then on is the folder of a job (`processes.run_arena`). A job
is job.json {"cells", "given", "driver", "cases", "forbidden", "seconds", "cell_seconds", "off_limits"} and inputs.npz;
what comes out is written to result.npz and result.json. This file imports nothing of minicos but `landlock`, which
knows nothing of it, so no reference is ever in this process.

Cells that fail are passed over: a student's notebook also holds experiments, which need minicos. `minicos` and names
from it can be imported, so that a cell goes on until it uses them. Once they are through, the
empty file `ran` gets a byte: so the caller can tell cells that never end from a function that does not.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import json
import os
import select
import signal
import sys
import traceback
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from matplotlib import pyplot  # noqa: F401 - every notebook imports it, which takes its time

HIDDEN = ("minicos", "diffusers", "transformers", "accelerate", "peft", "lightning", "nbgrader", "sklearn")
# What student code may not cause: other processes, the network, libraries that can do either.
REFUSED = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "socket.", "ctypes.")
MEMORY = 8 << 30
FILE = 64 << 20


class Hidden(types.ModuleType):
    """A library, a part of it, or something taken from one: it can be imported, and refuses when it is used."""

    __path__ = ()  # a part of it can be imported, too

    def __getattr__(self, name: str) -> Hidden:
        if name.startswith("__"):
            raise AttributeError(name)
        return Hidden(f"{self.__name__}.{name}")

    def __call__(self, *_: object, **__: object) -> None:
        library = self.__name__.partition(".")[0]
        raise ImportError(f"{library} is not there while your code is checked: write this part yourself")


class Hiding:
    """A finder and loader of modules: all of a hidden library is there, and nothing of it works."""

    @classmethod
    def find_spec(cls, name: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(name, cls) if name.partition(".")[0] in HIDDEN else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> Hidden:
        return Hidden(spec.name)

    @staticmethod
    def exec_module(module: Hidden) -> None:
        pass


def forbid(path: str) -> None:
    """Replace a function by its dotted path with one that refuses."""
    module, _, name = path.rpartition(".")

    def refuse(*_: object, **__: object) -> None:
        raise ImportError(f"{path} is not allowed here: write this part yourself")

    library, *parts = module.split(".")
    owner: object = importlib.import_module(library)
    for part in parts:
        owner = getattr(owner, part)
    setattr(owner, name, refuse)


def guard(off_limits: list[str]) -> None:
    """From here on: files of the installed libraries can be read, and nothing else. Cannot be taken back.

    The kernel holds it where it has Landlock. The hook says it in a line that a student understands; by itself it
    stops what is honest, since student code runs in the same interpreter.
    """
    roots = [os.path.realpath(p) for p in {sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)}]
    closed = [os.path.realpath(path) for path in off_limits]
    landlock = spec_from_file_location("landlock", Path(__file__).with_name("landlock.py"))
    module = module_from_spec(landlock)
    landlock.loader.exec_module(module)
    module.read_only([*roots, "/lib", "/lib64", "/usr/lib", "/usr/lib64"], closed)

    def watch(event: str, arguments: tuple) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed while your code is checked")
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            readable = any(path.startswith(root + os.sep) for root in roots)
            if writes or not readable or any(path.startswith(place) for place in closed):
                raise PermissionError(f"{path} cannot be opened while your code is checked")

    sys.addaudithook(watch)


def limit() -> None:
    """Memory and what is written, where the system can limit them."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))


def run_cells(cells: list[str], seconds: float | None) -> tuple[dict, dict[int, str]]:
    """The names that all cells leave behind, and by their numbers how those that failed did.

    seconds: after which a cell is passed over, None for never.
    """
    names: dict = {"__name__": "__main__", "torch": torch, "np": np, "display": print}
    failures = {}
    for number, source in enumerate(cells):
        try:
            with patience(seconds):
                exec(compiled(source), names)
        except BaseException as error:  # SystemExit, too
            failures[number] = told(error)
    return names, failures


def compiled(source: str) -> types.CodeType:
    """A cell; where it is no Python, without the lines that only a notebook understands."""
    try:
        return compile(source, "<your cell>", "exec")
    except SyntaxError:
        lines = source.splitlines()
        plain = [
            "" if line.strip().startswith(("%", "!", "?")) or line.strip().endswith("?") else line for line in lines
        ]
        return compile("\n".join(plain), "<your cell>", "exec")


@contextlib.contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, where the system has such a clock."""
    if seconds is None or not hasattr(signal, "setitimer"):
        yield
        return

    def interrupt(*_: object) -> None:
        raise TimeoutError(f"passed over after {seconds:g} s")

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def told(error: BaseException) -> str:
    """One line: what was raised, and in which line of the student's cell."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<your cell>"]
    what = str(error).strip().splitlines()
    where = f" (line {lines[-1]} of your cell)" if lines else ""
    return f"{type(error).__name__}: {what[0] if what else 'no message'}"[:300] + where


def as_arrays(result: object) -> list[np.ndarray]:
    """Tensors, arrays, numbers, and sequences of them, as a flat list of arrays; a sequence of numbers is one array."""
    if result is None:
        raise TypeError("nothing was returned: is `return` missing?")
    if isinstance(result, (list, tuple)) and all(np.ndim(part) == 0 for part in result):
        return [np.array([float(part) for part in result])]
    if isinstance(result, (list, tuple)):
        return [array for part in result for array in as_arrays(part)]
    if isinstance(result, torch.Tensor):
        return [result.detach().cpu().double().numpy()]
    array = np.asarray(result)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"expected tensors or numbers, got {type(result).__name__}")
    return [array.astype(np.float64)]


def serve() -> None:
    """Take jobs as they come, each in a fork of this process, and answer with its exit code; where forks of a process
    that has imported torch are not safe (anywhere but on Linux), one job only, in this process.
    """
    print("ready", flush=True)
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        if sys.platform != "linux":
            run_and_end(folder)
        child = os.fork()
        if not child:
            os.setsid()  # what it signals to its group reaches nobody else, and it can be ended with all that it began
            run_and_end(folder)
        print(exit_code(child, json.loads((folder / "job.json").read_text())["seconds"] + 1), flush=True)


def exit_code(child: int, seconds: float) -> int:
    """Of a process that is killed after so long, if it has not ended by itself; others of its group are killed, too."""
    ended = os.pidfd_open(child)
    select.select([ended], [], [], seconds)
    os.close(ended)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_and_end(folder: Path) -> NoReturn:
    """A job, and then the end of this process, whatever the job does."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.chdir(folder)
    code = 1
    try:
        main(folder)
        code = 0
    finally:
        os._exit(code)


def main(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text())
    with np.load(folder / "inputs.npz", allow_pickle=False) as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    ran, numbers, words = (
        (folder / "ran").open("wb"),
        (folder / "result.npz").open("wb"),
        (folder / "result.json").open("w"),
    )
    torch.set_num_threads(1)
    limit()
    sys.meta_path.insert(0, Hiding)
    for path in job["forbidden"]:
        forbid(path)
    given, driver = (compile(job[part], "<check>", "exec") for part in ("given", "driver"))
    faulthandler.dump_traceback_later(job["seconds"], exit=True)
    guard(job["off_limits"])
    names, failures = run_cells(job["cells"], job["cell_seconds"])
    ran.write(b"1")
    ran.close()
    exec(given, names)
    arrays: dict[str, np.ndarray] = {}
    error, unwritten = "", False
    for number, case in enumerate(job["cases"]):
        try:
            scope = {**names, **{name: restored(value, stored) for name, value in case.items()}}
            exec(driver, scope)
            for place, array in enumerate(as_arrays(scope["result"])):
                arrays[f"{number}/{place}"] = array
        except BaseException as raised:
            error, unwritten = told(raised), isinstance(raised, NotImplementedError) and not raised.args
            break
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    numbers.write(buffer.getvalue())
    numbers.close()
    words.write(json.dumps({"error": error, "unwritten": unwritten, "failures": failures}))
    words.close()


def restored(value: object, stored: dict[str, torch.Tensor]) -> object:
    """Tensors stand in job.json as {"array": key}; every case gets its own copy."""
    if isinstance(value, dict) and set(value) == {"array"}:
        return stored[value["array"]].clone()
    if isinstance(value, dict):
        return {name: restored(part, stored) for name, part in value.items()}
    return value


if __name__ == "__main__":
    serve()
