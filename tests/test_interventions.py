"""Interventions change what they say, where they say, and nothing else; nulls change not a bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import pytest
import torch

from minicos import flow, load
from minicos.errors import MinicosError
from minicos.interventions import (
    Average,
    CorruptAndRenoise,
    Noise,
    NoiseHidden,
    NoiseUp,
    Places,
    Renoise,
    SwapHidden,
    TakeLatents,
    Tokens,
    from_tokens,
    noise_at_frame,
    noise_at_step,
    to_tokens,
)
from minicos.runs import Address, Batch, Intervention, Run, company, noise_for
from minicos.sampling import Recorder, _block_hooks, extents, sample, sample_runs
from minicos.sharing import Sharing, addresses
from minicos.tasks import TASKS, get_task

STEPS = 4


@pytest.fixture(params=["nano", "tiny_wan"], scope="module")
def reasoner(request, untrained_nano, tiny_wan_folder):
    return load({"nano": untrained_nano, "tiny_wan": tiny_wan_folder}[request.param])


def mazes(count):
    return [get_task("maze").sample(0, i, size=4) for i in range(count)]


def run_all(reasoner, *runs):
    branches = ("cond", "uncond") if max(reasoner.settings.guidance) > 1 else ("cond",)
    recorders = [Recorder("latents"), Recorder("x0_hat"), *(Recorder("block", b, blocks=(0, 1, 2)) for b in branches)]
    return sample_runs(reasoner, runs, schedule=reasoner.schedule(STEPS), recorders=recorders)


NULLS = [
    (),
    (Noise(steps=()),),
    (Noise(places=Places(frames=())),),
    (Noise(places=Places(share=0.0)),),
    (Renoise(steps=()), NoiseUp(step=2)),  # an ordinary schedule never turns back
    (CorruptAndRenoise(step=1, share=0.0),),
    "self-swap",
    "swap of no frame",
    "own latents",
    "latents of no frame",
    (Average(seeds=(0, 0, 0), steps=None),),
    (Average(seeds=(0, 0), site="latents", steps=None, matched=True), Average(seeds=(0, 0), site="x0_hat", steps=())),
    (Average(seeds=(0, 0), site="x0_hat", steps=None),),
]


@pytest.mark.parametrize("null", NULLS, ids=str)
def test_nulls_are_bit_identical_at_equal_batch_composition(reasoner, null):
    one, other = mazes(2)
    if null == "self-swap":
        null = (SwapHidden(Run(one), block=1, steps=None),)
    elif null == "swap of no frame":
        null = (SwapHidden(Run(other), block=1, tokens=Tokens(frames=())),)
    elif null == "own latents":
        null = (TakeLatents(Run(one), 2),)
    elif null == "latents of no frame":
        null = (TakeLatents(Run(other), 2, Places(frames=())),)
    changed = run_all(reasoner, Run(other), Run(one, 0, null))
    untouched = run_all(reasoner, Run(other), Run(one))
    assert torch.equal(changed.latents, untouched.latents)


@pytest.mark.parametrize(
    "interventions",
    [
        (noise_at_step(2),),
        (noise_at_frame(1),),
        (Noise(steps=(1, 2), places=Places(frames=(1,), share=0.5)),),
        (Renoise(steps=(2,)),),
        (CorruptAndRenoise(step=2, share=0.5),),
        (Average(seeds=(0, 1, 2), blocks=(1, 2)),),
        (Average(seeds=(0, 1, 2), site="latents", matched=True),),
        (Average(seeds=(0, 1), site="velocity", steps=(1,)),),
        (Average(seeds=(0, 1), site="x0_hat", steps=(2,)),),
    ],
    ids=str,
)
def test_each_changes_its_own_run_from_its_first_step_on_and_no_other(reasoner, interventions):
    one, other = mazes(2)
    run = run_all(reasoner, Run(one), Run(other), Run(one, 0, interventions))
    alone = run_all(reasoner, Run(one), Run(other), Run(one))
    assert len(run.latents) == 3
    assert torch.allclose(run.latents[:2], alone.latents[:2], atol=1e-4)
    assert not torch.allclose(run.latents[2], run.latents[0], atol=1e-2)
    steps = interventions[0].indices()["step"] or (0,)
    at_latents = getattr(interventions[0], "site", "latents") == "latents"
    for s in range(min(steps) + (0 if at_latents else 1)):
        assert torch.allclose(run.recorded("latents")[s][2], run.recorded("latents")[s][0], atol=1e-4)


def test_latents_are_taken_from_a_donor_before_one_step_in_the_frames_named(reasoner):
    one, other = mazes(2)
    run = run_all(reasoner, Run(other), Run(one), Run(one, 0, (TakeLatents(Run(other), 2, Places(frames=(1,))),)))
    before = run.recorded("latents")
    donor, plain, changed = before[2]
    assert torch.equal(changed[:, 1], donor[:, 1])
    assert torch.allclose(changed[:, 0], plain[:, 0], atol=1e-4)
    assert not torch.allclose(changed[:, 1], plain[:, 1], atol=1e-2)
    assert torch.allclose(before[1][2], before[1][1], atol=1e-4)
    assert not torch.allclose(before[3][2, :, 1], before[3][0, :, 1], atol=1e-3)  # it goes on under its own picture


@pytest.mark.parametrize(("steps", "frames"), [((2,), None), (None, (1,)), ((0, 3), (0, 1))])
def test_noise_overwrites_exactly_its_frame_steps(reasoner, steps, frames):
    run = run_all(reasoner, Run(mazes(1)[0]), Run(mazes(1)[0], 0, (Noise(steps, Places(frames)),)))
    latents, x0_hat = run.recorded("latents"), run.recorded("x0_hat")
    for step in run.schedule:
        s = step.index
        noise = noise_for(run.runs[1:], tuple(latents[s].shape[1:]), s, "noise")[0]
        hit = [steps is None or s in steps, frames]
        for frame in range(noise.shape[1]):
            erased = hit[0] and (frames is None or frame in frames)
            assert torch.equal(latents[s][1, :, frame], noise[:, frame]) == erased
        if s > 0 and not hit[0]:  # else it is what the Euler step before led to
            before = run.schedule[s - 1]
            velocity = (latents[s - 1][1] - x0_hat[s - 1][1]) / before.sigma
            assert torch.allclose(latents[s][1], flow.euler_step(latents[s - 1][1], velocity, before), atol=1e-4)


def test_a_share_of_the_tokens_is_a_share_of_whole_tokens(reasoner):
    runs = [Run(puzzle, seed) for puzzle in mazes(4) for seed in range(10)]
    condition = reasoner.condition(mazes(1))
    extent = tuple(condition.channels.shape[2:])
    patch = reasoner.transformer.config.patch_size
    batch = Batch(runs, extent, tuple(e // p for e, p in zip(extent, patch, strict=True)))
    at = next(iter(_addresses(reasoner)))
    mask = Places(share=0.3).mask(list(range(len(runs))), batch, at)
    tokens = to_tokens(mask.float(), batch)
    assert set(tokens.mean(-1).unique().tolist()) == {0.0, 1.0}
    assert abs(tokens.mean() - 0.3) < 0.1
    assert torch.equal(from_tokens(tokens, batch), mask.float())


def _addresses(reasoner):
    from minicos.runs import Address

    for step in reasoner.schedule(STEPS):
        yield Address("latents", step, reasoner.expert_name(step.timestep))


def test_renoise_keeps_the_estimate_and_forgets_the_rest(reasoner):
    puzzle = mazes(1)[0]
    run = run_all(reasoner, Run(puzzle, 0, (Renoise((2,)),)), Run(puzzle, 0, (Renoise((2,), draw=1),)))
    sigma, latents = run.schedule[2].sigma, run.recorded("latents")[2]
    x0_hat = run.recorded("x0_hat")[1]
    noise = (latents - (1 - sigma) * x0_hat) / sigma
    expected = [noise_for(run.runs[:1], tuple(noise.shape[1:]), 2, f"renoise {draw}")[0] for draw in (0, 1)]
    assert torch.allclose(noise, torch.stack(expected), atol=1e-4)
    first = sample_runs(reasoner, [Run(puzzle, 0, (Renoise((0,)),))], schedule=reasoner.schedule(1))
    assert torch.isfinite(first.latents).all()  # before step 0 there is no estimate: fresh noise


def test_noise_up_reaches_the_level_that_it_says(reasoner):
    """A schedule that turns back: steps 0, 1, 2, then again from 1. Signal and noise have the weights of that level."""
    plain = reasoner.schedule(STEPS)
    schedule = flow.turned_back(plain, at=3, to=1)
    assert [step.index for step in schedule] == list(range(6))
    assert [step.sigma for step in schedule] == [plain[i].sigma for i in (0, 1, 2, 1, 2, 3)]
    low, high = plain[2].next_sigma, plain[1].sigma
    runs = [Run(puzzle, 0, (NoiseUp(step=3),)) for puzzle in mazes(2)]
    run = sample_runs(reasoner, runs, schedule=schedule, recorders=[Recorder("latents"), Recorder("velocity")])
    before = flow.euler_step(run.recorded("latents")[2], run.recorded("velocity")[2], plain[2])
    noise = noise_for(runs, tuple(before.shape[1:]), 3, "noise up 0")
    scale = (1 - high) / (1 - low)
    assert torch.allclose(
        run.recorded("latents")[3], scale * before + sqrt(high**2 - (scale * low) ** 2) * noise, atol=1e-4
    )


def test_corruption_moves_tokens_and_keeps_their_values():
    from types import SimpleNamespace

    batch = Batch([Run(p) for p in mazes(2)], (5, 16, 16), (5, 4, 4))
    x0_hat = torch.randn(2, 3, 5, 16, 16)
    corrupt = CorruptAndRenoise(step=1, share=0.25)
    at = SimpleNamespace(step=SimpleNamespace(index=1))
    shuffled = corrupt._shuffled(x0_hat, [0, 1], batch, at)
    before, after = to_tokens(x0_hat, batch), to_tokens(shuffled, batch)
    moved = (before != after).any(-1)
    assert moved.sum(1).tolist() == [20, 20]
    for row in range(2):
        assert torch.equal(before[row].sum(-1).sort().values, after[row].sum(-1).sort().values)
    assert torch.equal(from_tokens(before, batch), x0_hat)


# --- hidden states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", [None, "cond"])
def test_a_swap_takes_the_donors_tokens_in_its_region_and_frames(reasoner, branch):
    one, other = mazes(2)
    donor = Run(other, 5)
    swap = SwapHidden(donor, block=1, steps=(1,), tokens=Tokens(frames=(1,)), branch=branch)
    run = run_all(reasoner, Run(one, 0, (swap,)), donor, Run(one))
    guided = max(reasoner.settings.guidance) > 1
    for which in ("cond", "uncond")[: 1 + guided]:
        hidden = run.recorded("block", which, 1)
        grid = hidden[1].shape[1] // reasoner.condition([one]).channels.shape[2]
        for s in range(STEPS):
            states = hidden[s].unflatten(1, (-1, grid))
            swapped = torch.equal(states[0, 1], states[1, 1])
            assert swapped == (s == 1 and branch in (None, which))
        states = hidden[1].unflatten(1, (-1, grid))
        assert torch.allclose(states[0, 0], states[2, 0], atol=1e-4)  # the other frames stay the run's own
    assert not torch.allclose(run.latents[0], run.latents[2], atol=1e-4)


def test_a_donor_is_brought_along_and_left_out_of_the_result(reasoner):
    one, other = mazes(2)
    swap = SwapHidden(Run(other), block=0)
    run = run_all(reasoner, Run(one, 0, (swap,)))
    assert len(run.latents) == len(run.runs) == len(run.recorded("latents")[0]) == 1
    with_donor = run_all(reasoner, Run(one, 0, (swap,)), Run(other))
    assert torch.allclose(run.latents[0], with_donor.latents[0], atol=1e-4)


def test_swapping_every_token_of_the_last_block_gives_the_donors_velocity(reasoner):
    """Why such a swap proves nothing: apart from text and time, the rest of the pass is the donor's."""
    one, other = mazes(2)
    swap = SwapHidden(Run(other), block=len(reasoner.transformer.blocks) - 1, steps=None)
    runs = [Run(one, 0, (swap,)), Run(other)]
    run = sample_runs(reasoner, runs, schedule=reasoner.schedule(1), recorders=[Recorder("velocity")])
    velocity = run.recorded("velocity")
    assert torch.allclose(velocity[0][0], velocity[0][1], atol=1e-5)


