"""Folders and files that commands write to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minicos.errors import MinicosError


def check_folder(folder: Path) -> None:
    """See that the folder could be made and written to; it is made when there is something to write.

    Raises MinicosError otherwise.
    """
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(20, "Not a directory")
        if not os.access(nearest, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise _cannot_write(folder, error) from None


def prepare_folder(folder: Path) -> Path:
    """Make the folder; raises MinicosError where it cannot be made or written to."""
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    return folder


def _cannot_write(folder: Path, error: OSError) -> MinicosError:
    return MinicosError(f"cannot write to {folder} ({error.strerror}): give another --out")


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """A kill or a power cut leaves the old file or the new one, never a part.

    Raises MinicosError where there is no room for it.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else the name may reach the disk before what it names
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MinicosError(
            f"cannot write {path} ({error.strerror}): see to it and run again; what was written before stays"
        ) from None


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While it lasts, nobody else may be in here. It ends with the process, however that ends; where the system has no
    such locks, nothing is held. Raises MinicosError where another process is at work.
    """
    try:
        import fcntl
    except ImportError:  # not on Linux or macOS
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk that knows no locks
            try:
                fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MinicosError(
                    f"another process is at work in {folder}: wait for it, or give another --out"
                ) from None
        yield
    finally:
        os.close(place)


def claim(path: Path, mine: dict[str, object], what: str, used: bool) -> None:
    """Write down at `path` which sweep (or whatever) its folder is for, or see that it is for this one.

    what: "sweep", for the messages. used: whether there is something of one already. Raises MinicosError where the
    folder is for another one, and where nobody knows which.
    """
    prepare_folder(path.parent)
    if not path.exists():
        if used:
            raise MinicosError(f"{path.parent} holds parts of an unknown {what}: give another --out")
        replace_file(path, (json.dumps(mine, indent=1) + "\n").encode())
        return
    try:
        found = json.loads(path.read_text())
    except ValueError:
        raise MinicosError(f"{path} cannot be read: give another --out, or delete the folder") from None
    if found != mine:
        raise MinicosError(f"{path.parent} holds another {what} ({path.name} says which): give another --out")
