"""Landlock: a process gives up files for good, for itself and its children, whatever code runs in it afterwards.

Linux 5.13 and newer (https://docs.kernel.org/userspace-api/landlock.html). Imports nothing of minicos, so that it can
be used where student code runs.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, the same on every architecture
ASK_VERSION, PATH_BENEATH = 1, 1
NO_NEW_PRIVILEGES = 38  # of prctl; the kernel asks for it

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE  # the others are of folders
FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # by version: what can be refused about files
NETWORK = 3  # from version 4: to listen and to connect
SCOPE = 3  # from version 6: sockets and signals beyond the processes that are confined alike


def version() -> int:
    """Of Landlock in this kernel; 0 where there is none."""
    if not sys.platform.startswith("linux"):
        return 0
    return max(0, ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ASK_VERSION))


def read_only(roots: Iterable[str], closed: Iterable[str]) -> bool:
    """From here on this thread, and all that it starts, can read below `roots` and not below `closed`; it can write
    and execute no file, make no connection, and send no signal to others. Files that are open stay so.

    False where the kernel cannot do it.
    """
    shut = {os.path.realpath(path) for path in closed}
    rules = (rule for root in roots for rule in _rules(os.path.realpath(root), shut))
    return _restrict(~0, NETWORK, rules)


def write_below(folders: Iterable[str]) -> bool:
    """From here on this thread, and all that it starts, can write below `folders` only, and send no signal to others.

    False where the kernel cannot do it.
    """
    return _restrict(~(EXECUTE | READ_FILE | READ_DIR), 0, [(folder, ~0) for folder in folders])


def _restrict(files: int, network: int, rules: Iterable[tuple[str, int]]) -> bool:
    """Refuse what is given of files and of the network, but for what `rules` allow: what may be done below a path."""
    found = version()
    if not found:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    files &= FILES[min(found, 3)]
    attributes = struct.pack("=QQQ", files, network, SCOPE)[: 24 if found >= 6 else 16 if found >= 4 else 8]
    ruleset = libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    for path, access in rules:
        try:
            place = os.open(path, os.O_PATH)
        except OSError:  # not there
            continue
        rule = struct.pack("=Qi", access & files & (~0 if os.path.isdir(path) else OF_A_FILE), place)
        libc.syscall(ADD_RULE, ruleset, PATH_BENEATH, rule, 0)
        os.close(place)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    done = libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return not done


def _rules(path: str, closed: set[str]) -> Iterator[tuple[str, int]]:
    """What to allow so that all below `path` can be read but what is closed: folders with something closed in them can
    be listed, and are gone through.
    """
    if path in closed:
        return
    if not any(place.startswith(path + os.sep) for place in closed):
        yield path, READ_FILE | READ_DIR
        return
    yield path, READ_DIR
    for entry in os.scandir(path):
        if not entry.is_symlink():
            yield from _rules(entry.path, closed)
