"""VBVR-Bench's folders: read, answered, and resumed; what is broken is skipped, counted and named."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

from minicos import load
from minicos.cli import main
from minicos.errors import MinicosError
from minicos.interventions import noise_at_frame, noise_at_step
from minicos.plots import write_mp4
from minicos.tasks import get_task
from minicos.vbvr import answer, chosen, chunks_of, count_frames, evaluate_answers, read_cases, run_bench

MAZE = get_task("maze")


def add_case(data, key, length=5, prompt="Find the path", sides=(48, 64)):
    puzzle = MAZE.sample(0, len(list(data.rglob("*.png"))), size=4)
    folder = data / key
    folder.mkdir(parents=True)
    Image.fromarray(MAZE.render(puzzle, 2, sides)[0]).save(folder / "first_frame.png")
    Image.fromarray(MAZE.render(puzzle, 2, sides)[1]).save(folder / "final_frame.png")
    (folder / "prompt.txt").write_text(prompt + "\n")
    if length:
        write_mp4(MAZE.render(puzzle, length, sides), folder / "ground_truth.mp4", 16)
    return folder


@pytest.fixture
def data(tmp_path):
    """Four good cases of two lengths and two shapes in two splits, and all that can be wrong with others."""
    folder = tmp_path / "data"
    add_case(folder, "in/O-39_maze/00000")
    add_case(folder, "in/O-39_maze/00001", length=6)
    add_case(folder, "out/O-85_rotation/00000", sides=(64, 48))
    add_case(folder, "out/O-85_rotation/00001", length=0)
    (add_case(folder, "out/G-1_broken/00000") / "ground_truth.mp4").write_bytes(b"no video")
    (add_case(folder, "out/G-1_broken/00001") / "prompt.txt").unlink()
    add_case(folder, "out/G-1_broken/00002", prompt="")
    (add_case(folder, "out/G-1_broken/00003") / "first_frame.png").unlink()
    (add_case(folder, "out/G-1_broken/00004") / "first_frame.png").write_bytes(b"no image")
    (folder / "out" / "G-2_empty").mkdir()
    return folder


def test_good_cases_are_read_and_bad_ones_are_named(data):
    cases, skipped = read_cases(data)
    assert [(case.key, case.length, case.frames) for case in cases] == [
        ("in/O-39_maze/00000", 5, 5),
        ("in/O-39_maze/00001", 6, 9),  # lengths have the form 4 k + 1
        ("out/O-85_rotation/00000", 5, 5),
        ("out/O-85_rotation/00001", None, None),  # no ground truth: the model's own length
    ]
    assert {one.key: one.reason for one in skipped} == {
        "out/G-1_broken/00000": "ground_truth.mp4 cannot be read",
        "out/G-1_broken/00001": "no prompt.txt",
        "out/G-1_broken/00002": "prompt.txt is empty",
        "out/G-1_broken/00003": "no first_frame.png",
        "out/G-1_broken/00004": "first_frame.png is no image",
        "out/G-2_empty": "no cases in it",
    }


def test_images_keep_their_aspect_ratio(data):
    cases, _ = read_cases(data)
    assert cases[0].image((32, 32)).shape == (32, 32, 3)  # 3 to 4, in multiples of 16
    assert cases[0].image((480, 832)).shape == (544, 736, 3)
    assert cases[2].image((480, 832)).shape == (736, 544, 3)
    assert np.array_equal(cases[0].image(None), np.asarray(Image.open(cases[0].folder / "first_frame.png")))


def test_a_subset_is_drawn_by_its_seed(data):
    cases, _ = read_cases(data)
    assert chosen(cases, None, 0) == cases == chosen(cases, 10, 0)
    drawn = [tuple(case.key for case in chosen(cases, 2, seed)) for seed in range(10)]
    assert drawn == [tuple(case.key for case in chosen(cases, 2, seed)) for seed in range(10)]
    assert len(set(drawn)) > 1
    assert all(list(keys) == sorted(keys) for keys in drawn)


def test_answers_lie_where_the_evaluator_looks_and_have_the_length_of_the_truth(data, tiny_wan_folder, tmp_path):
    reasoner, out = load(tiny_wan_folder), tmp_path / "answers"
    cases, _ = read_cases(data)
    told = []
    answer(reasoner, cases, out, advance=told.append)
    assert sum(told) == len(cases)
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert set(files) == {f"{case.key}.mp4" for case in cases}
    for case in cases:
        path = files[f"{case.key}.mp4"]
        assert count_frames(path) == (case.length or reasoner.settings.frames)
        assert imageio.imread(path).shape[1:] == case.image(reasoner.settings.canvas).shape
    before = {path: path.read_bytes() for path in files.values()}
    files["in/O-39_maze/00001.mp4"].unlink()
    answer(reasoner, cases, out)  # only what is missing, and the same as before
    assert before == {path: path.read_bytes() for path in files.values()}


def test_the_bench_says_what_it_did_and_what_it_could_not(data, tiny_wan_folder, tmp_path, capsys):
    run_bench(load(tiny_wan_folder), data, tmp_path / "answers", 2, seed=1)
    said = capsys.readouterr().out
    assert "2 of 4 cases answered (seed 1), 6 skipped" in said
    assert "skipped: out/G-2_empty: no cases in it" in said
    assert len(list((tmp_path / "answers").rglob("*.mp4"))) == 2
    assert evaluate_answers(data, tmp_path / "answers", "cpu") is None
    assert "not scored" in said


def test_two_processes_share_a_bench(data, tiny_wan_folder, tmp_path):
    def bench(cases: Path, processes: int) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "minicos", "bench", "--model", tiny_wan_folder, "--data", cases]
        options = ["--out", tmp_path / str(processes), "--devices", str(processes)]
        return subprocess.run([*command, *options], capture_output=True, text=True)

    done = [bench(data, 1), bench(data, 2)]
    assert [one.returncode for one in done] == [0, 0], done[1].stderr[-2000:]
    assert done[1].stdout.count("4 of 4 cases answered") == 1
    alone, shared = (
        {path.relative_to(tmp_path / n): path.read_bytes() for path in (tmp_path / n).rglob("*.mp4")} for n in "12"
    )
    assert alone == shared
    assert len(shared) == 4
    nothing = bench(tmp_path / "nowhere", 2)
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr.count("minicos: ") == 1


def test_a_bench_skips_cases_without_the_frame(data, tiny_wan, tmp_path, capsys):
    """Their truths have 5 to 9 frames, so the model's latents 2 or 3."""
    counts = {((case.frames or tiny_wan.settings.frames) - 1) // 4 + 1 for case in read_cases(data)[0]}
    assert len(counts) > 1
    last = max(counts) - 1
    run_bench(tiny_wan, data, tmp_path / "frame", None, 0, (noise_at_frame(last),))
    said = capsys.readouterr().out
    assert f"frame {last} does not exist: it has latent frames 0 to {min(counts) - 1}" in said
    assert 0 < len(list((tmp_path / "frame").rglob("*.mp4"))) < 4


def test_a_subset_of_the_bench_is_the_same_whatever_is_done_to_it(data, tiny_wan, tmp_path):
    cases, _ = read_cases(data)
    frames = {case.key: ((case.frames or tiny_wan.settings.frames) - 1) // 4 + 1 for case in cases}
    last = max(frames.values()) - 1
    fits = {seed: {case.key for case in chosen(cases, 2, seed) if frames[case.key] > last} for seed in range(10)}
    seed = next(seed for seed, keys in fits.items() if len(keys) == 1)  # one of the two is left out, and not replaced
    run_bench(tiny_wan, data, out := tmp_path / "answers", 2, seed, (noise_at_frame(last),))
    assert {path.relative_to(out).with_suffix("").as_posix() for path in out.rglob("*.mp4")} == fits[seed]


def test_answers_of_other_settings_do_not_share_a_folder(data, tiny_wan, tmp_path):
    """As after the advice to lower `frames`; how many are answered at once changes none."""
    out = tmp_path / "answers"
    run_bench(tiny_wan, data, out, 1, 0)
    settings = tiny_wan.settings
    tiny_wan.settings = replace(settings, steps=settings.steps + 1)
    with pytest.raises(MinicosError, match="holds another run"):
        run_bench(tiny_wan, data, out, 1, 0)
    tiny_wan.settings = replace(settings, batch=settings.batch + 1)
    run_bench(tiny_wan, data, out, 1, 0)


def test_a_bench_refuses_steps_that_are_not_there(data, tiny_wan, tmp_path):
    with pytest.raises(MinicosError, match="step 60 does not exist"):
        run_bench(tiny_wan, data, tmp_path / "step", None, 0, (noise_at_step(60),))
    assert not (tmp_path / "step" / "bench.json").exists()


@pytest.mark.parametrize(
    ("option", "number", "said"),
    [("--noise-at-step", 60, "step 60 does not exist"), ("--noise-at-frame", 9, "frame 9")],
)
def test_a_step_or_frame_out_of_range_is_one_line_and_exit_code_2(
    option, number, said, data, tiny_wan_folder, tmp_path
):
    command = [sys.executable, "-m", "minicos", "bench", "--model", tiny_wan_folder, "--data", data]
    options = ["--out", tmp_path / "out", option, str(number)]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    # But for a bar of transformers'.
    (line,) = (line for line in done.stderr.splitlines() if line.strip() and "Loading weights" not in line)
    assert said in line
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_a_bench_of_the_ensemble_takes_its_seeds_only(data, tiny_wan_folder, tmp_path, capsys):
    command = ["bench", "--model", str(tiny_wan_folder), "--data", str(data), "--cases", "1"]
    for name, *options in (("ensemble", "--ensemble", "--seed", "1"), ("clean", "--seed", "1")):
        assert main([*command, "--out", str(tmp_path / name), *options]) == 0
    ensemble, clean = (next((tmp_path / name).rglob("*.mp4")).read_bytes() for name in ("ensemble", "clean"))
    assert ensemble != clean
    assert main([*command, "--out", str(tmp_path / "other"), "--ensemble", "--seed", "7"]) == 2
    assert "averages the seeds 0, 1, 2" in capsys.readouterr().err
    assert not (tmp_path / "other" / "bench.json").exists()


def test_a_bench_folder_is_of_one_model_seed_and_disturbance(data, tiny_wan, tmp_path):
    """Answers that are there are kept, so they must be answers to the same question."""
    noise = (noise_at_step(2),)
    run_bench(tiny_wan, data, tmp_path / "noise", 2, 1, noise)
    run_bench(tiny_wan, data, tmp_path / "noise", 2, 1, noise)
    run_bench(tiny_wan, data, tmp_path / "clean", 2, 1)
    videos = [[path.read_bytes() for path in sorted((tmp_path / name).rglob("*.mp4"))] for name in ("noise", "clean")]
    assert len(videos[0]) == len(videos[1]) == 2
    assert videos[0] != videos[1]
    for seed, done in ((2, noise), (1, ()), (1, (noise_at_step(3),))):
        with pytest.raises(MinicosError, match="holds another run"):
            run_bench(tiny_wan, data, tmp_path / "noise", 2, seed, done)
    (tmp_path / "clean" / "bench.json").write_text("{")
    with pytest.raises(MinicosError, match=r"bench\.json cannot be read"):
        run_bench(tiny_wan, data, tmp_path / "clean", 2, 1)
    (tmp_path / "clean" / "bench.json").unlink()
    with pytest.raises(MinicosError, match="parts of an unknown run"):
        run_bench(tiny_wan, data, tmp_path / "clean", 2, 1)


def test_chunks_are_of_one_canvas_and_length_and_hold_every_case(data):
    cases, _ = read_cases(data)
    keys = [case.key for case in cases]
    found = {most: [[case.key for case in chunk] for chunk in chunks_of(cases, (32, 32), most)] for most in (1, 8)}
    assert sorted(found[8]) == [[keys[0], keys[2]], [keys[1]], [keys[3]]]  # of 5 frames, 9, and the model's own
    assert sorted(found[1]) == [[key] for key in keys]
    assert len(chunks_of(cases, None, 8)) == 4  # as they are, one stands upright


# What VBVR-EvalKit's class is to minicos: made from (data, output folder, device), asked to evaluate a folder, and
# writing NAME_eval_results.json. It counts videos in the splits that the real one knows, and judges nothing.
EVALKIT = """
import json, os, pathlib
class VBVRBench:
    def __init__(self, gt_base_path, output_path, device):
        self.output_path = pathlib.Path(output_path)
        self.output_path.mkdir()
    def evaluate(self, videos_path, name):
        splits = ("Open_60", "Hidden_40", "In_Domain", "Out_of_Domain")
        found = sum(len(list(pathlib.Path(videos_path, split).glob("*/*.mp4"))) for split in splits)
        (self.output_path / f"{name}_eval_results.json").write_text(json.dumps({"overall": {"num_videos": found}}))
        print(f"Found {found} videos to evaluate")
"""


@pytest.fixture
def evalkit(tmp_path, monkeypatch):
    """The file of that class, in a package that Python finds; write something else into it to break it."""
    folder = tmp_path / "site" / "vbvrevalkit" / "eval" / "vbvr_bench"
    folder.mkdir(parents=True)
    for package in (folder.parent.parent, folder.parent):
        (package / "__init__.py").touch()
    (folder / "__init__.py").write_text(EVALKIT)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return folder / "__init__.py"


def test_the_evaluator_is_asked_in_its_own_words_and_its_failures_are_one_line(data, evalkit, tmp_path):
    answers = tmp_path / "answers"
    path = answers / "In_Domain" / "O-39_maze" / "00000.mp4"
    path.parent.mkdir(parents=True)
    path.touch()
    assert evaluate_answers(data, answers, "cpu") == "Found 1 videos to evaluate\n"
    works = evalkit.read_text()
    for other in ('{"total": 1}', "[]", "{"):  # of another version
        evalkit.write_text(works.replace('json.dumps({"overall": {"num_videos": found}})', repr(other)))
        shutil.rmtree(answers / "scores")
        with pytest.raises(MinicosError, match="left no scores"):
            evaluate_answers(data, answers, "cpu")
    evalkit.write_text(works)
    path.parent.parent.rename(answers / "in")  # a split that it does not know
    shutil.rmtree(answers / "scores")
    with pytest.raises(MinicosError, match="found no answer"):
        evaluate_answers(data, answers, "cpu")
    for broken, words in (("raise ValueError('no rules')", "ValueError: no rules"), ("exit(3)", "exit code 3")):
        evalkit.write_text(broken)
        with pytest.raises(MinicosError, match=words):
            evaluate_answers(data, answers, "cpu")


def test_a_folder_without_cases_is_refused(data, tmp_path):
    with pytest.raises(MinicosError, match="holds no case"):
        read_cases(tmp_path / "nowhere")
    for split in ("in", "out/O-85_rotation"):
        shutil.rmtree(data / split)
    with pytest.raises(MinicosError, match=r"G-1_broken/00000: ground_truth\.mp4 cannot be read"):
        read_cases(data)
