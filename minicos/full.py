"""The full models behind the switch: where they come from, what they need, and LoRA files merged into them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from minicos.errors import MinicosError
from minicos.files import prepare_folder
from minicos.parallel import host_memory

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

    from minicos.model import Settings

GB = 1e9
EXPERT_GB = 28.6  # 14.29 billion parameters in bfloat16
GPU_GB = 45.0  # one expert, the VAE, and the activations of three videos of 81 frames at 480 x 832 (an estimate)
HOST_GB = 85.0  # for each process: both experts and the text encoder in bfloat16, 68.6, and the runs of a chunk
WAN_REVISION = "596658fd9ca6b7b71d5057529bbf319ecbc61d74"
PACKAGES = ("transformers", "tokenizers", "ftfy", "accelerate", "peft")  # the extra minicos[wan]
# The stock negative prompt of Wan, which VBVR's own example uses too.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True)
class FullModel:
    """A model on the Hub. revision: a commit, or a branch where no commit is known.

    download_gb: how much is fetched (official Wan repositories hold the experts in float32); VBVR's is an estimate, as
        much as Wan's own.
    """

    repository: str
    revision: str
    download_gb: float
    licence: str
    settings: Settings


def full_models() -> dict[str, FullModel]:
    """By the name that the switch knows them by.

    Wan2.2's own settings for its base, and those of the paper for VBVR. Where the revision is a branch, the commit that
    it stood for is the name of the folder that the Hub's cache keeps the files in.
    """
    from minicos.model import Settings

    base = Settings(
        "wan2.2-i2v-a14b",
        frames=81,
        steps=40,
        shift=5.0,
        guidance=(3.5, 3.5),
        boundary=0.900,
        canvas=(480, 832),
        negative_prompt=NEGATIVE_PROMPT,
        batch=1,
        dtype="bfloat16",
    )
    vbvr = replace(base, name="vbvr-wan2.2", steps=50, guidance=(5.0, 5.0), boundary=0.875)
    models = (
        FullModel("Wan-AI/Wan2.2-I2V-A14B-Diffusers", WAN_REVISION, 126.2, "Apache-2.0", base),
        FullModel("Video-Reason/VBVR-Wan2.2", "main", 126.0, "Apache-2.0", vbvr),
    )
    return {model.settings.name: model for model in models}


def fetch(name: str, processes: int = 1) -> Path:
    """The folder of a full model in the Hub's cache, for so many processes of this machine, as `download` has it.

    Raises MinicosError where this machine cannot run it, before anything is downloaded.
    """
    obstacles = obstacles_of(machine(), processes)
    if obstacles:
        raise MinicosError(f"this machine cannot run {name}: {'; '.join(obstacles)}; `minicos doctor` says more")
    return download(name)


def download(name: str) -> Path:
    """The folder of a full model in the Hub's cache, downloaded if it is not there; offline when it is.

    Raises MinicosError where there is no room for it, and where the download fails.
    """
    from huggingface_hub import snapshot_download
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    model = full_models()[name]
    if downloaded(model):
        return Path(snapshot_download(**wanted(model), local_files_only=True))
    obstacle = no_room(machine(), model)
    if obstacle:
        raise MinicosError(f"{name} cannot be downloaded: {obstacle}")
    size = f"about {model.download_gb:.0f} GB from {model.repository} ({model.licence})"
    place = f"{cache()}, where {machine().disk_gb:.0f} GB are free"
    needs = f"to run it takes {GPU_GB:.0f} GB on the GPU and {HOST_GB:.0f} GB in memory"
    rank_zero_only(print)(f"{name}: downloading {size} into {place}; {needs}", file=sys.stderr)
    try:
        return Path(snapshot_download(**wanted(model)))
    except Exception as error:  # whatever the Hub, the network or the disk says becomes one line
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MinicosError(f"{name} could not be downloaded: {reason}; run the same again to go on") from error


def wanted(model: FullModel) -> dict[str, object]:
    """What of a repository is fetched, in the Hub's words."""
    ignored = ["*.bin", "*.pth", "assets/*"]
    return {"repo_id": model.repository, "revision": model.revision, "ignore_patterns": ignored}


