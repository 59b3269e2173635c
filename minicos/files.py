"""Folders and files that commands write to."""

from __future__ import annotations

import os
from pathlib import Path

from minicos.errors import MinicosError


def prepare_folder(folder: Path) -> Path:
    """Make the folder and see that it can be written to; raises MinicosError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise MinicosError(f"cannot write to {folder} ({error.strerror}): give another --out") from None
    return folder


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """A kill leaves the old file or the new one, never a part. Raises MinicosError where there is no room for it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MinicosError(
            f"cannot write {path} ({error.strerror}): see to it and run again; what was written before stays"
        ) from None
