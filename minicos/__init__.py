"""minicos: take video reasoning apart, on a small model you can train and on the full one.

Importing this loads neither torch nor diffusers; `minicos.load` and `minicos.sample` do when they are first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "load": "minicos.model",
    "sample": "minicos.sampling",
    "rollout": "minicos.sampling",
    "Recorder": "minicos.sampling",
    "get_task": "minicos.tasks",
    "MinicosError": "minicos.errors",
    "check": "minicos.grading",
    "explore": "minicos.explorer",
    "live": "minicos.teaching",
    "show": "minicos.teaching",
    "film": "minicos.teaching",
    "strip": "minicos.teaching",
}
__all__ = [
    "MinicosError",
    "Recorder",
    "__version__",
    "check",
    "explore",
    "film",
    "get_task",
    "live",
    "load",
    "rollout",
    "sample",
    "show",
    "strip",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'minicos' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
