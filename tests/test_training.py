"""Training repeats exactly, survives kill -9, never sees a test puzzle, and learns."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from minicos.cards import card, describe_weights, provenance
from minicos.curves import (
    BAND,
    CURVE_FILE,
    WINDOW,
    Point,
    curve_of_run,
    outside_band,
    read_curve,
    verdict,
    write_curve,
)
from minicos.errors import MinicosError
from minicos.files import alone_in
from minicos.parts import PRESETS
from minicos.recipes import RECIPES, Stage
from minicos.training import (
    BLENDED_FROM,
    REFINED_FROM,
    REFINED_RATE,
    RESUME_FILE,
    Batches,
    FlowMatching,
    build,
    learning_rate_factor,
    train,
)

STEPS = 8
# A child process that trains the real preset for a few small batches, and kills itself with SIGKILL at a given moment.
CHILD = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import lightning as L
import minicos.training as training
from minicos.recipes import RECIPES, Stage

out, kill_at, where, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4] == "resume"

def die():
    os.kill(os.getpid(), signal.SIGKILL)

if where == "step":
    original = training.FlowMatching.training_step
    def step(self, batch, index):
        if self.global_step == kill_at:
            die()
        return original(self, batch, index)
    training.FlowMatching.training_step = step
elif where == "save":  # in the middle of writing a state: the draft is there, the old state is not yet replaced
    saves = []
    replace_file = os.replace
    def interrupted(source, target):
        saves.append(str(source).endswith("last.ckpt.draft"))
        if saves[-1] and sum(saves) == kill_at:
            with open(source, "r+b") as file:
                file.truncate(1000)
            die()
        replace_file(source, target)
    training.os.replace = interrupted

stages = (Stage(0.5, {("maze", 3): 1}), Stage(1.0, {("maze", 3): 1, ("rotation", 45): 1}))
recipe = replace(RECIPES["nano"], steps=6, refined=2, tokens=180, stages=stages, validate=(("maze", 3),),
                 validate_every=4, save_every=2, warmup=2)
training.train("nano", out, seed=5, resume=resume, recipe=recipe, progress=False)
"""


