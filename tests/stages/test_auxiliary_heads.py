"""A run of a network with an auxiliary head: it is trained in the search and after, and gone in the result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pgnas
from pgnas.errors import ConfigError
from pgnas.run_folder.tensors import load_tensors


class Headed(nn.Module):
    """A convolution, a hidden one, a classifier, and a head on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.classifier = nn.Conv2d(1, 8, 3, 2), nn.Conv2d(8, 8, 3), nn.Linear(8, 10)
        self.head = nn.Conv2d(8, 10, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        first = F.relu(self.a(x))
        logits: Tensor = self.classifier(F.relu(self.b(first)).mean((2, 3)))
        return (logits, self.head(first).mean((2, 3))) if self.training else logits


def run(out: Path, **settings: object) -> pgnas.RunResult:
    torch.manual_seed(0)
    chosen = {"epochs": 2, "candidates": 2, "max_macs": "60%", "decide_at": "50%", "device": "cpu", **settings}
    return pgnas.run(model=Headed(), data="digits", out=out, **chosen)


def test_heads_are_trained_before_and_after_the_decision(tmp_path: Path) -> None:
    plain, weighed = run(tmp_path / "a", auxiliary_weight=0.0), run(tmp_path / "b", auxiliary_weight=4.0)
    first, _ = load_tensors(tmp_path / "a" / "posterior.safetensors")
    second, _ = load_tensors(tmp_path / "b" / "posterior.safetensors")
    assert not torch.equal(first["body.a.weight"], second["body.a.weight"])
    momentum, _ = load_tensors(tmp_path / "b" / "momentum.safetensors")
    assert "head.weight" in momentum
    for out in (tmp_path / "a", tmp_path / "b"):
        found, _ = load_tensors(out / "found.safetensors")
        assert not any(name.startswith("head") for name in found)
    x = torch.randn(3, 1, 8, 8)
    for result in (plain, weighed):
        assert isinstance(result.model(x), Tensor)


def test_after_the_decision_the_head_s_loss_still_counts(tmp_path: Path) -> None:
    run(tmp_path / "a")
    extracted, _ = load_tensors(tmp_path / "a" / "extracted.safetensors")
    found, _ = load_tensors(tmp_path / "a" / "found.safetensors")
    assert not torch.equal(extracted["a.weight"], found["a.weight"])
    assert extracted.keys() == found.keys()


def test_a_supernet_with_heads_does_not_shed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--shed"):
        run(tmp_path / "a", shed="on")


def test_nor_does_a_search_from_python(tmp_path: Path) -> None:
    made = pgnas.supernet(Headed(), torch.randn(2, 1, 8, 8))

    def unread() -> Iterator[object]:
        raise AssertionError("refused before the data are read")
        yield

    with pytest.raises(ConfigError, match="--shed needs a network whose every output is there in evaluation"):
        pgnas.search(made, unread(), unread(), shed=True)
