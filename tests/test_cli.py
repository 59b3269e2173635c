"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch

from minicos.cli import main
from minicos.files import alone_in
from minicos.model import load


def minicos(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "minicos", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["demo", "--model", "giga", "--out", "OUT"], "giga"),
        (["evaluate", "--model", "no/such/folder", "--out", "OUT"], "no/such/folder"),
        (["evaluate", "--n", "0"], "--n"),
        (["evaluate", "--n", "many"], "--n"),
        (["demo", "--seed", "-1"], "--seed"),
        (["train", "--seed", "99999999999999999999", "--out", "OUT"], "--seed"),
        (["experiment", "teapot"], "choose from chain-of-steps"),
        (["experiment", "budget", "--model", "giga", "--out", "OUT"], "giga"),
        (["experiment", "working-memory", "--model", "nano", "--out", "OUT"], "was trained on none of occlusion"),
        (["experiment", "budget", "--devices", "0"], "--devices"),
        (["plan", "teapot"], "choose from chain-of-steps"),
        (["replicate"], "--out"),
        (["replicate", "--model", "giga", "--out", "OUT"], "giga"),
        (["merge", "OUT", "--high", __file__, "--low", torch.__file__, "--out", "OUT/merged"], "no transformer"),
        (["merge", "wan2.2-i2v-a14b", "--high", "no-lora", "--low", "b", "--out", "OUT"], "no-lora is no file"),
        (["bench", "--data", "nowhere", "--model", "giga", "--out", "OUT"], "giga"),
        (["bench", "--data", "nowhere", "--model", "nano", "--out", "OUT"], "holds no case"),
        (["train", "--preset", "giga", "--out", "OUT"], "giga"),
        (["train", "--devices", "many", "--out", "OUT"], "many"),
        (["train", "--strategy", "magic", "--out", "OUT"], "magic"),
        (["train"], "--out"),
        (["dance"], "dance"),
        ([], "COMMAND"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(arguments, word, tmp_path):
    done = minicos(*[a.replace("OUT", str(tmp_path / "out")) for a in arguments])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert word in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["demo", "evaluate", "train", "experiment", "replicate"])
