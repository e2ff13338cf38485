"""The paper's families: each agrees with a plain construction, its gates are the paper's, and extraction is exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import pgnas
from pgnas.architecture import Architecture
from pgnas.supernets import build_model
from pgnas.supernets.enas import NORMAL_ARC, REDUCTION_ARC

from . import plain

CLASSES = 5
UNREAD_INPUT = "1 0 1 4 1 2 2 3"  # input 0 is a loose end


@dataclass(frozen=True)
class Family:
    """A family at a reduced scale: what builds it, the same in plain functions, and the size of its inputs."""

    model: str
    plain: Callable[[nn.Module, Tensor], Tensor]
    size: tuple[int, ...] = (12, 12)


def _enas(filters: int, normal: str = NORMAL_ARC, reduction: str = REDUCTION_ARC) -> Family:
    arcs = f"normal={normal},reduction={reduction}"
    function = partial(plain.enas, filters=filters, cells=1, classes=CLASSES, normal=normal, reduction=reduction)
    return Family(f"enas-micro:filters={filters},drop_path_keep=0.6,{arcs}", function, (9, 8))


def _dense(name: str, size: tuple[int, ...], stem: str, *blocks: int) -> Family:
    text = "-".join(map(str, blocks))
    function = partial(plain.dense, growth=4, blocks=blocks, classes=CLASSES, stem=stem)
    return Family(f"{name}:growth=4,blocks={text},stem={stem}", function, size)


def _kernels(width: int, stem: str, *blocks: int) -> Family:
    text = "-".join(map(str, blocks))
    function = partial(plain.multikernel, width=width, blocks=blocks, classes=CLASSES, small=stem == "small")
    return Family(f"multikernel-resnet:width={width},blocks={text},stem={stem}", function)


FAMILIES = {
    "M": Family(
        "multibranch-resnet:width=5,blocks=2", partial(plain.multibranch, width=5, blocks=2, classes=CLASSES), (9, 8)
    ),
    "E": _enas(3),
    "E, an input unread": _enas(4, UNREAD_INPUT, UNREAD_INPUT),
    "R-50": _kernels(6, "small", 1, 2),
    "R-50, large images": _kernels(2, "7x7", 1, 1),
    "D-121": _dense("densenet", (16, 16), "7x7", 2, 3),
    "D-121, the code's stem": _dense("densenet", (16, 16), "3x3", 2, 1),
    "D3D-121": _dense("densenet3d", (3, 16, 16), "7x7", 2, 2),
    "D3D-121, small clips": _dense("densenet3d", (4, 6, 6), "small", 1, 2),
}


def built(model: str, size: tuple[int, ...], seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The network in double precision with random BatchNorm statistics, in evaluation, and two inputs."""
    network = build_model(model, in_channels=3, num_classes=CLASSES, image_size=size, seed=seed).module
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                for tensor in (layer.weight, layer.running_var):
                    tensor.copy_(torch.rand(tensor.shape, generator=rng) + 0.5)
                for tensor in (layer.bias, layer.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=rng) / 2)
    return network.double().eval(), torch.randn(2, 3, *size, dtype=torch.float64, generator=rng)


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_it_computes_what_the_plain_construction_and_the_open_supernet_compute(name: str) -> None:
    family = FAMILIES[name]
    network, x = built(family.model, family.size)
    expected = family.plain(network, x)
    assert expected.std(0).max() > 1e-3  # the network does not ignore its input
    assert close(network(x), expected, 1e-12)
    gated = pgnas.supernet(network, x, "group").eval()
    with gated.fixed(gated.open()):
        assert close(gated(x), expected, 1e-12)


def architectures(gated: pgnas.Supernet) -> list[Architecture]:
    """Random channels, random whole gates dropped, random groups (operations, sources) dropped, nothing left."""
    rng = torch.Generator().manual_seed(3)
    sizes = gated.gates.sizes
    units = torch.rand(gated.gates.units, generator=rng)
    groups = torch.rand(int(gated.gates.group_of_unit.max()) + 1, generator=rng)[gated.gates.group_of_unit]
    masks = [units < 0.7, units < 0.2, groups < 0.8, groups < 0.5, (groups < 0.8) & (units < 0.8)]
    found = [gated.gates.architecture(mask) for mask in masks]
    alive = torch.rand(len(sizes), generator=rng) < 0.75
    kept = {gate: tuple(range(size)) if keep else () for (gate, size), keep in zip(sizes.items(), alive, strict=True)}
    return [*found, Architecture(sizes, kept), Architecture(sizes, dict.fromkeys(sizes, ()))]


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_extraction_is_exact(name: str) -> None:
    family = FAMILIES[name]
    network, x = built(family.model, family.size)
    gated = pgnas.supernet(network, x, "group").eval()
    assert not gated.report.barriers
    more = torch.cat([x, x.flip(-1), x[:1]])
    for architecture in architectures(gated):
        small = pgnas.extract(gated, architecture)
        with gated.fixed(architecture):
            expected = gated(more)
        assert (small(more) - expected).abs().max() <= 1e-10 * max(1.0, float(expected.abs().max()))
        assert gated.count(architecture) == pgnas.measure(small, (x,))


