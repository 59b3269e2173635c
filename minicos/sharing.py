"""Which runs are still equal: runs of one puzzle and seed share their way until an intervention parts them.

Until its first intervention acts, a run is the undisturbed run of its puzzle and seed, and is not computed itself. A
run that only others need is computed as long as they need it. Each run that is computed at a step is a *track*.
"""

from __future__ import annotations

from collections.abc import Sequence

from minicos.flow import Step
from minicos.model import Branch, Reasoner
from minicos.runs import Address, Intervention, Run, company


class Sharing:
    """The tracks of `runs`, and of the company that they need, at every step of a schedule."""

    def __init__(self, reasoner: Reasoner, runs: Sequence[Run], schedule: Sequence[Step]) -> None:
        self.runs = list(dict.fromkeys(company(runs)))
        places = [addresses(reasoner, step) for step in schedule]
        self._length = len(places)
        self._branches = [len(branches_of(reasoner, step)) for step in schedule]
        self._acts = acts = {i: _acting(i, places) for i in {i for run in self.runs for i in run.interventions}}
        self._begins = {
            run: min((acts[i][0] for i in run.interventions if acts[i]), default=self._length) for run in self.runs
        }
        self._ends = self._needed_until(set(runs), {i: steps[-1] + 1 if steps else 0 for i, steps in acts.items()})

    def _needed_until(self, wanted: set[Run], over: dict[Intervention, int]) -> dict[Run, int]:
        """For each run the step from which on nobody needs it; `over`: the same for what an intervention needs."""
        ends = {run: self._length if run in wanted else 0 for run in self.runs}
        changed = True
        while changed:  # what a needed run needs is needed too
            changed = False
            for run in self.runs:
                for intervention in run.interventions:
                    end = min(ends[run], over[intervention])
                    for other in intervention.needs(run):
                        if ends[other] < end:
                            ends[other], changed = end, True
        return ends

    def track(self, run: Run, step: int) -> Run:
        """The run that is computed in the place of `run` at this step."""
        return run if self._begins[run] <= step else Run(run.puzzle, run.seed)

    def batches(self, step: int, size: int | None = None) -> list[list[Run]]:
        """The tracks at this step, in batches of at most `size`, each beside all that it needs at this step.

        One that several batches need passes in each of them. A batch is larger than `size` only where a single track
        and what it needs are.
        """
        batches: list[list[Run]] = []
        here, placed = set(), set()
        for track in dict.fromkeys(self.track(run, step) for run in self.runs if self._ends[run] > step):
            if track in placed:
                continue
            group = [track, *self._beside(track, step)]
            new = [other for other in group if other not in here]
            if not batches or (size is not None and len(batches[-1]) + len(new) > size):
                batches.append([])
                here, new = set(), group
            batches[-1] += new
            here.update(new)
            placed.update(new)
        return batches

    def _beside(self, track: Run, step: int) -> list[Run]:
        """What has to pass together with a track at this step: what it needs, and what that needs."""
        found = [track]
        for other in found:  # grows while it is walked through
            for intervention in other.interventions:
                if step in self._acts[intervention]:
                    needed = dict.fromkeys(self.track(run, step) for run in intervention.needs(other))
                    found += [run for run in needed if run not in found]
        return found[1:]

    def evaluations(self, size: int | None = None) -> int:
        """Videos that pass through the network in all steps together, in batches; each branch of guidance is a pass."""
        passes = (sum(map(len, self.batches(step, size))) for step in range(self._length))
        return sum(count * branches for count, branches in zip(passes, self._branches, strict=True))


def branches_of(reasoner: Reasoner, step: Step) -> tuple[Branch, ...]:
    """The passes of one step: two with guidance."""
    return ("cond", "uncond") if reasoner.guidance(step) > 1 else ("cond",)


def addresses(reasoner: Reasoner, step: Step) -> list[Address]:
    """Every place of one step."""
    expert = reasoner.expert_name(step.timestep)
    sites = [Address(site, step, expert) for site in ("latents", "velocity", "x0_hat")]
    blocks = range(len(reasoner.blocks(step)))
    return sites + [
        Address("block", step, expert, branch, block) for branch in branches_of(reasoner, step) for block in blocks
    ]


def _acting(intervention: Intervention, places: list[list[Address]]) -> list[int]:
    """The steps at which it acts."""
    return [step for step, addresses in enumerate(places) if any(intervention.acts(at) for at in addresses)]
