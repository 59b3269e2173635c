"""A plan counts what a sweep will do, and says how much it holds in memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from minicos import load
from minicos.cli import main
from minicos.experiments import get_experiment
from minicos.experiments.base import Scale
from minicos.model import save
from minicos.parallel import lanes
from minicos.planning import Plan, hours_line, plan, plan_table
from minicos.sampling import Denoising, rollout_runs, sample_runs
from minicos.sweeps import stages

TINY = Scale("quick", 3, 2, 3, quick=True)


@pytest.fixture(params=["nano", "tiny_wan"], scope="module")
def reasoner(request, untrained_nano, tiny_wan_folder):
    return load({"nano": untrained_nano, "tiny_wan": tiny_wan_folder}[request.param])


@pytest.mark.parametrize("name", ["perturbation", "layers", "commitment"])
def test_a_plan_counts_the_passes_that_are_made(name, reasoner, monkeypatch):
    counted_as_planned(get_experiment(name).sweeps(reasoner, TINY)[:2], monkeypatch)


def test_a_step_of_an_expert_without_guidance_is_one_pass(tiny_wan, monkeypatch):
    tiny_wan.settings = replace(tiny_wan.settings, guidance=(3.5, 1.0))
    counted_as_planned(get_experiment("perturbation").sweeps(tiny_wan, TINY)[:1], monkeypatch)


def counted_as_planned(sweeps, monkeypatch):
    plans = plan(sweeps)
    for sweep, planned in zip(sweeps, plans, strict=True):
        passes = []
        velocity = type(sweep.reasoner).velocity

        def counted(self, latents, *rest, velocity=velocity, passes=passes):
            passes.append(len(latents))
            return velocity(self, latents, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(type(sweep.reasoner), "velocity", counted)
            for chunk in sweep.chunks:
                sample_runs(sweep.reasoner, [trial.run for trial in chunk], schedule=sweep.schedule, batch_size=7)
        assert sum(passes) == planned.evaluations <= planned.unshared
        assert planned.runs == sum(map(len, sweep.chunks))
        assert planned.seconds > 0


@pytest.mark.parametrize(
    "name", ["chain-of-steps", "self-correction", "perception-first", "ensemble", "swap", "causal-twin"]
)
def test_a_plan_counts_the_videos_that_are_decoded(name, reasoner, monkeypatch):
    decoded = []
    decode = type(reasoner).decode

    def counted(self, latents):
        decoded.append(len(latents))
        return decode(self, latents)

    for sweep in get_experiment(name).sweeps(reasoner, TINY):
        decoded.clear()
        with monkeypatch.context() as patch:
            patch.setattr(type(reasoner), "decode", counted)
            for chunk in sweep.chunks:
                runs = [trial.run for trial in chunk]
                run = rollout_runs if sweep.frame_by_frame else partial(sample_runs, recorders=sweep.recorders)
                sweep.measure(run(sweep.reasoner, runs, schedule=sweep.schedule))
        assert sum(decoded) == sweep.videos() == plan([sweep])[0].videos


def test_the_time_of_decoding_is_in_a_plan(reasoner, monkeypatch):
    """Where a video takes as long to decode as a thousand passes, a plan that forgot it would be far too short."""
    sweep = get_experiment("chain-of-steps").sweeps(reasoner, TINY)[0]
    monkeypatch.setattr("minicos.planning.seconds_each", lambda *_: (1.0, 1000.0))
    found = plan([sweep])[0]
    assert found.seconds == found.evaluations + 1000 * found.videos
    assert found.videos == found.runs * (1 + 2 * len(sweep.schedule))


@pytest.mark.parametrize("name", ["perturbation", "layers", "chain-of-steps"])
def test_a_plan_knows_the_bytes_that_are_held(name, reasoner):
    sweep = get_experiment(name).sweeps(reasoner, TINY)[0]
    largest = max(sweep.chunks, key=len)
    runs = [trial.run for trial in largest]
    trajectory = sample_runs(reasoner, runs, schedule=sweep.schedule, recorders=sweep.recorders)
    held = sum(value.nbytes for values in trajectory._records.values() for value in values.values())
    at_once = min(lanes(reasoner), len(sweep.chunks))
    assert plan([sweep])[0].bytes == at_once * (held + trajectory.video.nbytes)


@pytest.mark.parametrize("name", ["perturbation", "chain-of-steps"])
def test_a_plan_knows_the_bytes_that_are_put_aside(name, tiny_wan):
    sweep = get_experiment(name).sweeps(tiny_wan.to("cpu", one_at_a_time=True), TINY)[0]
    until, _ = stages(sweep)
    put_aside = 0
    for chunk in sweep.chunks:
        runs = [trial.run for trial in chunk]
        denoising = Denoising(tiny_wan, runs, schedule=sweep.schedule, recorders=sweep.recorders)
        while denoising.done < until:
            denoising.advance()
        aside = denoising.put_aside()
        recorded = [value for values in aside["records"].values() for value in values.values()]
        put_aside += sum(value.nbytes for value in (aside["latents"], aside["x0_hat"], *recorded))
    assert plan([sweep])[0].aside == put_aside > 0
    tiny_wan.to("cpu")
    assert plan([sweep])[0].aside == 0


def test_a_model_that_can_run_no_experiment_is_one_line(untrained_nano, tmp_path, capsys):
    nano = load(untrained_nano)
    nano.settings = replace(nano.settings, tasks={"rotation-by-example": [90]}, siblings={})
    save(nano, tmp_path)
    assert main(["plan", "--model", str(tmp_path)]) == 2
    assert "can run none of the experiments: give another --model" in capsys.readouterr().err


def test_the_table_has_a_line_for_each_sweep_and_totals(reasoner):
    experiments = [get_experiment(name) for name in ("layers", "perturbation")]
    plans = [(experiment.name, plan(experiment.sweeps(reasoner, TINY))) for experiment in experiments]
    lines = plan_table(plans).splitlines()
    sweeps = [len(of_experiment) for _, of_experiment in plans]
    assert len(lines) == 2 + sum(count + (count > 1) for count in sweeps) + 1
    total = sum(one.evaluations for _, of_experiment in plans for one in of_experiment)
    assert f"| {total:,} |" in lines[-1]
    assert lines[-1].startswith("| all | total |")


def test_hours_are_shared_by_all_devices():
    plans = [
        ("a", [Plan("x", 16, 16, 1, 1, 16, 0, 0, 1800.0)]),
        ("b", [Plan("y", 16, 16, 1, 1, 16, 0, 0, 3600.0), Plan("z", 8, 8, 1, 1, 8, 0, 0, 1800.0)]),
    ]
    assert hours_line(plans, "cuda", 1).startswith("2 GPU-hours")
    assert "; 0.25 hours on 8 devices" in hours_line(plans, "cuda", 8)


def test_a_device_without_a_chunk_waits_for_the_others():
    plans = [("a", [Plan("x", 6, 3, 1, 1, 6, 0, 0, 3 * 3600.0), Plan("y", 4, 2, 1, 1, 4, 0, 0, 2 * 3600.0)])]
    assert "; 2 hours on 4 devices" in hours_line(plans, "cpu", 4)  # one of them takes two
    assert "; 1 hours on 8 devices" in hours_line(plans, "cpu", 8)
