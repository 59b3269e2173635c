"""Renews what is generated from the shipped evaluations: the cards, and the README's tables.

Run: python benchmarks/cards.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from minicos.cards import EVALUATION_FILE, TRAINING_FILE, card, markdown_table, rows_of
from minicos.model import CHECKPOINTS, load, shipped
from minicos.replication import FINDINGS_FILE, findings_table

README = Path(__file__).parent.parent / "README.md"


def report_of(name: str) -> dict:
    return json.loads((CHECKPOINTS / name / EVALUATION_FILE).read_text())


def rates(name: str) -> str:
    """Without the bins by length, which are in the card."""
    return markdown_table([row for row in rows_of(report_of(name)) if row.length == "all"])


def overview() -> str:
    """One row for each checkpoint."""
    lines = ["| name | puzzles | video | parameters | weights | trained from nothing | evaluated |", "|" + " --- |" * 7]
    for name in shipped():
        report, settings = report_of(name), load(name).settings
        training = json.loads((CHECKPOINTS / name / TRAINING_FILE).read_text())
        weights = report["checkpoint"]
        cells = (
            f"[`{name}`](minicos/checkpoints/{name}/README.md)",
            ", ".join(f"`{task}`" for task in settings.tasks),
            f"{settings.frames} frames, {settings.steps} steps",
            f"{weights['parameters']:,}",
            f"{weights['bytes'] / 1e6:.2f} MB",
            f"{training['steps']} steps, {training['seconds'] / 60:.0f} min (n = 1)",
            f"{report['seconds'] / 60:.0f} min",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def renewed(readme: str) -> str:
    """The README with its tables, each between <!-- NAME --> and <!-- end -->."""
    findings = json.loads((CHECKPOINTS / "micro" / FINDINGS_FILE).read_text())
    tables = {"overview": overview(), "findings": findings_table(findings), **{n: rates(n) for n in shipped()}}
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        readme = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", readme)
    return readme


if __name__ == "__main__":
    for name in shipped():
        (CHECKPOINTS / name / "README.md").write_text(card(load(name), report_of(name)))
    README.write_text(renewed(README.read_text()))
