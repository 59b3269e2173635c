"""Work side by side gives what it gives one after the other, and a quickened network what diffusers' own gives."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from minicos import get_task, load, parallel, sample
from minicos.causal import make_frame_causal
from minicos.errors import MinicosError
from minicos.model import shipped
from minicos.parallel import each, lanes


@pytest.fixture(params=["nano", "tiny_wan"], scope="module")
def reasoner(request, untrained_nano, tiny_wan_folder):
    return load({"nano": untrained_nano, "tiny_wan": tiny_wan_folder}[request.param])


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def inputs(reasoner, times: str = "shared"):
    puzzles = [get_task("maze").sample(0, index, size=4) for index in range(3)]
    condition = reasoner.condition(puzzles)
    latents = torch.randn(
        3, reasoner.latent_channels, *condition.channels.shape[2:], generator=torch.Generator().manual_seed(0)
    )
    per_frame = torch.linspace(100, 700, latents.shape[2]).expand(3, -1)
    timestep = {"shared": 300.0, "per video": torch.tensor([100.0, 300.0, 700.0]), "per frame": per_frame}[times]
    return latents, timestep, condition, "cond"


@pytest.mark.parametrize("times", ["shared", "per video", "per frame"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_quickened_network_equals_diffusers_own(reasoner, times, causal):
    ours, plain = reasoner.replica(), reasoner.replica()
    names = [name for name in ("transformer", "transformer_2") if getattr(reasoner, name) is not None]
    for name in names:
        setattr(plain, name, WanTransformer3DModel.from_pretrained(reasoner.folder / name).eval())
        assert type(getattr(plain, name).blocks[0].ffn.net[0]) is not type(getattr(ours, name).blocks[0].ffn.net[0])
        if causal:
            make_frame_causal(getattr(plain, name))
            make_frame_causal(getattr(ours, name))
    with torch.no_grad():
        expected = plain.velocity(*inputs(reasoner, times))
        found = ours.velocity(*inputs(reasoner, times))
        undisturbed = reasoner.velocity(*inputs(reasoner, times))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.equal(found, undisturbed) != causal, "the replica's mask must not show in the network itself"


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_network_equals_diffusers_own(name):
    """Trained ones give larger numbers than untrained ones, and larger products in their attention."""
    ours = load(name)
    plain = ours.replica()
    plain.transformer = WanTransformer3DModel.from_pretrained(ours.folder / "transformer").eval()
    if ours.settings.causal:
        make_frame_causal(plain.transformer)
    task, (*_, size) = next(iter(ours.settings.tasks.items()))
    condition = ours.condition([get_task(task).sample(0, index, size=size) for index in range(2)])
    shape = (2, ours.latent_channels, *condition.channels.shape[2:])
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for timestep in (1000.0, 500.0, 100.0):
        with torch.no_grad():
            expected = plain.velocity(latents, timestep, condition, "cond")
            found = ours.velocity(latents, timestep, condition, "cond")
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        assert not torch.equal(found, expected), "another network than the quickened one"


def test_gradients_of_a_quickened_network_equal_those_of_diffusers_own(untrained_nano):
    quick, gradients = load(untrained_nano), []
    plain = WanTransformer3DModel.from_pretrained(untrained_nano / "transformer")
    for transformer in (quick.transformer, plain):
        quick.transformer = transformer.requires_grad_(True)
        quick.velocity(*inputs(quick)).square().sum().backward()
        gradients.append({name: p.grad for name, p in transformer.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, atol=1e-3, rtol=1e-3, msg=name)


def test_a_replica_shares_weights_but_not_hooks(reasoner):
    replica, calls = reasoner.replica(), []
    ours, theirs = reasoner.expert(300.0), replica.expert(300.0)
    assert [p.data_ptr() for p in ours.parameters()] == [p.data_ptr() for p in theirs.parameters()]
    theirs.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    velocity = reasoner.velocity(*inputs(reasoner))
    assert not calls
    assert torch.equal(replica.velocity(*inputs(reasoner)), velocity)
    assert calls


def test_videos_do_not_depend_on_how_many_are_made_at_once(reasoner, two_cores):
    items = [[get_task("maze").sample(0, 2 * k + i, size=4) for i in range(2)] for k in range(4)]

    def work(own, puzzles):
        run = sample(own, puzzles, schedule=reasoner.schedule(2))
        return run.latents, run.video, threading.get_ident()

    assert lanes(reasoner) == 2
    side_by_side = dict(each(reasoner, work, items))
    torch.set_num_threads(1)
    assert lanes(reasoner) == 1
    one_by_one = dict(each(reasoner, work, items))
    assert list(one_by_one) == sorted(side_by_side) == list(range(4))
    for number, (latents, video, _) in one_by_one.items():
        assert torch.equal(side_by_side[number][0], latents)
        assert np.array_equal(side_by_side[number][1], video)
    assert threading.get_ident() not in {thread for *_, thread in side_by_side.values()}


def test_the_threads_of_the_caller_stay(reasoner, two_cores):
    list(each(reasoner, lambda own, item: item, range(4)))
    assert torch.get_num_threads() == 2


def test_one_part_at_a_time_is_not_shared_between_threads(tiny_wan):
    assert lanes(tiny_wan.to("cpu", one_at_a_time=True)) == 1


def test_an_error_comes_through_and_ends_the_work(untrained_nano, two_cores, monkeypatch):
    begun, ended = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            ended.set()
            super().shutdown(wait=wait)

    def work(own, item):
        begun.append(item)
        if item == 0:
            raise MinicosError("no such puzzle")
        assert ended.wait(60)  # every piece under way lasts until nothing more can begin
        return item

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Pool)
    with pytest.raises(MinicosError, match="no such puzzle"):
        list(each(load(untrained_nano), work, range(1000)))
    # Two threads: 0 and 1, and one more after 0, whichever of the others was not yet cancelled.
    assert len(begun) <= 3


# Two processes, of which one ends early in one of three ways, while the other waits until that was said.
FAILS = """
import sys
from pathlib import Path
import lightning
from minicos import parallel
from minicos.errors import MinicosError

told, rank, error = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
parallel.PATIENCE = 0.0
fabric = lightning.Fabric(accelerator="cpu", devices=2)
fabric.launch()

def work():
    if fabric.global_rank == rank:
        raise {"MinicosError": MinicosError, "OSError": OSError, "ValueError": ValueError}[error]("the disk is full")
    told.read_text()  # a named pipe: until somebody writes to it
    told.with_name("done").touch()

try:
    parallel.each_process(fabric, work)
except MinicosError as refusal:
    print("REFUSED", refusal)
"""


@pytest.mark.parametrize(
    ("rank", "error"), [(1, "MinicosError"), (0, "MinicosError"), (1, "OSError"), (0, "ValueError")]
)
def test_what_ends_one_process_is_said_at_once_and_the_others_finish(tmp_path, rank, error):
    told, script, said = tmp_path / "told", tmp_path / "fails.py", ""
    os.mkfifo(told)
    script.write_text(FAILS)
    command = [sys.executable, str(script), str(told), str(rank), error]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            said += line
            if f"process {rank} waits for the others to finish their share, then: " in line:
                assert not (tmp_path / "done").exists()
                told.write_text("go on")
        (refusal,) = [line for line in process.stdout if line.startswith("REFUSED")]
    assert process.returncode == 0, said[-2000:]
    assert (tmp_path / "done").exists()
    assert ("Traceback" in said) == (error != "MinicosError")
    assert "the disk is full" in refusal
