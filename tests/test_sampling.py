"""The one loop: equal to diffusers' pipeline, repeatable, and unchanged by who watches."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import random_network
from PIL import Image

from minicos import flow, load
from minicos.errors import MinicosError
from minicos.interventions import Average, NoiseHidden, SwapHidden
from minicos.measures import token_energy
from minicos.model import save
from minicos.runs import Run, noise_for
from minicos.sampling import Recorder, rollout, sample, sample_runs
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
    from diffusers import UniPCMultistepScheduler

    reasoner = load(tiny_wan_folder)
    reasoner.settings = replace(reasoner.settings, guidance=(guidance, guidance_2))
    pipe = tiny_pipeline
    pipe.scheduler = UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, solver_order=1, disable_corrector=list(range(1000))
    )
    # Prompts are cleaned before they are read: VBVR's have line breaks, and what a web page makes of some signs.
    puzzle = replace(mazes(1)[0], prompt=" Find &amp;\n the  path ")
    image = get_task("maze").render(puzzle, 2, reasoner.settings.canvas)[0]
    noise = noise_for([Run(puzzle, 3)], (16, 2, 4, 4), 0, "initial")
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
    runs = [Run(puzzle) for puzzle in mazes(5)]
    together = noise_for(runs, (3, 5, 16, 16), 0, "initial")
    assert all(torch.equal(together[i], noise_for([r], (3, 5, 16, 16), 0, "initial")[0]) for i, r in enumerate(runs))
    streams = [
        noise_for([Run(runs[0].puzzle, seed)], (64,), *key)
        for seed, *key in [(0, 0, "initial"), (1, 0, "initial"), (0, 1, "initial"), (0, 0, "x")]
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
        lambda: Recorder("x0_hat", "conditional"),
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


def test_two_recorders_of_one_place_are_refused_and_of_two_steps_are_not(nano):
    """They would overwrite each other."""
    whole, last = Recorder("block", "cond", blocks=(0, 3)), Recorder("block", "cond", steps=(11,), blocks=(3,))
    with pytest.raises(MinicosError, match=r"two recorders of block \(cond\)"):
        sample(nano, mazes(1), recorders=[whole, last])
    run = sample(nano, mazes(1), recorders=[Recorder("x0_hat", steps=(0,)), Recorder("x0_hat", steps=(11,))])
    assert sorted(run.recorded("x0_hat")) == [0, 11]


def test_what_is_kept_of_hidden_states_does_not_keep_the_rest_in_memory(nano):
    """A part of a tensor holds on to the whole of it, unless it is copied."""
    few = Recorder("block", "cond", blocks=(2,), reduce=lambda states, _: states[:, :3])
    kept = sample(nano, mazes(1), recorders=[few]).recorded("block", "cond", 2)[0]
    assert kept.untyped_storage().nbytes() == kept.nbytes


def test_hidden_states_that_memory_has_no_room_for_are_refused_before_the_first_step(nano, monkeypatch):
    blocks = tuple(range(len(nano.transformer.blocks)))
    whole = Recorder("block", "cond", steps=(0,), blocks=blocks)
    hidden = sample(nano, mazes(2), recorders=[whole])
    held = sum(hidden.recorded("block", "cond", block)[0].nbytes for block in blocks)
    monkeypatch.setattr("minicos.sampling.host_memory", lambda: held - 1)
    with pytest.raises(MinicosError, match="would be recorded"):
        sample(nano, mazes(2), recorders=[whole])
    sample(nano, mazes(2), recorders=[replace(whole, reduce=lambda states, _: states[:, :1])])
    monkeypatch.setattr("minicos.sampling.host_memory", lambda: held)
    sample(nano, mazes(2), recorders=[whole])


def test_experts_in_bfloat16_are_changed_and_watched_as_others_are(tiny_wan_folder, tiny_wan_bf16_folder):
    """The full model's type; latents stay in float32, and are what float32 gives, but for what bfloat16 rounds."""
    plain, halved = load(tiny_wan_folder), load(tiny_wan_bf16_folder)
    one, other = mazes(2)
    done = SwapHidden(Run(other), block=1, steps=None), NoiseHidden(block=2), Average((0, 1), "block", (0,))
    runs = [Run(one), Run(other), *(Run(one, 0, (change,)) for change in done)]
    energy = Recorder("block", "cond", blocks=(3,), reduce=lambda states, _: token_energy(states.float()))
    found = [sample_runs(reasoner, runs, recorders=[energy, Recorder("x0_hat")]) for reasoner in (plain, halved)]
    assert halved.transformer.blocks[0].ffn.net[2].weight.dtype == torch.bfloat16
    assert found[1].latents.dtype == found[1].recorded("x0_hat")[0].dtype == torch.float32
    assert not torch.equal(found[0].latents, found[1].latents)
    assert (found[0].latents - found[1].latents).abs().max() < 0.1 * found[0].latents.std()
    energies = [run.recorded("block", "cond", 3)[0] for run in found]
    assert torch.allclose(*energies, rtol=0.05)
    assert all(not torch.equal(found[1].latents[0], latents) for latents in found[1].latents[2:])


