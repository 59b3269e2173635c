"""The switch: one name loads the miniature or a full Wan2.2, and nothing after it can tell which.

Both are folders in diffusers' save_pretrained layout of a WanImageToVideoPipeline, plus `minicos.json` with the
settings that the layout has no place for. Components are loaded one by one: the pipeline class itself is not needed,
and importing it takes seconds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn

from minicos import flow
from minicos.errors import MinicosError, out_of_memory
from minicos.tasks import Puzzle, Video

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

Branch = Literal["cond", "uncond"]

CHECKPOINTS = Path(__file__).parent / "checkpoints"
PIPELINE = "WanImageToVideoPipeline"
PARTS = ("transformer", "transformer_2", "vae", "text_encoder", "tokenizer")  # of it
GUESS = "wan2.2-i2v-a14b"  # what a pipeline of unknown name is taken for
SETTINGS_FILE = "minicos.json"
SHARD = "15MB"  # the largest file of weights that is written
MOST_WORDS = 512  # tokens of a prompt, as in diffusers' pipeline
ROOM = 0.5  # of a GPU's memory that weights may take; beyond it, one part is on the GPU at a time


@dataclass(frozen=True)
class Settings:
    """How a model is sampled unless told otherwise.

    canvas: (height, width) of every video, None where each puzzle has its own (the miniature).
    guidance: scale for the high-noise and the low-noise expert; 1 means one pass a step.
    boundary: share of the timesteps above which the high-noise expert works; None with a single expert.
    tasks: the sizes of each task that the model was trained on; empty where that is not known.
    siblings: for tasks that another network was trained on, its folder beside this one: they go by one name.
    causal: self-attention looks at no later frame (`causal.make_frame_causal`).
    batch: how many videos pass through the network at once in a sweep; part of the result, since matrix kernels differ
        in the last bits across batch shapes.
    dtype: of the transformer and the text encoder.
    """

    name: str
    frames: int
    steps: int
    shift: float
    guidance: tuple[float, float] = (1.0, 1.0)
    boundary: float | None = None
    canvas: tuple[int, int] | None = None
    negative_prompt: str = ""
    tasks: dict[str, list[int]] = field(default_factory=dict)
    siblings: dict[str, str] = field(default_factory=dict)
    causal: bool = False
    batch: int = 50
    dtype: Literal["float32", "bfloat16"] = "float32"


@dataclass(frozen=True)
class Condition:
    """What a run is given: everything that does not change along the denoising steps.

    channels: (batch, mask + first-frame channels, frames, height, width), joined to the latents at every step.
    text: per branch (batch, tokens, text width).
    """

    channels: Tensor
    text: dict[Branch, Tensor]

    def rows(self, rows: list[int]) -> Condition:
        """The same for these rows of the batch."""
        return Condition(self.channels[rows], {branch: text[rows] for branch, text in self.text.items()})

    def frames(self, first: int, end: int) -> Condition:
        """The same for the latent frames from `first` up to, but without, `end`."""
        return Condition(self.channels[:, :, first:end], self.text)


class Reasoner:
    """A video diffusion transformer with its VAE and text encoder.

    Latents are (batch, channels, frames, height, width). With two experts, `transformer` takes the high-noise steps.
    one_at_a_time: of the experts and the text encoder only the one at work is on the device, the others wait in host
    memory; so a GPU that holds one expert is enough.
    """

    def __init__(
        self,
        settings: Settings,
        transformer: WanTransformer3DModel,
        transformer_2: WanTransformer3DModel | None,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: object | None = None,
        folder: Path | None = None,
    ) -> None:
        self.device = torch.device("cpu")
        self._vae_in_use = Lock()  # Wan's VAE keeps what it has seen of a video in itself
        self.one_at_a_time = False
        self.processes = 1  # of this machine that hold it, each for itself
        self._at_work: list[nn.Module] = []  # the part that is on the device then; copies, which share it, too
        self._texts: dict[str, Tensor] = {}  # prompt to what the text encoder says of it, in host memory
        self.settings = settings
        self.transformer = transformer
        self.transformer_2 = transformer_2
        self.vae = vae
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.folder = folder  # where it was loaded from

    def for_task(self, task: str) -> Reasoner:
        """The network behind this name that was trained on `task`: this one or a sibling; this one where none was.

        Raises MinicosError where the sibling is missing or damaged.
        """
        own = task in self.settings.tasks or task not in self.settings.siblings
        if own or self.folder is None:
            return self
        folder = self._sibling_folder(task)
        if not folder.is_dir():
            raise MinicosError(
                f"{self.settings.name} leaves {task} to a network in {folder}: train it into that folder"
            )
        return _load_sibling(folder).to(self.device)

    def tasks(self) -> list[str]:
        """The tasks that the networks behind this name were trained on, as far as they are there."""
        siblings = [task for task in self.settings.siblings if self.folder and self._sibling_folder(task).is_dir()]
        return [*self.settings.tasks, *siblings]

    def causal_twin(self) -> Reasoner | None:
        """The network of the same shape with frame-causal attention, from the folder beside: micro has micro-causal,
        micro-rotation has micro-causal-rotation. None where there is none.
        """
        family, dash, rest = self.settings.name.partition("-")
        folder = self.folder.parent / f"{family}-causal{dash}{rest}" if self.folder else None
        has_one = folder and not self.settings.causal and folder.is_dir()
        return _load_sibling(folder).to(self.device) if has_one else None

    def _sibling_folder(self, task: str) -> Path:
        return self.folder.parent / self.settings.siblings[task]

    def to(self, device: torch.device | str, one_at_a_time: bool = False) -> Reasoner:
        """Itself, moved."""
        self.device, self.one_at_a_time = torch.device(device), one_at_a_time
        self._at_work.clear()
        self.vae.to(device)
        for part in (self.transformer, self.transformer_2, self.text_encoder):
            if part is not None:
                part.to("cpu" if one_at_a_time else device)
        return self

    def bring(self, part: nn.Module) -> nn.Module:
        """An expert or the text encoder, on the device; the one that was at work before gives way."""
        if self.one_at_a_time and part not in self._at_work:
            others = [*self._at_work]
            self._at_work.clear()  # first: a move that is interrupted leaves parts of one here and there
            for other in others:
                other.to("cpu")
            self._at_work.append(part.to(self.device))
        return part

    def replica(self) -> Reasoner:
        """The same weights in modules of its own, for another thread: hooks on the one do not act on the other."""
        other = copy(self)
        for part in ("transformer", "transformer_2"):
            module = getattr(self, part)
            shared = [*module.parameters(), *module.buffers()] if module is not None else []
            setattr(other, part, deepcopy(module, {id(tensor): tensor for tensor in shared}))
        return other

    @property
    def latent_channels(self) -> int:
        return self.transformer.config.out_channels

    @property
    def latent_frames(self) -> int:
        """Frames that the sampler moves: one for `frames_per_latent` pixel frames, and one for the first alone."""
        return (self.settings.frames - 1) // self.frames_per_latent + 1

    @property
    def frames_per_latent(self) -> int:
        """1 in the miniature, 4 in Wan: latent frame f ends with the pixel frame f times this."""
        return self.vae.config.scale_factor_temporal

    def schedule(self, steps: int | None = None, shift: float | None = None) -> tuple[flow.Step, ...]:
        """The denoising steps; the model's own number and shift unless given."""
        return flow.schedule(
            self.settings.steps if steps is None else steps, self.settings.shift if shift is None else shift
        )

    def expert(self, timestep: float | Tensor) -> WanTransformer3DModel:
        """The transformer that works at this timestep."""
        if self.transformer_2 is None or timestep >= self.settings.boundary * flow.TIMESTEPS:
            return self.transformer
        return self.transformer_2

    def expert_name(self, timestep: float) -> Literal["transformer", "transformer_2"]:
        """Which of the folder's networks works at this timestep."""
        return "transformer" if self.expert(timestep) is self.transformer else "transformer_2"

    def blocks(self, step: flow.Step) -> nn.ModuleList:
        """The blocks that work at this step; each maps (batch, tokens, width) to the same shape."""
        return self.expert(step.timestep).blocks

    def guidance(self, step: flow.Step) -> float:
        """The guidance scale at this step; 1 means that the uncond branch is not needed."""
        high, low = self.settings.guidance
        return high if self.expert(step.timestep) is self.transformer else low

    @torch.no_grad()
    def condition(self, puzzles: list[Puzzle]) -> Condition:
        """Encode the given images and prompts of puzzles that share one canvas and number of frames.

        Raises MinicosError where they do not, or where the canvas is larger than the model can address.
        """
        images = [puzzle.image(self.settings.canvas) for puzzle in puzzles]
        frames = {puzzle.frames or self.settings.frames for puzzle in puzzles}
        if len({image.shape for image in images}) != 1 or len(frames) != 1:
            raise MinicosError("puzzles of different sizes in one batch: group them by size first")
        first = to_latent_range(np.stack(images)[:, None]).to(self.device)
        return self.condition_on(first, [p.prompt for p in puzzles], frames.pop())

    def condition_on(self, first: Tensor, prompts: list[str], frames: int) -> Condition:
        """As `condition`, from given images: `first` is (batch, 3, 1, height, width) in [-1, 1]."""
        batch, _, _, height, width = first.shape
        self._check_extent(frames, height, width)
        ratio = self.vae.config.scale_factor_temporal
        video = torch.cat([self._encode(part, frames) for part in first.split(self.settings.batch)])
        # As in diffusers' pipeline: one mask channel per pixel frame of a latent frame, 1 where the frame is given.
        mask = video.new_zeros(batch, ratio, *video.shape[2:])
        mask[:, :, 0] = 1
        text = {"cond": self._encode_text(prompts)}
        if max(self.settings.guidance) > 1:
            text["uncond"] = self._encode_text([self.settings.negative_prompt] * batch)
        return Condition(torch.cat([mask, video], dim=1), text)

    def velocity(self, latents: Tensor, timestep: Tensor | float, condition: Condition, branch: Branch) -> Tensor:
        """The predicted velocity of one branch, shaped as `latents`.

        timestep: a float; or (batch,) where each video has its own; or (batch, frames) where each latent frame has,
        as Wan2.2's smaller model takes them, one a token (training; all on one side of the boundary).
        """
        times = torch.as_tensor(timestep, dtype=torch.float32, device=latents.device)
        expert = self.bring(self.expert(timestep.max() if isinstance(timestep, Tensor) else timestep))
        if times.ndim == 2:
            _, rows, columns = expert.config.patch_size
            times = times.repeat_interleave((latents.shape[3] // rows) * (latents.shape[4] // columns), dim=1)
        elif times.ndim == 0:
            times = times[None]  # broadcasts over the batch
        inputs = torch.cat([latents, condition.channels], dim=1).to(expert.dtype)
        text = condition.text[branch].to(expert.dtype)
        return expert(inputs, times, text, return_dict=False)[0].to(latents.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Video:
        """Latents to video, uint8 (batch, frames, height, width, 3); no more at once than pass through the network."""
        video, done = None, 0
        for part in latents.split(self.settings.batch):
            decoded = self._decode(part.to(self.device))
            if video is None:  # all that is needed, once: videos of a large model are 97 MB each
                video = np.empty((len(latents), *decoded.shape[1:]), np.uint8)
            video[done : done + len(decoded)] = decoded
            done += len(decoded)
        return video

    def _decode(self, latents: Tensor) -> Video:
        mean, std = self._latent_statistics(latents)
        with self._vae_in_use:
            video = self.vae.decode((latents * std + mean).to(self.vae.dtype), return_dict=False)[0]
        pixels = (video.float().clamp(-1, 1) + 1) * 127.5
        return pixels.round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu().numpy()

    def _encode(self, first: Tensor, frames: int) -> Tensor:
        """Latents of videos of which only the first frame is given, (batch, 3, 1, height, width); zeros follow it."""
        video = torch.cat([first, first.new_zeros(*first.shape[:2], frames - 1, *first.shape[3:])], dim=2)
        with self._vae_in_use:
            encoded = self.vae.encode(video.to(self.vae.dtype))
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        mean, std = self._latent_statistics(latents)
        return ((latents - mean) / std).float()

    def _latent_statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        return tuple(
            torch.tensor(values, device=latents.device, dtype=latents.dtype).view(1, -1, 1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )

    def _encode_text(self, prompts: list[str]) -> Tensor:
        """(prompts, tokens, width)."""
        if self.tokenizer is None:  # a table of words, which may be in training
            return self.bring(self.text_encoder)(prompts)
        self.learn_prompts(prompts)
        return torch.stack([self._texts[prompt] for prompt in prompts]).to(self.device)

    @torch.no_grad()
    def learn_prompts(self, prompts: Sequence[str]) -> None:
        """Encode those that are new, once and for all, each alone: its text does not depend on its company."""
        if self.tokenizer is not None:
            for prompt in dict.fromkeys(prompts):
                if prompt not in self._texts:
                    self._texts[prompt] = self._encode_prompt(prompt).cpu()

    def _encode_prompt(self, prompt: str) -> Tensor:
        """(tokens, width)"""
        from diffusers.pipelines.wan.pipeline_wan_i2v import prompt_clean

        encoder = self.bring(self.text_encoder)
        # As in diffusers' pipeline: what lies beyond the last word is zero, not the encoder's idea of padding.
        words = self.tokenizer(
            [prompt_clean(prompt)],
            padding="max_length",
            max_length=min(MOST_WORDS, self.tokenizer.model_max_length),
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        ids, mask = words.input_ids.to(self.device), words.attention_mask.to(self.device)
        return (encoder(ids, mask).last_hidden_state * mask[..., None])[0]

    def _check_extent(self, frames: int, height: int, width: int) -> None:
        config, vae = self.transformer.config, self.vae.config
        cell = vae.scale_factor_spatial * config.patch_size[1]
        if height % cell or width % cell:
            raise MinicosError(f"a canvas of {height} x {width} pixels: both must be multiples of {cell}")
        if (frames - 1) % vae.scale_factor_temporal or frames < 2:
            raise MinicosError(f"{frames} frames: expected a multiple of {vae.scale_factor_temporal}, plus 1")
        longest = max((frames - 1) // vae.scale_factor_temporal + 1, height // cell, width // cell)
        if longest > config.rope_max_seq_len:
            raise MinicosError(
                f"the puzzle is too large for the model: {longest} tokens along one axis, at most "
                f"{config.rope_max_seq_len}"
            )


def to_latent_range(video: Video) -> Tensor:
    """uint8 (batch, frames, height, width, 3) to float (batch, 3, frames, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(video)).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


# --- saving and loading ---------------------------------------------------------------------------------------------


def save(reasoner: Reasoner, folder: Path) -> None:
    """Write a miniature in the Wan2.2 pipeline layout; the weights as safetensors."""
    import diffusers

    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=flow.TIMESTEPS,
        flow_shift=reasoner.settings.shift,
    )
    parts = {
        "transformer": ("diffusers", reasoner.transformer),
        "vae": ("minicos.parts", reasoner.vae),
        "text_encoder": ("minicos.parts", reasoner.text_encoder),
        "scheduler": ("diffusers", scheduler),
    }
    index: dict = {"_class_name": PIPELINE, "_diffusers_version": diffusers.__version__}
    index |= {"boundary_ratio": reasoner.settings.boundary, "expand_timesteps": False}
    index |= {part: [None, None] for part in ("image_encoder", "image_processor", "tokenizer", "transformer_2")}
    for part, (library, module) in parts.items():
        sharding = {"max_shard_size": SHARD} if isinstance(module, nn.Module) else {}
        module.save_pretrained(folder / part, **sharding)
        index[part] = [library, type(module).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    (folder / SETTINGS_FILE).write_text(json.dumps(asdict(reasoner.settings), indent=2) + "\n")


def load(name: str | Path | None = None, processes: int = 1) -> Reasoner:
    """A Reasoner by name ("nano") or from a folder; MINICOS_MODEL, else "micro", when no name is given.

    It is on a GPU where there is one. processes: how many of this machine load it, each for itself: a full model asks
    for host memory for all of them. Raises MinicosError for an unknown name and for a folder that is missing,
    incomplete, damaged or of another kind.
    """
    from minicos.causal import make_frame_causal
    from minicos.cpu import quicken

    name = name or os.environ.get("MINICOS_MODEL") or "micro"
    folder = _folder_of(str(name), processes)
    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise MinicosError(f"{folder} holds a {index.get('_class_name')}, not a {PIPELINE}")
    if index.get("expand_timesteps") or (index.get("image_encoder") or [None, None])[1]:
        kind = "Wan2.2 5B, or Wan2.1 with its image encoder"
        raise MinicosError(f"{folder} holds another Wan ({kind}): only those of Wan2.2-I2V-A14B's kind run here")
    settings = _read_settings(folder, str(name), index)
    kinds = {part: (index.get(part) or [None, None])[1] for part in PARTS}
    _check_parts(folder, kinds, settings)
    if settings.name == folder.name and not (folder / SETTINGS_FILE).exists():
        how = f"{settings.steps} steps, guidance {settings.guidance[0]}, {settings.frames} frames"
        print(f"{folder} has no {SETTINGS_FILE}: sampled as {GUESS}, {how}", file=sys.stderr)
    parts = {part: load_part(folder, part, kinds[part], getattr(torch, settings.dtype)) for part in PARTS}
    if not torch.cuda.is_available() and settings.dtype == "float32":
        quicken(*(parts[part] for part in ("transformer", "transformer_2") if parts[part] is not None))
    if settings.causal:
        make_frame_causal(parts["transformer"])
    reasoner = Reasoner(settings, **parts, folder=folder)
    reasoner.processes = processes
    if not torch.cuda.is_available():
        return reasoner
    weights = sum(
        parameter.nbytes for part in parts.values() if hasattr(part, "parameters") for parameter in part.parameters()
    )
    return reasoner.to("cuda", one_at_a_time=weights > ROOM * torch.cuda.get_device_properties(0).total_memory)


def loaded(model: Reasoner | str | Path | None) -> Reasoner:
    """The model itself, or by `load` what is named: of a full model nobody has room for two."""
    return model if isinstance(model, Reasoner) else load(model)


def _folder_of(name: str, processes: int) -> Path:
    from minicos.full import check_machine, fetch, full_models

    if name in shipped():
        return CHECKPOINTS / name
    if name in full_models():
        return fetch(name, processes)
    if not Path(name).is_dir():
        known = ", ".join([*shipped(), *full_models()])
        raise MinicosError(f"unknown model '{name}': choose from {known}, or give a checkpoint's folder")
    check_machine(Path(name), processes)
    return Path(name)


@lru_cache(maxsize=4)
def _load_sibling(folder: Path) -> Reasoner:
    return load(folder)


def shipped() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(path.parent.name for path in CHECKPOINTS.glob("*/model_index.json"))


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise MinicosError(f"{path.parent} has no {path.name}: not a checkpoint in the Wan2.2 layout") from None
    except (OSError, ValueError) as error:
        raise MinicosError(f"{path} cannot be read ({error}): restore it, or train anew") from None


def _read_settings(folder: Path, name: str, index: dict) -> Settings:
    """From the folder, or those of the full model that it is; a pipeline of unknown name is taken for a Wan2.2."""
    from minicos.full import full_models

    if not (folder / SETTINGS_FILE).exists():
        models = full_models()
        if name in models:
            return models[name].settings
        return replace(models[GUESS].settings, name=folder.name, boundary=index.get("boundary_ratio"))
    try:
        return parse_settings(_read_json(folder / SETTINGS_FILE))
    except TypeError as error:
        raise MinicosError(f"{folder / SETTINGS_FILE} is of another version ({error}): train anew") from None


def parse_settings(values: dict) -> Settings:
    """Settings from JSON, where tuples have become lists. Raises TypeError for missing and for unknown names."""
    return Settings(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


def _check_parts(folder: Path, kinds: dict[str, str | None], settings: Settings) -> None:
    """That all is there, before gigabytes of any part are loaded."""
    for part, kind in kinds.items():
        if kind is None and part in ("transformer", "vae", "text_encoder"):
            raise MinicosError(f"{folder} has no {part}: the checkpoint is incomplete")
        if kind is not None and not (folder / part).is_dir():
            raise MinicosError(f"{folder} has no {part} folder: the checkpoint is incomplete")
    if settings.boundary is not None and kinds["transformer_2"] is None:
        raise MinicosError(f"{folder} has no transformer_2: its low-noise expert is missing")
    if settings.boundary is None and kinds["transformer_2"] is not None:
        raise MinicosError(f"{folder} has two experts and no boundary_ratio in model_index.json: say where one ends")


def load_part(folder: Path, part: str, class_name: str | None, dtype: torch.dtype) -> object | None:
    """One of a pipeline's networks, None where it has none. Raises MinicosError where it is damaged."""
    if class_name is None:
        return None
    try:
        return _load_component(class_name, folder / part, dtype)
    except MinicosError:
        raise
    except Exception as error:  # whatever a library raises on a damaged file becomes one line
        if out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MinicosError(f"{folder / part} is damaged or of another kind: {reason}") from error


def _load_component(class_name: str, folder: Path, dtype: torch.dtype) -> object:
    if class_name in ("PixelVAE", "WordEncoder"):
        from minicos import parts as library
    elif class_name in ("WanTransformer3DModel", "AutoencoderKLWan"):
        import diffusers as library
    elif class_name in ("UMT5EncoderModel", "T5TokenizerFast", "T5Tokenizer"):
        import transformers as library
    else:
        raise MinicosError(f"{folder} holds a {class_name}, which no Wan2.2 pipeline has")
    kind = getattr(library, class_name)
    if class_name.startswith("T5Tokenizer"):
        return kind.from_pretrained(folder)
    # A VAE loses detail in bfloat16.
    dtype = torch.float32 if class_name.endswith(("VAE", "KLWan")) else dtype
    named = "dtype" if class_name.startswith("UMT5") else "torch_dtype"  # transformers and diffusers differ
    options = {"output_loading_info": True, "local_files_only": True, named: dtype}
    module, info = kind.from_pretrained(folder, **options)
    # diffusers fills what a file lacks with random numbers and a warning: for us that is a damaged checkpoint.
    strangers = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if strangers:
        raise MinicosError(f"{folder} does not fit its configuration: {len(strangers)} tensors, as {strangers[0]}")
    return module.eval().requires_grad_(False)
