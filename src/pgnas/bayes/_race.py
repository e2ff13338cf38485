"""A race as a pure state machine: what to score next, what is known so far, and the outcome.

The arms are the candidates 0 .. C - 1, the images 0 .. N - 1 are held out, and the score of an arm on an image lies in
[0, 1] (1 if it is classified correctly). All arms of a group see the same images, in an order of its own; most rules
have one group. A `Rule` decides how long a stage is and who stays for the next; the race does the rest, so that rules
are short.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pgnas.bayes._image_order import exponential_clocks, image_order, image_weights
from pgnas.bayes._rule import Rule, Verdict, View
from pgnas.errors import InputError

PILOT, RACING, FINISHING, OVER = range(4)

_STILL_IN = torch.iinfo(torch.int64).max


@dataclass(frozen=True, eq=False)
class Request:
    """Scores that the race wants next: of every arm on every image, in this order.

    Attributes:
        arms: Arms, shape (A,), int64.
        images: Images, shape (B,), int64.
    """

    arms: Tensor
    images: Tensor

    def shard(self, rank: int, world: int) -> Request:
        """The part of process ``rank`` out of ``world``; rows concatenated in rank order answer the whole request."""
        return Request(torch.tensor_split(self.arms, world)[rank], self.images)


@dataclass(frozen=True, eq=False)
class Standing:
    """All that a race knows, as plain tensors.

    Attributes:
        clocks: Exponential clocks that give the images each group's random order, shape (G, N), float64.
        weights: Sampling weight of each image, shape (N,), float64.
        expected: What the pilot lets expect of an arm on each image, shape (N,), float64; 0 without a pilot.
        learned: What the rule learned from the pilot, shape (L,), float64.
        alive: Arms still in, group by group and ascending in each, shape (S,), int64.
        sums: Summed scores of each arm, shape (C,), float64.
        counts: Images that each arm has seen, shape (C,), int64.
        left: Stage after which an arm left, shape (C,), int64.
        evidence: What the rule remembers of each arm, shape (C, E), float64.
        memory: What the rule remembers besides, shape (M,), int64 or float64.
        pilot: Mean score of the pilot's arms on all images, shape (P,), float64; NaN before it is known.
        block: What the rule keeps of the rows observed in this stage, shape (F, K).
        position: (phase, stage, images seen by those alive, arm-images spent), shape (4,), int64.
    """

    clocks: Tensor
    weights: Tensor
    expected: Tensor
    learned: Tensor
    alive: Tensor
    sums: Tensor
    counts: Tensor
    left: Tensor
    evidence: Tensor
    memory: Tensor
    pilot: Tensor
    block: Tensor
    position: Tensor


@dataclass(frozen=True, eq=False)
class RaceResult:
    """The outcome.

    Attributes:
        winner: The arm chosen; it has seen all images, and is the lowest arm among equals.
        order: All arms, best first, shape (C,): who stayed longer comes first, among those the higher mean (where they
            saw different images, a rough order).
        means: Mean score of each arm on the images it has seen, shape (C,). Of arms that have not seen all, compare
            only those with equal counts; with a pilot, the first images are the hard ones, and other ones for each
            group of arms.
        counts: Images that each arm has seen in the race, shape (C,).
        pilot: Mean scores of arms 0 .. P - 1 on all images, shape (P,): an unselected sample.
        passes: Arm-images scored, the pilot's included.
        share: The same in units of C x N, the exhaustive count.
        error: Probability, at most, that ``statement`` is wrong; None if none can be stated.
        statement: What is known about the winner.
    """

    winner: int
    order: Tensor
    means: Tensor
    counts: Tensor
    pilot: Tensor
    passes: int
    share: float
    error: float | None
    statement: str


@dataclass(frozen=True, eq=False)
class Race:
    """One race; observing returns a new one.

        while (request := race.request()) is not None:
            race = race.observe(score(request.arms, request.images))
        race.result().winner

    Attributes:
        rule: How long a stage is, and who stays.
        standing: All that is known.
    """

    rule: Rule
    standing: Standing

    @classmethod
    def begin(cls, rule: Rule, arms: int, images: int, generator: torch.Generator) -> Race:
        """A race in which nothing is known yet.

        Raises:
            InputError: If there is no arm or no image.
        """
        for name, value in (("arms", arms), ("images", images)):
            if value < 1:
                raise InputError(f"racing {name}", "must be >= 1", value=value, remedy="give one or more")
        evidence, memory = rule.memory(arms)
        phase = FINISHING if arms == 1 else PILOT if rule.pilot else RACING
        standing = Standing(
            clocks=torch.stack([exponential_clocks(images, generator) for _ in range(rule.groups)]),
            weights=torch.ones(images, dtype=torch.float64),
            expected=torch.zeros(images, dtype=torch.float64),
            learned=torch.empty(0, dtype=torch.float64),
            alive=torch.argsort(torch.arange(arms) % rule.groups, stable=True),
            sums=torch.zeros(arms, dtype=torch.float64),
            counts=torch.zeros(arms, dtype=torch.int64),
            left=torch.full((arms,), _STILL_IN),
            evidence=evidence,
            memory=memory,
            pilot=torch.full((rule.pilot,), torch.nan, dtype=torch.float64),
            block=torch.empty(0, 0),
            position=torch.tensor([phase, 0, 0, 0]),
        )
        return cls(rule, standing)

    @property
    def phase(self) -> int:
        """PILOT, RACING, FINISHING (the winner sees the images that are left) or OVER."""
        return int(self.standing.position[0])

    def order(self, group: int = 0) -> Tensor:
        """The images (N,) in the order in which they are drawn for a group."""
        return image_order(self.standing.clocks[group], self.standing.weights)

    def request(self, limit: int | None = None) -> Request | None:
        """The scores wanted next, of at most ``limit`` arms; None when the race is over."""
        if self.phase == OVER:
            return None
        arms, group = self._next()
        _, start, stop = self._stage()
        return Request(arms[:limit], self.order(group)[start:stop])

    def observe(self, scores: Tensor) -> Race:
        """The race that also knows ``scores`` (A, B): the answer to the request, or to its first A arms.

        Raises:
            InputError: If the scores do not fit the request or leave [0, 1], or the race is over.
        """
        now = self.standing
        if self.phase == OVER:
            raise InputError("racing", "is over", remedy="read result(), begin another race")
        arms, start, stop = self._stage()
        _check_scores(scores, len(self._next()[0]), stop - start)
        scores = scores.detach().cpu().to(torch.float32)
        kept = scores if self.phase == PILOT else self.rule.keep(scores)
        block = torch.cat([now.block, kept]) if len(now.block) else kept
        spent = now.position + torch.tensor([0, 0, 0, scores.numel()])
        after = Race(self.rule, dataclasses.replace(now, block=block, position=spent))
        return after._close(stop) if len(block) == len(arms) else after

    def state(self) -> dict[str, Tensor]:
        """All that is known, as plain tensors: `resume` goes on from it, within a stage too."""
        return {field.name: getattr(self.standing, field.name).clone() for field in dataclasses.fields(Standing)}

    def resume(self, state: Mapping[str, Tensor]) -> Race:
        """The race of these settings that stands where ``state`` was taken.

        Raises:
            InputError: If the state is of a race with another number of arms or images, or of another rule.
        """
        mine = self.state()
        fixed = set(mine) - {"alive", "block", "learned"}
        learned = state["learned"].shape[0] if "learned" in state else 0
        if (
            set(state) != set(mine)
            or any(state[name].shape != mine[name].shape for name in fixed)
            or (self.rule.pilot and int(state["position"][0]) != PILOT and learned != self.rule.facts)
        ):
            raise InputError(
                "racing state", "must be of a race of the same settings", remedy="remove it and begin the race again"
            )
        return Race(self.rule, Standing(**{name: value.clone() for name, value in state.items()}))

    def result(self) -> RaceResult:
        """The outcome.

        Raises:
            InputError: If the race is not over.
        """
        now = self.standing
        if self.phase != OVER:
            raise InputError("racing", "is not over", remedy="observe scores until request() is None")
        means = now.sums / now.counts.clamp(min=1)
        order = torch.argsort(means, descending=True, stable=True)
        order = order[torch.argsort(now.left[order], descending=True, stable=True)]
        passes = int(now.position[3])
        return RaceResult(
            winner=int(order[0]),
            order=order,
            means=means,
            counts=now.counts,
            pilot=now.pilot,
            passes=passes,
            share=passes / (now.sums.numel() * now.weights.numel()),
            error=self.rule.error,
            statement=self.rule.statement,
        )

    def _stage(self) -> tuple[Tensor, int, int]:
        """Arms of this stage and its range of the images in order."""
        now, images = self.standing, self.standing.weights.numel()
        stage, seen = int(now.position[1]), int(now.position[2])
        if self.phase == PILOT:
            return torch.arange(self.rule.pilot), 0, images
        return now.alive, seen, self.rule.stop(stage, seen, images) if self.phase == RACING else images

    def _next(self) -> tuple[Tensor, int]:
        """The arms of the stage that are yet to be observed and see the same images, and their group."""
        left = self._stage()[0][len(self.standing.block) :]
        groups = self._groups(left)
        return left[groups == groups[0]], int(groups[0])

    def _groups(self, arms: Tensor) -> Tensor:
        """The group of each arm; of the pilot's, which see everything, the first."""
        return torch.zeros_like(arms) if self.phase == PILOT else arms % self.rule.groups

    def _expected(self, stop: int) -> Tensor:
        """What the pilot lets expect of each arm alive on its first images, summed, (S,)."""
        groups = self._groups(self.standing.alive)
        sums = torch.zeros(self.rule.groups, dtype=torch.float64)
        for group in set(groups.tolist()):
            sums[group] = self.standing.expected[self.order(group)[:stop]].sum()
        return sums[groups]

    def _close(self, stop: int) -> Race:
        """Every arm of the stage has been observed."""
        now = self.standing
        phase, stage, seen, spent = now.position.tolist()
        if phase == PILOT:
            scores = torch.empty_like(now.block).index_copy(1, self.order(), now.block)
            weights = image_weights(scores, self.rule.floor)
            return self._at(
                weights=weights,
                expected=scores.double().mean(0),
                learned=self.rule.learn(scores, weights),
                pilot=scores.double().mean(1),
                position=torch.tensor([RACING, 0, 0, spent]),
                block=torch.empty(0, 0),
            )
        before = now.sums[now.alive]
        sums = before + self.rule.total(now.block)
        known = self._at(
            sums=now.sums.index_copy(0, now.alive, sums),
            counts=now.counts.index_fill(0, now.alive, stop),
            block=torch.empty(0, 0),
        )
        if stop == now.weights.numel():
            return known._at(position=torch.tensor([OVER, stage, stop, spent]))
        view = View(
            arms=now.alive,
            sums=sums,
            before=before,
            block=now.block,
            evidence=now.evidence[now.alive],
            everyone=now.evidence,
            memory=now.memory,
            learned=now.learned,
            expected=self._expected(stop),
            weights=now.weights[self.order()],
            start=seen,
            stop=stop,
            stage=stage,
        )
        return known._after(self.rule.judge(view), torch.tensor([RACING, stage + 1, stop, spent]))

    def _after(self, verdict: Verdict, position: Tensor) -> Race:
        now, stage = self.standing, int(position[1])
        alive = now.alive[verdict.stays]
        left = now.left.index_fill(0, now.alive[~verdict.stays], stage)
        if verdict.winner is not None:
            winner = now.alive[verdict.winner : verdict.winner + 1]
            left = left.index_fill(0, alive[alive != winner], stage + 1)
            alive = winner
        if len(alive) == 1:
            position = position.index_fill(0, torch.tensor([0]), FINISHING)
        evidence = now.evidence.index_copy(0, now.alive, verdict.evidence)
        return self._at(alive=alive, left=left, evidence=evidence, memory=verdict.memory, position=position)

    def _at(self, **changes: Tensor) -> Race:
        return Race(self.rule, dataclasses.replace(self.standing, **changes))


def _check_scores(scores: Tensor, arms: int, images: int) -> None:
    shape = tuple(scores.shape)
    if len(shape) != 2 or not 1 <= shape[0] <= arms or shape[1] != images:
        rule = f"must have shape (1..{arms}, {images})"
        raise InputError("racing scores", rule, value=shape, remedy="answer request()")
    if not bool(((scores >= 0) & (scores <= 1)).all()):
        raise InputError(
            "racing scores", "must lie in [0, 1]", remedy="give 1 for a correct answer and 0 for a wrong one"
        )
