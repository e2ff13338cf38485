"""Networks by name: counts, classifiers, starting weights, uniform width."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import pgnas
from pgnas.errors import FileError, ModelError
from pgnas.supernets import build_model, load_weights, uniform_width


def build(spec, **changes):
    options = {"in_channels": 3, "num_classes": 5, "image_size": (16, 16), "seed": 0, **changes}
    return build_model(spec, **options)


def test_a_network_made_for_other_classes_gets_a_new_classifier(tmp_path, monkeypatch):
    (tmp_path / "fixed_head.py").write_text(
        "from torch import nn\n\n\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(7, 1000))\n"
    )
    monkeypatch.chdir(tmp_path)
    built = build("fixed_head:build")
    assert built.head == "4"
    assert any("replaced" in note for note in built.notes)
    assert built.module(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    old = {"4.weight": torch.zeros(1000, 7), "4.bias": torch.zeros(1000), "0.weight": torch.ones(7, 3, 3, 3)}
    notes = load_weights(built.module, old, source="old.safetensors", replaced=built.head)
    assert torch.equal(built.module[0].weight, torch.ones(7, 3, 3, 3))
    assert any("left out" in note for note in notes)
    assert any("0.bias" in note for note in notes)
    with pytest.raises(FileError, match="shape"):
        load_weights(built.module, {"0.weight": torch.zeros(1)}, source="bad.safetensors")


class Calls(nn.Module):
    """Layers in the order of their registration, and how they are called."""

    def __init__(self, call, **layers):
        super().__init__()
        self.call = call
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.call(self, x)


def stem_last(channels):
    return Calls(
        lambda net, x: net.fc(net.block(net.stem(x).relu()).mean((2, 3))),
        block=nn.Conv2d(8, 8, 3),
        stem=nn.Conv2d(channels, 8, 3),
        fc=nn.Linear(8, 5),
    )


@pytest.fixture
def build_own(monkeypatch):
    def build_own(network, **changes):
        monkeypatch.setitem(sys.modules, "own_networks", SimpleNamespace(build=lambda: network))
        return build("own_networks:build", **changes)

    return build_own


RUNS_ON_ITS_DATA = {
    "stem registered last": lambda: stem_last(1),
    "rows as a sequence": lambda: Calls(
        lambda net, x: net.fc(net.a(x.squeeze(1)).mean(2)), a=nn.Conv1d(16, 4, 3), fc=nn.Linear(4, 5)
    ),
    "channels known when it runs": lambda: nn.Sequential(
        nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("kind", RUNS_ON_ITS_DATA)
def test_a_network_that_runs_on_the_data_is_given_the_data(build_own, kind):
    built = build_own(RUNS_ON_ITS_DATA[kind](), in_channels=1)
    assert (built.in_channels, built.notes) == (1, ())
    assert built.module(torch.zeros(2, 1, 16, 16)).shape == (2, 5)


def test_the_channels_that_a_convolution_reads_are_tried_next(build_own):
    built = build_own(stem_last(3), in_channels=1)
    assert built.in_channels == 3
    assert built.notes == ("the network reads 3 channels: grey images are repeated",)
    with pytest.raises(ModelError, match="must read images of 4 channels, got 3; build it"):
        build_own(stem_last(3), in_channels=4)


def test_what_refuses_all_images_is_an_error_about_the_likely_ones(build_own):
    with pytest.raises(ModelError, match=r"must run on images of shape \(1, 2, 2\), got .*Kernel size"):
        build_own(stem_last(1), in_channels=1, image_size=(2, 2))
    colour = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match=r"must run on images of shape \(3, 2, 2\), got .*Kernel size"):
        build_own(colour, in_channels=1, image_size=(2, 2))


def settings(layer):
    return {key: value for key, value in vars(layer).items() if not key.startswith("_") and "out_" not in key}


HEADS = {
    "registered first": lambda: Calls(
        lambda net, x: net.head(net.b(net.a(x)).mean((2, 3))),
        a=nn.Conv2d(3, 6, 3),
        head=nn.Linear(7, 7, bias=False),
        b=nn.Conv2d(6, 7, 1),
    ),
    "another of its size is called later, for nothing": lambda: Calls(
        lambda net, x: (y := net.a(x).mean((2, 3)), net.head(y), net.b(y))[1],
        a=nn.Conv2d(3, 6, 3),
        head=nn.Linear(6, 7),
        b=nn.Linear(6, 7),
    ),
    "settings of a convolution": lambda: Calls(
        lambda net, x: net.head(net.a(x)).mean((2, 3)),
        a=nn.Conv2d(3, 10, 3),
        head=nn.Conv2d(10, 20, (3, 1), 2, (2, 0), 2, groups=5, bias=False, padding_mode="circular"),
    ),
    "a sequence": lambda: Calls(
        lambda net, x: net.head(net.a(x).flatten(2)).mean(2), a=nn.Conv2d(3, 6, 3), head=nn.Conv1d(6, 7, 3)
    ),
    "a volume": lambda: Calls(
        lambda net, x: net.head(net.a(x).unsqueeze(2)).mean((2, 3, 4)), a=nn.Conv2d(3, 6, 3), head=nn.Conv3d(6, 7, 1)
    ),
    "in another mode": lambda: Calls(
        lambda net, x: net.head(net.a(x).mean((2, 3))), a=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 7).eval()
    ),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_layer_that_gives_the_output_is_replaced_with_its_settings(build_own, kind):
    network = HEADS[kind]()
    before = dict(network.named_children())
    built = build_own(network)
    assert built.head == "head"
    assert built.notes == ("classifier 'head' was replaced by a new one: 5 classes",)
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
    assert settings(network.head) == settings(before["head"])
    assert type(network.head) is type(before["head"])
    assert (network.head.bias is None) == (before["head"].bias is None)
    assert [name for name, layer in network.named_children() if layer is not before[name]] == ["head"]
    assert all(p.requires_grad for p in network.parameters())


def test_a_classifier_of_two_names_is_replaced_under_both(build_own):
    head = nn.Linear(6, 7)
    network = Calls(
        lambda net, x: net.head(net.a(x).mean((2, 3))) + net.again(net.a(x).amax((2, 3))),
        a=nn.Conv2d(3, 6, 3),
        head=head,
        again=head,
    )
    assert build_own(network).head == "head"
    assert network.head is network.again
    assert network.head.out_features == 5


WITHOUT_A_HEAD = {
    "a product of parameters": lambda: Calls(
        lambda net, x: net.a(x).mean((2, 3)) @ torch.ones(6, 7), a=nn.Conv2d(3, 6, 3)
    ),
    "a sum of two": lambda: Calls(
        lambda net, x: net.b(x).mean((2, 3)) + net.a(x).mean((2, 3)), a=nn.Conv2d(3, 7, 3), b=nn.Conv2d(3, 7, 3)
    ),
    "groups that do not divide the classes": lambda: Calls(
        lambda net, x: net.b(net.a(x)).mean((2, 3)), a=nn.Conv2d(3, 14, 3), b=nn.Conv2d(14, 7, 3, groups=7)
    ),
    "a layer that is all": lambda: nn.Sequential(nn.Flatten(), nn.Softmax(1)),
}


@pytest.mark.parametrize("kind", WITHOUT_A_HEAD)
def test_a_network_whose_outputs_no_layer_decides_is_refused_as_it_was(build_own, kind):
    network = WITHOUT_A_HEAD[kind]()
    layers = list(network.modules())
    with pytest.raises(ModelError, match=r"must have 5 outputs, got (7|768); give its factory a parameter num_classes"):
        build_own(network)
    assert list(network.modules()) == layers


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    a, b, c = (build("multibranch-resnet:width=4", seed=seed).module for seed in (1, 1, 2))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(a.stem[0].weight, b.stem[0].weight)
    assert not torch.equal(a.stem[0].weight, c.stem[0].weight)


def test_grey_images_go_into_a_network_for_colour():
    built = build("torchvision:squeezenet1_1", in_channels=1, image_size=(32, 32))
    assert built.in_channels == 3
    assert any("grey" in note for note in built.notes)


def test_timm_networks_by_name():
    pytest.importorskip("timm")
    built = build("timm:resnet10t", in_channels=1, image_size=(32, 32))
    assert built.module.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 5)
    with pytest.raises(ModelError, match="did you mean"):
        build("timm:resnet10tt")


def test_the_uniform_width_is_the_largest_under_the_cap():
    x = torch.zeros(1, 3, 16, 16)
    full = pgnas.measure(build("multibranch-resnet:width=12").module, (x,)).macs

    def fits(module: nn.Module) -> bool:
        return pgnas.measure(module, (x,)).macs <= 0.4 * full

    spec = uniform_width("multibranch-resnet:width=12", fits, in_channels=3, num_classes=5)
    width = int(spec.partition("width=")[2].partition(",")[0])
    assert fits(build(f"multibranch-resnet:width={width}").module)
    assert not fits(build(f"multibranch-resnet:width={width + 1}").module)
    assert uniform_width("torchvision:resnet18", fits, in_channels=3, num_classes=5) is None


def test_a_network_must_take_one_image(tmp_path, monkeypatch):
    (tmp_path / "squeezes.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.head = nn.Conv2d(3, 7, 3), nn.Linear(7, 5)\n\n"
        "    def forward(self, x):\n"
        "        return self.head(self.conv(x).mean((2, 3)).squeeze())\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"got \(5,\) for 1 image, \(2, 5\) for 2"):
        build("squeezes:Net")
