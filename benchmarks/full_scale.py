"""A network of the full model's shape with random weights: time, memory, and what our loop costs.

Run: python benchmarks/full_scale.py   (on a CUDA GPU of 40 GB or more: 14.3 billion parameters in bfloat16, 480 x 832,
9 and 81 frames; elsewhere a tiny shape, which only shows that the command works.)

One expert, with guidance, STEPS steps, the first one not timed; nothing is encoded or decoded in what is timed. For
each number of frames: seconds a step of our loop; the rate of one pass in matrix products and attention, also as a
share of that of a large matrix product of the same type, measured in the same run; what a step of our loop takes more
than one of diffusers' own pipeline with a first-order solver, in turn (should be at most 2 %), and with one block
recorded and reduced (at most 5 %); and the peak memory. Means of REPEATS with 95 % t intervals. RESULTS.md holds the
last table.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from scipy import stats
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from minicos.cards import provenance
from minicos.evaluation import held_out
from minicos.full import full_models
from minicos.model import Reasoner, Settings
from minicos.runs import Batch, Run
from minicos.sampling import Denoising, Recorder
from minicos.tasks import vocabulary

STEPS, REPEATS = 3, 3  # of 81 frames a step takes seconds


@dataclass(frozen=True)
class Shape:
    """What is built, and how large its videos are."""

    heads: int
    head_dim: int
    ffn: int
    layers: int
    text: int
    vae: int
    canvas: tuple[int, int]
    frames: tuple[int, ...]
    side: int  # of the matrices that tell the processor's full rate


FULL = Shape(40, 128, 13824, 40, 4096, 96, (480, 832), (9, 81), 8192)
TINY = Shape(2, 12, 32, 4, 32, 3, (32, 32), (5, 9), 1024)


def build(shape: Shape, frames: int) -> Reasoner:
    torch.manual_seed(0)
    tokenizer, encoder = text_encoder(shape.text)
    small = {"base_dim": 3, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} if shape is TINY else {"base_dim": shape.vae}
    vae = AutoencoderKLWan(z_dim=16, temperal_downsample=[False, True, True], **small)
    torch.set_default_dtype(TYPE)
    with torch.device(DEVICE):  # a CPU takes minutes for so many random numbers
        transformer = WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_dim,
            in_channels=36,
            out_channels=16,
            text_dim=shape.text,
            freq_dim=256,
            ffn_dim=shape.ffn,
            num_layers=shape.layers,
        )
    torch.set_default_dtype(torch.float32)
    settings = replace(full_models()["vbvr-wan2.2"].settings, frames=frames, steps=STEPS, canvas=shape.canvas)
    settings = replace(settings, boundary=None, negative_prompt="", name="random")
    parts = (part.eval().requires_grad_(False) for part in (vae, encoder.to(TYPE)))
    return Reasoner(settings, transformer.eval().requires_grad_(False), None, *parts, tokenizer).to(DEVICE)


def text_encoder(width: int) -> tuple[T5TokenizerFast, UMT5EncoderModel]:
    """Of the model's width and no depth: text is encoded once, and its time is not asked for."""
    words = [("▁" + word, -2.0) for entry in vocabulary() for word in {entry, entry.capitalize()}]
    letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz0123456789"]
    table = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, ("▁", -3.0), *letters]
    tokenizer = T5TokenizerFast(vocab=table, extra_ids=0)
    tokenizer.model_max_length = 512
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    return tokenizer, UMT5EncoderModel(config)


def pipeline_of(reasoner: Reasoner) -> WanImageToVideoPipeline:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=reasoner.settings.shift,
        solver_order=1,
        disable_corrector=list(range(STEPS)),
    )
    pipeline = WanImageToVideoPipeline(
        tokenizer=reasoner.tokenizer,
        text_encoder=reasoner.text_encoder,
        vae=reasoner.vae,
        scheduler=scheduler,
        transformer=reasoner.transformer,
        transformer_2=None,
        image_encoder=None,
        image_processor=None,
        boundary_ratio=None,
        expand_timesteps=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def now() -> float:
    """When all that was asked for is done."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object]) -> float:
    began = now()
    work()
    return now() - began


def our_step(reasoner: Reasoner, run: Run, *recorders: Recorder) -> float:
    """Seconds a step of our loop, the first one left out."""
    denoising = Denoising(reasoner, [run], recorders=recorders)
    denoising.advance()
    return seconds(lambda: [denoising.advance() for _ in range(STEPS - 1)]) / (STEPS - 1)


def their_step(pipeline: WanImageToVideoPipeline, run: Run, settings: Settings) -> float:
    """The same of diffusers' pipeline, from the end of its first step to that of its last."""
    ends = []

    def told(*_: object) -> dict:
        ends.append(now())
        return {}

    height, width = settings.canvas
    pipeline(
        Image.fromarray(run.puzzle.image(settings.canvas)),
        run.puzzle.prompt,
        "",
        height,
        width,
        settings.frames,
        STEPS,
        settings.guidance[0],
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        callback_on_step_end=told,
    )
    return (ends[-1] - ends[0]) / (STEPS - 1)


def token_means(states: Tensor, batch: Batch) -> Tensor:
    """The reduced recording: one number a token."""
    return states.float().mean(-1)


def mean_with_interval(values: np.ndarray) -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():.3g} [{low:.3g}, {high:.3g}]"


def row(shape: Shape, frames: int) -> str:
    """One line of the table."""
    gc.collect()  # diffusers' hooks hold the network in a circle: the last one may be there still
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
    reasoner = build(shape, frames)
    pipeline, run = pipeline_of(reasoner), Run(held_out("maze", 5, 1)[0])
    middle = Recorder("block", "cond", blocks=(shape.layers // 2,), reduce=token_means)
    condition = reasoner.condition([run.puzzle])
    latents = torch.zeros(1, reasoner.latent_channels, *condition.channels.shape[2:], device=DEVICE)
    one_pass = partial(reasoner.velocity, latents, 900.0, condition, "cond")
    with FlopCounterMode(display=False) as counter:
        one_pass()
    operations = counter.get_total_flops()
    works = (
        lambda: our_step(reasoner, run),
        lambda: their_step(pipeline, run, reasoner.settings),
        lambda: our_step(reasoner, run, middle),
        lambda: seconds(one_pass),
    )
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ours, theirs, recorded, passes = np.array([[work() for work in works] for _ in range(REPEATS)]).T
    peak = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if DEVICE == "cuda" else "-"
    a, b = (torch.randn(shape.side, shape.side, device=DEVICE, dtype=TYPE) for _ in range(2))
    ceiling = 2 * shape.side**3 / min(seconds(lambda: a @ b) for _ in range(5))
    numbers = ours, operations / passes / 1e12, 100 * operations / passes / ceiling
    costs = 100 * (ours / theirs - 1), 100 * (recorded / ours - 1)
    return f"| {' | '.join([str(frames), *map(mean_with_interval, (*numbers, *costs)), peak])} |"


if __name__ == "__main__":
    DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    TYPE, SHAPE = (torch.bfloat16, FULL) if DEVICE == "cuda" else (torch.float32, TINY)
    where = f"{provenance()['machine']}, torch {provenance()['torch']}"
    columns = "frames", "s a step", "TFLOP/s", "% of a matrix product", "our loop, % more", "recording, % more", "GB"
    print(f"{'The full' if SHAPE is FULL else 'A tiny'} shape, {where}\n")
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    with torch.no_grad():
        for number in SHAPE.frames:
            print(row(SHAPE, number), flush=True)
