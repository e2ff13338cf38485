"""A prior of your own: all gates share one keep rate, which is learned, with a Beta hyperprior.

The Bernoulli prior fixes the drop rate u. Here the keep rate theta of all gates has a Beta(a, b) density and is set to
what suits the posterior. For fixed pi the sum of KL(pi_k || theta) is least at theta = mean(pi), where it is

    K * H(mean(pi)) - sum_k H(pi_k) >= 0,

zero only where all gates agree. The density of theta then says how large the network should be.

Run it: python examples/prior.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import pgnas
from pgnas.bayes import KLContext, Prior, bernoulli_kl


@dataclass(frozen=True)
class SharedRatePrior(Prior):
    """Gates that share a keep rate theta ~ Beta(a, b).

    Attributes:
        a: Pseudo-count of kept channels, > 1.
        b: Pseudo-count of dropped channels, > 1; large against ``a`` means small networks.
    """

    a: float
    b: float

    name: ClassVar[str] = "shared-rate"
    summary: ClassVar[str] = "all gates share a keep rate with a Beta density"

    def kl(self, context: KLContext) -> Tensor:
        """In nats, summed over channels, not divided by N."""
        theta = torch.sigmoid(context.logits).mean()
        gates = bernoulli_kl(context.logits, torch.logit(theta)).sum()
        log_density = (self.a - 1) * theta.log() + (self.b - 1) * (1 - theta).log()  # up to a constant
        return gates - log_density


def loaders() -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """The handwritten digits, normalised: for training, and for ranking candidates."""
    data = pgnas.load_data("digits")
    splits = [TensorDataset(data.preprocessing.normalise(s.images), s.labels) for s in (data.train, data.select)]
    return DataLoader(splits[0], batch_size=128, shuffle=True), DataLoader(splits[1], batch_size=128)


def main() -> None:
    """The prior's KL is 0 where all gates agree; and a search under it."""
    agree = KLContext(logits=torch.full((50,), 1.5), data_size=1.0)
    assert abs(SharedRatePrior(a=1.0, b=1.0).kl(agree)) < 1e-4

    torch.manual_seed(0)
    train, held_out = loaders()
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(512, 10),
    )  # fmt: skip
    supernet = pgnas.supernet(model, next(iter(train))[0][:2])
    prior = SharedRatePrior(a=40.0, b=60.0)
    result = pgnas.search(supernet, train, held_out, prior=prior, max_macs="50%", epochs=4, candidates=8)
    print(f"accuracy {result.score.metric:.3f} on the images that chose it, with {result.counts} of {result.full}")


if __name__ == "__main__":
    main()
