"""Shows students what should come out: outputs of an assignment's solution, put above the exercises."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from minicos.errors import MinicosError
from minicos.files import replace_file
from minicos.notebooks import executed, opened

if TYPE_CHECKING:
    from nbformat import NotebookNode

HEAD = "<details><summary>What should come out (open it after your prediction)</summary>"
WORDS = "alt"  # in the metadata of the cell that draws it, out of sight of those who are still to predict it
COLOURS = 64  # of a picture: notebooks are to stay small


def add_pictures(path: Path) -> int:
    """Run a solution and put what each `see-...` cell shows into the last `ask-...` cell before it; gives how many
    exercises show something.

    Raises MinicosError for a picture without words.
    """
    import nbformat

    notebook, done = opened(path), executed(path)
    exercises: list[tuple[NotebookNode, list[NotebookNode]]] = []
    for cell, ran in zip(notebook.cells, done.cells, strict=True):
        if cell.id.startswith("ask-"):
            cell.pop("attachments", None)
            exercises.append((cell, []))
        elif cell.id.startswith("see-"):
            exercises[-1][1].append(ran)
    for ask, seen in exercises:
        put(ask, [part for see in seen for part in parts_of(see, ask)])
    replace_file(path, (nbformat.writes(notebook) + "\n").encode())
    return sum(HEAD in ask.source for ask, _ in exercises)


def parts_of(see: NotebookNode, ask: NotebookNode) -> list[str]:
    """The last picture of an executed cell, which is attached to the exercise, and the text that it printed."""
    pictures = [output.data["image/png"] for output in see.outputs if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in see.outputs if output.get("name") == "stdout").rstrip()
    parts = []
    if pictures:
        words = see.metadata.get(WORDS)
        if not words:
            raise MinicosError(f"{see.id} shows a picture: its metadata has to say what is to be seen, as '{WORDS}'")
        name = f"{see.id}.png"
        ask.setdefault("attachments", {})[name] = {"image/png": smaller(pictures[-1])}
        parts.append(f"![{words}](attachment:{name})")
    if printed:
        parts.append(f"```text\n{printed}\n```")
    return parts


def put(ask: NotebookNode, parts: list[str]) -> None:
    """Into an exercise, in the place of older ones."""
    before = ask.source.partition(HEAD)[0].rstrip()
    ask.source = "\n\n".join([before, HEAD, *parts, "</details>"]) if parts else before


def smaller(png: str) -> str:
    """A picture in base64 with few colours."""
    from PIL import Image

    buffer = BytesIO()
    with Image.open(BytesIO(base64.b64decode(png))) as picture:
        picture.convert("RGB").quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
