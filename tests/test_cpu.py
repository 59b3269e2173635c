"""In other words, the same: attention wherever products may lie, projections with and without oneDNN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.activations import GELU
from hypothesis import given
from hypothesis import strategies as st

from minicos import cpu
from minicos.cpu import CPUGELU, CPULinear, attend

sizes = st.tuples(*(st.integers(1, most) for most in (3, 3, 40, 40, 12)))  # batch, heads, queries, keys, head_dim


def states(batch: int, heads: int, queries: int, keys: int, width: int, scale: float) -> tuple[torch.Tensor, ...]:
    """As the network has them: heads beside channels in memory."""
    draw = torch.Generator().manual_seed(queries + 100 * keys)
    query, key, value = (
        torch.randn(batch, tokens, heads, width, generator=draw).transpose(1, 2) for tokens in (queries, keys, keys)
    )
    return query * scale, key, value


@given(sizes=sizes, scale=st.sampled_from([0.0, 1.0, 10.0, 1e3]))
@torch.no_grad()
def test_attention_equals_torchs_own(sizes, scale):
    torch.testing.assert_close(
        attend(*states(*sizes, scale)),
        F.scaled_dot_product_attention(*states(*sizes, scale)),
        atol=1e-5 * max(1.0, scale / 10),  # of products, float32 keeps seven digits
        rtol=1e-5,
    )


@pytest.mark.parametrize("few", [1, 100, 10**6])
def test_how_many_heads_at_a_time_changes_nothing_but_last_bits(monkeypatch, few):
    parts = states(4, 3, 17, 23, 8, 1.0)
    expected = F.scaled_dot_product_attention(*parts)
    monkeypatch.setattr(cpu, "CACHE", few)
    torch.testing.assert_close(cpu._attend_unshifted(*parts), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("product", [-200.0, -80.0, 85.0, 200.0])
@torch.no_grad()
def test_a_single_row_that_exp_alone_cannot_hold_is_left_to_torch(product):
    query, key, value = states(2, 2, 5, 7, 4, 1.0)
    query[1, 0, 3], key[1, 0] = 0.0, 1.0
    query[1, 0, 3, 0] = product * 2  # times 1, by the root of 4
    assert cpu._attend_unshifted(query, key, value) is None
    found = attend(query, key, value)
    assert found.isfinite().all()
    torch.testing.assert_close(found, F.scaled_dot_product_attention(query, key, value))


def test_a_mask_and_gradients_are_left_to_torch():
    query, key, value = states(2, 2, 6, 6, 4, 1.0)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    with torch.no_grad():
        masked = attend(query, key, value, mask)
    assert torch.equal(masked, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
    query.requires_grad_(True)
    attend(query, key, value).sum().backward()
    assert query.grad is not None


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("gradients", [True, False])
def test_projections_equal_diffusers_own(monkeypatch, available, gradients):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    plain, states = (
        GELU(12, 20, approximate="tanh"),
        3 * torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(0)),
    )
    layer = CPULinear(12, 20)
    layer.load_state_dict(plain.proj.state_dict())
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(layer(states), plain.proj(states))
        torch.testing.assert_close(CPUGELU(layer)(states), plain(states))
        assert layer(states).requires_grad == CPUGELU(layer)(states).requires_grad == gradients