def downloaded(model: FullModel) -> bool:
    """Whether all of it is in the Hub's cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return _is_whole(Path(snapshot_download(**wanted(model), local_files_only=True)))
    except LocalEntryNotFoundError:
        return False


def _is_whole(folder: Path) -> bool:
    """Whether every part has its files: the Hub's library takes what other programs fetched singly for all there is."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        parts = [folder / name for name, kind in index.items() if isinstance(kind, list) and kind[1] is not None]
        shards = {
            listing.parent / name
            for listing in folder.glob("*/*.index.json")
            for name in json.loads(listing.read_text())["weight_map"].values()
        }
    except (OSError, ValueError, KeyError):
        return False
    networks = [part for part in parts if (part / "config.json").exists()]
    weights = all(any(part.glob("*.safetensors")) for part in networks)
    return weights and all(path.exists() for path in [*shards, *parts])


def check_machine(folder: Path, processes: int = 1) -> None:
    """Raises MinicosError where a folder holds weights of a full model's size, and this machine cannot run as many."""
    gigabytes = sum(path.stat().st_size for path in folder.glob("*/*.safetensors")) / GB
    if gigabytes > EXPERT_GB:
        obstacles = obstacles_of(machine(), processes)
        if obstacles:
            raise MinicosError(f"{folder} holds {gigabytes:.0f} GB of weights: {'; '.join(obstacles)}")


def cache() -> Path:
    """Where the Hub keeps what it downloads."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


# --- what a machine can run -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What matters for a full model. Sizes in GB; gpu "" where there is none; cuda: of torch, "" if built for CPUs."""

    gpu: str
    gpu_gb: float
    host_gb: float
    disk_gb: float
    cuda: str
    missing: tuple[str, ...]


def machine() -> Machine:
    """This one."""
    has_gpu = torch.cuda.is_available()
    place = next(path for path in (cache(), *cache().parents) if path.exists())
    return Machine(
        gpu=torch.cuda.get_device_name() if has_gpu else "",
        gpu_gb=torch.cuda.get_device_properties(0).total_memory / GB if has_gpu else 0.0,
        host_gb=host_memory() / GB,
        disk_gb=shutil.disk_usage(place).free / GB,
        cuda=torch.version.cuda or "",
        missing=tuple(name for name in PACKAGES if find_spec(name) is None),
    )


def obstacles_of(here: Machine, processes: int = 1) -> list[str]:
    """Why a machine cannot run a full model in so many processes, each with what would help; empty where it can."""
    found, host_gb = [], processes * HOST_GB
    if not here.gpu:
        build = "no GPU was found" if here.cuda else "torch is a build for CPUs (README: a GPU build of torch)"
        found.append(f"it needs a CUDA GPU with {GPU_GB:.0f} GB; {build}")
    elif here.gpu_gb < GPU_GB:
        found.append(f"it needs {GPU_GB:.0f} GB of GPU memory, {here.gpu} has {here.gpu_gb:.0f}")
    if here.host_gb < host_gb:
        each = f" ({HOST_GB:.0f} for each of {processes} processes: lower --devices)" if processes > 1 else ""
        found.append(f"it needs {host_gb:.0f} GB of host memory{each}, there are {here.host_gb:.0f}")
    if here.missing:
        found.append(f"missing: {', '.join(here.missing)} (in this project's folder: pip install -e '.[wan]')")
    return found


def no_room(here: Machine, model: FullModel) -> str:
    """Why what is not yet there of a full model cannot be downloaded; "" where it can."""
    missing = model.download_gb - fetched_gb(model)
    if here.disk_gb >= missing:
        return ""
    return f"it needs {missing:.0f} GB of disk, {here.disk_gb:.0f} are free at {cache()}"


def fetched_gb(model: FullModel) -> float:
    """What an interrupted download has left in the Hub's cache: whole files, for its library begins a part anew."""
    from huggingface_hub.file_download import repo_folder_name

    blobs = cache() / repo_folder_name(repo_id=model.repository, repo_type="model") / "blobs"
    return sum(_gigabytes(path) for path in blobs.glob("*") if path.suffix != ".incomplete")


