"""Runs notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minicos.errors import MinicosError

if TYPE_CHECKING:
    from nbformat import NotebookNode

SECONDS = 600  # that one cell may take


def executed(path: Path) -> NotebookNode:
    """A notebook with the outputs that it has when it is run in its folder; the file stays as it is.

    Raises MinicosError where there is no such notebook, and where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    if not path.is_file():
        raise MinicosError(f"there is no notebook {path}: give the path of an .ipynb file")
    notebook = nbformat.read(path, 4)
    place = {"metadata": {"path": str(path.parent)}}
    try:
        # A kernel warns of connections that never leave this machine.
        NotebookClient(notebook, timeout=SECONDS, resources=place, extra_arguments=["--log-level=ERROR"]).execute()
    except CellExecutionError as error:
        raise MinicosError(f"{path} fails in a cell: {error.ename}: {error.evalue}") from error
    return notebook
