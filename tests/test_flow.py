import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minicos import flow
from minicos.errors import MinicosError

sigmas = st.floats(0.01, 1.0)
seeds = st.integers(0, 2**31)


@given(sigmas, seeds)
def test_the_true_velocity_gives_back_the_clean_video(sigma, seed):
    x0, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    latents = flow.interpolate(x0, noise, sigma)
    assert torch.allclose(flow.estimate_x0(latents, flow.target_velocity(x0, noise), sigma), x0)


@given(st.floats(0.05, 1.0), st.floats(-2, 2))
def test_between_two_right_answers_the_best_guess_is_bayes(sigma, value):
    """Of 1 and -1, seen through noise: tanh((1 - sigma) x / sigma^2); of one alone, that one."""
    latents, level = torch.tensor([[value]], dtype=torch.float64), torch.tensor([sigma], dtype=torch.float64)
    answers = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    assert torch.allclose(flow.expected_x0(latents, answers, level), torch.tanh((1 - sigma) * latents / sigma**2))
    assert torch.equal(flow.expected_x0(latents, answers[:, 1:], level), answers[:, 1])


@given(st.integers(1, 60), st.floats(0.2, 10), seeds)
def test_euler_with_the_true_velocity_arrives_at_the_clean_video(steps, shift, seed):
    x0, noise = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    latents = noise
    for step in flow.schedule(steps, shift):
        assert torch.allclose(latents, flow.interpolate(x0, noise, step.sigma))
        latents = flow.euler_step(latents, flow.target_velocity(x0, noise), step)
    assert torch.allclose(latents, x0)


@given(st.integers(1, 100), st.floats(0.1, 20))
def test_a_schedule_falls_from_one_to_zero_without_gaps(steps, shift):
    schedule = flow.schedule(steps, shift)
    assert [step.index for step in schedule] == list(range(steps))
    assert schedule[0].sigma == pytest.approx(1.0)
    assert schedule[-1].next_sigma == 0.0
    assert all(step.next_sigma < step.sigma for step in schedule)
    assert all(a.next_sigma == b.sigma for a, b in itertools.pairwise(schedule))


def test_the_schedule_of_the_paper():
    """50 steps, shift 5: the values that the paper's released code has (Wan2.2 changes expert at step 21)."""
    sigmas = [step.sigma for step in flow.schedule(50, 5.0)]
    known = {0: 1.000, 4: 0.983, 9: 0.958, 20: 0.882, 21: 0.8735, 30: 0.769, 40: 0.556, 49: 0.093}
    assert {s: round(sigmas[s], 4) for s in known} == {s: pytest.approx(v, abs=6e-4) for s, v in known.items()}
    assert [s for s, sigma in enumerate(sigmas) if sigma >= 0.875][-1] == 20


@pytest.mark.parametrize(("steps", "shift"), [(0, 3), (-1, 3), (4, 0), (4, -2), (4, float("nan"))])
def test_impossible_schedules_are_refused(steps, shift):
    with pytest.raises(MinicosError):
        flow.schedule(steps, shift)


def test_guidance_at_one_is_the_cond_branch_and_at_zero_the_uncond():
    cond, uncond = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(flow.guide(cond, uncond, 1.0), cond)
    assert torch.equal(flow.guide(cond, uncond, 0.0), uncond)
    assert torch.allclose(flow.guide(cond, uncond, 3.0) - cond, 2 * (cond - uncond), atol=1e-6)
