"""The switch: a miniature and a two-expert Wan behind one Reasoner; damaged checkpoints are told in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from minicos import load, sample
from minicos.errors import MinicosError
from minicos.model import CHECKPOINTS, SETTINGS_FILE, Settings, save, shipped
from minicos.parts import PRESETS
from minicos.tasks import get_task, vocabulary
from minicos.training import build


@pytest.fixture
def copy_of(untrained_nano, tmp_path):
    return shutil.copytree(untrained_nano, tmp_path / "copy")


def test_save_and_load_give_the_same_weights_and_videos(untrained_nano, tmp_path):
    first = load(untrained_nano)
    save(first, tmp_path / "again")
    second = load(tmp_path / "again")
    assert first.settings == second.settings
    for part in ("transformer", "text_encoder"):
        one, other = getattr(first, part).state_dict(), getattr(second, part).state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    puzzles = [get_task("maze").sample(0, i, size=4) for i in range(2)]
    assert torch.equal(sample(first, puzzles).latents, sample(second, puzzles).latents)


def test_presets_keep_their_limits(untrained_nano):
    reasoner = load(untrained_nano)
    modules = (reasoner.transformer, reasoner.text_encoder)
    assert sum(p.numel() for module in modules for p in module.parameters()) <= 1_000_000
    assert sum(path.stat().st_size for path in untrained_nano.rglob("*") if path.is_file()) <= 4_000_000
    assert PRESETS["nano"].frames >= 5


@pytest.mark.parametrize(
    ("name", "parameters"), [("micro", 1_500_000), ("micro-rotation", 1_500_000), ("mini", 12_000_000)]
)
def test_larger_presets_keep_theirs(name, parameters):
    transformer = build(name, 0).transformer
    assert sum(p.numel() for p in transformer.parameters()) <= parameters
    assert PRESETS[name].frames >= 7


def test_micro_with_its_sibling_keeps_the_limits_of_one_network():
    parts = [
        part
        for name in ("micro", "micro-rotation")
        for part in (build(name, 0).transformer, build(name, 0).text_encoder)
    ]
    assert sum(p.numel() for part in parts for p in part.parameters()) <= 1_500_000
    weights = [path for name in ("micro", "micro-rotation") for path in (CHECKPOINTS / name).rglob("*.safetensors")]
    assert 0 < sum(path.stat().st_size for path in weights) <= 6_000_000


def test_large_weights_are_saved_in_shards(tmp_path):
    mini = build("mini", 0)
    save(mini, tmp_path)
    files = list((tmp_path / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    assert max(path.stat().st_size for path in files) <= 15_000_000
    again = load(tmp_path).transformer.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in mini.transformer.state_dict().items())
    files[0].unlink()
    refused(tmp_path, "transformer")


def test_the_miniature_is_a_pipeline_of_diffusers(untrained_nano):
    """diffusers' own pipeline class takes the folder's parts, and asks for nothing that its index does not name."""
    import diffusers

    reasoner = load(untrained_nano)
    scheduler = diffusers.UniPCMultistepScheduler.from_pretrained(untrained_nano / "scheduler")
    assert scheduler.config.flow_shift == reasoner.settings.shift
    pipe = diffusers.WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=reasoner.vae,
        scheduler=scheduler,
        transformer=reasoner.transformer,
        transformer_2=None,
        image_encoder=None,
        image_processor=None,
        boundary_ratio=None,
        expand_timesteps=False,
    )
    index = json.loads((untrained_nano / "model_index.json").read_text())
    assert set(pipe.config) - {"_name_or_path"} <= set(index)


def test_puzzles_of_different_sizes_do_not_share_a_batch(untrained_nano):
    puzzles = [get_task("maze").sample(0, 0, size=size) for size in (3, 4)]
    with pytest.raises(MinicosError, match="different sizes"):
        load(untrained_nano).condition(puzzles)


def test_a_canvas_or_a_length_that_does_not_fit_is_refused(untrained_nano, tiny_wan):
    nano = load(untrained_nano)
    with pytest.raises(MinicosError, match="multiples of 4"):
        nano.condition_on(torch.zeros(1, 3, 1, 10, 12), [""], 5)
    with pytest.raises(MinicosError, match="too large"):
        nano.condition_on(torch.zeros(1, 3, 1, 400, 12), [""], 5)
    with pytest.raises(MinicosError, match="6 frames"):
        tiny_wan.condition_on(torch.zeros(1, 3, 1, 32, 32), [""], 6)


def test_an_unknown_word_is_refused(untrained_nano):
    with pytest.raises(MinicosError, match="never saw the word 'teapot'"):
        load(untrained_nano).condition_on(torch.zeros(1, 3, 1, 12, 12), ["Draw the teapot"], 5)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_model_knows_the_words_of_its_preset(name):
    """And of its own tasks; what is built anew has the same table, so that a training repeats."""
    reasoner = load(name)
    words = reasoner.text_encoder.config.vocabulary
    assert words == vocabulary(PRESETS[name].spoken) == build(name, 0).text_encoder.config.vocabulary
    assert set(vocabulary(reasoner.settings.tasks)) <= set(words)


def test_the_empty_prompt_is_zeros(untrained_nano):
    encoder = load(untrained_nano).text_encoder
    assert not encoder([""]).any()
    assert encoder(["turn the shape"])[0, :3].any(dim=-1).all()
    assert not encoder(["turn the shape"])[0, 3:].any()


def test_experts_change_at_the_boundary(tiny_wan):
    assert tiny_wan.transformer is not tiny_wan.transformer_2
    assert tiny_wan.expert(875.0) is tiny_wan.transformer
    assert tiny_wan.expert(874.9) is tiny_wan.transformer_2
    schedule = tiny_wan.schedule(50, 5.0)
    high = [step.index for step in schedule if tiny_wan.blocks(step) is tiny_wan.transformer.blocks]
    assert high == list(range(21))
    assert [tiny_wan.guidance(schedule[0]), tiny_wan.guidance(schedule[-1])] == [3.5, 2.5]


# --- damaged and foreign checkpoints --------------------------------------------------------------------------------


def refused(folder, *words):
    with pytest.raises(MinicosError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("other", [{"expand_timesteps": True}, {"image_encoder": ["transformers", "CLIPVisionModel"]}])
def test_other_wans_are_told_from_the_one_that_runs(other, tiny_wan_folder, tmp_path):
    folder = shutil.copytree(tiny_wan_folder, tmp_path / "other")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, **other}))
    refused(folder, "another Wan", "A14B")


def test_two_experts_need_a_boundary(tiny_wan_folder, tmp_path):
    folder = shutil.copytree(tiny_wan_folder, tmp_path / "boundless")
    (folder / SETTINGS_FILE).unlink()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "boundary_ratio": None}))
    refused(folder, "two experts", "boundary_ratio")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_full_models_folder_is_refused_where_it_cannot_run(tiny_wan_folder, tmp_path):
    """Before hours of reading: by the size of its files."""
    folder = shutil.copytree(tiny_wan_folder, tmp_path / "merged")
    with (folder / "transformer" / "more.safetensors").open("wb") as file:
        file.truncate(57_200_000_000)  # a hole, which takes no room
    refused(folder, "holds 57 GB of weights", "CUDA GPU")


def test_a_host_without_memory_is_not_a_damaged_file(untrained_nano, monkeypatch):
    from diffusers import WanTransformer3DModel

    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(WanTransformer3DModel, "from_pretrained", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load(untrained_nano)


def test_an_unknown_name_lists_the_known_ones():
    refused("giga", "unknown model 'giga'", "nano")


def test_a_folder_that_is_no_checkpoint(tmp_path):
    refused(tmp_path, "model_index.json")


def test_a_truncated_weight_file(copy_of):
    weights = copy_of / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    refused(copy_of, "transformer", "damaged")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_missing_part(copy_of, part):
    shutil.rmtree(copy_of / part)
    refused(copy_of, part, "incomplete")


def test_a_missing_weight_file(copy_of):
    (copy_of / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    refused(copy_of, "transformer")


def test_weights_that_do_not_fit_the_configuration(copy_of):
    path = copy_of / "transformer" / "config.json"
    config = json.loads(path.read_text())
    for changed in ({"num_layers": 7}, {"num_layers": 5}, {"ffn_dim": 100}):
        path.write_text(json.dumps(config | changed))
        refused(copy_of, "transformer")


def test_another_pipeline_and_broken_json(copy_of):
    index = copy_of / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    refused(copy_of, "StableDiffusionPipeline")
    index.write_text("{")
    refused(copy_of, "cannot be read")


def test_settings_of_another_version(copy_of):
    (copy_of / "minicos.json").write_text(json.dumps({"name": "nano"}))
    refused(copy_of, "minicos.json")


def test_the_switch_reads_the_environment(untrained_nano, monkeypatch):
    monkeypatch.setenv("MINICOS_MODEL", str(untrained_nano))
    assert load().folder == untrained_nano


def test_settings_survive_json():
    settings = Settings("x", 5, 12, 3.0, (3.5, 3.0), 0.9, (32, 32), "bad", {"maze": [3, 4]})
    from dataclasses import asdict

    from minicos.model import parse_settings

    assert parse_settings(json.loads(json.dumps(asdict(settings)))) == settings
