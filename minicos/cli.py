"""The command line. Bad input gives one line and exit code 2; heavy imports wait for the command that needs them."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from minicos import __version__
from minicos.errors import MinicosError, memory_advice, out_of_memory

if TYPE_CHECKING:
    from lightning import Fabric


NO_ROOM = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
LIMIT = 2**63  # of what torch takes as a seed


class _Parser(argparse.ArgumentParser):
    """argparse's own complaints in the same form as ours: one line, exit code 2."""

    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except MinicosError as error:
        print(f"minicos: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        print(f"minicos: {memory_advice(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"minicos: {error.strerror}: make room, and run it again; what was written before stays", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "minicos: interrupted; what was written stays: `train --resume` or the same experiment goes on from it",
            file=sys.stderr,
        )
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="minicos", description="Take video reasoning apart.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    demo = commands.add_parser("demo", help="solve held-out puzzles and draw what happens along the denoising steps")
    _add_model(demo)
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for pictures and videos")
    demo.add_argument("--seed", type=_whole, default=0)
    demo.set_defaults(run=_demo)

    train = commands.add_parser("train", help="train a miniature from nothing")
    train.add_argument("--preset", default="nano", help="which sizes and recipe (default: nano)")
    train.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the logs and the state")
    train.add_argument("--seed", type=_whole, default=0)
    train.add_argument("--resume", action="store_true", help="go on with the run in --out")
    train.add_argument("--devices", default="auto", help="how many devices, or which: given to Lightning")
    _add_nodes(train)
    train.add_argument("--strategy", default="auto", help="for example ddp or fsdp: given to Lightning")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="rates on held-out puzzles, with intervals")
    _add_model(evaluate)
    evaluate.add_argument("--out", type=Path, help="folder for evaluation.json and the card (default: only print)")
    evaluate.add_argument(
        "--n",
        type=_positive,
        default=1000,
        help="puzzles of each size; a fifth of what takes long (default: 1000)",
    )
    evaluate.add_argument("--seed", type=_whole, default=0)
    evaluate.set_defaults(run=_evaluate)

    experiment = commands.add_parser("experiment", help="a finding of the paper, measured with its controls")
    experiment.add_argument("name", help="for example chain-of-steps")
    _add_model(experiment)
    experiment.add_argument("--out", type=Path, help="folder, resumed if it was begun (default: out/NAME-MODEL-SCALE)")
    _add_scale(experiment)
    _add_sharing(experiment)
    experiment.set_defaults(run=_experiment)

    replicate = commands.add_parser("replicate", help="all experiments, and one report of them")
    _add_model(replicate)
    replicate.add_argument("--out", type=Path, required=True, help="folder, resumed if it was begun")
    _add_scale(replicate)
    _add_sharing(replicate)
    replicate.set_defaults(run=_replicate)

    slides = commands.add_parser("slides", help="a notebook's slides as one HTML file, with the figures it computes")
    slides.add_argument("notebook", type=Path, nargs="?", default=Path("lessons/lecture.ipynb"))
    slides.add_argument("--out", type=Path, default=Path("out/lecture.html"), help="(default: out/lecture.html)")
    slides.set_defaults(run=_slides)

    doctor = commands.add_parser("doctor", help="what this machine can run, and what is missing")
    doctor.set_defaults(run=_doctor)

    merge = commands.add_parser("merge", help="merge VBVR's LoRA files into a Wan2.2 folder")
    merge.add_argument("folder", help="a pipeline folder in the Wan2.2 layout, or wan2.2-i2v-a14b")
    merge.add_argument("--high", type=Path, required=True, help="LoRA file of the high-noise expert")
    merge.add_argument("--low", type=Path, required=True, help="LoRA file of the low-noise expert")
    merge.add_argument("--out", type=Path, required=True, help="folder for the merged pipeline")
    merge.set_defaults(run=_merge)

    bench = commands.add_parser("bench", help="answer VBVR-Bench's cases, and score them if its evaluator is installed")
    _add_model(bench)
    bench.add_argument("--data", type=Path, required=True, help="folder <split>/<task>/<number>/first_frame.png, ...")
    bench.add_argument("--out", type=Path, required=True, help="folder for the answers, resumed if it was begun")
    bench.add_argument("--cases", type=_positive, help="so many of them, drawn by the seed (default: all)")
    bench.add_argument("--seed", type=_whole, default=0)
    disturbed = bench.add_mutually_exclusive_group()
    disturbed.add_argument("--noise-at-step", type=_whole, metavar="STEP", help="noise in all frames before this step")
    disturbed.add_argument("--noise-at-frame", type=_whole, metavar="FRAME", help="noise in this latent frame, always")
    disturbed.add_argument("--ensemble", action="store_true", help="hidden states of 3 seeds averaged, as in the paper")
    _add_sharing(bench)
    bench.set_defaults(run=_bench)

    plan = commands.add_parser("plan", help="what an experiment will cost: passes, memory and time")
    plan.add_argument("names", nargs="*", help="experiments (default: all)")
    _add_model(plan)
    _add_scale(plan)
    _add_sharing(plan)
    plan.set_defaults(run=_plan)

    _add_grade(commands.add_parser("grade", help="assignments, for instructors (solutions/README.md)"))
    return parser


def _add_grade(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", required=True)
    generate = steps.add_parser("generate", help="write the releases into assignments/")
    generate.add_argument("names", nargs="*", help="assignments (default: all)")
    pictures = steps.add_parser("pictures", help="run the solutions, and show in the exercises what should come out")
    pictures.add_argument("names", nargs="*", help="assignments (default: all)")
    collect = steps.add_parser("collect", help="take in submissions: STUDENT.ipynb or STUDENT/NAME.ipynb")
    collect.add_argument("name", help="for example a1_denoiser")
    collect.add_argument("folder", type=Path)
    autograde = steps.add_parser("autograde", help="grade what was collected; interrupted, it goes on where it was")
    autograde.add_argument("name")
    autograde.add_argument("--jobs", type=_positive, default=2, help="submissions at once (default: 2)")
    feedback = steps.add_parser("feedback", help="write HTML for every student into course/feedback")
    feedback.add_argument("name")
    export = steps.add_parser("export", help="write all grades as CSV")
    export.add_argument("path", type=Path)
    parser.set_defaults(run=_grade)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="a name, or a checkpoint's folder (default: $MINICOS_MODEL, else micro)")


def _add_scale(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="few and easy puzzles: at most a minute each on 2 cores")
    parser.add_argument("--cases", type=_positive, help="puzzles of each task (default: 256; 16 if quick)")


def _add_nodes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=_positive, default=1, help="how many machines: given to Lightning")


