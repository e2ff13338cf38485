"""What a front is asked for."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pgnas.amounts import Amount
from pgnas.config import PEAK_LR, OptimizerName
from pgnas.errors import ConfigError

DESCENT_SHARE = 0.5
"""Share of a point's epochs in which its posterior is searched on."""
JOINT_SEARCH_SHARE = 1 / 3
"""The same where the points are trained together."""
LR, JOINT_LR = 0.03, 0.1
"""Learning rate at the beginning; where the points are trained together it has longer to fall."""
Cost = Literal["macs", "params"]
Start = Literal["larger", "larger-search", "search", "joint"]


@dataclass(frozen=True, kw_only=True)
class FrontSettings:
    """Which networks are wanted.

    Attributes:
        caps: Their caps, each a share of the full network's cost (``"40%"``) or a count (``"2M"``).
        points: Instead of ``caps``: so many, evenly spaced between nothing and the full network.
        epochs: What each network may cost after the search, in epochs of the full network, multiply-adds x examples:
            small networks are trained for more epochs. Ranking the candidates of a re-targeted posterior comes on top.
            0: the posterior is re-targeted and nothing is trained.
        lr: Learning rate at the beginning of these, from where it falls to 0; ``None``: 0.03, or 0.1 with "joint", and
            a hundredth of that with AdamW.
        cost: What is capped: multiply-adds or parameters.
        start: What each begins with: the next larger network, trained (the first: that of the run), the search of the
            next larger one (the first: of the run), or always the run's search; or, "joint", the search of the next
            larger one, and then training of all of them together with shared weights.
    """

    caps: tuple[str, ...] = ()
    points: int | None = None
    epochs: int = 2
    lr: float | None = None
    cost: Cost = "macs"
    start: Start = "larger"

    def __post_init__(self) -> None:
        if bool(self.caps) == (self.points is not None):
            value = "both" if self.caps else "neither"
            raise ConfigError("--caps", "or --points must be given", value=value, remedy="give one, as --caps 20%,40%")
        for flag, least, count in (("--points", 1, self.points), ("--epochs", 0, self.epochs)):
            if count is not None and not least <= count <= 1_000:
                rule = f"must lie between {least} and 1000"
                raise ConfigError(flag, rule, value=count, remedy="choose a number inside")
        if self.lr is not None and not 0 < self.lr <= 100:
            raise ConfigError("--lr", "must lie in (0, 100]", value=self.lr, remedy="choose a value inside")
        if self.cost not in ("macs", "params"):
            raise ConfigError("--cost", "must be one of macs, params", value=repr(self.cost), remedy="choose one")
        if self.start not in get_args(Start):
            rule = f"must be one of {', '.join(get_args(Start))}"
            raise ConfigError("--start", rule, value=repr(self.start), remedy="choose one")
        if self.is_joint and self.epochs == 0:
            remedy = "give some, or another --start"
            raise ConfigError("--start joint", "needs epochs to train in", value="--epochs 0", remedy=remedy)
        for cap in self.caps:
            Amount.parse(cap, subject="--caps")

    @property
    def wanted(self) -> tuple[str, ...]:
        """The caps as text."""
        if self.points is None:
            return tuple(dict.fromkeys(cap.strip() for cap in self.caps))
        return tuple(f"{100 * k / (self.points + 1):.4g}%" for k in range(1, self.points + 1))

    def first_lr(self, optimizer: OptimizerName) -> float:
        """``lr``, or its default for the optimiser of the run."""
        known = JOINT_LR if self.is_joint else LR
        return known * (PEAK_LR[optimizer] / PEAK_LR["sgd"]) if self.lr is None else self.lr

    @property
    def search_share(self) -> float:
        """Share of a point's epochs in which its posterior is searched on."""
        return JOINT_SEARCH_SHARE if self.is_joint else DESCENT_SHARE

    @property
    def is_joint(self) -> bool:
        """Whether the points are trained together."""
        return self.start == "joint"

    def command(self, path: Path) -> str:
        """The command that makes this front of the run in a folder."""
        words = ["pgnas", "front", str(path), "--caps", ",".join(self.wanted), "--epochs", str(self.epochs)]
        words += [] if self.lr is None else ["--lr", str(self.lr)]
        return shlex.join([*words, "--cost", self.cost, "--start", self.start])