def groups_of(model: str, size: tuple[int, ...], **options: object) -> dict[str, list[int]]:
    """Gate to the sizes of its groups."""
    network, x = built(model, size)
    gated = pgnas.supernet(network, x, "group", **options)
    return {gate.name: [group.stop - group.start for group in gate.groups] for gate in gated.gates.specs}


def test_a_logit_a_convolution_in_the_multibranch_network() -> None:
    """53 of them in SupNet-M: 48 in the paths, a 1x1 skip in stage 1, two in each later one."""
    groups = groups_of("multibranch-resnet:width=2,blocks=4", (8, 8), exclude=["classifier"])
    assert len(groups) == 53
    assert all(len(sizes) == 1 for sizes in groups.values())


def test_a_logit_a_kernel_size_and_a_source_in_the_multikernel_network() -> None:
    groups = groups_of("multikernel-resnet:width=6,blocks=1-1", (8, 8))
    for layer, width in (("layer1.0", 6), ("layer2.0", 12)):
        for kernel in (1, 3, 5, 9):
            assert groups.pop(f"{layer}.conv2.conv{kernel}x{kernel}") == [width]
        assert groups.pop(f"{layer}.conv3") == ([2, 2, 1, 1] if width == 6 else [3, 3, 3, 3])
    assert groups == {
        "layer1.0.conv1": [6], "layer1.0.downsample.0": [6],
        "layer2.0.conv1": [24], "layer2.0.downsample.0": [24], "fc": [48],
    }  # fmt: skip


@pytest.mark.parametrize("stem", ["7x7", "3x3"])
def test_a_logit_a_concatenated_source_in_densenet(stem: str) -> None:
    """As in the paper's code, where neither the stem nor the classifier is gated."""
    groups = groups_of(f"densenet:growth=4,blocks=2-3,stem={stem}", (16, 16), exclude=["features.conv0*", "classifier"])
    expected = {"features.transition1.conv": [8, 4, 4]}
    for block, count, first in ((1, 2, 8), (2, 3, 8)):
        for index in range(count):
            layer = f"features.denseblock{block}.denselayer{index + 1}"
            expected |= {f"{layer}.conv1": [first] + [4] * index, f"{layer}.conv2": [16]}
    assert groups == expected


def test_time_and_space_have_a_logit_each_in_the_inflated_densenet() -> None:
    groups = groups_of("densenet3d:growth=4,blocks=2", (3, 6, 6), exclude=["classifier"])
    expected = {}
    for index in range(2):
        layer = f"features.denseblock1.denselayer{index + 1}"
        expected |= {f"{layer}.conv1": [8] + [4] * index, f"{layer}.conv2.time": [16], f"{layer}.conv2.space": [16]}
    assert groups == expected


def test_separable_convolutions_are_gated_at_the_pointwise_part() -> None:
    """Every 1x1 convolution of the ENAS cells has a gate and no depthwise one has; a cell's loose ends are sources."""
    network, x = built("enas-micro:filters=2", (8, 8))
    gated = pgnas.supernet(network, x, "group")
    convolutions = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    points = {name for name, layer in convolutions.items() if layer.kernel_size == (1, 1)}
    assert set(gated.gates.sizes) == points | {"classifier"}
    separable = {name for name in points if name.split(".")[2] == "operations" and "conv" not in name}
    assert len(separable) == 2 * (3 * 6 + 2 * 6)  # applied twice; six in a normal cell, six in a reduction cell
    groups = {gate.name: [group.stop - group.start for group in gate.groups] for gate in gated.gates.specs}
    assert groups["cells.1.nearer.1"] == [2] * 5  # reads a normal cell
    assert groups["cells.2.nearer.1"] == [4] * 4  # reads a reduction cell
    assert groups["cells.0.nearer.1"] == [6]  # reads the stem


@torch.no_grad()
@pytest.mark.parametrize(
    "model", ["enas-micro:filters=1", "multikernel-resnet:width=1", "densenet:growth=1,stem=3x3", "densenet3d:growth=1"]
)
def test_the_narrowest_network_runs(model: str) -> None:
    """The uniform baseline tries every width from 1."""
    network, x = built(model, (3, 16, 16) if "3d" in model else (16, 16))
    assert network(x).shape == (2, CLASSES)
