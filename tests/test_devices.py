"""On a GPU all that meets is on it, and what is kept is not: looked at on a device that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minicos.experiments import EXPERIMENTS

SCRIPT = Path(__file__).parent / "elsewhere.py"


@pytest.mark.timeout(600)  # two minutes on a machine that has nothing else to do
def test_what_meets_on_a_device_is_there_and_what_is_kept_is_not(tiny_wan_bf16_folder):
    command = [sys.executable, str(SCRIPT), str(tiny_wan_bf16_folder)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-len(EXPERIMENTS) :] == list(EXPERIMENTS)
