"""The theorem of extraction: the small network computes what the supernet computes with the architecture fixed."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.architecture import Architecture
from pgnas.errors import ArchitectureError
from pgnas.nn import Supernet, extract, extract_small, measure, supernet

from .networks import (
    NETWORKS,
    Network,
    Residual,
    TwoInputs,
    architectures,
    generator,
    hooked,
    images,
    randomise,
    tensors,
)

ZOO = {
    "resnet18": lambda: zoo.resnet18(num_classes=5),
    "resnext": lambda: zoo.ResNet(zoo.resnet.Bottleneck, [1, 1, 1, 1], num_classes=5, groups=8, width_per_group=4),
    "mobilenet_v2": lambda: zoo.mobilenet_v2(num_classes=5),
    "densenet": lambda: zoo.DenseNet(8, (2, 2), 16, num_classes=5),
    "squeezenet": lambda: zoo.squeezenet1_1(num_classes=5),
    "vgg11_bn": lambda: _narrow_vgg(),
    "efficientnet_b0": lambda: zoo.efficientnet_b0(num_classes=5),
    "shufflenet": lambda: zoo.shufflenet_v2_x0_5(num_classes=5),
    "mobilenet_v3_small": lambda: zoo.mobilenet_v3_small(num_classes=5),
    "regnet_y_400mf": lambda: zoo.regnet_y_400mf(num_classes=5),
}


def _narrow_vgg() -> nn.Module:
    features = zoo.vgg.make_layers([16, "M", 32, "M", 64, 64, "M", 64, "M", 64, "M"], batch_norm=True)
    net = zoo.VGG(features, num_classes=5, init_weights=False)
    net.classifier[0] = nn.Linear(64 * 49, 40)
    net.classifier[3], net.classifier[6] = nn.Linear(40, 40), nn.Linear(40, 5)
    return net


@torch.no_grad()
def require_theorem(gated: Supernet, inputs: tuple[Tensor, ...], architecture: Architecture, tolerance: float) -> None:
    """Same outputs on a batch of another size than the example's, and the counted cost is the real one."""
    small = extract_small(gated, architecture)
    more = tuple(torch.cat([x, x.flip(0), x[:1]]) for x in inputs)
    gated.eval()
    with gated.fixed(architecture):
        expected = tensors(gated(*more))
    found = tensors(small.module(*more))
    assert [y.shape for y in found] == [y.shape for y in expected]
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))
    assert gated.count(architecture) == measure(small.module, inputs)
    before = dict(gated.body.named_parameters())
    for name, parameter in small.module.named_parameters():
        assert torch.equal(small.take(name, before[name]), parameter), name


@pytest.mark.parametrize("name", ["a kernel an example", "learned places", "constant viewed", "heads in the batch"])
def test_an_example_of_one_is_an_example_too(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images(batch=1))
    for architecture in architectures(gated):
        require_theorem(gated, (images(batch=1),), architecture, 1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_small_network_equals_fixed_supernet(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images())
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)


@pytest.mark.parametrize("name", ["residual", "separable", "heads in the batch", "a kernel an example", "sized up"])
def test_what_was_extracted_can_be_extracted_from_again(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images())
    for architecture in architectures(gated, keeps=(0.5, 0.8))[:2]:
        again = supernet(extract(gated, architecture), images())
        for smaller in architectures(again):
            require_theorem(again, (images(),), smaller, 1e-9)


def test_a_second_choice_of_channels_leaves_the_first_alone() -> None:
    net = Network(
        lambda net, x: net.c(F.relu(net.a(y := F.relu(net.stem(x)))) + F.relu(net.b(y))),
        stem=nn.Conv2d(3, 8, 1), a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 4, 1), c=nn.Conv2d(4, 2, 1),
    )  # fmt: skip
    gated = supernet(randomise(net).double(), images())
    kept = {"a": (0, 1, 2, 3), "b": (2, 3, 4, 5, 6, 7), "c": (0, 1, 2, 3)}
    again = supernet(extract(gated, Architecture(gated.gates.sizes, kept)), images())
    fewer = Architecture(again.gates.sizes, {**again.open().kept, "a": (1, 2)})
    require_theorem(again, (images(),), fewer, 1e-10)


def test_weights_that_hooks_compute_are_extracted_amid_training() -> None:
    gated = supernet(randomise(hooked()).double(), images()).train()
    gated(images()).sum().backward()
    for architecture in architectures(gated)[:3]:
        require_theorem(gated, (images(),), architecture, 1e-10)


