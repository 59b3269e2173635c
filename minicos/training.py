"""Training a miniature from nothing: puzzles made on the fly, Muon for the blocks, exact resumption.

Every batch is a function of (seed, batch number): puzzles, noise and noise levels alike. A run that was killed and
resumed therefore sees what an undisturbed run would have seen, and ends with the same weights.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from random import Random

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import RichProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from minicos import flow
from minicos.cards import TRAINING_FILE, commit, provenance
from minicos.causal import make_frame_causal
from minicos.curves import CURVE_FILE, curve_of_run, read_curve, verdict, write_curve
from minicos.errors import MinicosError
from minicos.evaluation import solve
from minicos.files import alone_in, check_folder, claim, replace_file
from minicos.model import CHECKPOINTS, Reasoner, Settings, load, save, to_latent_range
from minicos.parts import PATCH, PRESETS, PixelVAE, Preset, WordEncoder
from minicos.recipes import RECIPES, Recipe, siblings
from minicos.tasks import Puzzle, get_task, task_of, vocabulary

LOSS_BINS = 4  # the loss is logged for sigma in [0, 1/4), [1/4, 1/2), ...
RESUME_FILE, RUN_FILE = "last.ckpt", "run.json"
WORKERS = 8  # processes that make puzzles for a GPU
BLENDED_FROM = 0.5  # sigma: below, nearly all runs have chosen one of two right answers
REFINED_FROM = 0.25  # the same while refining: the last of 12 steps begins at 0.31
REFINED_RATE = 0.5  # of the learning rates
LEAST_SIGMA = 1e-3  # to divide by; there only one answer is likely
UNEVEN = 0.2  # standard deviation over frames of how far a blended video is on its way


def build(name: str, seed: int, recipe: Recipe | None = None) -> Reasoner:
    """A miniature with random weights of this preset; raises MinicosError for an unknown one."""
    from diffusers import WanTransformer3DModel

    preset = preset_of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = WanTransformer3DModel(**preset.transformer_config())
        text_encoder = WordEncoder(vocabulary(preset.spoken), preset.text_width, preset.text_tokens)
    # The class has no initialisation of its own: start from predicting nothing, a plain and stable beginning.
    nn.init.zeros_(transformer.proj_out.weight)
    nn.init.zeros_(transformer.proj_out.bias)
    tasks = (recipe or RECIPES[name]).tasks()
    if preset.causal:
        make_frame_causal(transformer)
    settings = Settings(
        name, preset.frames, preset.steps, preset.shift, tasks=tasks, siblings=siblings(name), causal=preset.causal
    )
    return Reasoner(settings, transformer, None, PixelVAE(), text_encoder)


def preset_of(name: str) -> Preset:
    if name not in PRESETS:
        raise MinicosError(f"unknown preset '{name}': choose from {', '.join(PRESETS)}")
    return PRESETS[name]


class Batches(IterableDataset):
    """Batches number `start`, start + 1, ... for puzzles of one size.

    Each is {"video", "prompts", "sigma" (batch,), "noise", "history": the number of clean first frames}; where videos
    are blended, also "answers", the videos of the right answers, (batch, 2, ...).
    """

    def __init__(self, recipe: Recipe, frames: int, seed: int, start: int, rank: int, world: int) -> None:
        self.recipe, self.frames, self.seed, self.start = recipe, frames, seed, start
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.recipe.all_steps  # of the whole run, also when resumed: Lightning counts on from where it was

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()  # the loader takes from its workers in turn: together they keep the order
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(self.start + first, self.recipe.all_steps, stride):
            yield self.batch(number)

    def batch(self, number: int) -> dict:
        rng = Random(f"batch/{self.seed}/{number}")
        *earlier, last = self.recipe.stages
        stage = next((s for s in earlier if number < s.until * self.recipe.steps), last)
        (name, size), *_ = rng.choices(list(stage.mix), list(stage.mix.values()))
        task = get_task(name)
        height, width = task.canvas(task.sample(self.seed, 0, size=size))
        count = max(1, self.recipe.tokens // (self.frames * height * width // PATCH**2))
        first = (number * self.world + self.rank) * count
        puzzles = [task.sample(self.seed, first + i, size=size) for i in range(count)]
        video = to_latent_range(np.stack([task.render(p, self.frames) for p in puzzles]))
        prompts = ["" if rng.random() < self.recipe.prompt_dropout else p.prompt for p in puzzles]
        generator = torch.Generator().manual_seed(rng.getrandbits(63) ^ self.rank)
        sigma = flow.shift_sigma(torch.rand(count, generator=generator), self.recipe.shift)
        history = rng.randrange(1, self.frames) if rng.random() < self.recipe.history else 0
        noise = torch.randn(video.shape, generator=generator)
        found = {"video": video, "prompts": prompts, "sigma": sigma, "noise": noise, "history": history}
        # Clean first frames have chosen an answer.
        if self.recipe.blended and not history and all(len(task.answers(puzzle)) == 2 for puzzle in puzzles):
            blends = sigma > (BLENDED_FROM if number < self.recipe.steps else REFINED_FROM)
            found |= self._blended(puzzles, video, blends, generator)
        return found

    def _blended(self, puzzles: list[Puzzle], video: Tensor, blends: Tensor, generator: torch.Generator) -> dict:
        """Some videos, where `blends` allows it, on their way to the other right answer, not all frames equally far."""
        task = task_of(puzzles[0])
        others = [task.render(replace(puzzle, shown=1 - puzzle.shown), self.frames) for puzzle in puzzles]
        other = to_latent_range(np.stack(others))
        share = torch.rand(len(puzzles), 1, generator=generator)
        share = share + UNEVEN * torch.randn(len(puzzles), self.frames, generator=generator)
        chosen = (torch.rand(len(puzzles), generator=generator) < self.recipe.blended) & blends
        share = (share.clamp(0, 1) * chosen[:, None]).view(len(puzzles), 1, -1, 1, 1)
        return {"video": video + share * (other - video), "answers": torch.stack([video, other], dim=1)}


class PuzzleData(L.LightningDataModule):
    """Training batches from the step that the trainer has reached."""

    def __init__(self, recipe: Recipe, frames: int, seed: int) -> None:
        super().__init__()
        self.recipe, self.frames, self.seed = recipe, frames, seed

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        batches = Batches(
            self.recipe, self.frames, self.seed, trainer.global_step, trainer.global_rank, trainer.world_size
        )
        # A GPU would wait for puzzles made in its own process; a CPU that trains has no core to spare for others.
        return DataLoader(batches, batch_size=None, num_workers=WORKERS if torch.cuda.is_available() else 0)


class FlowMatching(L.LightningModule):
    """The velocity loss on a Reasoner's transformer and words, with an exponential moving average of both."""

    def __init__(self, reasoner: Reasoner, recipe: Recipe) -> None:
        super().__init__()
        self.automatic_optimization = False  # two optimisers a step
        self.recipe = recipe
        self.reasoner = reasoner
        self.learned = nn.ModuleDict({"transformer": reasoner.transformer, "text_encoder": reasoner.text_encoder})
        self.averaged = AveragedModel(self.learned, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        self.averaged.requires_grad_(False)  # else DDP waits for gradients that never come
        self.commits = [commit()]  # of the code that has trained it, the last one last

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["commits"] = self.commits

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        earlier = checkpoint.get("commits", [])
        self.commits = [*(other for other in earlier if other != self.commits[-1]), self.commits[-1]]

    def averaged_reasoner(self) -> Reasoner:
        """The model to evaluate and to ship."""
        learned = self.averaged.module
        parts = learned["transformer"], None, self.reasoner.vae, learned["text_encoder"]
        return Reasoner(self.reasoner.settings, *parts).to(self.device)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        matrices = [p for p in self.learned["transformer"].blocks.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        rest = [p for p in self.learned.parameters() if id(p) not in chosen]
        return [
            torch.optim.Muon(matrices, lr=self.recipe.muon_lr, momentum=0.95, weight_decay=0.0),
            torch.optim.AdamW(rest, lr=self.recipe.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]

    def training_step(self, batch: dict, batch_index: int) -> None:
        muon, adamw = self.optimizers()
        if self.global_step == self.recipe.steps:  # refining begins
            self.learned.load_state_dict(self.averaged.module.state_dict())
            for optimizer in (muon, adamw):
                optimizer.optimizer.state.clear()
        losses = self.losses(batch)
        factor = learning_rate_factor(self.recipe, self.global_step)
        for optimizer, rate in ((muon, self.recipe.muon_lr), (adamw, self.recipe.adamw_lr)):
            optimizer.optimizer.param_groups[0]["lr"] = factor * rate
            optimizer.zero_grad()
        self.manual_backward(losses.mean())
        # Lightning counts every optimiser's step: step the second one bare, so that global_step counts batches.
        adamw.optimizer.step()
        muon.step()
        self.averaged.update_parameters(self.learned)
        self._log_losses(losses.detach(), batch["sigma"])

    def losses(self, batch: dict) -> Tensor:
        """Mean squared error of the velocity for each video, over the frames that are not clean, (batch,)."""
        video, noise, sigma, history = batch["video"], batch["noise"], batch["sigma"], batch["history"]
        condition = self.reasoner.condition_on(video[:, :, :1], batch["prompts"], video.shape[2])
        if history:
            sigma = sigma[:, None] * (torch.arange(video.shape[2], device=sigma.device) >= history)
        per_frame = sigma.view(len(sigma), 1, -1, 1, 1)
        latents = flow.interpolate(video, noise, per_frame)
        velocity = self.reasoner.velocity(latents, sigma * flow.TIMESTEPS, condition, "cond")
        target = flow.target_velocity(video, noise)
        if "answers" in batch:  # a video that is as right as another is not to be guessed: the target is their mean
            level = sigma.clamp(min=LEAST_SIGMA)
            missed = video - flow.expected_x0(latents, batch["answers"], level)
            target = target + missed / level.view(per_frame.shape)
        errors = (velocity - target).square()
        return errors[:, :, history:].flatten(1).mean(1)

    def _log_losses(self, losses: Tensor, sigma: Tensor) -> None:
        self.log("loss", losses.mean(), prog_bar=True)
        bins = (sigma * LOSS_BINS).long().clamp(max=LOSS_BINS - 1)
        for i in range(LOSS_BINS):
            if (bins == i).any():
                self.log(f"loss_sigma_{i / LOSS_BINS:.2f}", losses[bins == i].mean())


def learning_rate_factor(recipe: Recipe, step: int) -> float:
    """Warm-up, plateau, linear fall to zero; the same again, lower and shorter, while refining."""
    highest, length = 1.0, recipe.steps
    if step >= recipe.steps:
        highest, length, step = REFINED_RATE, recipe.refined, step - recipe.steps
    left = (length - step) / (recipe.cooldown * length)
    return highest * min((step + 1) / recipe.warmup, 1.0, left)


class SolvedRate(L.Callback):
    """Logs how many validation puzzles the averaged model solves, at the end and by x0_hat at step 0."""

    PUZZLES = 64

    def on_train_batch_end(self, trainer: L.Trainer, module: FlowMatching, *_) -> None:
        if trainer.global_step % module.recipe.validate_every or not trainer.is_global_zero:
            return
        found = {}
        for name, size in module.recipe.validate:
            task = get_task(name)
            puzzles = [task.sample(0, i, size=size, split="val") for i in range(self.PUZZLES)]
            outcomes = solve(module.averaged_reasoner(), puzzles)
            for moment, scores in (("", [o.end for o in outcomes]), ("_step_0", [o.step_0 for o in outcomes])):
                found[f"solved_{name}_{size}{moment}"] = sum(score.solved for score in scores) / len(scores)
        module.log_dict(found, prog_bar=True, logger=False, rank_zero_only=True)
        for logger in trainer.loggers:  # by hand: what is logged by the module is repeated in every later row
            logger.log_metrics(found, step=trainer.global_step - 1)


class SaveState(L.Callback):
    """Writes last.ckpt every `save_every` steps, and at the end."""

    def on_train_batch_end(self, trainer: L.Trainer, module: FlowMatching, *_) -> None:
        if trainer.global_step % module.recipe.save_every == 0 or trainer.global_step == module.recipe.all_steps:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / RESUME_FILE)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written beside the old one and moved over it: a kill leaves one or the other, whole;
    a power cut, too.
    """

    def save_checkpoint(self, checkpoint: dict, path: str, storage_options: object | None = None) -> None:
        draft = f"{path}.draft"
        super().save_checkpoint(checkpoint, draft, storage_options)
        with open(draft, "rb") as file:
            os.fsync(file.fileno())  # else the name may reach the disk before what it names
        os.replace(draft, path)

    def load_checkpoint(self, path: str, map_location: object = None, weights_only: bool | None = None) -> dict:
        try:
            return super().load_checkpoint(path, map_location, weights_only=True)  # nothing is ever unpickled
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise MinicosError(f"{path} is damaged ({type(error).__name__}): train anew in another --out") from error


def train(
    name: str,
    out: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    recipe: Recipe | None = None,
    devices: str = "auto",
    nodes: int = 1,
    strategy: str = "auto",
    progress: bool = True,
) -> Reasoner:
    """Train a preset into `out`: logs and last.ckpt while it runs, the checkpoint in `out` itself at the end.

    Raises MinicosError for an unknown preset, an `out` that cannot be written or already holds a run (unless
    `resume`), and a resume from nothing, from a damaged state or from a run of another preset or seed.
    """
    preset = preset_of(name)
    recipe = recipe or RECIPES[name]
    resume_from = _prepare(out, resume)
    made_by = provenance()  # now: the files may change while this runs
    # Lightning advertises and reminds; what a user needs to know is in the progress bar and in our own lines.
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\.")
    module = FlowMatching(build(name, seed, recipe), recipe)
    timer = Timer()
    try:
        trainer = L.Trainer(
            default_root_dir=out,
            max_steps=recipe.all_steps,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            # On a CPU bfloat16 makes these small matrices slower, even where it has instructions for it.
            precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
            logger=[table := CSVLogger(out, "logs"), TensorBoardLogger(out, "logs", version=table.version)],
            callbacks=[SolvedRate(), timer, SaveState(), *([RichProgressBar()] if progress else [])],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=progress,
            enable_model_summary=False,
            log_every_n_steps=min(10, recipe.all_steps),
        )
    except (MisconfigurationException, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MinicosError(f"--devices {devices} --nodes {nodes} --strategy {strategy}: {reason}") from None
    if trainer.is_global_zero:  # only now: a trainer that is refused leaves nothing
        claim(out / RUN_FILE, {"preset": name, "seed": seed}, "training run", used=False)
    if resume and _is_trained(out, recipe):  # by whom and how long stays as it was written
        return load(out)
    if progress and trainer.is_global_zero:
        steps = recipe.all_steps
        print(f"training {name} into {out}: {steps} steps; after Ctrl-C or a kill, --resume goes on", flush=True)
    with alone_in(out) if trainer.is_global_zero else nullcontext():
        trainer.fit(module, PuzzleData(recipe, preset.frames, seed), ckpt_path=resume_from)
        reasoner = module.averaged_reasoner()
        if trainer.is_global_zero and trainer.global_step == recipe.all_steps:
            save(reasoner, out)
            report = {"command": f"minicos train --preset {name} --seed {seed} --out DIR", "seed": seed}
            report |= {"steps": recipe.all_steps, "seconds": round(timer.time_elapsed("train")), **made_by}
            report |= {"earlier_commits": module.commits[:-1]} if module.commits[1:] else {}
            points = curve_of_run(out)
            write_curve(points, out / CURVE_FILE)
            # Last: it says that all is there.
            replace_file(out / TRAINING_FILE, (json.dumps(report, indent=1) + "\n").encode())
            reference = CHECKPOINTS / name / CURVE_FILE
            if progress and recipe == RECIPES[name] and reference.exists():
                print(verdict(points, read_curve(reference)))
    return reasoner


def _is_trained(out: Path, recipe: Recipe) -> bool:
    """Whether a run has come to the end of this recipe: a longer one may go on from there."""
    try:
        return json.loads((out / TRAINING_FILE).read_text())["steps"] == recipe.all_steps
    except (OSError, ValueError, KeyError):
        return False


def _prepare(out: Path, resume: bool) -> str | None:
    """Look at the folder; the state to resume from, None for a new run, and for one killed before its first."""
    state = out / RESUME_FILE
    resume_from = str(state) if resume and state.exists() else None
    if rank_zero_only.rank != 0:  # with several processes, the first one has looked and may have begun to write
        return resume_from
    check_folder(out)
    if resume and resume_from is None and not (out / RUN_FILE).exists():
        raise MinicosError(
            f"nothing to resume: {out} holds no training run: give the --out of one, or begin without --resume in an "
            "empty folder"
        )
    if not resume and out.exists() and any(out.iterdir()):
        raise MinicosError(f"{out} is not empty: give --resume to go on with it, or another --out")
    return resume_from
