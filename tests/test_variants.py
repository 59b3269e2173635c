"""Networks made from others: new weights, or a mask, and the given one stays as it is."""

from __future__ import annotations

import pytest
import torch

from minicos import get_task, load, sample
from minicos.cards import weights_digest
from minicos.variants import frame_causal, untrained


@pytest.fixture(params=["nano", "tiny_wan", "tiny_wan_bf16"], scope="module")
def reasoner(request, untrained_nano, tiny_wan_folder, tiny_wan_bf16_folder):
    folders = {"nano": untrained_nano, "tiny_wan": tiny_wan_folder, "tiny_wan_bf16": tiny_wan_bf16_folder}
    return load(folders[request.param])


def latents(reasoner):
    puzzle = get_task("maze").sample(0, 1, size=4)
    return sample(reasoner, [puzzle], schedule=reasoner.schedule(2)).latents


def test_an_untrained_network_has_new_weights_of_the_same_shapes(reasoner):
    before, state = weights_digest(reasoner), torch.random.get_rng_state()
    fresh = untrained(reasoner)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert weights_digest(reasoner) == before != weights_digest(fresh)
    assert weights_digest(untrained(reasoner)) == weights_digest(fresh) != weights_digest(untrained(reasoner, seed=1))
    shapes = [{k: (v.shape, v.dtype) for k, v in r.transformer.state_dict().items()} for r in (reasoner, fresh)]
    assert shapes[0] == shapes[1]
    assert (fresh.transformer_2 is None) == (reasoner.transformer_2 is None)
    assert not any(p.requires_grad for p in fresh.transformer.parameters())


def test_a_masked_network_sees_no_later_frame_and_leaves_the_given_one_alone(reasoner):
    before = latents(reasoner)
    masked = frame_causal(reasoner)
    assert weights_digest(masked) == weights_digest(reasoner)
    assert torch.equal(latents(reasoner), before)
    puzzle = get_task("maze").sample(0, 1, size=4)
    condition = masked.condition([puzzle])
    x = torch.randn(
        1, masked.latent_channels, *condition.channels.shape[2:], generator=torch.Generator().manual_seed(0)
    )
    other = x.clone()
    other[:, :, -1] += 1
    for network, blind in ((masked, True), (reasoner, False)):
        seen = [network.velocity(values, 900.0, condition, "cond")[:, :, :-1] for values in (x, other)]
        assert torch.equal(*seen) == blind


def test_a_masked_network_holds_no_second_copy_of_the_weights(reasoner):
    """Of a full model a second copy is more than a machine has room for."""
    masked = frame_causal(reasoner)
    for one, other in zip(reasoner.transformer.parameters(), masked.transformer.parameters(), strict=True):
        assert one.data_ptr() == other.data_ptr()


def test_networks_made_from_one_take_turns_on_the_device(tiny_wan_folder, monkeypatch):
    """Whatever is brought, what was there before has gone: a GPU has room for one expert."""
    reasoner = load(tiny_wan_folder).to("cpu", one_at_a_time=True)
    networks = {"given": reasoner, "masked": frame_causal(reasoner), "untrained": untrained(reasoner)}
    there = set()
    for name, network in networks.items():
        for part in ("transformer", "transformer_2"):
            module, named = getattr(network, part), f"{name} {part}"

            def to(device, module=module, named=named):
                there.discard(named) if isinstance(device, str) else there.add(named)  # "cpu", or the device
                return module

            monkeypatch.setattr(module, "to", to)
    for network in (*networks.values(), *networks.values()):
        for part in (network.transformer, network.transformer_2, network.transformer):
            network.bring(part)
            assert len(there) == 1
