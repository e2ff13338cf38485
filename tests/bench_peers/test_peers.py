"""The peers' own packages, where they are installed (bench/peers/requirements.txt)."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bench.peers.methods import fastnas, torch_pruning
from bench.peers.methods.base import fits
from bench.peers.networks import reshaped, vgg16_bn
from torch.utils.data import DataLoader, TensorDataset

from pgnas.nn import measure

pytestmark = pytest.mark.filterwarnings("ignore")
IMAGES = torch.randn(100, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class FakeRun:
    """What the pruners ask of a run, for a network in memory."""

    def __init__(self, cap: str) -> None:
        self.network = vgg16_bn(width=16)
        self.example = IMAGES[:2]
        self.full = measure(self.network, (self.example,))
        self.caps: dict[Any, float] = {cap: 0.3 * getattr(self.full, cap)}
        self.built = SimpleNamespace(module=self.network)
        self.engine = SimpleNamespace(place=lambda network: network)
        self.data = SimpleNamespace(select=_Select())
        self.kept: dict[str, torch.Tensor] = {}
        self.folder = SimpleNamespace(stage_done=lambda name: False, save_tensors=self._keep)
        self.recipe = SimpleNamespace(examples_an_epoch=64, score=self._score)

    def _keep(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        self.kept = dict(tensors)

    def _score(self, model: torch.nn.Module, images: torch.Tensor) -> SimpleNamespace:
        with torch.no_grad():
            return SimpleNamespace(metric=float(model(images).softmax(1).max(1).values.mean()))

    def held_out(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def calibration_batches(self) -> list[list[torch.Tensor]]:
        return [list(batch) for batch in DataLoader(TensorDataset(IMAGES, torch.zeros(100)), batch_size=50)]


class _Select:
    def __len__(self) -> int:
        return len(IMAGES)

    def take(self, numbers: torch.Tensor) -> torch.Tensor:
        return IMAGES[numbers]


@pytest.mark.parametrize("cap", ["macs", "params"])
@pytest.mark.parametrize(("package", "method"), [("torch_pruning", torch_pruning), ("modelopt", fastnas)])
def test_a_pruned_network_is_under_the_cap_and_comes_back_from_its_tensors(package: str, method: Any, cap: str):
    pytest.importorskip(package, reason=f"{package} is not installed: see bench/peers/requirements.txt")
    run: Any = FakeRun(cap)
    facts = method.prune(run, None)
    back = reshaped(vgg16_bn(width=16), run.kept).eval()
    assert fits(run, back)
    assert not fits(run, vgg16_bn(width=16))
    assert back(IMAGES).shape == (100, 10)
    assert facts["spent"] >= 0
    assert copy.deepcopy(back).train()(IMAGES).requires_grad
