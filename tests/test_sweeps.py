"""A sweep can be killed at any moment, resumed and shared: its table stays the same, byte for byte."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from networks import random_network

from minicos import load
from minicos.cards import weights_digest
from minicos.errors import MinicosError
from minicos.files import replace_file
from minicos.interventions import noise_at_step
from minicos.model import save
from minicos.runs import Run
from minicos.sampling import Denoising, rollout
from minicos.sweeps import (
    SWEEP_FILE,
    TABLE_FILE,
    Sweep,
    Trial,
    commits_of,
    features_of,
    run_sweep,
    seconds_of,
    shares_of,
)
from minicos.tasks import get_task

STEPS, CHUNKS = 3, 6
# Sweeps noise-at-step over a few puzzles; kills itself with SIGKILL before the n-th call that ends or moves a file.
CHILD = """
import os, signal, sys
from pathlib import Path
import test_sweeps
import minicos.files as files
import minicos.sweeps as sweeps
from minicos import load

model, folder, kill_at = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
calls = []
def counted(function):
    def call(*arguments, **options):
        calls.append(1)
        if len(calls) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
files.os.fsync = counted(os.fsync)
files.os.replace = counted(os.replace)
reasoner = load(model)
if len(sys.argv) > 4:
    reasoner.to("cpu", one_at_a_time=True)
