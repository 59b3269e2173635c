"""All experiments on one model, and one report of them: HTML for people, JSON for the README."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from minicos.cards import describe_weights, provenance
from minicos.errors import CannotRun
from minicos.experiments import EXPERIMENTS
from minicos.experiments.base import Experiment, Scale, of_all
from minicos.experiments.running import PNG_FILE, Result, run_experiment
from minicos.files import prepare_folder, replace_file
from minicos.model import Reasoner

if TYPE_CHECKING:
    from lightning import Fabric

REPORT_FILE, FINDINGS_FILE = "report.html", "findings.json"


@dataclass(frozen=True)
class Finding:
    """One line of the report. n: puzzles, from the fewest to the most that a number of all lengths is of; status
    "not run" where the model was trained on none of the tasks. networks: of the model's, those that were run, by name.
    """

    experiment: str
    finding: str
    paper: str
    criterion: str
    status: str
    text: str
    n: tuple[int, int] | None
    seconds: float
    networks: tuple[str, ...]


def replicate(reasoner: Reasoner, out: Path, scale: Scale, command: str, fabric: Fabric | None = None) -> list[Finding]:
    """`minicos replicate`: each experiment in a folder of `out`, then the report. Killed and run again, it goes on.

    command: what was typed, for the report. Nothing is written or returned in any but the first process of `fabric`.
    """
    prepare_folder(out)
    found, results = [], {}
    for name, experiment in EXPERIMENTS.items():
        try:
            result = run_experiment(experiment, reasoner, out / name, scale, fabric)
        except CannotRun as error:
            found.append(finding_of(experiment, str(error)))
            continue
        if result:
            results[name] = result
            found.append(finding_of(experiment, result))
    if fabric is not None and fabric.global_rank > 0:
        return []
    facts = facts_of(reasoner, scale, command)
    facts["computed_by"] = sorted({commit for result in results.values() for commit in result.commits})
    report = {**facts, "findings": [asdict(finding) for finding in found]}
    replace_file(out / FINDINGS_FILE, (json.dumps(report, indent=1) + "\n").encode())
    replace_file(out / REPORT_FILE, html(facts, found, results, out).encode())
    return found


def finding_of(experiment: Experiment, result: Result | str) -> Finding:
    """From a result, or from the reason why there is none."""
    named = experiment.name, experiment.finding, experiment.paper, experiment.criterion
    if isinstance(result, str):
        return Finding(*named, "not run", result, None, 0.0, ())
    summary = of_all(result.summary) if "length" in result.summary else result.summary
    n = summary["n"].dropna() if "n" in summary else pd.Series(dtype=int)
    numbers = (int(n.min()), int(n.max())) if len(n) else None
    seconds = round(result.seconds, 1)
    return Finding(*named, result.verdict.status, result.verdict.text, numbers, seconds, result.networks)


def facts_of(reasoner: Reasoner, scale: Scale, command: str) -> dict:
    """What was run on what."""
    return {
        "model": reasoner.settings.name,
        "scale": scale.name,
        "quick": scale.quick,
        "command": command,
        **provenance(),
        "weights": weights_of(reasoner),
    }


def weights_of(reasoner: Reasoner) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of every network behind a model's name, and of its causal twin's, by the network's name."""
    networks = list(dict.fromkeys(reasoner.for_task(task) for task in reasoner.tasks())) or [reasoner]
    networks += [twin for network in networks if (twin := network.causal_twin())]
    return {network.settings.name: describe_weights(network)["sha256"] for network in networks}


def html(facts: dict, findings: list[Finding], results: dict[str, Result], out: Path) -> str:
    """One self-contained page."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("minicos", "templates"), autoescape=True, trim_blocks=True)
    sections = []
    for finding in findings:
        result = results.get(finding.experiment)
        picture = base64.b64encode((out / finding.experiment / PNG_FILE).read_bytes()).decode() if result else ""
        table = result.summary.to_html(index=False, border=0, float_format="%.4g", na_rep="-") if result else ""
        rows = len(result.summary) if result else 0
        alt = EXPERIMENTS[finding.experiment].picture
        sections.append({"finding": finding, "picture": picture, "alt": alt, "table": table, "rows": rows})
    minutes = sum(finding.seconds for finding in findings) / 60
    return environment.get_template("report.html").render(facts=facts, sections=sections, minutes=minutes)


def findings_table(report: dict) -> str:
    """The findings of findings.json as a table in Markdown."""
    lines = ["| experiment | the paper | criterion | verdict | measured |", "|" + " --- |" * 5]
    for row in report["findings"]:
        finding = Finding(**row)
        cells = f"`{finding.experiment}`", finding.paper, finding.criterion, f"**{finding.status}**", finding.text
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