def diagnosis(here: Machine, shipped: Sequence[str]) -> str:
    """What `minicos doctor` prints."""
    lines = [
        f"torch        {torch.__version__} ({'CUDA ' + here.cuda if here.cuda else 'a build for CPUs'})",
        f"GPU          {f'{here.gpu}, {here.gpu_gb:.0f} GB' if here.gpu else 'none'}",
        f"host memory  {here.host_gb:.0f} GB",
        f"disk         {here.disk_gb:.0f} GB free at {cache()}",
        f"packages     {'missing: ' + ', '.join(here.missing) if here.missing else 'all there'}",
        "",
        f"{', '.join(shipped)}: can run",
    ]
    for name, model in full_models().items():
        obstacles = obstacles_of(here)
        if not downloaded(model) and (lack := no_room(here, model)):
            obstacles.append(lack)
        size = f"{model.download_gb:.0f} GB from {model.repository}, {model.licence}"
        lines.append(f"{name} ({size}): {'cannot run: ' + '; '.join(obstacles) if obstacles else 'can run'}")
    return "\n".join(lines)


# --- LoRA -----------------------------------------------------------------------------------------------------------


def check_loras(high: Path, low: Path) -> None:
    """Raises MinicosError where one is no file, both are the same, or a name says that it is for the other expert:
    exchanged, they would fit.
    """
    for option, lora, noise in (("--high", high, "high"), ("--low", low, "low")):
        if not lora.is_file():
            raise MinicosError(f"{lora} is no file: give VBVR's LoRA of that expert")
        named = re.search(r"(high|low)[ _-]?noise", lora.name.lower())
        if named and named[1] != noise:
            raise MinicosError(f"{option} {lora}: its name says {named[0]}; exchange --high and --low, or rename it")
    if high.samefile(low):
        raise MinicosError(f"--high and --low are both {high}: each expert has a LoRA of its own")


def merge_lora(folder: Path, loras: dict[str, Path], out: Path) -> None:
    """Write a copy of a pipeline folder to `out`, with a LoRA merged into each of the named experts.

    loras: "transformer" (high noise) and "transformer_2" (low noise) to files with DiffSynth's keys, as VBVR publishes
    them. Merged in float32, and written in the precision that it is sampled in; that is done as the paper samples VBVR
    unless the folder says otherwise. Raises MinicosError for an expert that the folder lacks, for keys that fit nothing
    in it, and where there is no room for the copy; all before anything is merged.
    """
    from safetensors import SafetensorError

    from minicos.model import SETTINGS_FILE, parse_settings

    if out.resolve() == folder.resolve():
        raise MinicosError(f"{out} is the folder that is merged into: give another --out")
    for part in loras:
        if not (folder / part).is_dir():
            raise MinicosError(
                f"{folder} has no {part} that its LoRA could be merged into: give a Wan2.2 pipeline folder"
            )
    if find_spec("peft") is None:
        raise MinicosError("merging needs peft: in this project's folder, pip install -e '.[wan]'")
    states = {part: _state_of(path, folder / part) for part, path in loras.items()}
    settings = replace(full_models()["vbvr-wan2.2"].settings, name=out.name)
    if (folder / SETTINGS_FILE).exists():
        settings = parse_settings(json.loads((folder / SETTINGS_FILE).read_text()))
    dtype = getattr(torch, settings.dtype)
    copied = [source for source in folder.iterdir() if source.name not in loras]
    elements = {part: sum(weight.numel() for weight in _outline(folder / part).parameters()) for part in loras}
    memory = max(elements.values(), default=0) * torch.float32.itemsize
    if host_memory() < memory:
        there = f"there are {host_memory() / GB:.3g}"
        raise MinicosError(f"merging in float32 takes {memory / GB:.3g} GB of host memory, {there}")
    prepare_folder(out)
    needed = sum(elements.values()) * dtype.itemsize / GB + sum(map(_gigabytes, copied))
    free = shutil.disk_usage(out).free / GB
    if free < needed:
        raise MinicosError(f"{out} has room for {free:.3g} GB, the merged model takes {needed:.3g}: give another --out")
    try:
        for part, state in states.items():
            _merged(folder, part, state, dtype).save_pretrained(out / part)
        for source in copied:
            if source.is_dir():
                shutil.copytree(source, out / source.name, dirs_exist_ok=True)
            else:
                shutil.copy2(source, out / source.name)
        (out / SETTINGS_FILE).write_text(json.dumps(asdict(settings), indent=2) + "\n")
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise MinicosError(f"{out} cannot be written ({reason}): delete it and merge again") from None


