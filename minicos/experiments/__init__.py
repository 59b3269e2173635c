"""The paper's findings as experiments: each prints a table, draws a figure, and judges itself by a criterion.

The criterion is written in the experiment's class before a model is judged by it. Most were written anew after earlier
runs on `micro` had shown what was wrong with them; docs/findings.md says which, and why.
"""

from __future__ import annotations

from minicos.errors import MinicosError
from minicos.experiments.base import Experiment
from minicos.experiments.budget import Budget
from minicos.experiments.causal_twin import CausalTwin
from minicos.experiments.chain_of_steps import ChainOfSteps
from minicos.experiments.commitment import Commitment
from minicos.experiments.ensemble import Ensemble
from minicos.experiments.layers import Layers
from minicos.experiments.perception_first import PerceptionFirst
from minicos.experiments.perturbation import Perturbation
from minicos.experiments.self_correction import SelfCorrection
from minicos.experiments.swap import Swap
from minicos.experiments.working_memory import WorkingMemory

_ALL: tuple[Experiment, ...] = (
    ChainOfSteps(),
    Perturbation(),
    Commitment(),
    WorkingMemory(),
    SelfCorrection(),
    PerceptionFirst(),
    Layers(),
    Swap(),
    Ensemble(),
    Budget(),
    CausalTwin(),
)
EXPERIMENTS = {experiment.name: experiment for experiment in _ALL}


def get_experiment(name: str) -> Experiment:
    """By name; raises MinicosError for an unknown one."""
    if name not in EXPERIMENTS:
        raise MinicosError(f"unknown experiment '{name}': choose from {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
