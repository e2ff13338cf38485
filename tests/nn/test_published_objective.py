"""The objective of the published code, written out by hand on a small network, against ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pgnas
from pgnas.bayes import KLContext, PaperPrior, elbo

EPS = 1e-8  # in the logarithms of the published code
DATA_SIZE, BATCH = 5e5, 6
SOURCES = {"left": [4], "right": [4], "point": [3, 5], "head": [6]}  # gated layer to the channels of its sources


class Small(nn.Module):
    """Two branches concatenated, a separable convolution on both, a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left, self.right = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.depth(torch.cat([self.left(x), self.right(x)], 1))
        return self.head(self.point(x).relu().mean((2, 3)))


def published_loss(
    w: dict[str, Tensor], drop_logits: dict[str, Tensor], gumbel: dict[str, tuple[Tensor, Tensor]],
    x: Tensor, y: Tensor, *, length_scale_sq: float, temperature: float,
) -> Tensor:  # fmt: skip
    """Cross-entropy under relaxed gates plus l^2 / N sum (1 - p) w^2 plus 1 / N sum_k p log p + (1 - p) log(1 - p)."""
    kl = torch.zeros((), dtype=x.dtype)

    def gated(value: Tensor, layer: str) -> Tensor:
        nonlocal kl
        p = torch.sigmoid(torch.cat([g.expand(n) for g, n in zip(drop_logits[layer], SOURCES[layer], strict=True)]))
        u1, u2 = gumbel[layer]
        drop = torch.log(p + EPS) - torch.log(1 - p + EPS)
        drop = drop + torch.log(-torch.log(u1 + EPS) + EPS) - torch.log(-torch.log(u2 + EPS) + EPS)
        by_channel = [len(value), len(p)] + [1] * (value.ndim - 2)
        weight = w[f"{layer}.weight"].flatten(2) if value.ndim > 2 else w[f"{layer}.weight"][:, :, None]
        kl = kl + length_scale_sq * ((1 - p)[None, :, None] * weight**2).sum()
        kl = kl + (p * torch.log(p) + (1 - p) * torch.log(1 - p)).sum()
        return value * (1 - torch.sigmoid(drop / temperature)).reshape(by_channel)

    x = F.conv2d(x, w["stem.weight"], w["stem.bias"], padding=1).relu()
    left = F.conv2d(gated(x, "left"), w["left.weight"], w["left.bias"], padding=1)
    right = F.conv2d(gated(x, "right"), w["right.weight"], w["right.bias"])
    x = F.conv2d(torch.cat([left, right], 1), w["depth.weight"], w["depth.bias"], padding=1, groups=8)
    x = F.conv2d(gated(x, "point"), w["point.weight"], w["point.bias"]).relu().mean((2, 3))
    logits = F.linear(gated(x, "head"), w["head.weight"], w["head.bias"])
    cross_entropy = (logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]).mean()
    return cross_entropy + kl / DATA_SIZE


@pytest.mark.parametrize(("length_scale_sq", "temperature"), [(50.0, 0.2), (0.1, 2 / 3), (2e5, 0.2)])
def test_ours_is_the_published_objective(length_scale_sq: float, temperature: float) -> None:
    """Value and gradients, with the same weights, rates and noise; c = l^2, the whole binary entropy."""
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 3, 5, 5, generator=rng).double(), torch.randint(4, (BATCH,), generator=rng)
    gated = pgnas.supernet(Small().double(), x, "group", temperature=temperature).double()
    assert {g.name: [s.stop - s.start for s in g.groups] for g in gated.gates.specs} == SOURCES

    drops = torch.randn(len(gated.gates.group_logits), generator=rng).double().requires_grad_()
    with torch.no_grad():
        gated.gates.group_logits.copy_(-drops)
    uniforms = torch.rand(2, BATCH, gated.gates.units, generator=rng, dtype=torch.float64)
    parts = [gated.gates.split(u) for u in uniforms]
    weights = {name: p.detach().clone().requires_grad_() for name, p in gated.body.named_parameters()}
    expected = published_loss(
        weights,
        dict(zip(SOURCES, torch.split(drops, [len(s) for s in SOURCES.values()]), strict=True)),
        {layer: (parts[0][layer], parts[1][layer]) for layer in SOURCES},
        x, y, length_scale_sq=length_scale_sq, temperature=temperature,
    )  # fmt: skip
    expected.backward()

    # The difference of two Gumbels is the logistic noise of one uniform u = log u2 / (log u1 + log u2).
    first, second = -uniforms[0].log(), -uniforms[1].log()
    nll = F.cross_entropy(gated(x, noise=second / (first + second)), y)
    context = KLContext(gated.gates.logits(), DATA_SIZE, weight_sq=gated.weight_sq())
    found = elbo(nll, PaperPrior(length_scale_sq).kl(context), DATA_SIZE).loss
    found.backward()

    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(
        -gated.gates.group_logits.grad, drops.grad, rtol=1e-5, atol=1e-6 * float(drops.grad.abs().max())
    )
    for name, parameter in gated.body.named_parameters():
        scale = float(weights[name].grad.abs().max())
        assert torch.allclose(parameter.grad, weights[name].grad, rtol=1e-5, atol=1e-6 * scale), name
