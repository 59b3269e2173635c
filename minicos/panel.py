"""The widgets around `explorer`: what `minicos.explore` shows in a notebook.

Rows of a grid are denoising steps, columns are frames; the buttons at their heads put noise there. Everything can be
reached and worked by the keyboard: Tab, arrow keys, the space bar.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape

from ipywidgets import (
    HTML,
    BoundedIntText,
    Box,
    DOMWidget,
    Dropdown,
    HBox,
    IntProgress,
    IntSlider,
    Layout,
    ToggleButton,
    VBox,
)

from minicos.explorer import LARGEST_SEED, PUZZLES, Choice, Explorer, Recording
from minicos.plots import MARKS
from minicos.tasks import task_of
from minicos.views import cell_size, chosen_html, done_words, energy_range, frame_html, map_html, verdict

HEADS = 120  # pixels: the column of buttons for steps
LINE = 28  # height of a row of buttons
SIDE = 300  # width of what is beside the grids, or below them where the page is narrow
NAMES = "Clean", "Disturbed"
EDGE = "1px solid var(--jp-border-color2, #ccc)"
NOISE = "✱"  # on a pressed button
LEGEND = (
    f"Beside each step: x0_hat as a video is {', '.join(f'{mark} {status}' for status, (mark, _) in MARKS.items())}. "
    f"{NOISE} and stripes: noise. The frame around one picture: step and frame that are looked at."
)


class Panel(VBox):
    """An explorer and what is chosen. recordings: the clean and the disturbed run that are shown."""

    recordings: tuple[Recording, Recording]

    def __init__(self, explorer: Explorer, choice: Choice) -> None:
        self._explorer = explorer
        self._quiet = False
        explorer.progress = self._advance
        self._make()
        self._observe()
        with self._quietly():
            self.task.value = choice.task
            self._fit_to_task()
            self.size.value, self.index.value, self.seed.value = choice.size, choice.index, choice.seed
            for step in choice.steps:
                self.noise_steps.children[step].value = True
            for frame in choice.frames:
                self.noise_frames.children[frame].value = True
            self._fit_to_puzzle()
            self.block.value, self.region.value, self.ensemble.value = choice.block, choice.region, choice.ensemble
            self.swap.value = choice.swap is not None
            if choice.swap is not None:
                self.donor.value = choice.swap
        super().__init__(self._arranged())
        self._run()

    def choice(self) -> Choice:
        """What the widgets say."""
        return Choice(
            self.task.value,
            self.size.value,
            self.block.value,
            self.index.value,
            self.seed.value,
            pressed(self.noise_steps),
            pressed(self.noise_frames),
            self.donor.value if self.swap.value else None,
            self.region.value,
            self.ensemble.value,
        )

    # --- what there is ----------------------------------------------------------------------------------------------

    def _make(self) -> None:
        self.task = Dropdown(options=list(self._explorer.sizes()), description="Task", layout=wide(190))
        self.size = Dropdown(description="Size", layout=wide(100))
        self.index = BoundedIntText(0, 0, PUZZLES - 1, description="Puzzle", layout=wide(120))
        self.seed = BoundedIntText(0, 0, LARGEST_SEED, description="Seed", layout=wide(120))
        self.step, self.frame = (IntSlider(description=name, layout=wide(SIDE)) for name in ("Step", "Frame"))
        self.block = IntSlider(description="Block", continuous_update=False, layout=wide(SIDE))
        self.noise_steps, self.noise_frames = VBox(), HBox()
        self.swap, self.ensemble = ToggleButton(layout=wide(SIDE)), ToggleButton(layout=wide(SIDE))
        self.donor = Dropdown(description="from", layout=wide(SIDE // 2 - 2))  # 2: a margin
        self.region = Dropdown(description="tokens", layout=wide(SIDE // 2 - 2))
        self.bar = IntProgress(0, 0, 100, description="Run", layout=wide(200))
        for widget in (self.task, self.size, self.index, self.seed, self.donor, self.region, self.bar):
            widget.style.description_width = "initial"
        for slider in (self.step, self.frame, self.block):
            slider.style.description_width = "45px"
        self.words, self.verdicts = HTML(), HTML()
        self.clean_heads = headings("")
        self.grids, self.seen, self.maps = (
            [HTML(layout=Layout(margin=margin)) for _ in NAMES] for margin in ("0", "0 8px 0 0", "0 8px 0 0")
        )

    def _observe(self) -> None:
        self.task.observe(self._heard(self._fit_to_task, self._fit_to_puzzle, self._run), "value")
        for widget in (self.size, self.index):
            widget.observe(self._heard(self._fit_to_puzzle, self._run), "value")
        for widget in (self.seed, self.block, self.swap, self.donor, self.region, self.ensemble):
            widget.observe(self._heard(self._run), "value")
        for widget in (self.step, self.frame):
            widget.observe(self._heard(self._show), "value")

    def _arranged(self) -> list[DOMWidget]:
        top = row([self.task, self.size, self.index, self.seed, self.bar])
        steps = column([headings("<b>Noise at step</b>", "and at frame →"), self.noise_steps])
        clean = column([self.clean_heads, self.grids[0]])
        disturbed = column([headings("<b>Disturbed</b>"), self.noise_frames, self.grids[1]])
        looked_at = column([self.step, self.frame, row(self.seen)])
        inside = column([self.block, row(self.maps)])
        changed = column([self.swap, row([self.donor, self.region]), self.ensemble])
        side = row([looked_at, inside, changed])
        side.layout.flex = f"1 1 {SIDE}px"
        side.layout.align_content = "flex-start"
        return [top, self.words, self.verdicts, row([steps, clean, disturbed, side]), HTML(text(LEGEND, 12))]

    # --- what happens -----------------------------------------------------------------------------------------------

    def _heard(self, *then: Callable[[], None]) -> Callable[[object], None]:
        """An observer; what a widget is set to by the panel itself is not heard."""

        def hear(change: object) -> None:
            if not self._quiet:
                with self._quietly():
                    for act in then:
                        act()

        return hear

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        before, self._quiet = self._quiet, True
        try:
            yield
        finally:
            self._quiet = before

    def _fit_to_task(self) -> None:
        """Sizes, steps, frames and blocks that there are."""
        network = self._explorer.network(self.task.value)
        keep(self.size, self._explorer.sizes()[self.task.value])
        schedule, frames = network.schedule(), network.latent_frames
        self.step.max, self.frame.max = len(schedule) - 1, frames - 1
        self.frame.value = frames - 1
        self.block.max = self._explorer.depth(self.task.value) - 1
        names = [f"step {step.index} · σ {step.sigma:.2f}" for step in schedule]
        self._fill(self.noise_steps, names, "Noise at step {}, in every frame")
        self._fill(self.noise_frames, [str(frame) for frame in range(frames)], "Noise at frame {}, at every step")

    def _fill(self, box: Box, names: list[str], tooltip: str) -> None:
        """Buttons of these names; pressed where the ones before were."""
        before, buttons = pressed(box), []
        for index, name in enumerate(names):
            button = ToggleButton(tooltip=tooltip.format(index), layout=Layout(margin="0", padding="0", border=EDGE))

            def say(change: object, button: ToggleButton = button, name: str = name) -> None:
                button.description = f"{NOISE} {name}" if button.value else name

            say(None)
            button.observe(say, "value")
            button.observe(self._heard(self._run), "value")
            button.value = index in before
            buttons.append(button)
        box.children = buttons

    def _fit_to_puzzle(self) -> None:
        """Donors and regions that there are, and how large the grid is."""
        puzzle = self._explorer.puzzle(self.task.value, self.size.value, self.index.value)
        pair = [("its pair", "pair")] if self._explorer.partner(puzzle) else []
        keep(self.donor, [*pair, *((f"puzzle {index}", index) for index in range(PUZZLES))])
        keep(self.region, ["all", *task_of(puzzle).regions(puzzle)])

    def _advance(self, share: float) -> None:
        self.bar.value = round(100 * share)

    def _run(self) -> None:
        """Run what has not been run yet, and show it."""
        choice = self.choice()
        self.bar.bar_style, self.bar.description = "info", "Running"
        self.recordings = self._explorer.recordings(choice)
        self.bar.value, self.bar.bar_style, self.bar.description = 100, "success", "Done"
        self._name(choice)
        self._show()

    def _name(self, choice: Choice) -> None:
        """What is said once for a pair of runs."""
        height, width = cell_size(self.recordings[0])
        for button in self.noise_steps.children:
            button.layout.height, button.layout.width = f"{height}px", f"{HEADS}px"
        for button in self.noise_frames.children:
            button.layout.height, button.layout.width = f"{LINE}px", f"{width}px"
        self.words.value = text(f"<i>{escape(self.recordings[0].run.puzzle.prompt)}.</i>")
        names = "<b>Clean:</b>", f"<b>Disturbed</b> ({escape(done_words(choice))}):"
        self.verdicts.value = "".join(
            f'<div role="status">{text(f"{name} {escape(verdict(recording))}")}</div>'
            for name, recording in zip(names, self.recordings, strict=True)
        )
        numbers = "".join(
            f'<span style="display:inline-block; width:{width}px; text-align:center">{frame}</span>'
            for frame in range(len(self.noise_frames.children))
        )
        self.clean_heads.value = lines("<b>Clean</b>", numbers)
        self.swap.description = f"Swap block {choice.block} at step 0: {'on' if self.swap.value else 'off'}"
        self.ensemble.description = f"Ensemble of 3 seeds: {'on' if choice.ensemble else 'off'}"

    def _show(self) -> None:
        """What the step, the frame and the block are that are looked at."""
        choice, step, frame = self.choice(), self.step.value, self.frame.value
        low, high = energy_range(self.recordings, choice.block, step)
        noises = ((), ()), (choice.steps, choice.frames)
        for place, (name, recording) in enumerate(zip(NAMES, self.recordings, strict=True)):
            self.grids[place].value = chosen_html(name, recording, noises[place], step, frame)
            self.seen[place].value = frame_html(name, recording, step, frame)
            self.maps[place].value = map_html(name, recording, choice.block, step, frame, low, high)


def pressed(box: Box) -> tuple[int, ...]:
    """Which of its buttons are."""
    return tuple(index for index, button in enumerate(box.children) if button.value)


def wide(pixels: int) -> Layout:
    return Layout(width=f"{pixels}px")


def text(words: str, size: int = 13) -> str:
    """HTML of words that may need several lines."""
    return f'<div style="line-height:1.4; font-size:{size}px">{words}</div>'


def lines(*words: str) -> str:
    """HTML, each line as high as a row of buttons."""
    return "".join(f'<div style="height:{LINE}px; line-height:{LINE}px">{line}</div>' for line in words)


def headings(*words: str) -> HTML:
    return HTML(lines(*words), layout=Layout(margin="0"))


def row(widgets: Sequence[DOMWidget]) -> HBox:
    """Side by side, or in several lines where the page is narrow."""
    return HBox(list(widgets), layout=Layout(flex_flow="row wrap", margin="0"))


def column(widgets: Sequence[DOMWidget]) -> VBox:
    return VBox(list(widgets), layout=Layout(margin="0 8px 0 0"))


def keep(dropdown: Dropdown, options: list) -> None:
    """New options, labels and values or values alone; the same value where it is still there, else the first."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    value = dropdown.value if dropdown.value in values else values[0]
    dropdown.options = options
    dropdown.value = value
