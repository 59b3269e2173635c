"""How each preset is trained: which puzzles when, and how fast. What was tried is in docs/training.md."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum: up to this share of training, draw (task, size) with these weights."""

    until: float
    mix: dict[tuple[str, int], float]


@dataclass(frozen=True)
class Recipe:
    """How a preset is trained. tokens: of one batch, whatever its puzzles' size.

    Learning rates rise over `warmup` steps, stay, and fall linearly to zero over the last `cooldown` share.
    blended: share of the puzzles with two right answers whose video lies between both, where noise is high: a few steps
    come to such videos, before the noise has chosen.
    refined: steps on top of `steps`, begun anew from the averaged weights at half the rates, in which blended videos
    come at lower noise, too: few runs still lie between both answers there, and the others are to stay as they are.
    history: share of the batches in which the first frames are clean, as in a rollout, and only the others learned.
    validate: (task, size) whose solved rate is logged every `validate_every` steps.
    """

    steps: int
    tokens: int
    stages: tuple[Stage, ...]
    validate: tuple[tuple[str, int], ...]
    muon_lr: float = 0.02
    adamw_lr: float = 2e-3
    warmup: int = 50
    cooldown: float = 0.4
    ema: float = 0.99
    shift: float = 3.0
    prompt_dropout: float = 0.1
    blended: float = 0.0
    refined: int = 0
    history: float = 0.0
    validate_every: int = 500
    save_every: int = 100

    @property
    def all_steps(self) -> int:
        return self.steps + self.refined

    def tasks(self) -> dict[str, list[int]]:
        """The sizes of each task in the curriculum."""
        pairs = sorted({pair for stage in self.stages for pair in stage.mix})
        return {name: [size for other, size in pairs if other == name] for name, _ in pairs}


KINDS = ("", "-rotation", "-occlusion", "-bounce")  # of a family's networks, by the tasks that each learns

RECIPES = {
    "nano": Recipe(
        steps=2500,
        tokens=4000,
        stages=(
            Stage(0.1, {("maze", 3): 1, ("maze", 4): 1}),
            Stage(1.0, {("maze", 3): 0.05, ("maze", 4): 0.1, ("maze", 5): 0.85}),
        ),
        validate=(("maze", 5),),
    ),
    "nano-rotation": Recipe(
        steps=3200,
        tokens=4000,
        stages=(
            Stage(0.3, {("rotation", 45): 1, ("rotation", 90): 1, ("rotation-open", 90): 1}),
            Stage(1.0, {**{("rotation", size): 1 for size in (45, 90, 135, 180)}, ("rotation-open", 90): 1}),
        ),
        validate=(("rotation", 90), ("rotation", 180)),
    ),
    "micro": Recipe(
        steps=10_000,
        tokens=4000,
        cooldown=0.6,
        stages=(
            Stage(0.05, {("maze", 3): 1, ("maze", 4): 1}),
            Stage(0.32, {("maze", 3): 0.02, ("maze", 4): 0.08, ("maze", 5): 0.75, ("maze-braided", 5): 0.15}),
            Stage(
                1.0,
                {("maze", 3): 0.04, ("maze", 4): 0.05, ("maze", 5): 0.4, ("maze", 6): 0.13, ("maze", 7): 0.25}
                | {("maze-braided", 5): 0.05, ("maze-braided", 6): 0.03, ("maze-braided", 7): 0.05},
            ),
        ),
        validate=(("maze", 5), ("maze", 7), ("maze-braided", 5)),
        validate_every=1000,
    ),
    "micro-rotation": Recipe(
        steps=9500,
        tokens=4000,
        cooldown=0.6,
        stages=(
            Stage(0.14, {("rotation", 45): 1, ("rotation", 90): 2, ("rotation-open", 90): 1}),
            Stage(0.2, {**{("rotation", size): 1 for size in (45, 90, 135, 180)}, ("rotation-open", 90): 2}),
            Stage(
                1.0,
                {("rotation", 45): 0.15, ("rotation", 90): 0.2, ("rotation", 135): 0.45, ("rotation", 180): 0.5}
                | {("rotation-open", 90): 4, ("rotation-by-example", 90): 1.9, ("rotation-by-example", 180): 0.1},
            ),
        ),
        validate=(("rotation", 90), ("rotation", 180), ("rotation-open", 90), ("rotation-by-example", 90)),
        validate_every=1000,
        blended=0.5,
        refined=2000,
        shift=5.0,  # the way from cell to cell is learned at high noise: below, a frame's neighbours give it away
    ),
    "micro-occlusion": Recipe(
        steps=7600,
        tokens=4000,
        cooldown=0.5,
        stages=(
            Stage(0.5, {("occlusion", 0): 1}),  # movement before anything hides it
            Stage(
                1.0, {("occlusion", 0): 0.5, ("occlusion", 1): 0.5, **{("occlusion", size): 1 for size in (2, 3, 4)}}
            ),
        ),
        validate=(("occlusion", 0), ("occlusion", 3)),
        shift=15.0,  # to learn where something has moved to, before any frame shows it: at still higher noise
    ),
    "micro-bounce": Recipe(
        steps=7000,
        tokens=4000,
        cooldown=0.5,
        stages=(
            Stage(0.25, {("bounce", 0): 1}),  # movement first, as for occlusions
            Stage(0.4, {("bounce", 0): 0.3, ("bounce", 1): 0.7}),
            Stage(1.0, {("bounce", 0): 0.4, ("bounce", 1): 1, ("bounce", 2): 1, ("bounce", 3): 0.8}),
        ),
        validate=(("bounce", 0), ("bounce", 2)),
        validate_every=250,
        shift=15.0,
    ),
    "mini": Recipe(
        steps=5000,
        tokens=100_000,
        stages=(
            Stage(0.04, {("maze", 3): 1, ("maze", 4): 1}),
            Stage(0.2, {("maze", 4): 0.2, ("maze", 5): 0.8}),
            Stage(0.4, {("maze", 5): 0.3, ("maze", 6): 0.3, ("maze", 7): 0.4}),
            Stage(
                1.0,
                {
                    ("maze", size): weight
                    for size, weight in zip(range(3, 8), (0.01, 0.02, 0.05, 0.05, 0.1), strict=True)
                }
                | {("maze", 8): 0.35, ("maze", 10): 0.15, ("maze", 12): 0.1, ("maze", 16): 0.07}
                | {("maze-braided", size): 0.02 for size in (5, 6, 7, 8, 10)},
            ),
        ),
        validate=(("maze", 5), ("maze", 8)),
        validate_every=2000,
        save_every=1000,
    ),
}
# The same training, whatever the depth. It is watched on the turns that are learned last: there steps and depth differ.
RECIPES["shallow-rotation"] = replace(RECIPES["nano-rotation"], validate=(("rotation", 135), ("rotation", 180)))
# The causal twins: the same puzzles, noise, noise levels and steps. Half of the batches teach them the rollout: else
# they would never have seen frames at different noise levels.
RECIPES |= {
    name.replace("micro", "micro-causal"): replace(RECIPES[name], history=0.5) for name in ("micro", "micro-rotation")
}


def siblings(name: str) -> dict[str, str]:
    """For the tasks that this preset leaves to others of its family (NAME, NAME-rotation, ...): task to preset."""
    family = name
    for kind in KINDS:
        family = family.removesuffix(kind)
    others = [other for other in (family + kind for kind in KINDS) if other in RECIPES and other != name]
    return {task: other for other in others for task in RECIPES[other].tasks()}
