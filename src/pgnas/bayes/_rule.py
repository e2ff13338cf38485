"""What a race asks of a rule: how long a stage is, and who stays for the next."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class View(NamedTuple):
    """What a rule sees at the end of a stage; rows belong to the arms alive.

    Attributes:
        arms: The arms alive, group by group and ascending in each, shape (S,).
        sums: Summed scores with this stage's, shape (S,).
        before: Summed scores without, shape (S,).
        block: What the rule kept of the stage's scores, shape (S, K).
        evidence: What the rule remembers of each arm, shape (S, E).
        everyone: The same of all arms, those that left included, shape (C, E).
        memory: What it remembers besides, shape (M,).
        learned: What the rule learned from the pilot, shape (L,).
        expected: What the pilot lets expect of the images seen, summed, shape (S,).
        weights: Sampling weights of all images in the order in which they are drawn (of the first group), shape (N,).
        start: Images seen before this stage.
        stop: Images seen now, < N.
        stage: Number of the stage, from 0.
    """

    arms: Tensor
    sums: Tensor
    before: Tensor
    block: Tensor
    evidence: Tensor
    everyone: Tensor
    memory: Tensor
    learned: Tensor
    expected: Tensor
    weights: Tensor
    start: int
    stop: int
    stage: int


class Verdict(NamedTuple):
    """What a rule decides: who stays (S,) bool, its memory, and the row of the winner if the race is decided."""

    stays: Tensor
    evidence: Tensor
    memory: Tensor
    winner: int | None = None


class Rule(Protocol):
    """How long a stage is, and who stays."""

    @property
    def pilot(self) -> int:
        """Arms scored on all images beforehand to find the images that tell arms apart; 0 for none."""

    @property
    def groups(self) -> int:
        """Arm i sees the images in the order of group i modulo this number; 1: all see the same images."""

    @property
    def floor(self) -> float:
        """Least sampling weight of an image, in units of the largest."""

    @property
    def error(self) -> float | None:
        """Probability that the statement of the result is wrong, at most; None if none can be stated."""

    @property
    def statement(self) -> str:
        """What is known about the winner."""

    @property
    def facts(self) -> int:
        """L: how many numbers `learn` gives."""

    def learn(self, pilot: Tensor, weights: Tensor) -> Tensor:
        """What is worth remembering (L,), float64, of the pilot's scores (P, N) and the images' weights (N,)."""

    def memory(self, arms: int) -> tuple[Tensor, Tensor]:
        """The evidence (C, E) and the memory (M,) to begin with."""

    def stop(self, stage: int, seen: int, images: int) -> int:
        """How many images have been seen at the end of this stage."""

    def keep(self, scores: Tensor) -> Tensor:
        """What the end of the stage needs of scores (A, B): shape (A, K)."""

    def total(self, block: Tensor) -> Tensor:
        """Summed scores (A,), float64, of what was kept."""

    def judge(self, view: View) -> Verdict:
        """Decide who stays."""
