"""Pure data movement (reshapes, transpositions) followed axis by axis, channels included.

A reshape is written in *atoms*: pieces of axes that are split, moved and merged whole, as einops does. ShuffleNet's
channel shuffle is ``b (g c) h w -> b g c h w -> b c g h w -> b (c g) h w``. A movement always leads from a *root*, the
last value whose channels lay on one axis of their own, so that the steps between, where they lie on several, are
never built: what is left of a shuffle is one selection of channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Atom:
    """A piece of an axis.

    Attributes:
        size: Its size on the example inputs.
        is_batch: Whether it grows with the batch.
    """

    size: int
    is_batch: bool = False


Axes = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class Movement:
    """How a value's axes stem from those of its root.

    Attributes:
        root: Name of the value that is moved.
        axis: The root's channel axis.
        before: The root's axes; of its channels those that are moved.
        after: The axes now, made of the same atoms.
        taken: The root's channels that are moved; None: all.
    """

    root: str
    axis: int
    before: Axes
    after: Axes
    taken: Tensor | None = None

    @classmethod
    def start(cls, root: str, axis: int, shape: Sequence[int], *, is_batched: bool) -> Movement:
        """Nothing moved yet."""
        axes = tuple((Atom(size, is_batch=is_batched and index == 0),) for index, size in enumerate(shape))
        return cls(root, axis, axes, axes)

    def permuted(self, order: Sequence[int]) -> Movement:
        """The axes in another order."""
        return replace(self, after=tuple(self.after[index] for index in order))

    def picked(self, axis: int, position: int) -> Movement | None:
        """One position of an axis; None if that is not one of equal parts of the channels."""
        own, atom = self.channel_atoms, self.after[axis]
        if len(atom) != 1 or atom[0] not in own or len(own) == 1:
            return None
        place = own.index(atom[0])
        inner = math.prod(a.size for a in own[place + 1 :])
        channels = torch.arange(math.prod(a.size for a in own))
        taken = channels[channels // inner % atom[0].size == position]
        left = tuple(a for a in own if a is not atom[0])
        before = tuple(left if index == self.axis else a for index, a in enumerate(self.before))
        after = tuple(a for index, a in enumerate(self.after) if index != axis)
        return replace(self, before=before, after=after, taken=taken if self.taken is None else self.taken[taken])

    def reshaped(self, shape: Sequence[int]) -> Movement | None:
        """The same numbers in row-major order in another shape; None if an axis would end within an atom."""
        waiting = [atom for axis in self.after for atom in axis]
        split: dict[Atom, tuple[Atom, Atom]] = {}
        axes: list[tuple[Atom, ...]] = []
        for position, size in enumerate(shape):
            taken: list[Atom] = []
            rest = size
            if size == 1 and waiting and waiting[0].size == 1:
                taken.append(waiting.pop(0))
            while rest > 1:
                if not waiting:
                    return None
                atom = waiting.pop(0)
                if atom.size > rest:
                    if atom.size % rest:
                        return None
                    parts = Atom(rest, atom.is_batch), Atom(atom.size // rest)
                    split[atom] = parts
                    waiting.insert(0, parts[1])
                    atom = parts[0]
                if rest % atom.size:
                    return None
                rest //= atom.size
                taken.append(atom)
            if position == len(shape) - 1:
                taken += waiting  # of size 1
                waiting = []
            axes.append(tuple(taken))
        before = tuple(tuple(_parts(axis, split)) for axis in self.before)
        return None if waiting else replace(self, before=before, after=tuple(axes))

    @property
    def channel_atoms(self) -> tuple[Atom, ...]:
        """The pieces of the root's channel axis."""
        return self.before[self.axis]

    @property
    def channel_axes(self) -> list[int]:
        """The axes where channels now lie, that with most of them first."""
        sizes = {
            index: math.prod(atom.size for atom in axis if atom in self.channel_atoms)
            for index, axis in enumerate(self.after)
            if any(atom in self.channel_atoms for atom in axis)
        }
        return sorted(sizes, key=lambda index: -sizes[index])

    @property
    def keeps_channels_apart(self) -> bool:
        """Whether the channels lie on one axis, alone and in the root's order."""
        return self.channel_atoms in self.after

    def pairs(self, axis: int) -> tuple[Tensor, Tensor]:
        """Which positions of ``axis`` hold numbers of which moved channels, ascending: (positions, channels)."""
        atoms = list(self.channel_atoms) + [atom for atom in self.after[axis] if atom not in self.channel_atoms]
        sizes = [atom.size for atom in atoms]
        place = dict(zip(atoms, torch.meshgrid(*map(torch.arange, sizes), indexing="ij"), strict=True))

        def number(pieces: Sequence[Atom]) -> Tensor:
            total = torch.zeros(sizes, dtype=torch.long)
            for atom in pieces:
                total = total * atom.size + place[atom]
            return total.flatten()

        positions, channels = number(self.after[axis]), number(self.channel_atoms)
        order = (positions * (int(channels.max()) + 1) + channels).argsort()
        return positions[order], channels[order]

    def merged(self, axis: int, kept: int) -> Movement | None:
        """This movement of a root that has ``kept`` of the channels that lie on ``axis``, and all moved others.

        None if these channels are not one run of the axis, or not one of the root's unless they are all: then no
        reshape of what is left does it.
        """
        own = [atom for atom in self.after[axis] if atom in self.channel_atoms]
        unit = Atom(kept)
        after = tuple(_replace_run(index_axis, own, unit) for index_axis in self.after)
        if len(own) == len(self.channel_atoms):  # the root's channels are selected in the order they have now
            before = tuple((unit,) if index == self.axis else a for index, a in enumerate(self.before))
        else:
            before = tuple(_replace_run(a, own, unit) for a in self.before)
        if any(atom in own for a in (*after, *before) for atom in a):
            return None
        return replace(self, before=before, after=after)

    def fused(self) -> Movement:
        """With pieces that stay together as one."""
        for axis in self.before:
            for first, second in pairwise(axis):
                pair = [first, second]
                if any(_find_run(now, pair) is not None for now in self.after):
                    one = Atom(first.size * second.size, first.is_batch)
                    before = tuple(_replace_run(a, pair, one) for a in self.before)
                    after = tuple(_replace_run(a, pair, one) for a in self.after)
                    return replace(self, before=before, after=after).fused()
        return self


def _parts(axis: Sequence[Atom], split: dict[Atom, tuple[Atom, Atom]]) -> Iterator[Atom]:
    for atom in axis:
        if atom in split:
            yield from _parts(split[atom], split)
        else:
            yield atom


def _find_run(axis: Sequence[Atom], run: Sequence[Atom]) -> int | None:
    starts = range(len(axis) - len(run) + 1)
    return next((i for i in starts if all(a is b for a, b in zip(axis[i:], run, strict=False))), None)


def _replace_run(axis: tuple[Atom, ...], run: Sequence[Atom], by: Atom) -> tuple[Atom, ...]:
    start = _find_run(axis, run)
    return axis if start is None else (*axis[:start], by, *axis[start + len(run) :])