def _state_of(lora: Path, expert: Path) -> dict[str, torch.Tensor]:
    """What a LoRA file holds, in diffusers' names. Raises MinicosError where it is not for this expert."""
    from diffusers.loaders import WanLoraLoaderMixin
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        given = load_file(lora)
    except (OSError, SafetensorError) as error:
        raise MinicosError(f"{lora} cannot be read as a LoRA: {str(error).splitlines()[0]}") from None
    if not given:
        raise MinicosError(f"{lora} has no keys: nothing to merge")
    # DiffSynth names neither the model nor plain adapters; diffusers loads nothing, and only warns, unless both change.
    prefix = "" if all(key.startswith(("diffusion_model.", "transformer.")) for key in given) else "diffusion_model."
    try:
        state = WanLoraLoaderMixin.lora_state_dict(
            {prefix + key.replace(".default.", "."): value for key, value in given.items()}
        )
    except Exception:  # foreign keys break the conversion in many ways
        state = {}
    outline = _outline(expert)
    strangers = [key for key, value in state.items() if not _fits(outline, key, value)] if state else [*given]
    if strangers:
        raise MinicosError(f"{lora} is for another model: {len(strangers)} keys fit nothing, as {strangers[0]}")
    if alone := [key for key in state if _other_half(key) not in state]:
        raise MinicosError(f"{lora} is not whole: {alone[0]} has no other half ({len(alone)} in all); fetch it again")
    return state


def _merged(folder: Path, part: str, state: dict[str, torch.Tensor], dtype: torch.dtype) -> WanTransformer3DModel:
    """An expert with a LoRA in it, rounded once: to `dtype`, but for what diffusers keeps in float32."""
    from minicos.model import load_part

    name = "WanTransformer3DModel"
    dtypes = {key: weight.dtype for key, weight in load_part(folder, part, name, dtype).named_parameters()}
    transformer = load_part(folder, part, name, torch.float32)
    transformer.load_lora_adapter(state, prefix="transformer", adapter_name="merged")
    transformer.fuse_lora()
    transformer.unload_lora()
    for key, weight in transformer.named_parameters():
        weight.data = weight.data.to(dtypes[key])
    return transformer


def _outline(expert: Path) -> WanTransformer3DModel:
    """Names and shapes alone: without memory for the weights."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel.from_config(WanTransformer3DModel.load_config(expert, local_files_only=True))


def _gigabytes(source: Path) -> float:
    files = source.rglob("*") if source.is_dir() else [source]
    return sum(path.stat().st_size for path in files if path.is_file()) / GB


def _other_half(key: str) -> str:
    """The key of B for that of A, and of A for that of B."""
    name, lora, which = key.partition(".lora_")
    return name + lora + which.translate(str.maketrans("AB", "BA"))


def _fits(transformer: WanTransformer3DModel, key: str, value: torch.Tensor) -> bool:
    """Whether a matrix of a LoRA, A (rank, inputs) or B (outputs, rank), belongs to a matrix of the transformer."""
    name, _, which = key.removeprefix("transformer.").partition(".lora_")
    try:
        outputs, inputs, *_ = transformer.get_submodule(name).weight.shape
    except (AttributeError, ValueError):  # no such part, or one without a matrix
        return False
    return value.shape[1] == inputs if which.startswith("A") else value.shape[0] == outputs
