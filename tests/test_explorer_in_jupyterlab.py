"""The explorer in a real JupyterLab: it shows what Python computes, and obeys the mouse and the keyboard."""

from __future__ import annotations

import re
from html import unescape

import nbformat
import pytest

from minicos.explorer import Explorer
from minicos.panel import NAMES
from minicos.views import chosen_html, done_words, energy_range, frame_html, map_html, verdict

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]
CELL = "import minicos\n\nminicos.explore('nano', task='maze', size=5, index=3)"
PUZZLE = {"task": "maze", "size": 5, "index": 3}
KERNEL = {"name": "python3", "display_name": "Python 3"}  # without it JupyterLab asks which, and waits
STEP = 8  # noise before it changes the verdict


def assert_shown(page, explorer, choice, step):
    """The page has the verdicts and all pictures of a choice, as Python computes them here."""
    recordings, done = explorer.recordings(choice), f"Disturbed ({done_words(choice)}):"
    page.get_by_text(done).wait_for()
    verdicts = [f"{name} {verdict(r)}" for name, r in zip(("Clean:", done), recordings, strict=True)]
    assert page.locator(".jp-OutputArea").get_by_role("status").all_inner_texts() == verdicts
    frame, energies = recordings[0].estimates.shape[1] - 1, energy_range(recordings, choice.block, step)
    for name, recording, noise in zip(NAMES, recordings, ((), choice.steps), strict=True):
        grid = chosen_html(name, recording, (noise, ()), step, frame)
        inside = map_html(name, recording, choice.block, step, frame, *energies)
        for html in (grid, frame_html(name, recording, step, frame), inside):
            source, words = re.search('<img src="(.+?)" alt="(.+?)"', html).groups()
            image = page.get_by_alt_text(unescape(words), exact=True)
            image.evaluate("image => image.decode()")  # fails where it is no picture
            assert image.is_visible()
            assert image.get_attribute("src") == source, words


def test_it_shows_what_python_computes_to_mouse_and_keyboard(lab):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata={"kernelspec": KERNEL})
    nbformat.write(notebook, lab.folder / "explore.ipynb")
    lab.open("explore.ipynb")
    lab.run_all()
    explorer, page = Explorer("nano"), lab.page
    clean, noisy = explorer.choice(**PUZZLE), explorer.choice(**PUZZLE, steps=STEP)
    both = explorer.recordings(noisy)
    assert verdict(both[0]) != verdict(both[1])
    assert_shown(page, explorer, clean, 0)

    page.get_by_role("button", name=f"step {STEP} ").click()
    assert_shown(page, explorer, noisy, 0)

    def press(key, times=1):  # from here on, no mouse
        for _ in range(times):
            page.keyboard.press(key)

    steps, frames = both[0].estimates.shape[:2]
    to_step = steps - STEP + frames  # the later steps' buttons, the frames' buttons, the slider
    press("Tab", to_step)
    press("ArrowRight", STEP)
    assert_shown(page, explorer, noisy, STEP)
    to_block = 4  # the step's number, the frame's slider, its number, the slider
    press("Tab", to_block)
    press("ArrowRight")
    assert_shown(page, explorer, explorer.choice(**PUZZLE, steps=STEP, block=clean.block + 1), STEP)
    press("Shift+Tab", to_block + to_step)
    press("Space")
    assert_shown(page, explorer, explorer.choice(**PUZZLE, block=clean.block + 1), STEP)
    assert lab.errors == []
