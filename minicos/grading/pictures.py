"""Shows students what should come out: outputs of an assignment's solution, put above the exercises."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from minicos.errors import MinicosError

if TYPE_CHECKING:
    from nbformat import NotebookNode

HEAD = "<details><summary>What should come out (open it after your prediction)</summary>"
WORDS = re.compile(r"# Picture: (.+)")  # in the cell that draws it: what is to be seen, for those who cannot see it
COLOURS = 64  # of a picture: notebooks are to stay small


def add_pictures(path: Path) -> int:
    """Run a solution and put what each `see-...` cell shows into the last `ask-...` cell before it; gives how many.

    Raises MinicosError for a picture without words.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook, done = nbformat.read(path, 4), nbformat.read(path, 4)
    NotebookClient(done, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    ask, found = None, 0
    for cell, ran in zip(notebook.cells, done.cells, strict=True):
        if cell.id.startswith("ask-"):
            ask = cell
        elif cell.id.startswith("see-"):
            shown(ran, ask)
            found += 1
    nbformat.write(notebook, path)
    return found


def shown(see: NotebookNode, ask: NotebookNode) -> None:
    """Put the last picture and the printed text of an executed cell into an exercise, in the place of older ones."""
    pictures = [output.data["image/png"] for output in see.outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in see.outputs if output.get("name") == "stdout").rstrip()
    parts = [HEAD]
    if pictures:
        words = WORDS.match(see.source)
        if not words:
            raise MinicosError(
                f"{see.id} shows a picture: its first line has to be '# Picture: ' and what is to be seen"
            )
        name = f"{see.id}.png"
        ask["attachments"] = {name: {"image/png": smaller(pictures[-1])}}
        parts.append(f"![{words[1]}](attachment:{name})")
    if printed:
        parts.append(f"```text\n{printed}\n```")
    ask.source = "\n\n".join([ask.source.partition(HEAD)[0].rstrip(), *parts, "</details>"])


def smaller(png: str) -> str:
    """A picture in base64 with few colours."""
    from PIL import Image

    buffer = BytesIO()
    with Image.open(BytesIO(base64.b64decode(png))) as picture:
        picture.convert("RGB").quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