@pytest.mark.parametrize("name", ["residual", "grouped", "chain", "separable"])
def test_gates_on_the_image_too(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images(), gate_inputs=True)
    for architecture in architectures(gated):
        require_theorem(gated, (images(),), architecture, 1e-10)


@pytest.mark.parametrize("name", ZOO)
def test_model_zoo(name: str) -> None:
    x = images(size=32, dtype=torch.float32)
    gated = supernet(randomise(ZOO[name]()), x)
    wanted = architectures(gated, keeps=(0.3, 0.9))
    for architecture in wanted[:5]:
        require_theorem(gated, (x,), architecture, 1e-4)


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d, (9,)), (nn.Conv3d, (5, 5, 5))])
def test_other_dimensions(layer: type[nn.Module], shape: tuple[int, ...]) -> None:
    d = len(shape)
    norm, pool = {1: (nn.BatchNorm1d, nn.MaxPool1d), 3: (nn.BatchNorm3d, nn.AvgPool3d)}[d]
    net = nn.Sequential(
        layer(2, 5, 3, padding=1), norm(5), nn.ReLU(), layer(5, 5, 3, padding=1, groups=5), layer(5, 4, 1),
        pool(2), nn.Flatten(), nn.Linear(4 * 4 if d == 1 else 4 * 8, 3),
    )  # fmt: skip
    x = torch.randn(2, 2, *shape, generator=generator(0), dtype=torch.float64)
    gated = supernet(randomise(net).double(), x)
    assert list(gated.report.gated) == ["4", "7"]
    for architecture in architectures(gated):
        require_theorem(gated, (x,), architecture, 1e-10)


def test_several_inputs_options_and_nested_outputs() -> None:
    inputs = (images(), torch.randn(2, 4, dtype=torch.float64))
    model = randomise(TwoInputs()).double()
    gated = supernet(model, inputs)
    assert set(gated.report.gated) == {"c", "d"}
    for architecture in architectures(gated):
        require_theorem(gated, inputs, architecture, 1e-10)
    model.eval()
    small = extract(gated, gated.open())
    assert list(small(*inputs)) == ["map", "parts"]
    torch.testing.assert_close(small(*inputs)["parts"][1][0], model(*inputs)["parts"][1][0])


def test_everything_open_is_the_network_itself() -> None:
    for name, make in NETWORKS.items():
        model = randomise(make()).double().eval()
        gated = supernet(model, images())
        small = extract(gated, gated.open())
        for found, expected in zip(tensors(small(images())), tensors(model(images())), strict=True):
            torch.testing.assert_close(found, expected)
        has_dead_code = name in ("parts", "slices and pad")  # channels that nobody reads go in any case
        assert (gated.count(gated.open()) == measure(model, images())) != has_dead_code


def test_tied_weights_stay_tied() -> None:
    small = extract(gated := supernet(NETWORKS["tied"](), images(dtype=torch.float32)), gated.mode())
    assert small.a.weight is small.b.weight


def test_a_closed_branch_leaves_nothing_behind() -> None:
    """No parameters, no multiply-adds, and a constant that is one number a channel where it is even."""
    gated = supernet(randomise(Residual()), images(dtype=torch.float32))
    full = gated.open()
    closed = Architecture(full.sizes, {**full.kept, "left.0": ()})
    small = extract(gated, closed)
    assert not any(name.startswith("left") for name, _ in small.named_parameters())
    assert max(buffer.numel() for name, buffer in small.named_buffers() if name.startswith("constant")) == 6


def test_extraction_leaves_the_supernet_as_it_was() -> None:
    gated = supernet(randomise(Residual()), images(dtype=torch.float32)).train()
    gated.body.get_submodule("bn0").eval()  # a frozen norm in a network that trains
    modes = {name: module.training for name, module in gated.named_modules()}
    before = {name: value.clone() for name, value in gated.state_dict().items()}
    full = gated.open()
    closed = Architecture(full.sizes, {**full.kept, "left.0": ()})
    with gated.fixed(full):
        small = extract(gated, closed)
        assert not small.training
        assert {name: module.training for name, module in gated.named_modules()} == modes
        assert all(torch.equal(value, before[name]) for name, value in gated.state_dict().items())
        gated.eval()
        x = images(dtype=torch.float32)
        torch.testing.assert_close(gated(x), extract(gated, full)(x))


