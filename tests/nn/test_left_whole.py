"""What looks like a layer that can be cut and is not: it stays whole, and what is extracted computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from pgnas.nn import extract, supernet

from .networks import Network, architectures, images, randomise
from .test_extract import require_theorem


class Noise(nn.Module):
    """Noise of a strength for each channel, in training alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("sigma", torch.rand(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) * self.sigma if self.training else x


class NoisyUnit(nn.Identity):
    """Derived from a layer that it has nothing in common with but the name."""

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.randn_like(x) * 0.1 if self.training else x
        return F.normalize(x, dim=1)


class Frozen(nn.Module):
    """BatchNorm that never learns from a batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))
        self.register_buffer("running_mean", torch.rand(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)


class SizedNorm(nn.Module):
    """LayerNorm whose shape is read from its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        _, _, channels = x.shape
        return F.layer_norm(x, (channels,), self.weight, self.bias)


def centred(_: nn.Module, __: Any, output: Tensor) -> Tensor:
    return output - output.mean(1, keepdim=True)


def with_hook() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net[0].register_forward_hook(centred)
    return net


def with_hook_before() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net[1].register_forward_pre_hook(lambda layer, args: (args[0] / args[0].norm(dim=1, keepdim=True),))
    return net


def pruned_bias() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    prune.random_unstructured(net[0], "bias", 0.5)
    return net


WHOLE = {
    "InstanceNorm of one row": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 8), nn.InstanceNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    ),
    "a hook": with_hook,
    "a hook before": with_hook_before,
    "a pruned bias": pruned_bias,
    "noise by channel": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), Noise(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
    "noise under another name": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), NoisyUnit(), nn.Conv2d(8, 4, 1)),
    "frozen BatchNorm": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), Frozen(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.filterwarnings("ignore:input's size at dim=0:UserWarning")  # torch's, of the InstanceNorm
def test_what_is_extracted_computes_what_the_supernet_does(name: str) -> None:
    gated = supernet(randomise(WHOLE[name]()).double(), images())
    assert gated.report.barriers
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)
        output = extract(gated, architecture).train()(images())  # and can be trained, but for a constant
        assert output.isfinite().all()
        if output.requires_grad:
            output.sum().backward()


def test_a_hook_that_only_looks_leaves_its_layer_as_it_is() -> None:
    seen: list[int] = []
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net[1].register_forward_hook(lambda *_: seen.append(1))
    gated = supernet(randomise(net).double(), images())
    assert gated.report.barriers == {}
    assert seen


def test_frozen_statistics_stay_frozen_in_training() -> None:
    gated = supernet(randomise(WHOLE["frozen BatchNorm"]()).double(), images()).train()
    before = {name: value.clone() for name, value in gated.body.named_buffers()}
    gated(images())
    assert {name for name, value in gated.body.named_buffers() if not torch.equal(value, before[name])} == set()


class ByParent(nn.Module):
    """A convolution and a norm whose function the module around them calls."""

    def __init__(self, *, inputs: int = 3) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(inputs, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        return F.batch_norm(
            self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training, bn.momentum or 0.0, bn.eps
        )


class Base(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=self.training)


class Derived(Base):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels)), nn.Parameter(torch.rand(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))


@pytest.mark.parametrize("norm", ["by the module around", "by an inherited forward"])
def test_functional_norms_that_follow_the_mode_are_layers(norm: str) -> None:
    first = ByParent() if norm == "by the module around" else nn.Sequential(nn.Conv2d(3, 8, 1), Derived(8))
    gated = supernet(randomise(nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 4, 1))).double(), images())
    assert [type(m) for m in gated.body.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)] == [nn.BatchNorm2d]
    assert gated.report.barriers == {}
    before = {name: value.clone() for name, value in gated.body.named_buffers() if "running" in name}
    gated.train()(images())
    assert len(before) == 2
    assert all(not torch.equal(value, before[name]) for name, value in gated.body.named_buffers() if name in before)


def test_a_shape_read_from_the_input_makes_a_layer_all_the_same() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.norm(net.a(x).flatten(2).transpose(1, 2)).mean(1))

    net = Network(forward, a=nn.Conv2d(3, 8, 1), norm=SizedNorm(8), head=nn.Linear(8, 4))
    gated = supernet(randomise(net).double(), images())
    assert isinstance(gated.body.get_submodule("norm"), nn.LayerNorm)
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)


def test_a_weight_of_one_row_is_no_layer() -> None:
    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.rand(8))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.row)

    def forward(net: Any, x: Tensor) -> Tensor:
        return net.row(net.b(net.a(x)).mean((2, 3)))

    net = Network(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 8, 1), row=Row())
    gated = supernet(randomise(net).double(), images())
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)


def test_halves_of_a_batch_that_is_not_the_first_axis_follow_its_size() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        first, second = net.b(net.a(x)).flatten(2).permute(2, 0, 1).chunk(2, 1)
        return net.head((first - second).mean(0))

    net = Network(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 8, 1), head=nn.Linear(8, 4)).double()
    two, four = images()[:2], torch.cat([images()[:2], images()[:2] * 0.5])
    gated = supernet(randomise(net), two)
    for architecture in architectures(gated):
        small = extract(gated, architecture).eval()
        with gated.eval().fixed(architecture):
            torch.testing.assert_close(small(four), gated(four))


def test_windows_of_three_axes_are_moved() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        y = net.a(x.unsqueeze(2).expand(-1, -1, 4, -1, -1))
        y = y.permute(0, 2, 3, 4, 1).reshape(-1, 2, 2, 4, 2, 4, 2, 2, 4)
        y = y.permute(0, 1, 3, 5, 7, 2, 4, 6, 8).reshape(x.size(0), -1, 4)
        return net.head(y.mean(1))

    net = Network(forward, a=nn.Conv3d(3, 8, 1), head=nn.Linear(4, 2)).double()
    gated = supernet(randomise(net), images())
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)


def test_who_trains_what_is_noted_where_the_supernet_does_not_know() -> None:
    class Still(nn.Sequential):
        def train(self, mode: bool = True) -> Any:
            return super().train(False)

    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = Still(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = self.body(x)
            return self.head(y)

    notes = supernet(randomise(Deaf()).double(), images()).report.notes
    assert any("'body' has a train() of its own" in note for note in notes)
    assert any("'Deaf' stops gradients" in note for note in notes)
