"""Runs notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minicos.errors import MinicosError

if TYPE_CHECKING:
    from nbformat import NotebookNode

SECONDS = 600  # that one cell may take


def opened(path: Path) -> NotebookNode:
    """A notebook as it is; raises MinicosError where there is none."""
    import nbformat

    try:
        return nbformat.read(path, 4)
    except OSError as error:
        raise MinicosError(f"cannot open {path} ({error.strerror}): give the path of an .ipynb file") from None
    except (nbformat.reader.NotJSONError, nbformat.validator.NotebookValidationError, UnicodeDecodeError):
        raise MinicosError(f"{path} is no notebook: give the path of an .ipynb file") from None


def executed(path: Path) -> NotebookNode:
    """A notebook with the outputs that it has when it is run in its folder; the file stays as it is.

    Raises MinicosError where there is no such notebook, where a cell fails, and where one takes too long.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook = opened(path)
    place = {"metadata": {"path": str(path.parent)}}
    try:
        # A kernel warns of connections that never leave this machine.
        NotebookClient(notebook, timeout=SECONDS, resources=place, extra_arguments=["--log-level=ERROR"]).execute()
    except CellExecutionError as error:
        raise MinicosError(f"{path} fails in a cell: {error.ename}: {error.evalue}") from error
    except CellTimeoutError as error:
        raise MinicosError(f"a cell of {path} takes over {SECONDS} s: run it in JupyterLab to see where") from error
    return notebook
