"""Auxiliary heads: in training they answer, elsewhere the network is what it is without them."""

from __future__ import annotations

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn import functional as F

import pgnas
from pgnas.nn import Supernet, extract, measure
from pgnas.nn.extract import extract_small

from .networks import architectures, images, randomise

X = images(batch=4)


class Headed(nn.Module):
    """Two layers and a classifier; a head on the first layer's output, in training alone."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.classifier = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)
        self.head, self.head_classifier = nn.Conv2d(6, 7, 1), nn.Linear(7, 4)
        self.norm = nn.LayerNorm((6, 3, 3)) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = F.relu(self.a(x))
        logits: Tensor = self.classifier(F.relu(self.b(first)).mean((2, 3)))
        if not self.training:
            return logits
        return logits, self.head_classifier(F.relu(self.head(self.norm(F.avg_pool2d(first, 2, 2)))).mean((2, 3)))


def network(**options: bool) -> Headed:
    made = randomise(Headed(**options)).double()
    assert isinstance(made, Headed)
    return made


def supernet(model: nn.Module, x: Tensor = X) -> Supernet:
    return pgnas.supernet(model.double(), x.double())


def test_to_analyse_heads_in_training_leaves_their_state() -> None:
    model = network()
    model.head = nn.utils.parametrizations.spectral_norm(model.head)  # changes when its weight is read in training
    made = supernet(model).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(op.inputs for op in made.headed_graph.ops.values())
    assert {name for name, value in made.body.state_dict().items() if not torch.equal(value, before[name])} == set()


@torch.no_grad()
@pytest.mark.parametrize("make", [network, lambda: randomise(googlenet())], ids=["small", "googlenet"])
def test_with_open_gates_training_answers_as_the_network_does(make) -> None:
    model = make().double()
    x = X if isinstance(model, Headed) else images(size=64, batch=2)
    made = supernet(model, x)
    for layer in model.modules():
        layer.training = layer is model  # BatchNorm and dropout stand still, so that outputs can be compared
    made.eval()
    made.training = True
    with made.fixed(made.open()):
        found, expected = made(x), model(x)
    assert type(found) is type(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def googlenet() -> nn.Module:
    return zoo.googlenet(weights=None, init_weights=False, num_classes=3)


@torch.no_grad()
def test_in_evaluation_and_in_counts_there_are_no_heads() -> None:
    model = network()
    made = supernet(model)
    without = sum(p.numel() for name, p in model.named_parameters() if "head" not in name)
    assert made.count(made.open()).params == without
    assert not any("head" in name for name in made.report.gated)
    assert {u.reason for u in made.report.ungated if "head" in u.layer} == {
        "it is of an auxiliary head, which only training has"
    }
    with made.eval().fixed(made.open()):
        torch.testing.assert_close(made(X), model.eval()(X))


@torch.no_grad()
def test_the_extracted_network_is_the_same_with_its_heads_and_they_read_what_is_left() -> None:
    model = network()
    made = supernet(model).eval()
    for architecture in architectures(made):
        plain, headed = extract(made, architecture), extract_small(made, architecture, heads=True)
        torch.testing.assert_close(headed.module(X), plain(X))
        assert measure(headed.module, (X,)) == made.count(architecture)
        kept = made.plan(architecture).kept("a")
        if not kept.any():
            assert headed.headed is None
            continue
        assert headed.headed is not None
        main, head = headed.headed(X)
        torch.testing.assert_close(main, plain(X))
        first = F.relu(model.a(X)) * kept[:, None, None]
        pooled = F.relu(model.head(F.avg_pool2d(first, 2, 2))).mean((2, 3))
        torch.testing.assert_close(head, model.head_classifier(pooled).expand_as(head))


@torch.no_grad()
def test_a_head_that_needs_whole_values_is_left_behind() -> None:
    made = supernet(network(norm=True)).eval()
    half = torch.arange(made.gates.units) % 2 == 0
    small = extract_small(made, made.gates.architecture(half), heads=True)
    assert small.headed is None
    assert "head" not in dict(small.module.named_modules())
    assert extract_small(made, made.open(), heads=True).headed is not None


@torch.no_grad()
def test_googlenet_s_heads_are_extracted() -> None:
    made = supernet(randomise(googlenet()), images(size=64)).eval()
    torch.manual_seed(0)
    architecture = made.gates.architecture(torch.rand(made.gates.units) < 0.5)
    small = extract_small(made, architecture, heads=True)
    assert small.headed is not None
    outputs = small.headed(images(size=64))
    torch.testing.assert_close(outputs[0], extract(made, architecture)(images(size=64)))
    head = small.headed.get_submodule("aux1.conv.conv")
    assert head.in_channels < 512  # type: ignore[operator]


def test_a_network_that_does_something_else_in_training_has_no_heads() -> None:
    class Other(Headed):
        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            logits = self.classifier(self.b(self.a(x)).mean((2, 3)))
            return (logits.tanh(), self.head_classifier(self.head(self.a(x)).mean((2, 3)))) if self.training else logits

    made = supernet(Other())
    assert not made.has_heads
    assert isinstance(made.train()(X), Tensor)
