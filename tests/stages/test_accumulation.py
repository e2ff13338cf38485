"""A batch in parts gives the gradients of the whole batch, and a whole run works in bfloat16."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pgnas
from pgnas.bayes import PaperPrior
from pgnas.stages.engine import make_engine
from pgnas.stages.phases import PosteriorPhase, PosteriorSettings
from pgnas.stages.schedule import cosine_schedule


def gradients(parts, rows=7):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64, 3),
    ).double()  # fmt: skip
    x, y = torch.randn(rows, 2, 4, 4, dtype=torch.float64), torch.randint(3, (rows,))
    supernet = pgnas.supernet(network, x, "group", initial_drop=0.3).double()
    phase = PosteriorPhase(
        supernet,
        PosteriorSettings(PaperPrior(50.0), 1000.0, {"macs": 0.5}, 100),
        engine=replace(make_engine("cpu", "fp32"), accumulate=parts),
        schedule=cosine_schedule(0.05, 100),
        loss=F.cross_entropy,
    )
    torch.manual_seed(1)
    loss = phase.backward((x,), y, 30)
    return [loss.double(), *(p.grad for p in supernet.parameters())]


@pytest.mark.parametrize("parts", [2, 3, 7, 50])
def test_the_gradients_of_weights_and_logits_do_not_depend_on_the_parts(parts):
    for one, other in zip(gradients(1), gradients(parts), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-8)
        assert one.abs().sum() > 0


def test_a_whole_run_in_bfloat16_and_in_parts(tmp_path):
    result = pgnas.run(
        model="multibranch-resnet:width=4,stages=2", data="digits", out=tmp_path / "run", epochs=2, candidates=2,
        max_macs="60%", decide_at="50%", device="cpu", precision="bf16", accumulate=2,
    )  # fmt: skip
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert (tmp_path / "run" / "model.onnx").exists()
