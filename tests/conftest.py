"""Real components with tiny random weights: nothing here stands in for what we depend on."""

from __future__ import annotations

import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "2")

from dataclasses import asdict
from pathlib import Path

import browser
import pytest
from hypothesis import settings

settings.register_profile("minicos", deadline=None)  # a busy machine is no failure
settings.load_profile("minicos")

CANVAS = (32, 32)


@pytest.fixture(scope="session")
def tiny_pipeline():
    """A random two-expert WanImageToVideoPipeline in the layout of Wan2.2-I2V-A14B; a few thousand parameters."""
    import torch
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanImageToVideoPipeline,
        WanTransformer3DModel,
    )
    from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

    from minicos.tasks import vocabulary

    torch.manual_seed(0)
    words = sorted({word for entry in vocabulary() for word in (entry, entry.capitalize())})
    characters = [(c, -5.0) for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
    table = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *(("▁" + w, -2.0) for w in words), ("▁", -3.0), *characters]
    tokenizer = T5TokenizerFast(vocab=table, extra_ids=0)
    tokenizer.model_max_length = 24
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=32,
            d_kv=8,
            d_ff=37,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )

    def expert() -> WanTransformer3DModel:
        return WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=36,
            out_channels=16,
            text_dim=32,
            freq_dim=256,
            ffn_dim=32,
            num_layers=4,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        )

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=5.0
    )
    return WanImageToVideoPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval(),
        vae=vae.eval(),
        scheduler=scheduler,
        transformer=expert().eval(),
        transformer_2=expert().eval(),
        image_encoder=None,
        image_processor=None,
        boundary_ratio=0.875,
        expand_timesteps=False,
    )


@pytest.fixture(scope="session")
def tiny_wan_folder(tiny_pipeline, tmp_path_factory) -> Path:
    """The same pipeline saved by diffusers, with our settings file beside it."""
    from minicos.model import SETTINGS_FILE, Settings

    folder = tmp_path_factory.mktemp("models") / "tiny-wan"
    tiny_pipeline.save_pretrained(folder)
    settings = Settings("tiny-wan", 5, 4, 5.0, guidance=(3.5, 2.5), boundary=0.875, canvas=CANVAS)
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(settings)))
    return folder


@pytest.fixture(scope="session")
def tiny_wan_bf16_folder(tiny_wan_folder) -> Path:
    """The same with its experts and its text encoder in bfloat16, as the full model has them."""
    from minicos.model import SETTINGS_FILE

    folder = shutil.copytree(tiny_wan_folder, tiny_wan_folder.parent / "tiny-wan-bf16")
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    (folder / SETTINGS_FILE).write_text(json.dumps({**settings, "name": "tiny-wan-bf16", "dtype": "bfloat16"}))
    return folder


@pytest.fixture
def tiny_wan(tiny_wan_folder):
    from minicos import load

    return load(tiny_wan_folder)


@pytest.fixture(scope="session")
def untrained_nano(tmp_path_factory) -> Path:
    """The folder of a nano with random weights."""
    from networks import random_network

    from minicos.model import save

    folder = tmp_path_factory.mktemp("models") / "nano"
    save(random_network("nano"), folder)
    return folder


@pytest.fixture(scope="session")
def browser_program() -> str:
    """Where Chromium lies; skipped where there is none, or no Playwright."""
    pytest.importorskip("playwright", reason="Playwright is not installed")
    program = browser.program()
    if not program:
        pytest.skip(f"there is no browser here: install one of {', '.join(browser.BROWSERS)}")
    return program


@pytest.fixture(scope="module")
def jupyter(browser_program, tmp_path_factory):
    """(folder, server, chromium): a JupyterLab on an empty folder, and a browser; skipped where there is none.

    They end with the module: while Playwright runs, asyncio finds its loop in this thread, and nbclient would too.
    """
    place = tmp_path_factory.mktemp("jupyter")
    folder = place / "course"
    folder.mkdir()
    with browser.jupyterlab(folder, place / "private") as server, browser.chromium(browser_program) as chromium:
        yield folder, server, chromium


@pytest.fixture
def lab(jupyter):
    """A new page of the JupyterLab. Put notebooks into lab.folder, then lab.open, lab.run_all, lab.page."""
    folder, server, chromium = jupyter
    page = chromium.new_page(viewport={"width": 1400, "height": 900})
    yield browser.Lab(folder, server, page)
    page.close()