def run_child(out: Path, kill_at: int = -1, where: str = "step", resume: bool = False) -> int:
    command = [sys.executable, "-c", CHILD, str(out), str(kill_at), where, "resume" if resume else "fresh"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode


def weights(folder: Path) -> dict[str, torch.Tensor]:
    name = "diffusion_pytorch_model.safetensors"
    return {f"{p}.{k}": v for p in ("transformer", "text_encoder") for k, v in load_file(folder / p / name).items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run_child(out) == 0
    return weights(out)


@pytest.mark.parametrize(("kill_at", "where"), [(1, "step"), (5, "step"), (2, "save")])
def test_a_killed_run_resumes_to_the_same_weights(undisturbed, tmp_path, kill_at, where):
    out = tmp_path / "run"
    assert run_child(out, kill_at, where) == -signal.SIGKILL
    assert (out / RESUME_FILE).exists() == (kill_at > 1)  # the first state is saved after two steps
    assert run_child(out, resume=True) == 0
    resumed = weights(out)
    assert resumed.keys() == undisturbed.keys()
    assert all(torch.equal(resumed[key], undisturbed[key]) for key in undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize("kill_at", range(STEPS))
def test_a_run_killed_at_any_step_resumes_to_the_same_weights(undisturbed, tmp_path, kill_at):
    out = tmp_path / "run"
    assert run_child(out, kill_at) == -signal.SIGKILL
    assert run_child(out, resume=True) == 0
    assert all(torch.equal(value, undisturbed[key]) for key, value in weights(out).items())


def test_batches_depend_on_seed_and_number_only():
    recipe = RECIPES["nano"]
    batches = [
        Batches(recipe, 5, seed, start, 0, 1).batch(number)
        for seed, start, number in [(0, 0, 7), (0, 7, 7), (1, 0, 7), (0, 0, 8)]
    ]
    first, same, *others = batches
    assert first["prompts"] == same["prompts"]
    assert all(torch.equal(first[key], same[key]) for key in ("video", "noise", "sigma"))
    assert all(not torch.equal(first["sigma"], other["sigma"]) for other in others)


def test_ranks_share_a_batch_without_overlap():
    recipe = replace(RECIPES["nano"], stages=(Stage(1.0, {("maze", 6): 1}),))
    ranks = [Batches(recipe, 5, 0, 0, rank, 2).batch(30) for rank in range(2)]
    videos = [tuple(v.numpy().tobytes() for v in batch["video"]) for batch in ranks]
    assert ranks[0]["video"].shape == ranks[1]["video"].shape
    assert not set(videos[0]) & set(videos[1])


def test_workers_make_the_same_batches_in_the_same_order():
    recipe = replace(RECIPES["nano"], steps=9, tokens=180, stages=(Stage(1.0, {("maze", 3): 1}),))
    plain, shared = (
        [b["sigma"] for b in DataLoader(Batches(recipe, 5, 0, 2, 0, 1), batch_size=None, num_workers=workers)]
        for workers in (0, 2)
    )
    assert len(plain) == len(shared) == 7
    assert all(torch.equal(a, b) for a, b in zip(plain, shared, strict=True))


def test_the_causal_twin_sees_the_same_data():
    """Its clean first frames come on top: puzzles, prompts, noise and noise levels are those of micro."""
    assert RECIPES["micro-causal"] == replace(RECIPES["micro"], history=0.5)
    assert PRESETS["micro-causal"] == replace(PRESETS["micro"], causal=True)
    histories = []
    for number in range(0, 400, 10):
        one, other = (Batches(RECIPES[name], 7, 3, 0, 0, 1).batch(number) for name in ("micro", "micro-causal"))
        histories.append(other.pop("history"))
        assert one.pop("history") == 0
        assert one.pop("prompts") == other.pop("prompts")
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert 0.25 < sum(history == 0 for history in histories) / len(histories) < 0.75
    assert set(histories) <= set(range(7))


def test_clean_first_frames_are_given_and_not_learned():
    """The loss of a batch with history does not depend on the noise of its clean frames, and does on the others'."""
    recipe = replace(RECIPES["micro-causal"], tokens=130, stages=(Stage(1.0, {("maze", 3): 1}),))
    reasoner = build("micro-causal", 0, recipe)
    torch.nn.init.normal_(reasoner.transformer.proj_out.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    module = FlowMatching(reasoner, recipe)
    batch = Batches(recipe, 7, 0, 0, 0, 1).batch(0) | {"history": 3}

    def loss(frame):
        noise = batch["noise"].clone()
        noise[:, :, frame] += 1
        return module.losses(batch | {"noise": noise}).detach()

    plain = module.losses(batch).detach()
    assert all(torch.equal(loss(frame), plain) for frame in range(3))
    assert all(not torch.allclose(loss(frame), plain) for frame in range(3, 7))


def share_of(video, one, other):
    """How far each frame is on its way from one video to the other, (batch, frames)."""
    way = (other - one).transpose(1, 2).flatten(2)
    return ((video - one).transpose(1, 2).flatten(2) * way).sum(2) / way.square().sum(2).clamp(min=1e-9)


def open_batches(blended, steps=9500):
    stages = (Stage(1.0, {("rotation-open", 90): 1, ("rotation", 90): 1}),)
    recipe = replace(RECIPES["micro-rotation"], steps=steps, tokens=30_000, stages=stages, blended=blended)
    return recipe, [Batches(recipe, 7, 0, 0, 0, 1).batch(number) for number in range(4)]


@pytest.mark.parametrize(("steps", "least"), [(9500, BLENDED_FROM), (0, REFINED_FROM)])  # before and while refining
def test_videos_between_two_right_answers_come_at_high_noise_only(steps, least):
    recipe, batches = open_batches(0.5, steps)
    several = [batch for batch in batches if "answers" in batch]
    assert 0 < len(several) < len(batches)
    for plain, batch in zip(open_batches(0.0, steps)[1], batches, strict=True):
        assert all(torch.equal(plain[key], batch[key]) for key in ("sigma", "noise"))
        changed = (plain["video"] != batch["video"]).flatten(1).any(1)
        if "answers" not in batch:
            assert not changed.any()
            continue
        one, other = batch["answers"].unbind(1)
        assert torch.equal(one, plain["video"])
        assert torch.equal(one[:, :, 0], other[:, :, 0])
        assert torch.equal(batch["video"][:, :, 0], one[:, :, 0])
        shares = share_of(batch["video"], one, other)
        assert torch.allclose(
            batch["video"], one + shares.view(*shares.shape[:1], 1, -1, 1, 1) * (other - one), atol=1e-5
        )
        assert ((shares >= 0) & (shares <= 1)).all()
        between = shares[changed, 1:]
        assert (between.mean(1) > 0.1).any()
        assert (between.mean(1) < 0.9).any()
        assert (between.std(1) > 0.05).float().mean() > 0.5  # not all frames equally far
        assert least < batch["sigma"][changed].min() < least + 0.1
        noisy = batch["sigma"] > least
        assert 0.25 < changed[noisy].double().mean() < 0.75
        assert recipe.blended == 0.5


def test_of_two_right_answers_the_mean_is_learned_where_noise_hides_which():
    """The best guess is the same as without; what falls is what no guess could know."""
    recipe, batches = open_batches(1e-9)  # answers are told, videos are as they were
    batch = next(batch for batch in batches if "answers" in batch)
    module = FlowMatching(build("micro-rotation", 0, recipe), recipe)  # predicts nothing yet
    told = module.losses(batch).detach()
    plain = module.losses({key: value for key, value in batch.items() if key != "answers"}).detach()
    certain = batch["sigma"] < 0.5
    assert certain.any()
    assert torch.equal(told[certain], plain[certain])
    noise = batch | {"sigma": torch.full_like(batch["sigma"], 0.999)}
    mean = batch["answers"].mean(1) - batch["noise"]
    assert torch.allclose(module.losses(noise).detach(), mean.square().flatten(1).mean(1), rtol=0.02)


def test_from_a_blend_the_way_to_the_likelier_answer_is_learned():
    """The velocity leads from where the blended, noisy video is to what of both answers is likely there."""
    recipe, batches = open_batches(1.0)
    batch = next(batch for batch in batches if "answers" in batch)
    losses = FlowMatching(build("micro-rotation", 0, recipe), recipe).losses(batch).detach()  # it predicts nothing yet
    sigma = batch["sigma"]
    level = sigma.view(-1, 1, 1, 1, 1)
    latents = (1 - level) * batch["video"] + level * batch["noise"]
    distances = (latents[:, None] - (1 - level[:, None]) * batch["answers"]).flatten(2).square().sum(2)
    weights = (-distances.double() / (2 * sigma[:, None] ** 2)).softmax(1).float()
    likely = (weights.view(*weights.shape, 1, 1, 1, 1) * batch["answers"]).sum(1)
    blended = sigma > BLENDED_FROM
    assert blended.any()
    exact = ((latents - likely) / level).square().flatten(1).mean(1)
    assert torch.allclose(losses[blended], exact[blended], rtol=1e-3)


def test_no_test_puzzle_in_training():
    from minicos.tasks import get_task
    from minicos.tasks.base import split_of

    for name, size in {key for recipe in RECIPES.values() for stage in recipe.stages for key in stage.mix}:
        task = get_task(name)
        if not task.splittable(size):
            continue
        for index in range(200):
            assert split_of(task.structure(task.sample(0, index, size=size))) == "train"


def test_the_learning_rate_rises_stays_and_falls():
    recipe = replace(RECIPES["nano"], steps=1000, warmup=10, cooldown=0.2)
    rates = [learning_rate_factor(recipe, step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[10:800]) == {1.0}
    assert rates[900] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01
    recipe = replace(recipe, refined=500)
    assert [learning_rate_factor(recipe, step) for step in range(1000)] == rates
    refined = [learning_rate_factor(recipe, step) for step in range(1000, 1500)]
    assert refined[0] == pytest.approx(0.1 * REFINED_RATE)
    assert set(refined[10:400]) == {REFINED_RATE}
    assert 0 < refined[-1] < 0.01


def test_refining_begins_from_the_averaged_weights_and_forgets_the_momentum(tmp_path, monkeypatch):
    stages = (Stage(1.0, {("maze", 3): 1}),)
    recipe = replace(RECIPES["nano"], steps=8, refined=4, tokens=90, stages=stages, validate_every=100)
    fresh = []
    losses = FlowMatching.losses

    def seen(module, batch):
        pairs = zip(module.learned.parameters(), module.averaged.module.parameters(), strict=True)
        momentum = any(optimizer.state for optimizer in module.optimizers())
        fresh.append((all(torch.equal(*pair) for pair in pairs), not momentum))
        return losses(module, batch)

    monkeypatch.setattr(FlowMatching, "losses", seen)
    train("nano", tmp_path / "run", recipe=recipe, progress=False)
    # After the first step of all the average is the network itself.
    assert fresh == [(True, True), (True, False), *[(False, False)] * 6, (True, True), *[(False, False)] * 3]


@pytest.mark.parametrize(("name", "steps"), [("nano", 40), ("micro-causal", 60), ("mini", 40)])
def test_a_few_steps_lower_the_loss(tmp_path, name, steps):
    stages = (Stage(1.0, {("maze", 3): 1, ("maze", 4): 1}),)
    recipe = replace(
        RECIPES[name], steps=steps, tokens=400, stages=stages, save_every=100, validate_every=100, warmup=5
    )
    train(name, tmp_path / "run", recipe=recipe, progress=False)
    lines = (tmp_path / "run" / "logs" / "version_0" / "metrics.csv").read_text().splitlines()
    loss = lines[0].split(",").index("loss")
    first, last = (float(lines[i].split(",")[loss]) for i in (1, -1))
    assert last < 0.7 * first


def points_of(*losses):
    return [Point(WINDOW * (i + 1), loss, {"solved_maze_5": 0.5}) for i, loss in enumerate(losses)]


def test_a_curve_is_read_from_the_logs_of_a_resumed_run(tmp_path):
    """What was done again after a kill counts once, as it was done the last time."""
    versions = {2: range(9, 2 * WINDOW, 10), 10: range(WINDOW - 91, 2 * WINDOW, 10)}
    for version, steps in versions.items():
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        lines = [f"{version},{step},{0.25 if step == WINDOW - 1 else ''}" for step in steps]
        (folder / "metrics.csv").write_text("loss,step,solved_maze_5\n" + "\n".join(lines) + "\n")
    first, second = curve_of_run(tmp_path)
    assert (first.step, second.step) == (WINDOW, 2 * WINDOW)
    assert first.loss == pytest.approx((2 * (WINDOW - 100) + 10 * 100) / WINDOW)
    assert (first.solved, second.loss, second.solved) == ({"solved_maze_5": 0.25}, 10, {})
    write_curve([first, second], tmp_path / CURVE_FILE)
    assert read_curve(tmp_path / CURVE_FILE) == [first, second]
    with pytest.raises(MinicosError, match="no logs"):
        curve_of_run(tmp_path / "elsewhere")
    with (tmp_path / "logs" / "version_10" / "metrics.csv").open("a") as file:
        file.write("0.1,1e-")  # as a power cut leaves it
    assert curve_of_run(tmp_path) == [first, second]
    later = tmp_path / "later" / "logs" / "version_0"
    later.mkdir(parents=True)
    (later / "metrics.csv").write_text(f"loss,step\n2,{WINDOW + 9}\n4,{2 * WINDOW - 1}\n")
    assert curve_of_run(tmp_path / "later") == [Point(2 * WINDOW, 3, {})]


def test_validation_is_logged_where_it_was_done_and_nowhere_else(tmp_path):
    stages = (Stage(1.0, {("maze", 3): 1}),)
    recipe = replace(RECIPES["nano"], steps=40, tokens=90, stages=stages, validate=(("maze", 3),), save_every=100)
    train("nano", tmp_path / "run", recipe=replace(recipe, validate_every=20), progress=False)
    rows = list(csv.DictReader((tmp_path / "run" / "logs" / "version_0" / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows if row["solved_maze_3"]] == [19, 39]
    assert [int(row["step"]) for row in rows if row["loss"]] == [9, 19, 29, 39]
    assert all(row["solved_maze_3_step_0"] for row in rows if row["solved_maze_3"])


def test_a_curve_that_leaves_the_band_is_told():
    reference = points_of(0.1, 0.05, 0.03)
    assert outside_band(points_of(0.1 * BAND * 0.99, 0.05 / BAND * 1.01, 0.03), reference) == []
    bad = points_of(0.1 * BAND * 1.01, 0.05, 0.03 / BAND * 0.99)
    assert outside_band(bad, reference) == [WINDOW, 3 * WINDOW]
    assert verdict(bad, reference).startswith("1 of 3 points")
    assert verdict(points_of(0.11, 0.05, 0.027), reference).endswith("from 0.90 to 1.10 times its loss")


def test_a_recipe_of_another_length_is_not_compared():
    said = verdict(points_of(0.1, 0.05), points_of(0.1, 0.05, 0.03))
    assert said == f"the shipped run took {3 * WINDOW} steps, this one {2 * WINDOW}: their curves do not compare"
    later = points_of(0.1, 0.05, 0.03)[1:]
    assert verdict(later, points_of(0.1, 0.05, 0.03)).startswith("the logs tell of 2 of 3 points")


def test_what_is_evaluated_while_training_is_where_the_network_is():
    """As on a GPU, where Lightning moves the network; "meta" is a device that every machine has."""
    module = FlowMatching(build("nano", 0), RECIPES["nano"]).to("meta")
    found = module.averaged_reasoner()
    assert found.device == found.transformer.device == torch.device("meta")


def test_a_run_is_resumed_as_what_it_was(tmp_path):
    # Shorter than the loss is logged every so many steps otherwise.
    recipe = replace(RECIPES["nano"], steps=4, tokens=90, stages=(Stage(1.0, {("maze", 3): 1}),), validate_every=100)
    train("nano", tmp_path / "run", seed=1, recipe=recipe, progress=False)
    before = weights(tmp_path / "run")
    for name, seed in (("nano", 0), ("nano-rotation", 1)):
        with pytest.raises(MinicosError, match="holds another training run"):
            train(name, tmp_path / "run", seed=seed, resume=True, recipe=recipe, progress=False)
    after = weights(tmp_path / "run")
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_a_finished_run_stays_as_it_is_and_can_be_made_longer(tmp_path):
    out, stages = tmp_path / "run", (Stage(1.0, {("maze", 3): 1}),)
    recipe = replace(RECIPES["nano"], steps=10, tokens=90, stages=stages, validate_every=100)
    train("nano", out, recipe=recipe, progress=False)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = train("nano", out, resume=True, recipe=recipe, progress=False)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    shipped = weights(out)
    assert all(
        torch.equal(value, shipped[f"transformer.{key}"]) for key, value in again.transformer.state_dict().items()
    )
    train("nano", out, resume=True, recipe=replace(recipe, refined=10), progress=False)
    assert json.loads((out / "training.json").read_text())["steps"] == 20
    assert any(not torch.equal(value, shipped[key]) for key, value in weights(out).items())


def test_two_processes_do_not_train_into_one_folder(tmp_path):
    with alone_in(tmp_path), pytest.raises(MinicosError, match="another process is at work in"):
        train("nano", tmp_path, recipe=replace(RECIPES["nano"], steps=4, tokens=90), progress=False)
    assert not (tmp_path / "last.ckpt").exists()


def test_a_run_tells_of_all_the_code_that_trained_it(tmp_path, monkeypatch):
    out, recipe = tmp_path / "run", replace(RECIPES["nano"], steps=10, tokens=90, validate_every=100)
    for steps, code in ((10, "one"), (12, "two"), (14, "two"), (16, "three")):
        monkeypatch.setattr("minicos.cards.commit", lambda code=code: code)
        monkeypatch.setattr("minicos.training.commit", lambda code=code: code)
        reasoner = train("nano", out, resume=steps > 10, recipe=replace(recipe, steps=steps), progress=False)
    report = json.loads((out / "training.json").read_text())
    assert (report["earlier_commits"], report["commit"]) == (["one", "two"], "three")
    reasoner.folder = out
    evaluation = {"checkpoint": describe_weights(reasoner), "command": "", "seconds": 0, "rows": [], **provenance()}
    assert "commit three, before it two, before it one, torch" in card(reasoner, evaluation)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    (tmp_path / "precious").write_text("data")
    with pytest.raises(MinicosError, match="not empty"):
        train("nano", tmp_path)
    with pytest.raises(MinicosError, match="nothing to resume"):
        train("nano", tmp_path, resume=True)
    assert (tmp_path / "precious").read_text() == "data"
    with pytest.raises(MinicosError, match="unknown preset"):
        train("giga", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_state_is_told_in_one_line(tmp_path):
    (tmp_path / RESUME_FILE).write_bytes(b"not a state")
    with pytest.raises(MinicosError) as caught:
        train("nano", tmp_path, resume=True, progress=False)
    assert "\n" not in str(caught.value)
    assert (tmp_path / RESUME_FILE).read_bytes() == b"not a state"
