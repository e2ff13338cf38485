"""The size space: costs as the benchmark prints them, one gate a width, widths read off an architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pgnas
from pgnas.architecture import Architecture
from pgnas.errors import ArchitectureError, ModelError
from pgnas.nn import measure
from pgnas.supernets import build_model
from pgnas.supernets.nats_size import kept_widths, nats_size, size_macs, size_ties

from .nats_data import table

IMAGE = torch.zeros(1, 3, 32, 32)


def text(widths: object) -> str:
    return "-".join(str(int(width)) for width in widths)  # type: ignore[attr-defined]


def sizes() -> dict[str, np.ndarray]:
    columns = table("nats_size.npz")
    return columns | {"widths": np.stack([columns[f"c{i}"] for i in range(1, 6)], 1)}


def test_the_flops_of_every_row_are_the_multiply_adds_and_the_classifiers_bias() -> None:
    columns = sizes()
    ours = [size_macs(row) + 10 for row in columns["widths"].astype(int).tolist()]
    assert np.array_equal(ours, columns["flops"])


@pytest.mark.parametrize("row", [0, 4681, 9999, 20000, 32767])
def test_built_networks_cost_what_the_table_says(row: int) -> None:
    columns = sizes()
    counts = measure(nats_size(widths=text(columns["widths"][row]), skips="published"), (IMAGE,))
    assert (counts.params, counts.macs + 10) == (columns["params"][row], columns["flops"][row])


def test_the_largest_network_is_the_default_width() -> None:
    assert measure(nats_size(skips="published"), (IMAGE,)).macs == size_macs([64] * 5) == 274_399_872


@settings(max_examples=10, deadline=None)
@given(
    widths=st.lists(st.integers(1, 6), min_size=8, max_size=8),
    skips=st.sampled_from(["conv", "published"]),
    side=st.integers(5, 12),
)
def test_multiply_adds_are_those_of_the_network(widths: list[int], skips: str, side: int) -> None:
    network = nats_size(in_channels=2, num_classes=3, widths=text(widths), cells=2, skips=skips)
    counted = measure(network, (torch.zeros(1, 2, side, side),)).macs
    assert counted == size_macs(widths, image_size=side, in_channels=2, num_classes=3, skips=skips)


def test_there_is_one_gate_a_width_and_its_kept_units_are_the_small_networks_width() -> None:
    built = build_model("nats-size:width=6", in_channels=3, num_classes=4, image_size=(8, 8), seed=0)
    gated = pgnas.supernet(built.module, torch.randn(2, 3, 8, 8), initial_drop=0.3, tie=built.ties).eval()
    assert len(gated.gates.sizes) == 5
    assert [u.layer for u in gated.report.ungated] == ["stem.0"]  # it reads the image
    rng = torch.Generator().manual_seed(0)
    for _ in range(4):
        architecture = gated.sample(generator=rng)
        widths = kept_widths(built.module, architecture)
        assert min(widths) > 0
        assert gated.count(architecture).macs == size_macs(widths, image_size=8, num_classes=4, skips="conv")
        small, x = pgnas.extract(gated, architecture), torch.randn(2, 3, 8, 8, generator=rng)
        assert measure(small, (x,)).macs == gated.count(architecture).macs
        with gated.fixed(architecture), torch.no_grad():
            torch.testing.assert_close(small(x), gated(x), rtol=1e-4, atol=1e-5)


def test_widths_on_both_sides_of_an_identity_share_a_gate() -> None:
    network = nats_size(width=4, skips="published")
    gated = pgnas.supernet(network, torch.randn(2, 3, 8, 8), tie=size_ties(network))
    assert len(gated.gates.sizes) == 3
    keep = dict(zip(gated.gates.sizes, ((0,), (1, 2), (0, 1, 3)), strict=True))
    architecture = Architecture(gated.gates.sizes, keep)
    assert kept_widths(network, architecture) == (1, 2, 2, 3, 3)
    assert gated.count(architecture).macs == size_macs((1, 2, 2, 3, 3), image_size=8)


def test_units_of_several_channels_count_as_such() -> None:
    network = nats_size(width=8)
    gated = pgnas.supernet(network, torch.randn(2, 3, 8, 8), tie=size_ties(network), channels_per_gate=2)
    assert set(gated.gates.sizes.values()) == {4}
    keep = dict(zip(gated.gates.sizes, ((0,), (1, 2), (0, 1, 3), (2,), (0, 1, 2, 3)), strict=True))
    architecture = Architecture(gated.gates.sizes, keep)
    assert kept_widths(network, architecture) == (2, 4, 6, 2, 8)
    assert gated.count(architecture).macs == size_macs((2, 4, 6, 2, 8), image_size=8, skips="conv")


def test_what_is_excluded_is_not_tied() -> None:
    inspected = pgnas.inspect("nats-size:width=4", image_size=8, exclude=["cells.0.*", "classifier"])
    assert len({layer.gate for layer in inspected.gated}) == 5
    assert not any(layer.layer.startswith(("cells.0.", "classifier")) for layer in inspected.gated)


def test_an_architecture_of_other_gates_is_refused() -> None:
    network = nats_size(width=4)
    untied = pgnas.supernet(network, torch.randn(2, 3, 8, 8))
    with pytest.raises(ArchitectureError, match="one gate a width"):
        kept_widths(network, untied.mode())
    with pytest.raises(ModelError, match="family nats-size"):
        size_ties(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("parameters", [{"widths": "8-8-8"}, {"widths": "8-8-8-8-0"}, {"skips": "none"}, {"cells": 0}])
def test_parameters_outside_are_refused(parameters: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="nats-size"):
        nats_size(**parameters)  # type: ignore[arg-type]
