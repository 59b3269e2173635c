"""What the project says about itself is true."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from minicos.model import CHECKPOINTS, shipped

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_importing_minicos_is_light():
    code = "import minicos, sys; print(*sorted({'torch', 'diffusers', 'lightning', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_what_minicos_exports_exists():
    import minicos

    for name in minicos.__all__:
        assert getattr(minicos, name) is not None
    with pytest.raises(AttributeError):
        getattr(minicos, "nothing")  # noqa: B009


def test_environment_and_pyproject_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    *conda, pip = environment["dependencies"]
    assert environment["name"] == project["name"]
    assert f"python{project['requires-python']}" in conda
    assert pip == {"pip": ["-e .[course]"]}
    assert "course" in project["optional-dependencies"]


def test_the_lock_satisfies_pyproject():
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            locked[name.lower().replace("_", "-")] = version
    makefile = (ROOT / "Makefile").read_text()
    locked["torch"] = re.search(r"torch==([\d.]+)", makefile)[1]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    for requirement in map(Requirement, wanted):
        if requirement.name != "minicos":
            assert requirement.specifier.contains(locked[requirement.name.lower()]), requirement


def test_version_is_one():
    import minicos

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == minicos.__version__


@pytest.mark.parametrize("name", shipped())
def test_cards_are_generated_from_the_checkpoint_they_lie_beside(name):
    from minicos.cards import card
    from minicos.model import load

    folder = CHECKPOINTS / name
    report = json.loads((folder / "evaluation.json").read_text())
    assert (folder / "README.md").read_text() == card(load(name), report)
    for file, digest in report["checkpoint"]["sha256"].items():
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest


def test_the_readmes_tables_are_generated_from_the_evaluations():
    renewed = runpy.run_path(str(ROOT / "benchmarks" / "cards.py"))["renewed"]
    assert renewed(README) == README
    for name in shipped():
        assert README.count(f"<!-- {name} -->\n| task | size |") == 1, name


def test_readme_names_files_that_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r'src="([^":]+)"', README):
        assert (ROOT / target).exists(), target


def test_the_wheel_holds_the_checkpoints():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["minicos"] == ["checkpoints/**/*", "templates/**/*"]
    assert sum(path.stat().st_size for path in (CHECKPOINTS / "nano").rglob("*")) < 4_100_000
