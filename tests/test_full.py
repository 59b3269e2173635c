"""The full models: what they need, LoRA files merged into them, and one expert at a time on the device."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from minicos import Recorder, get_task, load, sample
from minicos.cli import main
from minicos.errors import CannotRun, MinicosError
from minicos.experiments import EXPERIMENTS
from minicos.files import replace_file
from minicos.flow import turned_back
from minicos.full import (
    GPU_GB,
    HOST_GB,
    Machine,
    check_loras,
    diagnosis,
    full_models,
    machine,
    merge_lora,
    no_room,
    obstacles_of,
)
from minicos.interventions import noise_at_step
from minicos.runs import Run
from minicos.sweeps import Sweep, Trial, run_sweep, stages
from minicos.variants import untrained

ENOUGH = Machine(gpu="H100", gpu_gb=80, host_gb=128, disk_gb=500, cuda="13.0", missing=())
MAZES = [get_task("maze").sample(0, index, size=4) for index in range(3)]
RANK = 2


@pytest.fixture(params=list(full_models()))
def model(request):
    return full_models()[request.param]


# --- what a machine can run -----------------------------------------------------------------------------------------


def test_a_machine_with_enough_of_everything_can_run_them(model):
    assert obstacles_of(ENOUGH) == []
    assert not no_room(ENOUGH, model)
    assert f"{model.settings.name} (" in diagnosis(ENOUGH, ["nano"])
    assert "cannot" not in diagnosis(ENOUGH, ["nano"])


@pytest.mark.parametrize(
    ("lack", "words"),
    [
        ({"gpu": "", "gpu_gb": 0}, "CUDA GPU"),
        ({"gpu": "", "gpu_gb": 0, "cuda": ""}, "build for CPUs"),
        ({"gpu_gb": GPU_GB - 1}, "GPU memory"),
        ({"host_gb": HOST_GB - 1}, "host memory"),
        ({"missing": ("ftfy",)}, "missing: ftfy"),
    ],
)
def test_what_a_machine_lacks_is_named(lack, words):
    (obstacle,) = obstacles_of(replace(ENOUGH, **lack))
    assert words in obstacle
    assert words in diagnosis(replace(ENOUGH, **lack), ["nano"])


def test_a_download_needs_room(model):
    small = replace(ENOUGH, disk_gb=20)
    assert "GB of disk, 20 are free" in no_room(small, model)
    assert no_room(small, model) in diagnosis(small, ["nano"])
    assert obstacles_of(small) == []  # what is there already runs


def test_a_download_that_was_interrupted_needs_room_for_the_rest_only(model, monkeypatch, tmp_path):
    monkeypatch.setattr("minicos.full.cache", lambda: tmp_path)
    little = replace(ENOUGH, disk_gb=model.download_gb - 1e-6)
    assert "GB of disk" in no_room(little, model)
    blobs = tmp_path / f"models--{model.repository.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a.0123abcd.incomplete").write_bytes(bytes(2000))  # the Hub's library begins such a file anew
    assert "GB of disk" in no_room(little, model)
    (blobs / "a").write_bytes(bytes(2000))
    assert no_room(little, model) == ""


def test_each_process_of_a_machine_has_the_weights_in_its_memory(monkeypatch, tiny_wan_folder):
    assert obstacles_of(replace(ENOUGH, host_gb=2 * HOST_GB), processes=2) == []
    (obstacle,) = obstacles_of(replace(ENOUGH, host_gb=2 * HOST_GB - 1), processes=2)
    assert f"needs {2 * HOST_GB:.0f} GB of host memory ({HOST_GB:.0f} for each of 2 processes" in obstacle
    monkeypatch.setattr("minicos.full.machine", lambda: replace(ENOUGH, host_gb=2 * HOST_GB - 1))
    monkeypatch.setattr("minicos.full.EXPERT_GB", 0)  # so that a tiny folder counts as a full model's
    assert load(tiny_wan_folder).folder == tiny_wan_folder
    with pytest.raises(MinicosError, match="lower --devices"):
        load(tiny_wan_folder, processes=2)


def test_this_machine_is_described():
    here = machine()
    assert here.host_gb > 1
    assert here.disk_gb > 0
    assert bool(here.gpu) == torch.cuda.is_available()
    assert here.missing == ()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_is_told_before_any_download(model):
    with pytest.raises(MinicosError, match=r"cannot run .* CUDA GPU") as caught:
        load(model.settings.name)
    assert "\n" not in str(caught.value)


def test_the_settings_are_those_of_the_paper_and_of_wan():
    wan, vbvr = (full_models()[name].settings for name in ("wan2.2-i2v-a14b", "vbvr-wan2.2"))
    assert (wan.steps, wan.shift, wan.boundary, wan.guidance) == (40, 5.0, 0.9, (3.5, 3.5))
    assert (vbvr.steps, vbvr.shift, vbvr.boundary, vbvr.guidance) == (50, 5.0, 0.875, (5.0, 5.0))
    assert wan.frames == vbvr.frames == 81
    assert wan.canvas == vbvr.canvas == (480, 832)


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain_folder(tiny_wan_folder, tmp_path):
    """A pipeline folder as diffusers writes it, without a file of ours."""
    folder = shutil.copytree(tiny_wan_folder, tmp_path / "downloaded")
    (folder / "minicos.json").unlink()
    return folder


def test_a_pipeline_folder_without_settings_is_taken_for_a_wan(plain_folder):
    wan = full_models()["wan2.2-i2v-a14b"].settings
    settings = load(plain_folder).settings
    assert settings == replace(wan, name="downloaded", boundary=0.875)  # its own boundary


def test_a_missing_expert_is_told_in_one_line(plain_folder):
    shutil.rmtree(plain_folder / "transformer_2")
    with pytest.raises(MinicosError, match="transformer_2"):
        load(plain_folder)
    index = json.loads((plain_folder / "model_index.json").read_text())
    (plain_folder / "model_index.json").write_text(json.dumps({**index, "transformer_2": [None, None]}))
    with pytest.raises(MinicosError, match="low-noise expert is missing"):
        load(plain_folder)


# --- LoRA -----------------------------------------------------------------------------------------------------------

# DiffSynth's names of a block's matrices, and diffusers' names.
NAMES = {
    "self_attn.q": "attn1.to_q",
    "self_attn.o": "attn1.to_out.0",
    "cross_attn.k": "attn2.to_k",
    "cross_attn.v": "attn2.to_v",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}


def lora_file(transformer, path, seed):
    """A LoRA in DiffSynth's layout, and what it adds to each matrix."""
    generator = torch.Generator().manual_seed(seed)
    keys, added = {}, {}
    for block in range(len(transformer.blocks)):
        for theirs, ours in NAMES.items():
            weight = transformer.get_submodule(f"blocks.{block}.{ours}").weight
            down = torch.randn(RANK, weight.shape[1], generator=generator)
            up = torch.randn(weight.shape[0], RANK, generator=generator)
            keys[f"blocks.{block}.{theirs}.lora_A.default.weight"] = down
            keys[f"blocks.{block}.{theirs}.lora_B.default.weight"] = up
            added[f"blocks.{block}.{ours}.weight"] = up @ down
    save_file(keys, path)
    return added