def test_asking_for_what_nobody_recorded_and_solving_nothing(nano):
    with pytest.raises(MinicosError, match="was not recorded"):
        sample(nano, mazes(1)).recorded("velocity")
    with pytest.raises(MinicosError, match="uncond is there with guidance above 1 only"):
        sample(nano, mazes(1), recorders=[Recorder("velocity", "uncond")]).recorded("velocity", "uncond")
    with pytest.raises(MinicosError, match="no puzzle"):
        sample(nano, [])


# --- frame by frame -------------------------------------------------------------------------------------------------


def test_a_recorder_can_keep_less_than_there_is(tiny_wan):
    """At the moment it is recorded, for every site; the rest of the run is the same."""
    kept = []

    def mean(value, batch):
        kept.append(value.shape)
        assert len(batch.runs) == len(value)
        return value.flatten(1).mean(1, keepdim=True)

    places = [("latents", "guided", ()), ("x0_hat", "cond", ()), ("block", "cond", (1, 2))]
    puzzles = mazes(3, size=4)
    whole = sample(tiny_wan, puzzles, recorders=[Recorder(site, branch, None, b) for site, branch, b in places])
    less = sample(tiny_wan, puzzles, recorders=[Recorder(site, branch, (0, 2), b, mean) for site, branch, b in places])
    assert torch.equal(less.latents, whole.latents)
    assert len(kept) == 2 * 4
    for site, branch, blocks in places:
        for block in blocks or (None,):
            found, full = less.recorded(site, branch, block), whole.recorded(site, branch, block)
            assert sorted(found) == [0, 2]
            for step, value in found.items():
                assert torch.equal(value, full[step].flatten(1).mean(1, keepdim=True))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """A micro-causal with random weights that do something, saved and loaded."""
    from minicos.model import save
    from minicos.training import build

    reasoner = build("micro-causal", seed=0)
    torch.nn.init.normal_(reasoner.transformer.proj_out.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    folder = tmp_path_factory.mktemp("models") / "micro-causal"
    save(reasoner, folder)
    return load(folder)


def velocity_of(reasoner, latents, timestep=500.0):
    """Of the first frames of a 3x3 maze."""
    condition = reasoner.condition(mazes(len(latents), size=3)).frames(0, latents.shape[2])
    return reasoner.velocity(latents, timestep, condition, "cond").detach()


@pytest.mark.parametrize("frame", range(1, 7))
def test_a_causal_frame_sees_no_later_one(causal, frame):
    latents = torch.randn(2, 3, 7, 12, 12, generator=torch.Generator().manual_seed(frame))
    changed = latents.clone()
    changed[:, :, frame] += 1
    difference = (velocity_of(causal, changed) - velocity_of(causal, latents)).abs().amax((0, 1, 3, 4))
    assert not difference[:frame].any()  # bit for bit
    assert (difference[frame:] > 1e-4).all()


def test_without_the_mask_every_frame_sees_every_other(untrained_nano):
    nano = load(untrained_nano)
    latents = torch.randn(2, 3, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    changed = latents.clone()
    changed[:, :, 4] += 1
    difference = (velocity_of(nano, changed) - velocity_of(nano, latents)).abs().amax((0, 1, 3, 4))
    assert (difference > 1e-4).all()


def test_a_causal_model_does_not_know_how_long_the_video_will_be(causal):
    latents = torch.randn(2, 3, 7, 12, 12, generator=torch.Generator().manual_seed(0))
    whole = velocity_of(causal, latents)
    for count in range(1, 7):
        assert torch.allclose(velocity_of(causal, latents[:, :, :count]), whole[:, :, :count], atol=1e-5)


def test_a_copy_of_a_causal_model_is_causal_for_itself(causal):
    from copy import deepcopy

    copy = deepcopy(causal.transformer)
    velocity_of(causal, torch.randn(1, 3, 4, 12, 12))
    processors = {id(block.attn1.processor) for block in copy.blocks}
    assert processors.isdisjoint(id(block.attn1.processor) for block in causal.transformer.blocks)
    condition = causal.condition(mazes(1, size=3))
    copy(torch.cat([torch.randn(1, 3, 7, 12, 12), condition.channels], 1), torch.ones(1), condition.text["cond"])
    assert copy.blocks[0].attn1.processor.frames == 7
    assert causal.transformer.blocks[0].attn1.processor.frames == 4


def test_one_timestep_for_all_frames_is_the_timestep_of_the_video(causal):
    latents = torch.randn(2, 3, 7, 12, 12, generator=torch.Generator().manual_seed(0))
    one, each = (velocity_of(causal, latents, t) for t in (torch.full((2,), 300.0), torch.full((2, 7), 300.0)))
    assert torch.allclose(one, each, atol=1e-5)
    times = torch.full((2, 7), 300.0)
    times[:, 3] = 0
    difference = (velocity_of(causal, latents, times) - each).abs().amax((0, 1, 3, 4))
    assert not difference[:3].any()
    assert (difference[3:] > 1e-4).all()


def test_a_rollout_is_joint_sampling_of_each_frame_after_clean_ones(causal):
    """Against a plain restatement: whole videos, and frames not yet reached filled with anything."""
    puzzles, schedule = mazes(2, size=3), causal.schedule(3)
    run = rollout(causal, puzzles, 7, schedule=schedule)
    condition = causal.condition(puzzles)
    given = condition.channels[:, 1:, 0]
    latents = noise_for([Run(puzzle, 7) for puzzle in puzzles], (3, 7, 12, 12), 0, "initial")
    latents[:, :, 0] = given
    for frame in range(1, 7):
        for step in schedule:
            times = torch.tensor([[0.0] * frame + [step.timestep] + [999.0] * (6 - frame)] * 2)
            velocity = causal.velocity(latents, times, condition, "cond").detach()
            latents[:, :, frame] = flow.euler_step(latents[:, :, frame], velocity[:, :, frame], step)
    assert torch.equal(run.latents[:, :, 0], given)
    assert torch.allclose(run.latents, latents, atol=1e-4)
    assert not torch.allclose(run.latents, sample(causal, puzzles, 7, schedule=schedule).latents, atol=0.1)


@pytest.mark.parametrize("name", ["untrained_nano", "tiny_wan"])
def test_a_rollout_needs_a_causal_network(name, request):
    model = request.getfixturevalue(name)
    with pytest.raises(MinicosError, match="is not frame-causal"):
        rollout(model if name == "tiny_wan" else load(model), mazes(1), 0)


def test_a_rollout_leaves_the_network_as_it_was(causal, monkeypatch):
    def state():
        return [block.attn1.processor for block in causal.transformer.blocks], len(
            causal.transformer.rope._forward_hooks
        )

    before = state()
    rollout(causal, mazes(1, size=3), schedule=causal.schedule(1))
    assert state() == before
    monkeypatch.setattr(causal, "velocity", None)
    with pytest.raises(TypeError):
        rollout(causal, mazes(1, size=3))
    assert state() == before


# --- one name, several networks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """micro and micro-rotation, untrained, side by side."""
    folder = tmp_path_factory.mktemp("family")
    for name in ("micro", "micro-rotation"):
        save(random_network(name), folder / name)
    return folder


def test_the_puzzles_task_chooses_the_network(family):
    micro = load(family / "micro")
    assert micro.for_task("maze") is micro
    assert micro.for_task("maze-braided") is micro
    rotation = micro.for_task("rotation-open")
    assert rotation.settings.name == "micro-rotation"
    assert rotation.for_task("maze").settings.name == "micro"
    puzzles = [get_task("rotation").sample(0, i, size=90) for i in range(2)]
    assert torch.equal(sample(micro, puzzles).latents, sample(rotation, puzzles).latents)
    with pytest.raises(MinicosError, match="block 5 does not exist"):  # the network for rotations has fewer
        sample(micro, puzzles, recorders=[Recorder("block", "cond", blocks=(5,))])


def test_puzzles_of_two_networks_do_not_share_a_batch(family):
    both = [get_task("maze").sample(0, 0, size=5), get_task("rotation").sample(0, 0, size=90)]  # of one canvas
    with pytest.raises(MinicosError, match="different networks"):
        sample(load(family / "micro"), both)


def test_a_task_that_was_never_learned_is_named(family):
    nano = random_network("nano")
    turns = [get_task("rotation").sample(0, 0, size=90)]
    with pytest.warns(UserWarning, match="^nano was never trained on rotation, but on maze$"):
        sample(nano, turns)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(load(family / "micro"), turns)
        sample(nano, mazes(1))


def test_a_missing_sibling_is_named(family, tmp_path):
    import shutil

    alone = load(shutil.copytree(family / "micro", tmp_path / "alone"))
    assert sample(alone, mazes(1)).video.shape == (1, 7, 16, 16, 3)
    assert alone.tasks() == ["maze", "maze-braided"]
    assert load(family / "micro").tasks() == [*alone.tasks(), "rotation", "rotation-by-example", "rotation-open"]
    with pytest.raises(MinicosError, match=r"leaves rotation to a network in .*micro-rotation") as caught:
        alone.for_task("rotation")
    assert "\n" not in str(caught.value)