def test_a_pair_starts_from_one_noise_and_all_swaps_together_make_it_the_other(reasoner):
    puzzle = mazes(1)[0]
    partner = get_task("maze").partner(puzzle)
    assert torch.equal(*(noise_for([Run(p)], (3, 4), 0, "initial") for p in (puzzle, partner)))
    assert not torch.equal(*(noise_for([Run(p)], (3, 4), 0, "initial") for p in mazes(2)))
    last = len(reasoner.transformer.blocks) - 1
    run = Run(puzzle, 0, (SwapHidden(Run(partner), last, None),))
    swapped, other, own = sample_runs(reasoner, [run, Run(partner), Run(puzzle)]).latents
    assert torch.allclose(swapped, other, atol=1e-5)
    assert not torch.allclose(swapped, own, atol=1e-3)


def test_noise_in_the_place_of_hidden_states_keeps_their_norms(reasoner):
    puzzle = mazes(1)[0]
    noise = NoiseHidden(block=1, steps=(2,), tokens=Tokens(frames=(0,)))
    hidden = run_all(reasoner, Run(puzzle, 0, (noise,)), Run(puzzle)).recorded("block", "cond", 1)
    assert torch.allclose(hidden[1][0], hidden[1][1], atol=1e-4)
    noised, own = (states.unflatten(0, (-1, hidden[2].shape[1] // _frames(reasoner))) for states in hidden[2])
    assert torch.allclose(noised[0].norm(dim=-1), own[0].norm(dim=-1), rtol=1e-3)
    assert torch.nn.functional.cosine_similarity(noised[0], own[0], dim=-1).abs().mean() < 0.5
    assert torch.allclose(noised[1:], own[1:], atol=1e-4)


def _frames(reasoner):
    return reasoner.latent_frames


def test_an_ensemble_gives_its_members_one_hidden_state_and_keeps_their_latents(reasoner):
    ensemble = Average(seeds=(0, 1, 2), blocks=(1, 2))
    puzzle = mazes(1)[0]
    runs = [Run(puzzle, seed, (ensemble,)) for seed in (0, 1, 2)]
    run = run_all(reasoner, *runs, *(Run(puzzle, seed) for seed in (0, 1, 2)))
    inside, outside = run.recorded("block", "cond", 2)[0], run.recorded("block", "cond", 0)[0]
    assert torch.allclose(inside[0], inside[1])
    assert not torch.allclose(outside[0], outside[1], atol=1e-3)
    latents = run.recorded("latents")[0]
    assert torch.equal(latents[:3], latents[3:])
    block_1 = run.recorded("block", "cond", 1)[0]
    assert torch.allclose(block_1[0], block_1[3:].mean(0), atol=1e-4)


@pytest.mark.parametrize("what", [NoiseHidden(1), Average((0, 1), blocks=(1,)), SwapHidden(Run(mazes(2)[1]), 1)])
def test_what_is_done_to_hidden_states_can_be_done_in_one_branch(tiny_wan, what):
    undisturbed, both, *one = (
        run_all(tiny_wan, Run(mazes(1)[0], 0, done))
        for done in ((), (what,), (replace(what, branch="cond"),), (replace(what, branch="uncond"),))
    )
    hidden = [{b: run.recorded("block", b, 1)[0] for b in ("cond", "uncond")} for run in (undisturbed, both, *one)]
    changed = [{b: not torch.allclose(here[b], hidden[0][b], atol=1e-4) for b in here} for here in hidden[1:]]
    assert changed == [{"cond": c, "uncond": u} for c, u in ((True, True), (True, False), (False, True))]


def test_averaged_noise_has_unit_variance_when_matched(reasoner):
    seeds = tuple(range(9))
    for matched, expected in ((False, 1 / 3), (True, 1.0)):
        average = Average(seeds=seeds, site="latents", matched=matched)
        run = run_all(reasoner, *(Run(mazes(1)[0], seed, (average,)) for seed in seeds))
        assert run.recorded("latents")[0][0].std() == pytest.approx(expected, rel=0.05)


def test_matched_hidden_states_have_the_mean_norm_of_their_members(reasoner):
    puzzle, seeds = mazes(1)[0], (0, 1, 2)
    plain = run_all(reasoner, *(Run(puzzle, seed) for seed in seeds)).recorded("block", "cond", 1)[0]
    matched = Average(seeds=seeds, blocks=(1,), matched=True)
    hidden = run_all(reasoner, *(Run(puzzle, seed, (matched,)) for seed in seeds)).recorded("block", "cond", 1)[0]
    assert torch.allclose(hidden[0].norm(dim=-1), plain.norm(dim=-1).mean(0), rtol=1e-3)


def test_interventions_act_in_the_order_of_their_list(reasoner):
    puzzle = mazes(1)[0]
    noise, renoise = Noise(steps=(2,)), Renoise(steps=(2,))
    run = run_all(reasoner, *(Run(puzzle, 0, order) for order in [(noise, renoise), (renoise, noise), (noise,)]))
    first, second, only = run.recorded("latents")[2]
    assert torch.equal(second, only)
    assert not torch.allclose(first, second, atol=1e-2)


# --- shared prefixes and batches ------------------------------------------------------------------------------------


def many_runs(count=2):
    runs = []
    for puzzle in mazes(count):
        donor = Run(get_task("maze").sample(1, 0, size=4), 3)
        changes = [(), *((noise_at_step(s),) for s in range(STEPS)), (SwapHidden(donor, block=1, steps=(2,)),)]
        changes += [(Average(seeds=(0, 1), blocks=(0, 1), steps=(1,)), Renoise((3,))), (noise_at_frame(1),)]
        runs += [Run(puzzle, 0, change) for change in changes]
    return runs


@pytest.mark.parametrize("size", [None, 1, 3, 7])
def test_shared_prefixes_and_batches_change_outcomes_by_less_than_1e_4(reasoner, size):
    runs = many_runs()
    schedule, recorders = reasoner.schedule(STEPS), [Recorder("x0_hat"), Recorder("block", "cond", blocks=(2,))]
    shared = sample_runs(reasoner, runs, schedule=schedule, recorders=recorders, batch_size=size)
    for row, run in enumerate(runs):
        alone = sample_runs(reasoner, [run], schedule=schedule, recorders=recorders)
        assert torch.allclose(shared.latents[row], alone.latents[0], atol=1e-4)
        for site, branch, block in (("x0_hat", "guided", None), ("block", "cond", 2)):
            one, other = shared.recorded(site, branch, block), alone.recorded(site, branch, block)
            assert all(torch.allclose(one[s][row], other[s][0], atol=1e-3) for s in range(STEPS))


def test_a_run_is_computed_from_its_first_intervention_on(reasoner):
    puzzle, other = mazes(2)
    schedule = reasoner.schedule(STEPS)
    branches = 2 if max(reasoner.settings.guidance) > 1 else 1  # each a pass
    count = lambda *runs: Sharing(reasoner, runs, schedule).evaluations() / branches  # noqa: E731
    assert count(Run(puzzle)) == STEPS
    assert count(Run(puzzle), Run(puzzle), Run(puzzle, 0, (Noise(steps=()),))) == STEPS
    assert count(Run(puzzle), Run(puzzle, 0, (noise_at_step(3),))) == STEPS + 1
    assert count(Run(puzzle, 0, (noise_at_step(3),))) == STEPS  # the undisturbed run ends where it begins
    assert count(Run(puzzle), Run(puzzle, 1), Run(other)) == 3 * STEPS
    swap = SwapHidden(Run(other), block=1, steps=(2,))
    assert count(Run(puzzle, 0, (swap,))) == STEPS + 3  # the donor is needed until step 2
    ensemble = Average(seeds=(0, 1, 2), steps=(0,))
    assert count(Run(puzzle, 0, (ensemble,))) == STEPS + 2  # its peers at step 0 only
    assert count(*(Run(puzzle, seed, (ensemble,)) for seed in (0, 1, 2))) == 3 * STEPS
    noises = [Run(puzzle, 0, (noise_at_step(s),)) for s in range(STEPS)]
    # one begins at each step, and the undisturbed run is needed until the last has begun
    assert count(*noises) == sum(range(1, STEPS + 1)) + STEPS - 1


@pytest.mark.parametrize("size", [1, 5])
def test_runs_that_need_each_other_share_a_batch(reasoner, size):
    many, schedule = many_runs(4), reasoner.schedule(STEPS)
    sharing = Sharing(reasoner, many, schedule)
    for step in range(STEPS):
        batches = sharing.batches(step, size)
        tracks = [track for batch in batches for track in batch]
        assert all(len(batch) == len(set(batch)) for batch in batches)
        assert set(tracks) <= {sharing.track(run, step) for run in sharing.runs}
        assert set(tracks) >= {sharing.track(run, step) for run in many if run in sharing.runs}
        for batch in batches:
            for track in batch:
                acting = [
                    i for i in track.interventions if any(i.acts(at) for at in addresses(reasoner, schedule[step]))
                ]
                assert {sharing.track(n, step) for i in acting for n in i.needs(track)} <= set(batch)


def test_a_donor_of_many_passes_beside_each_and_no_batch_grows_with_their_number(reasoner):
    """A full model has room for few videos at once, and a swap has a donor that forty others take from."""
    one, other = mazes(2)
    blocks = len(reasoner.transformer.blocks)
    swaps = [Run(one, 0, (SwapHidden(Run(other), block, steps=(1,)),)) for block in range(blocks)]
    runs, schedule = [Run(one), Run(other), *swaps], reasoner.schedule(STEPS)
    sharing = Sharing(reasoner, runs, schedule)
    assert [len(batch) for batch in sharing.batches(0, 2)] == [2]  # all swaps are still the undisturbed run
    assert [len(batch) for batch in sharing.batches(1, 2)] == [2] * (
        blocks + 1
    )  # the two, then each swap with its donor
    assert [len(batch) for batch in sharing.batches(2, 2)] == [2] * (blocks // 2 + 1)  # nobody needs anybody any more
    branches = 2 if max(reasoner.settings.guidance) > 1 else 1  # each a pass
    assert sharing.evaluations(2) == branches * (2 + 2 * (blocks + 1) + (blocks + 2) * (STEPS - 2))
    whole, parts = (sample_runs(reasoner, runs, schedule=schedule, batch_size=size) for size in (None, 2))
    assert torch.allclose(whole.latents, parts.latents, atol=1e-4)
    assert not torch.allclose(whole.latents[0], whole.latents[2], atol=1e-3)


def test_no_more_videos_pass_at_once_than_the_model_takes(reasoner):
    """A notebook that solves twelve puzzles may run on a model that has room for one."""
    passed, settings = [], reasoner.settings
    hook = reasoner.transformer.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    reasoner.settings = replace(settings, batch=2)
    try:
        found = sample(reasoner, mazes(5)).latents
    finally:
        hook.remove()
        reasoner.settings = settings
    assert set(passed) == {1, 2}
    assert torch.allclose(found, sample(reasoner, mazes(5)).latents, atol=1e-4)


def test_company_is_complete_and_has_no_doubles():
    one, other = mazes(2)
    chain = Run(one, 0, (SwapHidden(Run(other, 1, (Average(seeds=(1, 2)),)), block=0),))
    found = company([chain, chain])
    assert found[:2] == [chain, chain]
    assert [(run.puzzle, run.seed) for run in found[2:]] == [(other, 1), (other, 2)]


@pytest.mark.parametrize("name", TASKS)
def test_regions_are_the_board(name):
    import numpy as np

    task = get_task(name)
    for index in range(20):
        puzzle = task.sample(0, index)
        regions = task.regions(puzzle)
        assert (sum(where.astype(int) for where in regions.values()) == 1).all()
        height, width = task.canvas(puzzle)
        tokens = [task.region(puzzle, region, height // 4, width // 4) for region in regions]
        assert (sum(where.astype(int) for where in tokens) == 1).all()
        assert np.array_equal(task.region(puzzle, "all", 3, 7), np.ones((3, 7), bool))
    with pytest.raises(MinicosError, match="no region 'sky': choose from all"):
        task.region(puzzle, "sky", 5, 5)


def test_a_region_that_is_nowhere_has_no_tokens():
    task = get_task("maze")
    puzzles = (task.sample(0, index, size=3) for index in range(2000))
    full = next(puzzle for puzzle in puzzles if len(puzzle.route) == 9)
    assert not task.region(full, "elsewhere", 3, 3).any()


@pytest.mark.parametrize("name", ["maze", "rotation"])
def test_regions_of_a_pair_hold_what_differs_and_are_the_board(name):
    task = get_task(name)
    for index in range(20):
        puzzle = task.sample(0, index)
        partner = task.partner(puzzle)
        if partner is None:
            continue
        rows, columns = (side // 4 for side in task.canvas(puzzle))
        both = {r: task.region_of_both(puzzle, partner, r, rows, columns) for r in task.regions(puzzle)}
        assert (sum(where.astype(int) for where in both.values()) == 1).all()
        if name == "maze":
            assert {tuple(cell) for cell in zip(*both["goal"].nonzero(), strict=True)} == {puzzle.goal, partner.goal}
            assert not any(both["elsewhere"][cell] for p in (puzzle, partner) for cell in p.route)
    assert task.region_of_both(puzzle, puzzle, "all", 3, 7).all()
    with pytest.raises(MinicosError, match="no region 'sky': choose from all"):
        task.region_of_both(puzzle, puzzle, "sky", 5, 5)
    other = get_task("bounce").sample(0, 0)
    with pytest.raises(MinicosError, match=f"{name} .* and bounce .* no region in common: take puzzles of one kind"):
        task.region_of_both(puzzle, other, "all", 5, 5)


def test_a_swapped_goal_is_the_one_that_goes_and_the_one_that_comes(untrained_nano):
    nano = load(untrained_nano)
    puzzle = mazes(1)[0]
    partner = get_task("maze").partner(puzzle)
    swap = SwapHidden(Run(partner), 2, (0,), Tokens("goal", (1,)))
    recorder = Recorder("block", "cond", (0,), blocks=(2,))
    run = sample_runs(nano, [Run(puzzle, 0, (swap,)), Run(partner)], recorders=[recorder])
    states = run.recorded("block", "cond", 2)[0].unflatten(1, (-1, puzzle.size, puzzle.size))
    same = (states[0] == states[1]).all(-1)
    assert {tuple(cell) for cell in same[1].nonzero().tolist()} == {puzzle.goal, partner.goal}
    assert not same[2:].any()


def test_regions_follow_the_board_to_the_large_canvas():
    task = get_task("maze")
    puzzle = task.sample(0, 3, size=5)
    tokens = task.region(
        puzzle, "start", 30, 52
    )  # 480 x 832 in tokens of 16 pixels: the board is 30 x 30 in the middle
    rows, columns = tokens.nonzero()
    assert tokens.sum() == 36
    assert (rows.min() // 6, (columns.min() - 11) // 6) == puzzle.start
    coarse = task.region(puzzle, "start", 2, 2)  # no token is half start: the one that it lies in
    assert coarse.nonzero() == ([puzzle.start[0] * 2 // 5], [puzzle.start[1] * 2 // 5])


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (lambda run: noise_at_step(STEPS), "step 4 does not exist: this run has steps 0 to 3"),
        (lambda run: noise_at_frame(9), "frame 9 does not exist"),
        (lambda run: SwapHidden(run, block=17), "block 17 does not exist"),
        (lambda run: Average(seeds=(0,), blocks=(-1,)), "block -1 does not exist"),
        (lambda run: SwapHidden(run, block=0, tokens=Tokens(region="sky")), "no region 'sky'"),
    ],
)
def test_impossible_interventions_are_told_in_one_line(reasoner, intervention, message):
    run = Run(mazes(1)[0])
    with pytest.raises(MinicosError, match=message) as caught:
        run_all(reasoner, Run(run.puzzle, 0, (intervention(run),)))
    assert "\n" not in str(caught.value)


def test_a_donor_of_another_size_is_told_where_every_puzzle_has_its_own_canvas(untrained_nano):
    donor = Run(get_task("maze").sample(0, 0, size=3))
    with pytest.raises(MinicosError, match="different sizes"):
        run_all(load(untrained_nano), Run(mazes(1)[0], 0, (SwapHidden(donor, block=0),)))


def test_nested_contexts_take_off_their_own_hooks_and_leave_a_users(reasoner):
    run, step, seen = Run(mazes(1)[0], 0, (NoiseHidden(block=1, steps=None),)), reasoner.schedule(STEPS)[0], []
    batch = Batch([run], *extents(reasoner, reasoner.condition([run.puzzle])))
    at = Address("block", step, reasoner.expert_name(step.timestep), "cond")
    block = reasoner.blocks(step)[1]
    own = block.register_forward_hook(lambda *_: seen.append(1))

    def failing_inside():
        with _block_hooks(reasoner, at, batch, [], {}):
            assert len(block._forward_hooks) == 3
            raise RuntimeError("on purpose")

    try:
        with _block_hooks(reasoner, at, batch, [], {}):
            with pytest.raises(RuntimeError, match="on purpose"):
                failing_inside()
            assert len(block._forward_hooks) == 2
        assert list(block._forward_hooks) == [own.id]
        run_all(reasoner, run)
        branches = 2 if max(reasoner.settings.guidance) > 1 else 1
        steps = [s for s in reasoner.schedule(STEPS) if reasoner.expert_name(s.timestep) == at.expert]
        assert len(seen) == branches * len(steps)
    finally:
        own.remove()


def test_hooks_are_gone_after_an_intervention_fails(reasoner):
    class Failing(Average):
        def change(self, *_):
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        sample(reasoner, mazes(1), interventions=[Failing(seeds=(0,))])
    experts = [m for m in (reasoner.transformer, reasoner.transformer_2) if m is not None]
    assert not any(block._forward_hooks for expert in experts for block in expert.blocks)


MARK = 7.25


@dataclass(frozen=True)
class Marker(Intervention):
    """Writes MARK everywhere at one address."""

    address: Address

    def indices(self):
        return {}

    def acts(self, at):
        return at == self.address

    def change(self, value, rows, batch, at):
        return torch.full_like(value[rows], MARK)


def test_a_marker_is_found_at_its_address_and_nowhere_else(reasoner):
    """One run for every address there is; what is recorded, and what the next block is given, say where it came out."""
    schedule = reasoner.schedule(STEPS)
    places = [at for step in schedule for at in addresses(reasoner, step)]
    runs = [Run(mazes(1)[0], seed, (Marker(at),)) for seed, at in enumerate(places)]
    blocks = tuple(range(len(reasoner.transformer.blocks)))
    branches = sorted({at.branch for at in places if at.branch})
    recorders = [Recorder(site) for site in ("latents", "velocity", "x0_hat")]
    recorders += [Recorder("block", branch, blocks=blocks) for branch in branches]
    given = []  # (expert, block, which runs bring the marker into it), in the order of calls
    handles = [
        block.register_forward_pre_hook(
            lambda module, inputs, name=name, number=number: given.append((name, number, marked(inputs[0])))
        )
        for name in ("transformer", "transformer_2")
        if getattr(reasoner, name) is not None
        for number, block in enumerate(getattr(reasoner, name).blocks)
    ]
    found = sample_runs(reasoner, runs, schedule=schedule, recorders=recorders)
    for handle in handles:
        handle.remove()
    for at in places:
        branch = at.branch or "guided"
        seen = marked(found.recorded(at.site, branch, at.block)[at.step.index])
        assert seen == [row for row, place in enumerate(places) if place == at], at
    expected = [
        (at.expert, at.block + 1, places.index(at)) for at in places if at.site == "block" and at.block < blocks[-1]
    ]
    assert [(name, number, row) for name, number, rows in given for row in rows] == expected


def marked(values):
    """The rows that are MARK throughout."""
    return [row for row, value in enumerate(values) if torch.allclose(value, torch.tensor(MARK), atol=1e-4)]