def test_a_lora_is_merged_into_each_expert(tiny_wan, tiny_wan_folder, tmp_path):
    files = {part: tmp_path / f"{part}.safetensors" for part in ("transformer", "transformer_2")}
    added = {part: lora_file(getattr(tiny_wan, part), path, len(part)) for part, path in files.items()}
    merge_lora(tiny_wan_folder, files, tmp_path / "merged")
    merged = load(tmp_path / "merged")
    assert merged.settings == tiny_wan.settings
    for part in files:
        before, after = (getattr(network, part).state_dict() for network in (tiny_wan, merged))
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert torch.allclose(after[key], value + added[part].get(key, 0), atol=1e-5), key
    assert not torch.equal(sample(merged, MAZES[:1]).latents, sample(tiny_wan, MAZES[:1]).latents)


@pytest.mark.parametrize("names", ["diffusers", "DiffSynth, with the model named"])
def test_a_lora_may_name_the_model_and_be_named_as_diffusers_names_it(tiny_wan, tiny_wan_folder, tmp_path, names):
    added = lora_file(tiny_wan.transformer, tmp_path / "plain.safetensors", 0)
    keys = load_file(tmp_path / "plain.safetensors")
    if names == "diffusers":
        for theirs, ours in NAMES.items():
            keys = {key.replace(f".{theirs}.lora", f".{ours}.lora"): value for key, value in keys.items()}
        keys = {f"transformer.{key.replace('.default.', '.')}": value for key, value in keys.items()}
    else:
        keys = {f"diffusion_model.{key}": value for key, value in keys.items()}
    files = {part: tmp_path / f"{part}.safetensors" for part in ("transformer", "transformer_2")}
    for path in files.values():
        save_file(keys, path)
    merge_lora(tiny_wan_folder, files, tmp_path / "merged")
    before, after = (network.transformer.state_dict() for network in (tiny_wan, load(tmp_path / "merged")))
    for key, value in before.items():
        assert torch.allclose(after[key], value + added.get(key, 0), atol=1e-5), key