def test_an_out_that_cannot_be_written(command, untrained_nano, tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("precious")
    model = [] if command == "train" else ["--model", untrained_nano]
    name = ["budget"] if command == "experiment" else []
    for out in (occupied, occupied / "below"):
        done = minicos(command, *name, *model, "--out", out)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "cannot write" in done.stderr
    assert occupied.read_text() == "precious"


def test_a_truncated_checkpoint_is_one_line(untrained_nano, tmp_path):
    import shutil

    copy = shutil.copytree(untrained_nano, tmp_path / "copy")
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    done = minicos("demo", "--model", copy, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["wan2.2-i2v-a14b", "vbvr-wan2.2"])
def test_a_machine_without_a_gpu_that_is_asked_for_14b_is_one_line(name, tmp_path):
    done = minicos("experiment", "budget", "--model", name, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "CUDA GPU" in done.stderr


def test_a_missing_expert_is_one_line_before_anything_is_loaded(tiny_wan_folder, tmp_path):
    import shutil

    copy = shutil.copytree(tiny_wan_folder, tmp_path / "copy")
    shutil.rmtree(copy / "transformer_2")
    for name in ("minicos.json", "no file"):  # with settings of ours, and as it is downloaded
        done = minicos("experiment", "budget", "--model", copy, "--out", tmp_path / "out")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), name
        assert "transformer_2" in done.stderr
        (copy / "minicos.json").unlink(missing_ok=True)


def test_a_lora_for_another_model_is_one_line(tiny_wan_folder, tmp_path):
    from safetensors.torch import save_file

    for name in ("high", "low"):
        halves = {f"blocks.0.{name}.lora_{half}.default.weight": torch.zeros(2, 2) for half in "AB"}
        save_file(halves, tmp_path / f"{name}.safetensors")
    files = ("--high", tmp_path / "high.safetensors", "--low", tmp_path / "low.safetensors")
    done = minicos("merge", tiny_wan_folder, *files, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "another model" in done.stderr


def test_a_puzzle_that_is_too_large_is_one_line(untrained_nano, tmp_path):
    import shutil

    copy = shutil.copytree(untrained_nano, tmp_path / "copy")
    config = copy / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_max_seq_len": 5}))  # mazes of 6 do not fit
    done = minicos("evaluate", "--model", copy, "--n", 1, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr.count("minicos: ")) == (2, "", 1)
    assert "too large for the model" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_demo_writes_what_it_says(tmp_path):
    from PIL import Image

    done = minicos("demo", "--out", tmp_path / "demo")
    assert done.returncode == 0, done.stderr
    files = {path.name: path for path in (tmp_path / "demo").iterdir()}
    settings = load().settings
    tasks = {*settings.tasks, *settings.siblings}
    assert {"maze", "rotation"} <= tasks
    assert set(files) == {"scores.md", *(t + e for t in tasks for e in ("-strip.png", ".gif", ".mp4"))}
    assert files["scores.md"].read_text().strip() in done.stdout
    assert str(tmp_path / "demo") in done.stdout
    for task in tasks:
        with Image.open(files[f"{task}.gif"]) as gif:
            assert gif.n_frames == settings.frames
        with Image.open(files[f"{task}-strip.png"]) as strip:
            assert min(strip.size) > 500
        assert files[f"{task}.mp4"].stat().st_size > 5000


def test_evaluate_prints_and_writes_the_same_rates(tmp_path):
    done = minicos("evaluate", "--model", "nano", "--n", 20, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    card = (tmp_path / "report" / "README.md").read_text()
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert all(line in card for line in table)
    assert len(table) == len(report["rows"]) + 2
    whole = [row for row in report["rows"] if row["length"] == "all"]
    assert {(row["n"], row["trained"]) for row in whole} == {(20, True), (4, False)}
    for row in whole:
        parts = [r for r in report["rows"] if (r["task"], r["size"]) == (row["task"], row["size"]) and r is not row]
        assert sum(r["n"] for r in parts) == row["n"] == sum(row["counts"].values())
        assert row["counts"]["solved"] == round(row["end"] * row["n"])
        assert row["gap"] == pytest.approx(row["end"] - row["step_0"])
        assert row["end_interval"][0] <= row["end"] <= row["end_interval"][1]
    assert report["checkpoint"]["sha256"]


def test_a_training_run_can_be_evaluated(untrained_nano, tmp_path):
    """A checkpoint without a training report still gets its rates, and its card says what is not known."""
    done = minicos("evaluate", "--model", untrained_nano, "--n", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not recorded" in (tmp_path / "README.md").read_text()


def test_a_plan_is_printed_and_nothing_is_run(tmp_path):
    done = minicos("plan", "swap", "layers", "--model", "nano", "--quick", "--devices", 4, "--nodes", 2)
    assert done.returncode == 0, done.stderr
    *table, blank, hours = done.stdout.splitlines()
    assert "CPU-hours" in hours
    assert hours.endswith("on 8 devices like it")
    lines = [line.split(" | ") for line in (*table, blank) if line]
    assert [(line[0].strip("| "), line[1]) for line in lines[2:]] == [
        *(("swap", sweep) for sweep in ("maze", "rotation", "total")),
        *(("layers", sweep) for sweep in ("trained", "untrained", "total")),
        ("all", "total"),
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30 GiB.\nSee the docs."), "30 GiB"),
        (lambda: RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later."), "nvidia-smi"),
        (lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "ALLOC_FAILED"),
        (lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "9 bytes"),
        (MemoryError, "machine with more"),
    ],
)
def test_out_of_memory_is_one_line(error, said, monkeypatch, capsys):
    from minicos import cli, evaluation

    def fill(*_):
        raise error()

    monkeypatch.setattr(evaluation, "load", fill)
    assert cli.main(["evaluate"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert said in complaint


def test_a_second_process_stays_out_of_a_folder_at_work(untrained_nano, tmp_path):
    command = ("experiment", "budget", "--model", untrained_nano, "--quick", "--cases", 1, "--out", tmp_path)
    with alone_in(tmp_path):
        done = minicos(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("another process is at work in") == done.stderr.count("minicos: ") == 1
    assert minicos(*command).returncode == 0  # nothing is left of it


def test_a_readme_that_is_no_card_is_not_overwritten(untrained_nano, tmp_path):
    (tmp_path / "README.md").write_text("three weeks of work")
    done = minicos("evaluate", "--model", untrained_nano, "--n", "1", "--out", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is no card of a checkpoint" in done.stderr
    assert (tmp_path / "README.md").read_text() == "three weeks of work"


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("minicos.cli._doctor", full)
    assert main(["doctor"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("minicos: No space left on device: make room")
    assert said.count("\n") == 1


def test_two_processes_share_an_experiment_and_refuse_a_foreign_folder_together(untrained_nano, tmp_path):
    """By the command: one table, whoever made it; and one line when the folder is another's, with no process left."""
    command = ("experiment", "budget", "--model", untrained_nano, "--quick", "--cases")
    alone = minicos(*command, 2, "--out", tmp_path / "alone")
    shared = minicos(*command, 2, "--out", tmp_path / "shared", "--devices", 2)
    assert (alone.returncode, shared.returncode) == (0, 0), shared.stderr
    assert (tmp_path / "shared" / "summary.csv").read_bytes() == (tmp_path / "alone" / "summary.csv").read_bytes()
    foreign = minicos(*command, 3, "--out", tmp_path / "shared", "--devices", 2)
    assert foreign.returncode == 2
    assert foreign.stderr.count("holds another sweep") == 1
    verdict = (tmp_path / "alone" / "verdict.md").read_bytes()
    chunk = next((tmp_path / "alone").glob("*/chunks/*.csv"))
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[: len(whole) // 2])
    half = minicos(*command, 2, "--out", tmp_path / "alone")
    assert half.returncode == 2
    assert half.stderr.count(f"{chunk.name} is damaged") == half.stderr.count("minicos: ") == 1
    chunk.write_bytes(whole)
    other = minicos("experiment", "chain-of-steps", "--model", untrained_nano, "--quick", "--out", tmp_path / "alone")
    assert other.returncode == 2
    assert other.stderr.count("holds another experiment") == other.stderr.count("minicos: ") == 1
    assert (tmp_path / "alone" / "verdict.md").read_bytes() == verdict
    command = ("experiment", "working-memory", "--model", untrained_nano, "--quick", "--out", tmp_path / "other")
    unknown = minicos(*command, "--devices", 2)
    assert unknown.returncode == 2
    assert unknown.stderr.count("was trained on none of occlusion") == 1


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_an_experiment_is_shared_as_clusters_launch_it(launcher, untrained_nano, tmp_path):
    """By the launch lines of docs/full-scale.md, on one machine. Of srun: what it tells its processes."""
    command = ["experiment", "budget", "--model", untrained_nano, "--quick", "--cases", 2]
    assert minicos(*command, "--out", tmp_path / "alone").returncode == 0
    command = ["-m", "minicos", *command, "--out", tmp_path / "shared", "--devices", 2]
    slurm = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    slurm |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "course", "SLURM_NODELIST": "127.0.0.1"}
    if launcher == "torchrun":
        run = ["-m", "torch.distributed.run", "--nproc-per-node", 2, "--rdzv-endpoint", "127.0.0.1:0"]
        launched = [([*run, "--rdzv-backend", "c10d", *command], {})]
    else:
        launched = [(command, {**slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}) for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments, environment in launched
    ]
    told = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), told
    assert (tmp_path / "shared" / "summary.csv").read_bytes() == (tmp_path / "alone" / "summary.csv").read_bytes()
    assert [bool(out) for out, _ in told] == [True, False][: len(told)]  # the first one says what was found


# Two experiments, one of which keeps features, in the place of all: a script, which Lightning starts again as it is.
TWO_EXPERIMENTS = """
import sys
from minicos.cli import main
from minicos.experiments import EXPERIMENTS
for name in set(EXPERIMENTS) - {"budget", "layers"}:
    del EXPERIMENTS[name]
sys.exit(main(sys.argv[1:]))
"""


def test_two_processes_share_a_replication(untrained_nano, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TWO_EXPERIMENTS)
    for out, *devices in (("alone",), ("shared", "--devices", "2")):
        options = ["--model", untrained_nano, "--quick", "--cases", "2", "--out", tmp_path / out]
        command = [sys.executable, script, "replicate", *options, *devices]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("the report: ") == 1
    found = [json.loads((tmp_path / out / "findings.json").read_text()) for out in ("alone", "shared")]
    for report in found:
        for finding in report["findings"]:
            assert finding.pop("seconds") > 0
    assert [finding["experiment"] for finding in found[0]["findings"]] == ["layers", "budget"]
    assert found[0]["findings"] == found[1]["findings"]
    assert found[1]["command"].endswith("--devices 2")
    assert f"--model {untrained_nano} " in found[1]["command"]
    assert (tmp_path / "shared" / "report.html").exists()


def test_what_every_process_is_refused_is_one_line(tmp_path):
    done = minicos("replicate", "--model", tmp_path / "nowhere", "--out", tmp_path / "out", "--devices", 2)
    assert done.returncode == 2
    assert done.stderr.count("unknown model") == 1


def test_a_machine_park_that_lightning_refuses_is_one_line(untrained_nano, tmp_path):
    """As by `#SBATCH --ntasks=2`, which says nothing about nodes."""
    command = ("experiment", "budget", "--model", untrained_nano, "--quick", "--devices", 2, "--out", tmp_path / "out")
    done = minicos(*command, SLURM_NTASKS="2", SLURM_JOB_NAME="minicos")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--devices 2 --nodes 1: You set `--ntasks=2`" in done.stderr


def test_the_doctor_says_what_can_run():
    done = minicos("doctor")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    (can,) = (line for line in lines if line.endswith(": can run") and "nano" in line)
    assert "micro" in can
    if not torch.cuda.is_available():
        cannot = [line.split()[0] for line in lines if "cannot run: it needs a CUDA GPU" in line]
        assert cannot == ["wan2.2-i2v-a14b", "vbvr-wan2.2"]


def test_interruption_is_quiet(monkeypatch, capsys):
    from minicos import cli, evaluation

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "load", interrupt)
    assert cli.main(["evaluate"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_ctrl_c_ends_a_training_run_in_one_line(tmp_path):
    import signal

    out = tmp_path / "run"
    command = [sys.executable, "-m", "minicos", "train", "--out", str(out)]
    # What runs in the background of a shell is deaf to Ctrl-C, and so would be its children.
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hearing)
    assert "--resume" in child.stdout.readline()
    child.send_signal(signal.SIGINT)
    _, complaint = child.communicate()
    assert child.returncode == 130, complaint
    assert "minicos: interrupted" in complaint
    assert "Traceback" not in complaint
