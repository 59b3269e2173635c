"""What lecture notebooks call: pictures with words for those who cannot see them, and a finding measured live."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from minicos import plots
from minicos.errors import MinicosError
from minicos.evaluation import score_all
from minicos.model import Reasoner, loaded
from minicos.runs import check_range
from minicos.sampling import Trajectory
from minicos.tasks import Video

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minicos.experiments.base import Experiment
    from minicos.replication import Finding

STRIP_ROWS = 7


@dataclass(frozen=True)
class Picture:
    """A PNG that a notebook shows. alt: what is to be seen, in words; caption: a line below it."""

    png: bytes
    alt: str
    caption: str = ""

    def _repr_html_(self) -> str:
        encoded = base64.b64encode(self.png).decode()
        image = f'<img src="data:image/png;base64,{encoded}" alt="{escape(self.alt)}" style="max-width: 100%">'
        return image + (f"<p><small>{escape(self.caption)}</small></p>" if self.caption else "")

    def __repr__(self) -> str:
        return f"[picture: {self.alt}]"


def show(figure: Figure, alt: str, caption: str = "") -> Picture:
    """A figure as the last line of a cell. alt: what is to be seen, in words; raises MinicosError without any."""
    if not alt.strip():
        raise MinicosError("a picture needs its `alt`: say in words what is to be seen")
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Picture(buffer.getvalue(), alt, caption)


def film(videos: Mapping[str, Video], alt: str, title: str = "") -> Picture:
    """Videos one under the other, a row for each name and a column for each frame (`plots.film`)."""
    return show(plots.film(videos, title), alt)


def strip(reasoner: Reasoner, run: Trajectory, row: int = 0) -> Picture:
    """What x0_hat shows along the denoising steps of one run of a trajectory that recorded it.

    At most STRIP_ROWS of the recorded steps are shown, evenly spread. The text for those who cannot see them has the
    verdict of each. Raises MinicosError for a run that is not there, and where x0_hat was not recorded.
    """
    figure, verdicts = strip_of(reasoner, run, row)
    return show(figure, f"Film strip: a row for each denoising step, a column for each frame. {verdicts}.")


def strip_of(reasoner: Reasoner, run: Trajectory, row: int) -> tuple[Figure, str]:
    """The same as a figure, and its verdicts in words."""
    check_range("row", (row,), len(run.runs))
    puzzle, recorded = run.puzzles[row], run.recorded("x0_hat")
    network, steps = reasoner.for_task(puzzle.task), sorted(recorded)
    shown = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, STRIP_ROWS).round().astype(int))]
    estimates = [network.decode(recorded[s][row : row + 1])[0] for s in shown]
    scores = score_all([puzzle] * len(shown), estimates)
    title = f"{network.settings.name}, {puzzle.task} {puzzle.size}: x0_hat along the denoising steps"
    verdicts = ", ".join(f"step {s} {score.status}" for s, score in zip(shown, scores, strict=True))
    return plots.film_strip(estimates, [run.schedule[s] for s in shown], scores, title), verdicts


@dataclass(frozen=True)
class Live:
    """A finding measured just now, beside what the stored run of the same model came to.

    stored: the line of the report that is stored with the checkpoint; None where there is none.
    """

    live: Finding
    stored: Finding | None
    picture: Picture
    model: str

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(which run, n, verdict, measured), the live one first."""
        rows = [("live, now", *_line(self.live))]
        if self.stored is None:
            how = f"minicos replicate --model {self.model} --out DIR"
            why = f"no run by this criterion and weights is stored with {self.model}: {how}"
            return [*rows, ("stored run", "-", "not stored", why)]
        return [*rows, ("stored run", *_line(self.stored))]

    @property
    def brief(self) -> Picture:
        """The figure with both verdicts in a line, for a slide."""
        said = [f"{run}: {verdict}" + (f", n = {n}" if n != "-" else "") for run, n, verdict, _ in self.rows()]
        return replace(self.picture, caption=f"{self.live.experiment} on {self.model}; {'; '.join(said)}")

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows())
        head = "".join(f"<th>{name}</th>" for name in ("run", "n", "verdict", "measured"))
        said = "".join(
            f"<p><b>{name}.</b> {escape(text)}</p>"
            for name, text in (
                ("Claim", self.live.finding),
                ("The paper", self.live.paper),
                ("Criterion", self.live.criterion),
            )
        )
        return f"{said}{self.picture._repr_html_()}<table><tr>{head}</tr>{cells}</table>"

    def __repr__(self) -> str:
        lines = [f"{self.live.experiment} on {self.model}", f"criterion: {self.live.criterion}"]
        return "\n".join([*lines, *(f"{run} (n = {n}): {verdict}; {text}" for run, n, verdict, text in self.rows())])


def live(name: str, cases: int | None = None, model: Reasoner | str | Path | None = None) -> Live:
    """Run one of the experiments here and now, at small n, beside the stored run.

    cases: puzzles of each task; the quick run's number when None. model: one that is loaded, or what `load` takes.
    Raises MinicosError for an unknown experiment, and where the model was trained on none of its tasks.
    """
    from minicos.experiments import get_experiment
    from minicos.experiments.base import scale_of
    from minicos.experiments.running import PNG_FILE, run_experiment
    from minicos.replication import finding_of

    experiment, reasoner = get_experiment(name), loaded(model)
    with TemporaryDirectory() as folder:
        out = Path(folder) / name
        result = run_experiment(experiment, reasoner, out, scale_of(True, cases), bar=notebook_bar)
        picture = Picture((out / PNG_FILE).read_bytes(), experiment.picture)
    return Live(finding_of(experiment, result), stored(reasoner, experiment), picture, reasoner.settings.name)


def stored(reasoner: Reasoner, experiment: Experiment) -> Finding | None:
    """What the full replication of this checkpoint found, if it lies beside its weights and this experiment was run.

    None, too, where it was judged by another criterion than the one that holds now, or ran with other weights.
    """
    from minicos.replication import FINDINGS_FILE, Finding, weights_of

    path = reasoner.folder / FINDINGS_FILE if reasoner.folder else None
    if path is None or not path.exists():
        return None
    report = json.loads(path.read_text())
    for finding in (Finding(**line) for line in report["findings"]):
        if (finding.experiment, finding.criterion) == (experiment.name, experiment.criterion):
            then, now = report["weights"], weights_of(reasoner)
            same = all(then.get(name) == now.get(name) for name in finding.networks)
            return finding if same and finding.status != "not run" else None
    return None


@contextmanager
def notebook_bar(name: str, total: int, shown: bool) -> Iterator[Callable[[int], object]]:
    """A bar in the notebook; nothing on stderr, which a notebook shows in red."""
    from tqdm.auto import tqdm

    with tqdm(desc=name, total=total, disable=not shown, file=sys.stdout, leave=False) as bar:
        yield bar.update


def _line(finding: Finding) -> tuple[str, str, str]:
    """n, verdict and what was measured."""
    if finding.n is None:
        return "-", finding.status, finding.text
    fewest, most = finding.n
    return str(most) if fewest == most else f"{fewest} to {most}", finding.status, finding.text