def test_a_merged_expert_is_rounded_once(tiny_wan_bf16_folder, tiny_wan_folder, tmp_path):
    """The published experts are float32, and sampled in bfloat16: what is written has half their size."""
    folder = shutil.copytree(tiny_wan_folder, tmp_path / "float32")
    shutil.copy(tiny_wan_bf16_folder / "minicos.json", folder)
    plain = load(tiny_wan_folder)
    added = lora_file(plain.transformer, tmp_path / "lora.safetensors", 0)
    merge_lora(folder, {"transformer": tmp_path / "lora.safetensors"}, tmp_path / "merged")
    written = {
        k: v for path in (tmp_path / "merged/transformer").glob("*.safetensors") for k, v in load_file(path).items()
    }
    loaded = load(folder).transformer.state_dict()  # some of it stays in float32
    assert {value.dtype for value in written.values()} == {torch.bfloat16, torch.float32}
    for key, value in plain.transformer.state_dict().items():
        assert written[key].dtype == loaded[key].dtype, key
        exact = value + added.get(key, torch.zeros(()))
        assert torch.allclose(written[key].float(), exact, rtol=2**-8, atol=1e-6), key


@pytest.mark.parametrize(
    ("high", "low", "words"),
    [
        ("low_noise_lora.safetensors", "high_noise_lora.safetensors", r"--high .*its name says low_noise; exchange"),
        ("a.safetensors", "Wan-HighNoise.safetensors", r"--low .*its name says highnoise; exchange"),
        ("a.safetensors", "a.safetensors", "are both .*a.safetensors: each expert has a LoRA of its own"),
        ("a.safetensors", "missing.safetensors", "missing.safetensors is no file"),
        ("high-noise.safetensors", "low noise.safetensors", None),
        ("epoch-1.safetensors", "below.safetensors", None),
    ],
)
def test_exchanged_loras_are_told_by_their_names(high, low, words, tmp_path):
    for name in (high, low):
        if "missing" not in name:
            (tmp_path / name).touch()
    if words is None:
        check_loras(tmp_path / high, tmp_path / low)
    else:
        with pytest.raises(MinicosError, match=words):
            check_loras(tmp_path / high, tmp_path / low)


