"""The paper's instances at full size, counted without allocating them; and the page that tells of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from pgnas.supernets import MODELS, PAPER_SUPERNETS

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"


@pytest.mark.parametrize(("name", "logits", "params"), [("M", 53, 26_192_975), ("MI", 53, 72_695_247)])
def test_with_the_papers_logits_the_multibranch_supernets_have_the_papers_size(name, logits, params):
    assert PAPER_SUPERNETS[name].count() == params - logits


@pytest.mark.parametrize(("filters", "without", "with_head"), [(36, 3.9, 4.4), (72, 14.8, 15.4)])
def test_the_arc_counts_as_it_does_without_us(filters, without, with_head):
    def count(aux: bool) -> float:
        with torch.device("meta"):
            network = MODELS["enas-micro"].factory(filters=filters, cells=5, aux=aux)
        return round(sum(p.numel() for p in network.parameters()) / 1e6, 1)

    assert (count(False), count(True)) == (without, with_head)


def test_the_arc_counts_as_its_layers_do():
    """E without head and BatchNorm, from the arcs alone: filters, 3x3 and 5x5 convolutions, inputs of each cell."""
    total, filters, before, last = 3 * 9 * 108, 36, 108, 108
    for index in range(17):
        if index in (5, 11):
            filters *= 2
        threes, fives, ends, reduces = (2, 4, 5, 0) if index not in (5, 11) else (3, 3, 4, 1)
        total += before * filters + last * filters + filters * filters  # the two inputs and the base
        total += 2 * (threes * (9 * filters + filters**2) + fives * (25 * filters + filters**2))
        total += reduces * filters**2  # the identity of a reduction cell
        before, last = last, ends * filters
    total += last * 10
    with torch.device("meta"):
        network = MODELS["enas-micro"].factory(filters=36, cells=5)
    assert total == sum(p.numel() for p in network.parameters() if p.ndim > 1)


def test_densenet_is_torchvisions_and_the_inflated_one_adds_convolutions_over_time():
    from torchvision.models import densenet121

    with torch.device("meta"):
        plain = sum(p.numel() for p in densenet121().parameters())
    assert PAPER_SUPERNETS["D-121"].count() == plain == 7_978_856
    classifier = (1000 - 174) * (1024 + 1)
    assert PAPER_SUPERNETS["D3D-121"].count() == plain - classifier + 58 * 3 * 128**2


def test_the_multikernel_network_is_resnet_50_with_two_more_weights_a_pair_of_channels():
    from torchvision.models import resnet50

    with torch.device("meta"):
        plain = sum(p.numel() for p in resnet50().parameters())
    more = sum(blocks * (11 - 9) * width**2 for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)))
    assert PAPER_SUPERNETS["R-50"].count() == plain + more == 28_071_976


def test_the_page_prints_every_count_beside_the_papers():
    rows = re.findall(r"^\| ([\w-]+) \| `(.+?)` \| ([\d,]+) \| (?:([\d.]+) M|none) \|$", PAGE.read_text(), re.M)
    expected = [
        (name, paper.model, f"{paper.count():,}", "" if paper.printed is None else str(paper.printed))
        for name, paper in PAPER_SUPERNETS.items()
    ]
    assert rows == expected