def _add_sharing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--devices", type=_positive, default=1, help="how many devices share the work (default: 1)")
    _add_nodes(parser)


def _whole(text: str) -> int:
    return _at_least(text, 0)


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number < LIMIT:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least {least}, and below 2^63")
    return number


def _demo(options: argparse.Namespace) -> None:
    from minicos.demo import run_demo

    run_demo(options.model, options.out, options.seed)


def _train(options: argparse.Namespace) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from minicos.training import train

    try:
        train(
            options.preset,
            options.out,
            seed=options.seed,
            resume=options.resume,
            devices=options.devices,
            nodes=options.nodes,
            strategy=options.strategy,
        )
    except SystemExit:  # how Lightning leaves after Ctrl-C
        raise KeyboardInterrupt from None
    rank_zero_only(print)(f"trained: {options.out}; next: minicos evaluate --model {options.out} --out {options.out}")


def _evaluate(options: argparse.Namespace) -> None:
    from minicos.evaluation import run_evaluation

    run_evaluation(options.model, options.out, options.n, options.seed)


def _experiment(options: argparse.Namespace) -> None:
    from minicos.errors import CannotRun
    from minicos.experiments import get_experiment
    from minicos.experiments.base import scale_of
    from minicos.experiments.running import SUMMARY_FILE, run_experiment
    from minicos.files import check_folder
    from minicos.model import load
    from minicos.parallel import each_process

    if options.out:
        check_folder(options.out)
    experiment, scale = get_experiment(options.name), scale_of(options.quick, options.cases)
    fabric = _fabric(options)
    reasoner = each_process(fabric, lambda: load(options.model, options.devices))
    out = options.out or Path("out") / f"{experiment.name}-{reasoner.settings.name}-{scale.name}"
    try:
        result = run_experiment(experiment, reasoner, out, scale, fabric)
    except CannotRun as error:
        result = each_process(fabric, partial(_refuse, error))  # all of them come here, and one says why
    if result:
        print((out / SUMMARY_FILE).read_text())
        print(f"{experiment.finding}\ncriterion: {experiment.criterion}\n")
        print(f"{result.verdict.status}: {result.verdict.text}\n\nwritten to {out.resolve()}")


def _refuse(error: MinicosError) -> NoReturn:
    raise error


def _replicate(options: argparse.Namespace) -> None:
    from minicos.experiments.base import scale_of
    from minicos.files import check_folder
    from minicos.model import load
    from minicos.parallel import each_process
    from minicos.replication import REPORT_FILE, replicate

    check_folder(options.out)
    fabric = _fabric(options)
    reasoner = each_process(fabric, lambda: load(options.model, options.devices))
    how = (" --quick" if options.quick else "") + (f" --cases {options.cases}" if options.cases else "")
    how += f" --devices {options.devices}" if options.devices != 1 else ""
    how += f" --nodes {options.nodes}" if options.nodes != 1 else ""
    command = f"minicos replicate --model {options.model or reasoner.settings.name} --out DIR{how}"
    findings = replicate(reasoner, options.out, scale_of(options.quick, options.cases), command, fabric)
    for finding in findings:
        print(f"{finding.experiment:>16}  {finding.status:<9}  {finding.text}")
    if findings:
        print(f"\nthe report: {(options.out / REPORT_FILE).resolve()}")