sweeps.run_sweep(test_sweeps.sweep_of(reasoner), folder)
"""


def sweep_of(reasoner, steps: int = STEPS) -> Sweep:
    chunks = []
    for index in range(CHUNKS):
        puzzle = get_task("maze").sample(0, index, size=4)
        trials = [Trial(Run(puzzle), {"puzzle": index, "noise": "none"})]
        trials += [Trial(Run(puzzle, 0, (noise_at_step(s),)), {"puzzle": index, "noise": s}) for s in range(steps)]
        chunks.append(trials)
    return Sweep("noise", reasoner, chunks, reasoner.schedule(steps), measure, features=features)


def features(trajectory):
    return {"latents": trajectory.latents.flatten(1)[:, :5].numpy()}


def measure(trajectory):
    return [[{"mean": float(latents.mean()), "first": float(latents.flatten()[0])}] for latents in trajectory.latents]


@pytest.fixture(params=["nano", "tiny_wan"], scope="module")
def model(request, untrained_nano, tiny_wan_folder) -> Path:
    return {"nano": untrained_nano, "tiny_wan": tiny_wan_folder}[request.param]


@pytest.fixture(scope="module")
def undisturbed(model, tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_child(model, folder) == 0
    return (folder / TABLE_FILE).read_bytes()


def run_child(model: Path, folder: Path, kill_at: int = 0, *one_at_a_time: str) -> int:
    command = [sys.executable, "-c", CHILD, str(model), str(folder), str(kill_at), *one_at_a_time]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-2000:]
    return done.returncode


def kill_and_resume(model, folder, undisturbed, moments):
    for kill_at in moments:
        assert run_child(model, folder, kill_at) == -signal.SIGKILL
    assert run_child(model, folder) == 0
    assert (folder / TABLE_FILE).read_bytes() == undisturbed


def test_a_killed_sweep_resumes_to_the_same_table(model, undisturbed, tmp_path):
    """Three kills in one sweep; a resumed run writes fewer files, so early moments are sure to come."""
    moments = random.SystemRandom().sample(range(1, 7), 3)  # others in every run; all of them in `make soak`
    print("killed before writes", moments)  # pytest shows it where the test fails
    kill_and_resume(model, tmp_path / "sweep", undisturbed, moments)


def test_a_sweep_that_is_killed_with_chunks_put_aside_resumes_to_the_same_table(tiny_wan_folder, tmp_path):
    """Each kill comes later in the sweep: before the first expert is through, and after it, when some are finished."""
    whole, folder, aside = tmp_path / "whole", tmp_path / "sweep", []
    assert run_child(tiny_wan_folder, whole) == 0
    for kill_at in (6, 8, 10):
        assert run_child(tiny_wan_folder, folder, kill_at, "one at a time") == -signal.SIGKILL
        aside.append(len(list((folder / "chunks").glob("*.aside"))))
    assert aside == [1, 4, 5]
    assert run_child(tiny_wan_folder, folder, 0, "one at a time") == 0
    assert (folder / TABLE_FILE).read_bytes() == (whole / TABLE_FILE).read_bytes()
    assert list((folder / "chunks").glob("*.aside")) == []


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_of_long_work_a_kill_loses_no_step_that_was_done(tiny_wan, tmp_path, monkeypatch, one_at_a_time):
    """Nor what went before a measurement that failed."""
    sweep, steps = sweep_of(tiny_wan.to("cpu", one_at_a_time=one_at_a_time)), []
    run_sweep(sweep, tmp_path / "whole")
    monkeypatch.setattr("minicos.sweeps.MOST_LOST", -1.0)
    monkeypatch.setattr(
        "minicos.sweeps.each", lambda own, work, items: ((n, work(own, i)) for n, i in enumerate(items))
    )
    advance, end = Denoising.advance, {2, 7}

    def counted(self):
        if len(steps) in end:
            end.remove(len(steps))
            raise KeyboardInterrupt
        advance(self)
        steps.append(1)

    def fails(trajectory):
        raise ValueError("one answer is odd")

    monkeypatch.setattr(Denoising, "advance", counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep, tmp_path / "sweep")
    with pytest.raises(ValueError, match="odd"):
        run_sweep(replace(sweep, measure=fails), tmp_path / "sweep")
    run_sweep(sweep, tmp_path / "sweep")
    assert len(steps) == STEPS * CHUNKS
    assert (tmp_path / "sweep" / TABLE_FILE).read_bytes() == (tmp_path / "whole" / TABLE_FILE).read_bytes()
    assert not list(tmp_path.rglob("*.aside"))


def test_what_was_put_aside_and_is_damaged_is_named(tiny_wan, tmp_path):
    tiny_wan.to("cpu", one_at_a_time=True)
    run_sweep(sweep_of(tiny_wan), tmp_path)
    (tmp_path / "chunks" / "000002.csv").unlink()
    (tmp_path / "chunks" / "000002-0002.aside").write_bytes(b"no tensors")
    with pytest.raises(MinicosError, match=r"000002-0002.aside is damaged .*delete it"):
        run_sweep(sweep_of(tiny_wan), tmp_path)


def test_what_was_put_aside_and_finds_no_room_on_the_device_is_not_called_damaged(tiny_wan, tmp_path, monkeypatch):
    """Nobody may be told to delete hours of work because a GPU is full."""

    def full(self, aside):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    tiny_wan.to("cpu", one_at_a_time=True)
    monkeypatch.setattr(Denoising, "go_on_from", full)
    with pytest.raises(torch.OutOfMemoryError):
        run_sweep(sweep_of(tiny_wan), tmp_path)
    assert len(list((tmp_path / "chunks").glob("*.aside"))) == CHUNKS


def test_a_file_that_finds_no_room_is_one_line_and_the_old_one_stays(tmp_path):
    path = tmp_path / "chunk"
    replace_file(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as good as a full disk
    try:
        with pytest.raises(MinicosError, match=r"cannot write .*chunk \(File too large\): .*run again") as caught:
            replace_file(path, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("chunk", b"old")]


# The same sweep by two processes; the arguments are the model and the folder.
SHARDED = """
import sys
from pathlib import Path
from lightning import Fabric
import test_sweeps
import minicos.sweeps as sweeps
from minicos import load

fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
sweeps.run_sweep(test_sweeps.sweep_of(load(sys.argv[1])), Path(sys.argv[2]), fabric=fabric)
"""


def test_two_processes_come_to_the_table_of_one(model, undisturbed, tmp_path):
    script, folder = tmp_path / "sharded.py", tmp_path / "sweep"
    script.write_text(SHARDED)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, str(script), str(model), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (folder / TABLE_FILE).read_bytes() == undisturbed
    shares = [len((folder / f"{rank}-times.csv").read_text().splitlines()) for rank in (0, 1)]
    assert shares == [CHUNKS // 2, CHUNKS // 2]
    assert seconds_of(folder) > 0


def test_what_one_of_two_processes_left_another_run_finishes(model, undisturbed, tmp_path):
    """As if the second process had been lost: the chunks of the first are there, and none of the others."""
    sweep, folder = sweep_of(load(model)), tmp_path / "sweep"
    assert run_child(model, folder) == 0
    for number in range(1, CHUNKS, 2):
        (folder / "chunks" / f"{number:06d}.csv").unlink()
    assert [number for number, _ in shares_of([sweep], None)[0]] == list(range(CHUNKS))
    assert run_child(model, folder) == 0
    assert (folder / TABLE_FILE).read_bytes() == undisturbed


def test_a_sweep_that_another_commit_went_on_with_tells_both(untrained_nano, tmp_path, monkeypatch):
    sweep = sweep_of(load(untrained_nano))
    for code in ("before", "after"):
        monkeypatch.setattr("minicos.sweeps.commit", lambda code=code: code)
        run_sweep(sweep, tmp_path)
        (tmp_path / "chunks" / "000001.csv").unlink()
    assert commits_of(tmp_path) == {"before", "after"}


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_processes_share_all_chunks_of_short_sweeps_evenly(model, world):
    """Eight GPUs and sweeps of two chunks: none may have two while another has none."""
    sweep = sweep_of(load(model))
    sweeps = [replace(sweep, chunks=sweep.chunks[:count]) for count in (1, 2, 1, CHUNKS)]
    shares = [shares_of(sweeps, SimpleNamespace(global_rank=rank, world_size=world)) for rank in range(world)]
    for place, one in enumerate(sweeps):
        taken = sorted(number for share in shares for number, _ in share[place])
        assert taken == list(range(len(one.chunks)))
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_a_sweep_frame_by_frame_is_a_rollout(untrained_nano, tmp_path):
    reasoner = load(untrained_nano)
    reasoner.settings = replace(reasoner.settings, causal=True)
    plain = [[trial for trial in chunk if not trial.run.interventions] for chunk in sweep_of(reasoner).chunks]
    sweep = Sweep("rollout", reasoner, plain, reasoner.schedule(STEPS), measure, frame_by_frame=True)
    table = run_sweep(sweep, tmp_path / "sweep")
    puzzles = [chunk[0].run.puzzle for chunk in plain]
    passed = []  # frames, in all passes together
    reasoner.transformer.register_forward_pre_hook(lambda _, inputs: passed.append(inputs[0].shape[2]))
    alone = [rollout(reasoner, [puzzle], schedule=reasoner.schedule(STEPS)).latents.mean() for puzzle in puzzles]
    assert np.allclose(table["mean"], alone, atol=1e-4)
    assert sweep.evaluations() == ceil(sum(passed) / reasoner.latent_frames)
    sweep = Sweep(
        "rollout", reasoner, sweep_of(reasoner).chunks, reasoner.schedule(STEPS), measure, frame_by_frame=True
    )
    with pytest.raises(MinicosError, match="a rollout takes none"):
        run_sweep(sweep, tmp_path / "other")


@pytest.mark.soak
@pytest.mark.parametrize("kill_at", range(1, 4 * CHUNKS + 5))  # all: two for each file
def test_a_sweep_killed_at_any_write_resumes_to_the_same_table(model, undisturbed, tmp_path, kill_at):
    kill_and_resume(model, tmp_path / "sweep", undisturbed, [kill_at])


def test_the_table_has_a_row_for_each_trial_and_its_labels(model, undisturbed, tmp_path):
    reasoner, seen = load(model), []
    table = run_sweep(sweep_of(reasoner), tmp_path / "sweep", advance=seen.append)
    assert seen == [STEPS + 1] * CHUNKS
    assert list(table.columns) == ["puzzle", "noise", "mean", "first"]
    assert len(table) == CHUNKS * (STEPS + 1)
    assert set(table["noise"].astype(str)) == {"none", "0", "1", "2"}
    on_disk = pd.read_csv(tmp_path / "sweep" / TABLE_FILE)
    assert len(on_disk) == len(table)
    again = run_sweep(sweep_of(reasoner), tmp_path / "sweep")
    assert again.equals(table)
    kept = features_of(sweep_of(reasoner), tmp_path / "sweep")["latents"]
    assert kept.shape == (CHUNKS * (STEPS + 1), 5)
    assert np.allclose(kept[:, 0], table["first"])


def test_evaluations_are_counted_with_what_is_shared(model):
    reasoner = load(model)
    branches = 2 if max(reasoner.settings.guidance) > 1 else 1
    each = STEPS + sum(range(1, STEPS + 1))
    assert sweep_of(reasoner).evaluations() == branches * CHUNKS * each


def test_a_sweep_of_puzzles_that_are_left_to_another_network_is_refused(tmp_path):
    for name in ("micro", "micro-rotation"):
        save(random_network(name), tmp_path / name)
    micro = load(tmp_path / "micro")
    run = Run(get_task("rotation").sample(0, 0, size=90))
    with pytest.raises(MinicosError, match=r"leaves rotation to another network: sweep for_task\('rotation'\)"):
        run_sweep(replace(sweep_of(micro), chunks=[[Trial(run, {})]]), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_another_sweeps_folder_is_refused_and_kept(untrained_nano, tmp_path):
    reasoner, folder = load(untrained_nano), tmp_path / "sweep"
    run_sweep(sweep_of(reasoner), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(MinicosError, match="holds another sweep"):
        run_sweep(sweep_of(reasoner, steps=2), folder)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / SWEEP_FILE).write_text("{")
    with pytest.raises(MinicosError, match="cannot be read"):
        run_sweep(sweep_of(reasoner), folder)
    (folder / SWEEP_FILE).unlink()
    with pytest.raises(MinicosError, match="unknown sweep"):
        run_sweep(sweep_of(reasoner), folder)


@pytest.mark.parametrize(
    "change", [{"guidance": (5.0, 5.0)}, {"negative_prompt": "blurred"}, {"canvas": (40, 40)}, {"dtype": "bfloat16"}]
)
def test_other_settings_are_another_sweep_and_other_siblings_are_not(untrained_nano, change):
    reasoner = load(untrained_nano)
    digest = weights_digest(reasoner)
    before = sweep_of(reasoner).fingerprint(digest)
    reasoner.settings = replace(reasoner.settings, siblings={"bounce": "elsewhere"})
    assert sweep_of(reasoner).fingerprint(digest) == before
    reasoner.settings = replace(reasoner.settings, **change)
    assert sweep_of(reasoner).fingerprint(digest) != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: "other,columns\n1,2\n",
        lambda text: "other,columns\n1,2\n# 1 rows\n",
        lambda text: text.rsplit(",", 1)[0],  # in the middle of a row
        lambda text: text.rstrip("\n").rsplit("\n", 1)[0] + "\n",  # after a row
        lambda text: re.sub(r"\n[^\n]*\n#", "\n#", text),  # a row is missing
    ],
)
def test_a_damaged_chunk_is_named_and_the_others_are_kept(untrained_nano, tmp_path, damage):
    reasoner, folder = load(untrained_nano), tmp_path / "sweep"
    table = run_sweep(sweep_of(reasoner), folder)
    chunk = folder / "chunks" / "000002.csv"
    chunk.write_text(damage(chunk.read_text()))
    with pytest.raises(MinicosError, match=r"000002.csv .*delete it") as caught:
        run_sweep(sweep_of(reasoner), folder)
    assert "\n" not in str(caught.value)
    chunk.unlink()
    assert run_sweep(sweep_of(reasoner), folder).equals(table)


@pytest.mark.parametrize("damage", [b"", b"no arrays", None])
def test_damaged_features_are_named_and_lost_ones_are_made_again(untrained_nano, tmp_path, damage):
    sweep = sweep_of(load(untrained_nano))
    run_sweep(sweep, tmp_path)
    before = features_of(sweep, tmp_path)["latents"]
    path = tmp_path / "chunks" / "000002.npz"
    if damage is not None:
        path.write_bytes(damage)
        with pytest.raises(MinicosError, match=r"000002.npz is damaged .*delete it"):
            features_of(sweep, tmp_path)
    path.unlink()
    run_sweep(sweep, tmp_path)
    assert np.array_equal(features_of(sweep, tmp_path)["latents"], before)
