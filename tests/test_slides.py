"""The lecture's slides: run as `make slides` does, and looked at in a real browser that has no network."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import browser
import nbformat
import pytest

from minicos.errors import MinicosError
from minicos.slides import make_slides, slide_type

pytestmark = pytest.mark.alone
LECTURE = Path(__file__).parents[1] / "lessons" / "lecture.ipynb"
# In the order of the lesson plan's outline.
TITLES = (
    "Visual reasoning over video",
    "From image tokens",
    "Diffusion",
    "The diffusion transformer",
    "chain-of-frames",
    "Chain-of-steps",
    "Several paths",
    "Superposition",
    "Perturbation",
    "working memory",
    "self-correction",
    "perception before action",
    "Layers",
    "latent swap",
    "ensemble",
    "Results",
    "bigger picture",
    "discussion",
)

# What of the current slide reaches beyond it, and its pictures: alt text, and whether there is anything to see.
LOOK = """() => {
    const slide = Reveal.getCurrentSlide();
    const shown = [...slide.querySelectorAll("h1, h2, p, li, td, th, img, small")].filter(e => !e.closest("aside"));
    const box = e => e.getBoundingClientRect();
    const beyond = e => box(e).bottom > 720 || box(e).right > 1280 || box(e).left < 0 || box(e).top < 0;
    const seen = e => e.complete && e.naturalWidth > 0 && box(e).width > 100;
    return {
        beyond: shown.filter(beyond).map(e => e.outerHTML.slice(0, 80)),
        pictures: [...slide.querySelectorAll("img")].map(e => [e.alt, seen(e)]),
        title: slide.querySelector("h1, h2").textContent,
    };
}"""


@pytest.fixture(scope="module")
def deck(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "lecture.html"
    assert make_slides(LECTURE, path) == 18
    return path


@pytest.fixture(scope="module")
def page(deck, browser_program):
    with browser.chromium(browser_program) as chromium:
        page = chromium.new_page(viewport={"width": 1280, "height": 720})
        errors, asked = [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(deck.as_uri())
        page.wait_for_function("window.Reveal?.isReady()")
        yield page, errors, asked


@pytest.mark.timeout(600)
def test_every_slide_fits_and_every_figure_is_seen_and_has_words(page):
    page, errors, asked = page
    assert page.evaluate("Reveal.getTotalSlides()") == 18
    for number, title in enumerate(TITLES):
        page.evaluate("number => Reveal.slide(number)", number)
        slide = page.evaluate(LOOK)
        assert title in slide["title"]
        assert not slide["beyond"]
        assert all(len(alt) > 20 and seen for alt, seen in slide["pictures"])
        assert slide["pictures"] or number >= 16
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


@pytest.mark.timeout(600)
def test_the_page_holds_all_that_it_shows(deck):
    text = deck.read_text()
    outside = re.sub(r"<script.*?</script>", "<script>", text, flags=re.DOTALL)  # reveal.js has such texts inside
    assert "<script src" not in text
    assert not re.search(r'<(?:img|link)[^>]*(?:src|href)="(?!data:)', outside)
    assert "@import" not in text
    assert text.count('<aside class="notes">') == 18


def test_the_notes_cover_fifty_minutes_without_a_gap():
    cells = nbformat.read(LECTURE, 4).cells
    notes = [cell.source for cell in cells if slide_type(cell) == "notes"]
    spans = [tuple(map(int, re.match(r"\*\*Minute (\d+) to (\d+)\.\*\*", note).groups())) for note in notes]
    assert (spans[0][0], spans[-1][1]) == (0, 50)
    assert all(before[1] == after[0] < after[1] for before, after in itertools.pairwise(spans))


def test_what_cannot_be_made_into_slides_is_refused_in_one_line(tmp_path):
    with pytest.raises(MinicosError, match=r"cannot open .*none.ipynb \(No such file"):
        make_slides(tmp_path / "none.ipynb", tmp_path / "out.html")
    (tmp_path / "text.ipynb").write_text("# no notebook")
    with pytest.raises(MinicosError, match="is no notebook: give the path"):
        make_slides(tmp_path / "text.ipynb", tmp_path / "out.html")
    with pytest.raises(MinicosError, match="is a folder: give --out the name of a file"):
        make_slides(LECTURE, tmp_path)
    with pytest.raises(MinicosError, match=r"cannot write to .*text.ipynb"):
        make_slides(LECTURE, tmp_path / "text.ipynb" / "out.html")
    for source, message in (("1 / 0", "fails in a cell: ZeroDivisionError"), ("", "has no slides")):
        cell = nbformat.v4.new_code_cell(source, metadata={"slideshow": {"slide_type": "slide"}} if source else {})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "deck.ipynb")
        with pytest.raises(MinicosError, match=message):
            make_slides(tmp_path / "deck.ipynb", tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()