def _fabric(options: argparse.Namespace) -> Fabric | None:
    """The processes that share the work, launched; None for one alone. Each has a GPU of its own from now on."""
    if options.devices == 1 and options.nodes == 1:
        return None
    import atexit
    from datetime import timedelta

    import torch
    from lightning import Fabric
    from lightning.fabric.strategies import DDPStrategy
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    # They only wait for each other, at the end of a sweep, and a share of a full one may take days. gloo, on GPUs too:
    # it sees at once when one of them has died.
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(days=90))
    try:
        fabric = Fabric(devices=options.devices, num_nodes=options.nodes, strategy=strategy)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MinicosError(f"--devices {options.devices} --nodes {options.nodes}: {reason}") from None
    fabric.launch()
    # Its threads must end before the interpreter does: else, now and then, a refusal ends as an abort.
    atexit.register(torch.distributed.destroy_process_group)
    return fabric


def _slides(options: argparse.Namespace) -> None:
    from minicos.slides import make_slides

    print(f"{make_slides(options.notebook, options.out)} slides: {options.out.resolve()}")


def _doctor(options: argparse.Namespace) -> None:
    from minicos.full import diagnosis, machine
    from minicos.model import shipped

    print(diagnosis(machine(), shipped()))


def _merge(options: argparse.Namespace) -> None:
    from minicos.full import check_loras, download, full_models, merge_lora

    check_loras(options.high, options.low)  # before a hundred gigabytes are fetched
    folder = download(options.folder) if options.folder in full_models() else Path(options.folder)
    merge_lora(folder, {"transformer": options.high, "transformer_2": options.low}, options.out)
    print(f"merged: {options.out}; next: minicos plan --model {options.out} --cases 20")


def _bench(options: argparse.Namespace) -> None:
    from minicos.experiments.ensemble import SEEDS, paper_average
    from minicos.files import check_folder
    from minicos.interventions import noise_at_frame, noise_at_step
    from minicos.model import load
    from minicos.parallel import each_process
    from minicos.vbvr import run_bench

    check_folder(options.out)
    if options.ensemble and options.seed not in SEEDS:
        seeds = ", ".join(map(str, SEEDS))
        raise MinicosError(f"--seed {options.seed}: an ensemble averages the seeds {seeds}, give one of them")
    fabric = _fabric(options)
    reasoner = each_process(fabric, lambda: load(options.model, options.devices))
    done = ()
    if options.noise_at_step is not None:
        done = (noise_at_step(options.noise_at_step),)
    elif options.noise_at_frame is not None:
        done = (noise_at_frame(options.noise_at_frame),)
    elif options.ensemble:
        done = (paper_average(len(reasoner.transformer.blocks)),)
    run_bench(reasoner, options.data, options.out, options.cases, options.seed, done, fabric)


def _plan(options: argparse.Namespace) -> None:
    from minicos.errors import CannotRun
    from minicos.experiments import EXPERIMENTS, get_experiment
    from minicos.experiments.base import scale_of
    from minicos.model import load
    from minicos.planning import hours_line, plan, plan_table

    reasoner, scale = load(options.model), scale_of(options.quick, options.cases)
    reasoner.processes = options.devices  # of each machine: what `replicate` leaves out, having no room, costs nothing
    plans = []
    for experiment in [get_experiment(name) for name in options.names or EXPERIMENTS]:
        try:
            plans.append((experiment.name, plan(experiment.sweeps(reasoner, scale))))
        except CannotRun as error:
            if options.names:
                raise
            print(f"{experiment.name} is left out: {error}")
    if not plans:
        raise MinicosError(f"{reasoner.settings.name} can run none of the experiments: give another --model")
    print(plan_table(plans))
    print(f"\n{hours_line(plans, reasoner.device.type, options.devices * options.nodes)}")


def _grade(options: argparse.Namespace) -> None:
    from minicos.grading import ASSIGNMENTS, course
    from minicos.grading.pictures import add_pictures

    here = course.root()
    if options.step == "generate":
        course.generate(here, options.names or ASSIGNMENTS)
    elif options.step == "pictures":
        for name in options.names or ASSIGNMENTS:
            print(f"{name}: {add_pictures(course.solution_of(here, name))}; next: minicos grade generate")
    elif options.step == "collect":
        print(f"collected: {', '.join(course.collect(here, options.name, options.folder))}")
    elif options.step == "autograde":
        _autograde(here, options.name, options.jobs)
    elif options.step == "feedback":
        course.feedback(here, options.name)
    else:
        course.export(here, options.path)


def _autograde(here: Path, name: str, jobs: int) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from minicos.grading import course

    with Progress(console=Console(stderr=True)) as bar:
        work = bar.add_task(name, total=len(course.students_of(here, name)))
        results = course.autograde(here, name, jobs, lambda: bar.advance(work))
    for result in results:
        print(f"{result.student:<20} {result.points:g} of {result.most:g} {result.problem}".rstrip())
