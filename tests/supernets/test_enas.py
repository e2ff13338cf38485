"""The auxiliary head, drop-path, and arcs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pgnas
from pgnas.errors import ModelError
from pgnas.supernets import build_model, ramp_drop_path
from pgnas.supernets.enas import NORMAL_ARC, REDUCTION_ARC
from pgnas.supernets.enas_cells import DropPath

from . import plain


def build(spec: str, size: int = 32) -> nn.Module:
    return build_model(spec, in_channels=3, num_classes=4, image_size=(size, size), seed=0).module.double()


@torch.no_grad()
def test_in_training_the_auxiliary_head_answers_too() -> None:
    network = build("enas-micro:filters=2,aux=true")
    x = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    assert isinstance(network.eval()(x), torch.Tensor)
    network.training = (
        True  # only the network itself: BatchNorm keeps to its statistics, so that outputs can be compared
    )
    logits, extra = network(x)
    arcs = {"normal": NORMAL_ARC, "reduction": REDUCTION_ARC}
    expected = plain.enas(network, x, filters=2, cells=1, classes=4, aux=True, **arcs)
    for found, wanted in zip((logits, extra), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)


def test_both_heads_reach_small_images_and_train() -> None:
    network = build("enas-micro:filters=2,aux=1,drop_path_keep=0.6", size=8).train()
    logits, extra = network(torch.randn(4, 3, 8, 8, dtype=torch.float64))
    (logits.square().sum() + extra.square().sum()).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_drop_path_grows_with_depth_and_with_training() -> None:
    network = build("enas-micro:filters=1,drop_path_keep=0.6", size=8)
    cells = network.get_submodule("cells")

    def rates(index: int) -> set[float]:
        return {round(float(layer.p), 6) for layer in cells[index].modules() if isinstance(layer, DropPath)}

    assert [rates(i) for i in range(5)] == [{round(0.4 * (i + 1) / 5, 6)} for i in range(5)]
    ramp_drop_path(network, 0.25)
    assert rates(4) == {0.1}
    # eight of a normal cell's ten operations are no identity
    assert sum(isinstance(layer, DropPath) for layer in cells[0].modules()) == 8
    assert not any(isinstance(layer, DropPath) for layer in build("enas-micro:filters=1", size=8).modules())


def test_drop_path_lives_on_in_the_supernet_and_in_the_found_network() -> None:
    network, x = build("enas-micro:filters=1,drop_path_keep=0.6", size=8), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gated = pgnas.supernet(network, x, "group")
    for made in (gated, pgnas.extract(gated, gated.open())):
        ramp_drop_path(made, 0.5)
        rates = sorted(float(layer.p) for layer in made.modules() if isinstance(layer, DropPath))
        assert len(rates) == sum(isinstance(layer, DropPath) for layer in network.modules())
        assert rates[-1] == pytest.approx(0.2)
        made.train()
        assert not torch.equal(made(x), made(x))
    assert max(float(layer.p) for layer in network.modules() if isinstance(layer, DropPath)) == pytest.approx(0.4)


def test_drop_path_drops_whole_examples_and_keeps_the_mean() -> None:
    layer, x = DropPath(0.4), torch.full((4000, 2, 3, 3), 2.0)
    torch.manual_seed(0)
    y = layer(x)
    dropped = (y == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert dropped[:, 0].double().mean() == pytest.approx(0.4, abs=5 * (0.24 / 4000) ** 0.5)
    assert torch.allclose(y[~dropped[:, 0]], torch.tensor(2.0 / 0.6))
    assert layer.eval()(x) is x


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("enas-micro:normal=0 1 2 0", "four numbers a node"),  # node 0 reads itself
        ("enas-micro:normal=0 5 0 0", "four numbers a node"),
        ("enas-micro:reduction=0 1 0", "four numbers a node"),
        ("enas-micro:reduction=", "four numbers a node"),
        ("enas-micro:filters=0", "must lie in"),
        ("enas-micro:drop_path_keep=0", "must lie in"),
        ("enas-micro:aux=perhaps", "must be of type bool"),
        ("multikernel-resnet:blocks=1-0", "one to eight numbers"),
        ("densenet:stem=9x9", "must be one of 7x7, 3x3, small"),
        ("densenet3d:growth=0", "must lie in"),
    ],
)
def test_wrong_parameters_are_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(spec)
