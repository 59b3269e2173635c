"""The one loop: equal to diffusers' pipeline, repeatable, and unchanged by who watches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from minicos import flow, load
from minicos.errors import MinicosError
from minicos.sampling import Recorder, noise_for, sample
from minicos.tasks import get_task


@pytest.fixture(scope="module")
def nano(untrained_nano):
    return load(untrained_nano)


@pytest.fixture(params=["nano", "tiny_wan"])
def reasoner(request, untrained_nano, tiny_wan_folder):
    return load({"nano": untrained_nano, "tiny_wan": tiny_wan_folder}[request.param])


def mazes(count, size=4):
    return [get_task("maze").sample(0, i, size=size) for i in range(count)]


def hooks_on(reasoner):
    modules = [m for m in (reasoner.transformer, reasoner.transformer_2) if m is not None]
    return sum(len(block._forward_hooks) for module in modules for block in module.blocks)


@pytest.mark.parametrize(("guidance", "guidance_2"), [(3.5, 2.5), (1.0, 1.0)])
def test_our_loop_equals_the_pipeline_of_diffusers(tiny_pipeline, tiny_wan_folder, guidance, guidance_2):
    """Same sigmas, timesteps and noise, a first-order solver: the same latents within 1e-4, both experts at work."""
    from dataclasses import replace

    from diffusers import UniPCMultistepScheduler

    reasoner = load(tiny_wan_folder)
    reasoner.settings = replace(reasoner.settings, guidance=(guidance, guidance_2))
    pipe = tiny_pipeline
    pipe.scheduler = UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, solver_order=1, disable_corrector=list(range(1000))
    )
    puzzle = mazes(1)[0]
    image = get_task("maze").render(puzzle, 2, reasoner.settings.canvas)[0]
    noise = noise_for([puzzle], (16, 2, 4, 4), 3, 0, "initial")
    theirs = pipe(
        image=Image.fromarray(image),
        prompt=puzzle.prompt,
        negative_prompt=reasoner.settings.negative_prompt,
        height=32,
        width=32,
        num_frames=5,
        num_inference_steps=6,
        guidance_scale=guidance,
        guidance_scale_2=guidance_2,
        max_sequence_length=reasoner.tokenizer.model_max_length,
        latents=noise.clone(),
        output_type="latent",
    ).frames
    pipe.scheduler.set_timesteps(6)
    sigmas, times = pipe.scheduler.sigmas.tolist(), pipe.scheduler.timesteps.tolist()
    schedule = tuple(flow.Step(i, sigmas[i], sigmas[i + 1], times[i]) for i in range(6))
    assert {reasoner.expert(step.timestep) is reasoner.transformer for step in schedule} == {True, False}
    ours = sample(reasoner, [puzzle], 3, schedule=schedule).latents
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.std() > 0.1


def test_runs_repeat_bit_for_bit_and_seeds_differ(reasoner):
    puzzles = mazes(2)
    one, again, other = (sample(reasoner, puzzles, seed).latents for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other, atol=0.1)


def test_noise_depends_on_the_puzzle_not_on_its_company():
    puzzles = mazes(5)
    together = noise_for(puzzles, (3, 5, 16, 16), 0, 0, "initial")
    assert all(
        torch.equal(together[i], noise_for([p], (3, 5, 16, 16), 0, 0, "initial")[0]) for i, p in enumerate(puzzles)
    )
    streams = [
        noise_for(puzzles[:1], (64,), *key)
        for key in [(0, 0, "initial"), (1, 0, "initial"), (0, 1, "initial"), (0, 0, "x")]
    ]
    assert all(not torch.equal(a, b) for i, a in enumerate(streams) for b in streams[:i])
    assert together.mean().abs() < 0.03
    assert abs(together.std() - 1) < 0.03


def test_other_batch_shapes_change_outcomes_by_less_than_1e_4(reasoner):
    puzzles = mazes(3)
    together = sample(reasoner, puzzles).latents
    for i, puzzle in enumerate(puzzles):
        assert (sample(reasoner, [puzzle]).latents[0] - together[i]).abs().max() < 1e-4


def everything(reasoner):
    branches = ("cond", "uncond") if max(reasoner.settings.guidance) > 1 else ("cond",)
    plain = [Recorder(site, branch) for site in ("velocity", "x0_hat") for branch in ("guided", *branches)]
    return [*plain, Recorder("latents"), *(Recorder("block", branch, blocks=(0, 3)) for branch in branches)]


def test_watching_changes_nothing_and_leaves_no_hook(reasoner):
    puzzles = mazes(2)
    plain = sample(reasoner, puzzles)
    watched = sample(reasoner, puzzles, recorders=everything(reasoner))
    assert torch.equal(plain.latents, watched.latents)
    assert np.array_equal(plain.video, watched.video)
    assert hooks_on(reasoner) == 0


def test_what_is_recorded_obeys_the_equations(reasoner):
    run = sample(reasoner, mazes(2), recorders=everything(reasoner))
    latents, velocity, estimate = (run.recorded(site) for site in ("latents", "velocity", "x0_hat"))
    assert list(latents) == [step.index for step in run.schedule]
    for step in run.schedule:
        s = step.index
        following = latents.get(s + 1, run.latents)
        assert torch.equal(following, flow.euler_step(latents[s], velocity[s], step))
        assert torch.equal(estimate[s], flow.estimate_x0(latents[s], velocity[s], step.sigma))
    last = run.schedule[-1].index
    assert torch.allclose(estimate[last], run.latents, atol=1e-5)


def test_branches_are_told_apart(tiny_wan):
    run = sample(tiny_wan, mazes(1), recorders=everything(tiny_wan))
    for step in run.schedule:
        cond, uncond, guided = (run.recorded("velocity", b)[step.index] for b in ("cond", "uncond", "guided"))
        scale = tiny_wan.guidance(step)
        assert not torch.allclose(cond, uncond)
        assert torch.equal(guided, flow.guide(cond, uncond, scale))
        blocks = [run.recorded("block", b, 3)[step.index] for b in ("cond", "uncond")]
        assert not torch.allclose(*blocks)


def test_block_outputs_are_the_blocks_own(nano):
    """Recorded hidden states are what the next block is given: (batch, tokens, width)."""
    inputs = {}
    block = nano.transformer.blocks[4]

    def keep(module, args):
        inputs.setdefault("seen", args[0].clone())  # of the first step

    handle = block.register_forward_pre_hook(keep)
    run = sample(nano, mazes(2), recorders=[Recorder("block", "cond", steps=(0,), blocks=(3,))])
    handle.remove()
    recorded = run.recorded("block", "cond", 3)
    assert list(recorded) == [0]
    assert recorded[0].shape == (2, 5 * 4 * 4, 96)
    assert torch.equal(recorded[0], inputs["seen"])


def test_hooks_are_gone_after_an_exception_and_the_users_own_stay(nano):
    calls = []
    own = nano.transformer.blocks[1].register_forward_hook(lambda *_: calls.append(1))  # append gives None: no change

    def fail(*_):
        raise RuntimeError("on purpose")

    failing = nano.transformer.blocks[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        sample(nano, mazes(1), recorders=[Recorder("block", "cond", blocks=(0, 1))])
    failing.remove()
    assert hooks_on(nano) == 1
    assert calls
    own.remove()
    assert hooks_on(nano) == 0


@pytest.mark.parametrize(
    "recorder",
    [
        lambda: Recorder("pixels"),
        lambda: Recorder("block", "cond"),
        lambda: Recorder("latents", blocks=(1,)),
        lambda: Recorder("block", "guided", blocks=(1,)),
        lambda: Recorder("latents", steps=(12,)),
        lambda: Recorder("block", "cond", blocks=(6,)),
    ],
)
def test_impossible_recorders_are_refused(nano, recorder):
    with pytest.raises(MinicosError) as caught:
        sample(nano, mazes(1), recorders=[recorder()])
    assert "\n" not in str(caught.value)


def test_asking_for_what_nobody_recorded_and_solving_nothing(nano):
    with pytest.raises(MinicosError, match="was not recorded"):
        sample(nano, mazes(1)).recorded("velocity")
    with pytest.raises(MinicosError, match="no puzzle"):
        sample(nano, [])