def test_extraction_shares_nothing_with_the_supernet() -> None:
    for make in NETWORKS.values():
        gated = supernet(make(), images(dtype=torch.float32))
        small = extract(gated, gated.mode())
        ours = {tensor.untyped_storage().data_ptr() for tensor in gated.state_dict().values()}
        assert not any(tensor.untyped_storage().data_ptr() in ours for tensor in small.state_dict().values())
        layers = [vars(module) for module in gated.modules()]
        dicts = {id(value) for layer in layers for value in layer.values() if isinstance(value, dict)}
        for module in small.modules():
            assert not any(id(value) in dicts for value in vars(module).values() if isinstance(value, dict))


def test_small_network_can_be_trained_and_saved() -> None:
    gated = supernet(Residual(), images(dtype=torch.float32))
    small = extract(gated, gated.sample(generator=generator(3))).train()
    small(images(dtype=torch.float32)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    exported = torch.export.export(small.eval(), (images(dtype=torch.float32),))
    torch.testing.assert_close(exported.module()(images(dtype=torch.float32)), small(images(dtype=torch.float32)))


def test_momentum_is_cut_like_the_weights() -> None:
    gated = supernet(Residual(), images(dtype=torch.float32))
    small = extract_small(gated, gated.sample(generator=generator(3)))
    for name, parameter in small.module.named_parameters():
        momentum = torch.randn_like(gated.body.get_parameter(name))
        kept = small.take(name, momentum)
        assert kept.shape == parameter.shape
        assert kept.untyped_storage().data_ptr() != momentum.untyped_storage().data_ptr()


def test_architecture_of_another_supernet_is_refused() -> None:
    x = images(dtype=torch.float32)
    gated, other = supernet(Residual(6), x), supernet(Residual(7), x)
    rule = r"^architecture gate 'head' must have the supernet's size 6, got 7; [^\n]+$"
    with pytest.raises(ArchitectureError, match=rule):
        extract(gated, other.open())


def test_supernet_in_half_the_precision_of_its_example() -> None:
    gated = supernet(randomise(Residual()).double(), images()).float()
    x = images(dtype=torch.float32)
    for architecture in architectures(gated):
        require_theorem(gated, (x,), architecture, 1e-4)


def re_estimate(network: nn.Module, batches: Sequence[Tensor]) -> None:
    """BatchNorm's statistics as the plain average over batches; the rest as in evaluation."""
    network.eval()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in batches:
            network(batch)
    network.eval()


class Deep(nn.Module):
    """A branch whose constants differ from pixel to pixel: the second convolution pads what the first leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        self.branch = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1),
            nn.BatchNorm2d(6),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.branch(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("make", [Residual, Deep])
def test_re_estimated_statistics_are_those_of_the_supernet_with_the_architecture_fixed(
    make: Callable[[], nn.Module],
) -> None:
    """Also behind what was dropped, to what one example more or less makes of a variance."""
    gated = supernet(randomise(make()).double(), images()).double()
    before, rng = copy.deepcopy(gated.state_dict()), generator(3)
    batches = [torch.randn(48, 3, 8, 8, generator=rng, dtype=torch.float64) for _ in range(2)]
    changes = []
    for closed in gated.gates.sizes:
        architecture = Architecture(gated.gates.sizes, {**gated.open().kept, closed: ()})
        small = extract_small(gated, architecture, re_estimated=True).module
        old = extract(gated, architecture)
        whole = copy.deepcopy(gated)
        for network in (small, old):
            re_estimate(network, batches)
        with whole.fixed(architecture), torch.no_grad():
            re_estimate(whole, batches)
            expected = tensors(whole(batches[0]))
            scale = max(float(t.abs().max()) for t in expected)
            for found, wanted in zip(tensors(small(batches[0])), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3 * scale)
            differences = zip(tensors(old(batches[0])), expected, strict=True)
            changes.append(max(float((a - b).abs().max()) for a, b in differences) / scale)
    assert max(changes) > 0.01  # it would not do without
    assert all(torch.equal(value, before[key]) for key, value in gated.state_dict().items())


def test_what_is_extracted_and_thrown_away_leaves_nothing_behind() -> None:
    gated = supernet(NETWORKS["residual"](), images(dtype=torch.float32))
    known = torch.fx.graph_module._loader.eval_cache
    gc.collect()
    before, kept = len(known), extract(gated, gated.open())
    for architecture in architectures(gated):
        extract(gated, architecture)
    gc.collect()
    assert len(known) == before + 1
    assert torch.isfinite(kept(images(dtype=torch.float32))).all()
