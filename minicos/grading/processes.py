"""The processes that students' code is run in. Each has imported torch once and waits for jobs (`arena.serve`)."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

from minicos.errors import MinicosError

ARENA = Path(__file__).with_name("arena.py")
STARTING = 60.0  # seconds that Python and torch may take to start, on a machine that does other work too

_waiting: list[subprocess.Popen] = []


def run_arena(folder: Path, seconds: float) -> int | None:
    """The exit code of the job in a folder, negative for a signal; None where it was still running after `seconds`.

    Raises MinicosError where Python does not start.
    """
    arena = _taken() or _started()
    # An arena keeps the time itself. This is for one that student code has stopped, where the system lets it do that.
    last_resort = Timer(seconds + STARTING, end_group, [arena])
    last_resort.start()
    began, answer = time.monotonic(), ""
    try:
        with contextlib.suppress(BrokenPipeError):  # one that has just died: its exit code is all that there is
            arena.stdin.write(f"{folder}\n")
            arena.stdin.flush()
        answer = arena.stdout.readline()
        code = int(answer) if answer else arena.wait()
    finally:
        last_resort.cancel()
        if answer:
            _waiting.append(arena)  # from here on it may be another thread's
        else:
            end_group(arena)
    return None if code and time.monotonic() - began >= seconds else code


def _taken() -> subprocess.Popen | None:
    """One that waits and lives."""
    with contextlib.suppress(IndexError):  # none is left, maybe since another thread took the last one
        while True:
            arena = _waiting.pop()
            if arena.poll() is None:
                return arena
            end_group(arena)
    return None


def _started() -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k in ("PATH", "SYSTEMROOT", "TMPDIR", "LD_LIBRARY_PATH")}
    arena = subprocess.Popen(
        [sys.executable, "-I", str(ARENA)],
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # a signal to its group reaches nobody else, and an interrupted cell leaves it alone
    )
    if not arena.stdout.readline():  # that it has imported what it needs
        end_group(arena)
        raise MinicosError(
            "the process for checks did not start: is there enough memory? close other notebooks, try again"
        )
    return arena


def end_group(process: subprocess.Popen) -> None:
    """Kill a process that has a session of its own, and those in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()
    process.wait()


@atexit.register
def _end_all() -> None:
    for arena in _waiting:
        end_group(arena)