def test_a_copy_that_does_not_fit_is_refused_before_anything_is_merged(
    tiny_wan, tiny_wan_folder, tmp_path, monkeypatch
):
    files = {part: tmp_path / f"{part}.safetensors" for part in ("transformer", "transformer_2")}
    for part, path in files.items():
        lora_file(getattr(tiny_wan, part), path, 0)
    size = sum(path.stat().st_size for path in tiny_wan_folder.rglob("*") if path.is_file())
    for free, fits in ((size // 2, False), (2 * size, True)):
        usage = shutil.disk_usage(tmp_path)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, usage=usage: usage)
        if fits:
            merge_lora(tiny_wan_folder, files, tmp_path / "merged")
        else:
            with pytest.raises(MinicosError, match=r"room for .* GB, the merged model takes"):
                merge_lora(tiny_wan_folder, files, tmp_path / "merged")
            assert list((tmp_path / "merged").iterdir()) == []


def test_a_disk_that_fills_up_and_a_damaged_expert_are_one_line_each(tiny_wan, tiny_wan_folder, tmp_path):
    lora_file(tiny_wan.transformer, tmp_path / "lora.safetensors", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(MinicosError, match="cannot be written") as caught:
            merge_lora(tiny_wan_folder, {"transformer": tmp_path / "lora.safetensors"}, tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    folder = shutil.copytree(tiny_wan_folder, tmp_path / "damaged")
    (weights,) = (folder / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MinicosError, match="damaged") as caught:
        merge_lora(folder, {"transformer": tmp_path / "lora.safetensors"}, tmp_path / "again")
    assert "\n" not in str(caught.value)


def test_a_merged_download_is_sampled_as_the_paper_samples_vbvr(tiny_wan, plain_folder, tmp_path):
    files = {part: tmp_path / f"{part}.safetensors" for part in ("transformer", "transformer_2")}
    for part, path in files.items():
        lora_file(getattr(tiny_wan, part), path, 0)
    merge_lora(plain_folder, files, tmp_path / "merged")
    settings = json.loads((tmp_path / "merged" / "minicos.json").read_text())
    assert (settings["name"], settings["steps"], settings["boundary"]) == ("merged", 50, 0.875)


def foreign(transformer, path):
    save_file({"encoder.layers.0.lora_A.weight": torch.zeros(2, 4)}, path)


def too_many_blocks(transformer, path):
    shape = transformer.blocks[0].attn1.to_q.weight.shape
    keys = {"lora_A": torch.zeros(RANK, shape[1]), "lora_B": torch.zeros(shape[0], RANK)}
    save_file({f"blocks.39.self_attn.q.{key}.default.weight": value for key, value in keys.items()}, path)


def narrow(transformer, path):
    """The names of this model, the widths of a smaller one."""
    shape = transformer.blocks[0].attn1.to_q.weight.shape
    keys = {"lora_A": torch.zeros(RANK, shape[1] // 2), "lora_B": torch.zeros(shape[0] // 2, RANK)}
    save_file({f"blocks.0.self_attn.q.{key}.default.weight": value for key, value in keys.items()}, path)


def named_as_diffusers_and_strange(transformer, path):
    save_file({"transformer.blocks.0.attn7.to_q.lora_A.weight": torch.zeros(2, 4)}, path)


def empty(transformer, path):
    save_file({}, path)


def half(transformer, path):
    """One of its matrices A without its B."""
    lora_file(transformer, path, 0)
    keys = load_file(path)
    del keys["blocks.1.cross_attn.k.lora_B.default.weight"]
    save_file(keys, path)


def broken(transformer, path):
    path.write_bytes(b"no tensors")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (foreign, "another model"),
        (too_many_blocks, "another model"),
        (narrow, "another model"),
        (named_as_diffusers_and_strange, "another model"),
        (empty, "no keys"),
        (half, r"not whole: .*blocks\.1\.attn2\.to_k\.lora_A\S+ has no other half \(1 in all\)"),
        (broken, "cannot be read"),
    ],
)
def test_a_lora_for_another_model_is_refused(write, words, tiny_wan, tiny_wan_folder, tmp_path):
    path = tmp_path / "lora.safetensors"
    write(tiny_wan.transformer, path)
    with pytest.raises(MinicosError, match=words) as caught:
        merge_lora(tiny_wan_folder, {"transformer": path}, tmp_path / "merged")
    assert "\n" not in str(caught.value)


def test_a_lora_for_an_expert_that_is_not_there(untrained_nano, tmp_path):
    with pytest.raises(MinicosError, match="no transformer_2"):
        merge_lora(untrained_nano, {"transformer_2": tmp_path / "lora.safetensors"}, tmp_path / "merged")
    with pytest.raises(MinicosError, match="is the folder"):
        merge_lora(untrained_nano, {}, untrained_nano)


# --- one expert at a time -------------------------------------------------------------------------------------------


# The text encoder and each expert come once, and go when the next one comes.
EACH_ONCE = ["text_encoder", "text_encoder", "transformer", "transformer", "transformer_2"]


def offloading(reasoner, monkeypatch):
    """Let the reasoner have one part at a time on its device; gives the list of what is moved from now on.

    The device is the CPU under another name, "cpu:0": a part that moves gets tensors of new storage, as it does on its
    way to a GPU, and what is used while it is away fails.
    """
    moves, device = [], torch.device("cpu:0")
    parts = {part: getattr(reasoner, part) for part in ("transformer", "transformer_2", "text_encoder")}

    def moved(part, where):
        moves.append(part)
        for tensor in (*parts[part].parameters(), *parts[part].buffers()):
            left, tensor.data = tensor.data, tensor.data.clone()
            left.fill_(torch.nan)  # of no use to anyone who holds on to it
        at[part] = torch.device(where)
        return parts[part]

    def here(part):
        assert at[part] == device, f"{part} is at work, and not on the device"
        assert [name for name, place in at.items() if place == device] == [part], "there is room for one"

    at = {}
    for part, module in parts.items():
        monkeypatch.setattr(module, "to", lambda where, part=part: moved(part, where))
        module.register_forward_pre_hook(lambda *_, part=part: here(part))
    reasoner.to(device, one_at_a_time=True)
    assert set(at.values()) == {torch.device("cpu")}
    moves.clear()
    return moves


def test_an_expert_whose_move_was_interrupted_is_moved_again(tiny_wan, monkeypatch):
    moves = offloading(tiny_wan, monkeypatch)
    tiny_wan.bring(tiny_wan.transformer)
    move = tiny_wan.transformer.to

    def interrupted(where):
        move(where)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tiny_wan.transformer, "to", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tiny_wan.bring(tiny_wan.transformer_2)
    moves.clear()
    tiny_wan.bring(tiny_wan.transformer)
    assert moves == ["transformer"]  # it is on its way out, whatever the list says that it was on


def test_one_expert_at_a_time_gives_the_same_video_and_moves_each_once(tiny_wan_folder, monkeypatch):
    recorders = [Recorder("block", "cond", blocks=(0, 3)), Recorder("x0_hat")]
    plain = sample(load(tiny_wan_folder), MAZES, recorders=recorders)
    reasoner = load(tiny_wan_folder)
    moves = offloading(reasoner, monkeypatch)
    seen = []
    handle = reasoner.transformer_2.blocks[1].register_forward_hook(lambda *_: seen.append(1))
    offloaded = sample(reasoner, MAZES, recorders=recorders)
    handle.remove()
    assert torch.equal(offloaded.latents, plain.latents)
    for site, branch, block in (("block", "cond", 3), ("x0_hat", "guided", None)):
        for step, value in plain.recorded(site, branch, block).items():
            assert torch.equal(offloaded.recorded(site, branch, block)[step], value)
    assert len(seen) == 2 * 2  # two low-noise steps, two branches: a hook of the user's survives the moves
    assert moves == EACH_ONCE


def test_the_chunks_of_a_sweep_go_through_each_expert_before_any_goes_on(tiny_wan_folder, monkeypatch, tmp_path):
    def sweep(reasoner):
        chunks = [
            [Trial(Run(puzzle, 0, what), {"puzzle": place}) for what in ((), (noise_at_step(3),))]
            for place, puzzle in enumerate(MAZES)
        ]
        return Sweep("both", reasoner, chunks, reasoner.schedule(), measured, (Recorder("x0_hat"),))

    def measured(trajectory):
        hats = trajectory.recorded("x0_hat")
        sums = [latents.sum().item() for latents in trajectory.latents]
        return [
            [{"latents": of_latents, **{f"step {step}": hat[place].sum().item() for step, hat in hats.items()}}]
            for place, of_latents in enumerate(sums)
        ]

    plain = run_sweep(sweep(load(tiny_wan_folder)), tmp_path / "plain")
    reasoner, told = load(tiny_wan_folder), []
    moves = offloading(reasoner, monkeypatch)
    table = run_sweep(sweep(reasoner), tmp_path / "offloaded", advance=told.append)
    assert table.equals(plain)
    assert moves == EACH_ONCE
    # 2 of 4 steps by the first expert, so one of a chunk's two trials, when it is put aside.
    assert told == [1] * 6
    assert [path.suffix for path in sorted((tmp_path / "offloaded" / "chunks").iterdir())] == [".csv"] * 3


def test_runs_that_turn_back_meet_each_expert_as_often_as_their_schedule_does(tiny_wan_folder, monkeypatch, tmp_path):
    def sweep(reasoner):
        steps = turned_back(reasoner.schedule(), 3, 1)
        return Sweep("back", reasoner, [[Trial(Run(puzzle), {})] for puzzle in MAZES], steps, last_latents)

    def last_latents(trajectory):
        return [[{"sum": latents.sum().item()}] for latents in trajectory.latents]

    plain = run_sweep(sweep(load(tiny_wan_folder)), tmp_path / "plain")
    reasoner, seen = load(tiny_wan_folder), []
    for part in ("transformer", "transformer_2"):  # a user's own, on blocks that leave and come back
        getattr(reasoner, part).blocks[1].register_forward_hook(lambda *_, part=part: seen.append(part))
    moves = offloading(reasoner, monkeypatch)
    assert stages(sweep(reasoner)) == [2, 3, 4, 6]
    assert run_sweep(sweep(reasoner), tmp_path / "offloaded").equals(plain)
    high, low = ([part] * 2 * len(MAZES) for part in ("transformer", "transformer_2"))  # a step: two branches
    assert seen == [*high * 2, *low, *high, *low * 2]
    assert moves == [*EACH_ONCE, "transformer_2", "transformer", "transformer", "transformer_2"]
    assert [path.suffix for path in sorted((tmp_path / "offloaded" / "chunks").iterdir())] == [".csv"] * 3


def test_what_has_come_further_is_not_taken_back_when_runs_that_turn_back_are_resumed(tiny_wan, monkeypatch, tmp_path):
    tiny_wan.to("cpu", one_at_a_time=True)
    steps = turned_back(tiny_wan.schedule(), 3, 1)

    told = []

    def sweep():
        return Sweep("back", tiny_wan, [[Trial(Run(puzzle), {})] for puzzle in MAZES], steps, last_latents)

    def last_latents(trajectory):
        return [[{"sum": latents.sum().item()}] for latents in trajectory.latents]

    def killed(trials):
        told.append(trials)
        if len(told) == 7:  # the first of three chunks is through the third of four stages
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep(), tmp_path / "sweep", advance=killed)
    left = {path.name for path in (tmp_path / "sweep" / "chunks").iterdir()}
    assert left == {"000000-0004.aside", "000001-0003.aside", "000002-0003.aside"}
    written = []

    def noted(path, content):
        written.append(path.name)
        replace_file(path, content)

    monkeypatch.setattr("minicos.sweeps.replace_file", noted)
    table = run_sweep(sweep(), tmp_path / "sweep")
    assert [name for name in written if name.endswith("aside")] == ["000001-0004.aside", "000002-0004.aside"]
    assert table.equals(run_sweep(sweep(), tmp_path / "whole"))


def test_an_untrained_network_that_memory_has_no_room_for_is_left_out(tiny_wan_folder, monkeypatch, capsys):
    reasoner = load(tiny_wan_folder).to("cpu", one_at_a_time=True)
    parts = (reasoner.transformer, reasoner.transformer_2) * 2 + (reasoner.text_encoder,)
    needed = sum(tensor.nbytes for part in parts for tensor in part.state_dict().values())
    for room, processes, fits in ((needed, 1, True), (needed - 1, 1, False), (2 * needed - 1, 2, False)):
        monkeypatch.setattr("minicos.variants.host_memory", lambda room=room: room)
        reasoner.processes = processes
        if fits:
            untrained(reasoner)
        else:
            with pytest.raises(CannotRun, match="GB of host memory"):
                untrained(reasoner)
    monkeypatch.setattr("minicos.model.load", lambda *_: reasoner)
    asked = ["plan", "layers", "budget", "--quick", "--cases", "1", "--devices", "2"]
    assert main(asked) == 2  # what is asked for by name is not left out
    assert "GB of host memory for 2 processes" in capsys.readouterr().err


def test_a_prompt_is_encoded_once(tiny_wan):
    lengths = []
    handle = tiny_wan.text_encoder.register_forward_hook(lambda module, inputs, output: lengths.append(len(inputs[0])))
    prompts = ["find the path", "turn the shape", "find the path"]
    condition = tiny_wan.condition_on(torch.zeros(3, 3, 1, 32, 32), prompts, 5)
    again = tiny_wan.condition_on(torch.zeros(2, 3, 1, 32, 32), prompts[1:], 5)
    handle.remove()
    assert lengths == [1, 1, 1]  # two different prompts, and one negative prompt for all five
    assert torch.equal(again.text["cond"], condition.text["cond"][1:])
    assert torch.equal(condition.text["cond"][0], condition.text["cond"][2])
    assert not torch.equal(condition.text["cond"][0], condition.text["cond"][1])
    assert condition.text["uncond"].shape == condition.text["cond"].shape


# --- the benchmark --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it builds the full shape")
def test_the_benchmark_of_the_full_shape_runs_at_a_tiny_one():
    """So that the hour of a borrowed GPU is not spent on a slip."""
    script = Path(__file__).parent.parent / "benchmarks" / "full_scale.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *_, fewer, more = (line.split(" | ") for line in done.stdout.splitlines())
    assert (fewer[0], more[0]) == ("| 5", "| 9")
    for line in (fewer, more):
        values = [float(cell.split()[0]) for cell in line[1:6]]
        assert all(value > 0 for value in values[:3])


def test_the_passes_that_the_docs_tell_are_those_of_the_experiments():
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, root / "benchmarks" / "passes.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = (root / "docs" / "full-scale.md").read_text()
    *rows, total = (line for line in done.stdout.splitlines() if line)
    assert len(rows) == 2 + len(EXPERIMENTS)
    for line in rows:
        assert line.replace("causal-twin", "causal-twin (no twin: mask only)") in told
    assert total.removesuffix(".") in told
