"""Slides from a notebook: run, and put into one HTML file that opens without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from minicos.errors import MinicosError
from minicos.files import check_folder, prepare_folder
from minicos.notebooks import executed, opened

if TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATES = Path(__file__).parent / "templates"


def make_slides(notebook: Path, out: Path) -> int:
    """Run a notebook whose cells say which slide they are on, and write the slides; gives their number.

    Code is left out, what it shows is kept; cells of the type "notes" are the speaker's (key S). Raises MinicosError
    where there is no such notebook, where it has no slides, where `out` cannot be written, and where a cell fails.
    """
    from nbconvert import SlidesExporter

    number = sum(slide_type(cell) == "slide" for cell in opened(notebook).cells)
    if not number:
        raise MinicosError(f"{notebook} has no slides: give cells a slide type (JupyterLab: property inspector)")
    check_folder(out.parent)
    if out.is_dir():
        raise MinicosError(f"{out} is a folder: give --out the name of a file, for example {out / 'lecture.html'}")
    deck = executed(notebook)
    exporter = SlidesExporter(
        template_name="slides", extra_template_basedirs=[str(TEMPLATES)], exclude_input=True, exclude_output_prompt=True
    )
    page, _ = exporter.from_notebook_node(deck)
    prepare_folder(out.parent)
    out.write_text(page)
    return number


def slide_type(cell: NotebookNode) -> str:
    """Where a cell belongs: "slide" begins a slide, "-" goes on with it, "notes" are for the speaker alone."""
    return cell.metadata.get("slideshow", {}).get("slide_type", "-")
