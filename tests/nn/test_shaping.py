"""Shaping: fewer picks from shared values, round numbers of channels; nothing that was kept is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pgnas
from pgnas.nn import extract_small
from pgnas.nn.device_costs import DeviceCosts
from pgnas.nn.prices import Price
from pgnas.nn.shaping import Pick, Shaper, by_share, by_time


class TwoReaders(nn.Module):
    """One value with two readers, which may keep different channels of it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 4, 3, padding=1)
        self.b = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x = self.stem(x)
        return (self.a(torch.relu(x)) + self.b(torch.relu(x))).mean((2, 3))


class Residual(nn.Module):
    """A stream that three blocks read and add to, concatenated with its start; a grouped convolution inside."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(),
                nn.Conv2d(24, 24, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(24, 16, 1), nn.BatchNorm2d(16),
            ) for _ in range(3)
        )  # fmt: skip
        self.last = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        start = x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(torch.relu(self.last(torch.cat([x, start], 1))).mean((2, 3)))


@pytest.fixture(params=[0, 1, 2])
def residual(request):
    torch.manual_seed(request.param)
    made = pgnas.supernet(Residual().double(), torch.randn(2, 2, 6, 6, dtype=torch.float64))
    with torch.no_grad():
        made.gates.unit_logits.normal_(0.5, 2)
    return made


def shaped(supernet, shaper, architecture):
    return supernet.gates.architecture(shaper.shape(supernet.gates.mask(architecture).cpu()))


@pytest.mark.parametrize(("kept", "widened"), [(7, 8), (6, 8), (5, 5), (1, 1), (0, 0)])
def test_a_reader_of_most_of_a_shared_value_is_widened_and_others_are_not(kept, widened):
    made = pgnas.supernet(TwoReaders(), torch.randn(2, 1, 6, 6))
    architecture = pgnas.Architecture({"a": 8, "b": 8}, {"a": tuple(range(8)), "b": tuple(range(kept))})
    wide = shaped(made, Shaper(made, reads_all=by_share), architecture)
    assert (len(wide.kept["a"]), len(wide.kept["b"])) == (8, widened)
    assert extract_small(made, wide).selections == (0 if widened in (0, 8) else 1)


def test_channels_that_no_reader_keeps_stay_closed():
    made = pgnas.supernet(TwoReaders(), torch.randn(2, 1, 6, 6))
    architecture = pgnas.Architecture({"a": 8, "b": 8}, {"a": (0, 2, 4, 6), "b": (0, 2, 4)})
    wide = shaped(made, Shaper(made, reads_all=by_share), architecture)
    assert wide.kept["a"] == wide.kept["b"] == (0, 2, 4, 6)


def test_a_source_dropped_whole_from_a_concatenation_costs_no_pick_and_stays_dropped(residual):
    kept = residual.gates.split(torch.ones(residual.gates.units, dtype=torch.bool))
    kept["last"][16:] = False
    architecture = residual.gates.architecture(torch.cat(list(kept.values())))
    wide = shaped(residual, Shaper(residual, reads_all=lambda pick: True), architecture)
    assert wide == architecture


def test_a_pick_that_takes_longer_than_it_saves_is_avoided():
    made = pgnas.supernet(TwoReaders(), torch.randn(2, 1, 6, 6))
    prices = {site.node: Price(pair=1e-6) for site in made.space.sites}
    pick = Pick("b", "stem", wanted=5, there=8)  # picks 5 * 36 numbers and saves 3 * 4 pairs
    for number, reads_all in ((0.9 * 12e-6 / 180, False), (1.1 * 12e-6 / 180, True)):
        costs = DeviceCosts(prices, Price(output=number), 1.0, batch=1, training=False, device="test")
        assert by_time(made, costs)(pick) is reads_all


@pytest.mark.parametrize("reads_all", [None, by_share])
@pytest.mark.parametrize("round_to", [2, 4, 8])
def test_shaping_loses_nothing_and_makes_all_widths_round(residual, reads_all, round_to):
    shaper = Shaper(residual, reads_all=reads_all, round_to=round_to)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        drawn = residual.sample(generator=generator)
        small = shaped(residual, shaper, drawn)
        before, after = residual.gates.mask(drawn), residual.gates.mask(small)
        assert not (before & ~after).any()
        module = pgnas.extract(residual, small)
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.groups == 1 and name != "stem.0":
                assert layer.in_channels % round_to == 0, name
            if isinstance(layer, nn.Conv2d):
                # groups of six channels come whole
                assert layer.out_channels % round_to == 0 or layer.out_channels == 24, name
        x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
        with residual.eval().fixed(small), torch.no_grad():
            torch.testing.assert_close(module(x), residual(x), rtol=0, atol=1e-10)


def test_rounding_opens_the_most_probable_channels_and_no_more_than_needed():
    made = pgnas.supernet(nn.Sequential(nn.Conv2d(1, 8, 1), nn.Conv2d(8, 3, 1)), torch.randn(2, 1, 2, 2))
    with torch.no_grad():
        made.gates.unit_logits.copy_(torch.tensor([0.0, 5, 1, 4, 2, 3, -1, -2]))
    (name,) = made.gates.sizes
    architecture = pgnas.Architecture({name: 8}, {name: (0,)})
    assert shaped(made, Shaper(made, round_to=4), architecture).kept[name] == (0, 1, 3, 5)
    nothing = pgnas.Architecture({name: 8}, {name: ()})
    assert shaped(made, Shaper(made, round_to=4), nothing).kept[name] == ()


def test_a_network_narrower_than_the_multiple_keeps_its_own_width():
    made = pgnas.supernet(nn.Sequential(nn.Conv2d(1, 6, 1), nn.Conv2d(6, 3, 1)), torch.randn(2, 1, 2, 2))
    (name,) = made.gates.sizes
    architecture = pgnas.Architecture({name: 6}, {name: (0, 1, 2, 3, 5)})
    assert shaped(made, Shaper(made, round_to=4), architecture).kept[name] == (0, 1, 2, 3, 4, 5)
