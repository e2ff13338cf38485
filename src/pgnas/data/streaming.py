"""Examples that stay on disk and are decoded, by worker processes, when they are asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from pgnas.data.fetching import Broken, Fetch, Files, Wanted, fetched_in_order
from pgnas.data.inspection import shown
from pgnas.data.memory import fits_in_memory
from pgnas.data.pipelines import ResizedCrop
from pgnas.data.preprocessing import Preprocessing
from pgnas.data.splits import Examples, Pass, Split, Step
from pgnas.errors import DataError
from pgnas.seeds import derive_seed

_LOG = logging.getLogger(__name__)
_MEASURED = 1024  # examples that mean and standard deviation are taken from
_MEASURED_AT_ONCE = 32
_CONTENTS_HASHED = 64  # files of a split whose bytes enter its fingerprint
_KEPT_SHARE = 0.1  # of the available memory, for a split that is read often


@dataclass(frozen=True, eq=False)
class StreamedSplit(Examples):
    """Examples on disk; the interface is that of ``Split``.

    Attributes:
        files: What is on disk.
        examples: (N,) int64, which of the examples of ``files`` these are.
        labels: (N,) int64, in 0..number of classes - 1.
        often: Read so often that it is worth memory, as far as there is enough.
        known: The examples decoded, if they have been already.
    """

    files: Files
    examples: Tensor
    labels: Tensor
    often: bool = False
    known: Split | None = field(default=None, repr=False)
    _wider: dict[int, StreamedSplit] = field(default_factory=dict, init=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W), or (C, T, H, W) of clips."""
        pipeline, frames = self.files.pipeline, self.files.frames
        return (pipeline.channels, *(() if frames is None else (frames,)), pipeline.height, pipeline.width)

    def take(self, indices: Tensor) -> StreamedSplit:
        """The examples at ``indices``, (M,) int64; nothing is read."""
        return StreamedSplit(self.files, self.examples[indices], self.labels[indices])

    def read_often(self) -> StreamedSplit:
        """These examples, to be kept decoded once they have been read, if they fit in a tenth of the memory.

        With ``skip_broken`` they are read once here, and those that turn out to be broken are left out for good: who
        reads them often compares what networks answer to each of them.
        """
        if not self.files.skip_broken:
            return replace(self, often=True)
        plan = self._all()
        fetched = fetched_in_order(Fetch(self.files, None, plan.fill), _Wanted(self.examples, plan), None, pin=False)
        fits, kept, decoded = self._fits(), list[Tensor](), list[Tensor]()
        for step, (images, readable, broken) in zip(plan.steps, fetched, strict=True):
            self._judge(broken)
            kept.append(step.indices[readable])
            if fits:
                decoded.append(images)
        sound = torch.cat(kept)
        labels, files = self.labels[sound], replace(self.files, skip_broken=False)
        made = Split(torch.cat(decoded), labels) if fits else None
        return StreamedSplit(files, self.examples[sound], labels, often=True, known=made)

    def head(self, count: int) -> Tensor:
        """The first ``count`` examples as for evaluation, (count, C, [T,] H, W) uint8.

        Raises:
            DataError: One of them cannot be read.
        """
        return self._raw(self.examples[:count])

    def widened(self, channels: int) -> StreamedSplit:
        """Grey examples as ``channels`` equal channels."""
        if channels not in self._wider:
            pipeline = replace(self.files.pipeline, channels=channels)
            self._wider[channels] = replace(self, files=replace(self.files, pipeline=pipeline))
        return self._wider[channels]

    def measured(self) -> Preprocessing:
        """The shape, and mean and standard deviation as given or of up to 1,024 examples spread evenly."""
        channels, *size = self.shape
        if self.files.mean is not None and self.files.std is not None:
            return Preprocessing.for_size(channels, size, self.files.mean, self.files.std)
        spread = torch.linspace(0, len(self) - 1, min(len(self), _MEASURED), dtype=torch.float64).long()
        return Preprocessing.of_parts(map(self._raw, torch.split(self.examples[spread], _MEASURED_AT_ONCE)))

    def read(self, plan: Pass) -> Iterator[tuple[Tensor, Tensor]]:
        """The steps of ``plan``; the augmentation of an example depends on (seed, epoch, example) alone.

        Raises:
            DataError: The augmentation is not ``ResizedCrop``, or a file cannot be read.
            RunError: A worker process died.
        """
        augmentation = plan.augmentation
        if augmentation is not None and not isinstance(augmentation, ResizedCrop):
            rule, remedy = "must be ResizedCrop for examples that are read from disk", "use the data set's own"
            raise DataError("augmentation", rule, value=type(augmentation).__name__, remedy=remedy)
        if augmentation is None and self.often and self._decoded is not None:
            yield from self._decoded.read(plan)
            return
        wanted = _Wanted(self.examples, plan)
        fetched = fetched_in_order(Fetch(self.files, augmentation, plan.fill), wanted, plan.workers, pin=plan.pin)
        for step, (images, kept, broken) in zip(plan.steps, fetched, strict=True):
            self._judge(broken)
            labels = self.labels[step.indices[kept]]
            yield images, labels.pin_memory() if plan.pin else labels

    def hashed(self) -> Iterator[bytes]:
        """The shape, all labels, the names of all files, and the contents of some."""
        yield repr(("streamed", self.shape)).encode()
        yield self.labels.numpy().tobytes()
        examples = self.examples.tolist()
        for example in examples:
            paths = range(self.files.starts[example], self.files.starts[example + 1])
            yield b"\0".join(os.fsencode(self.files.paths[i]) for i in paths) + b"\0\0"
        for example in examples[:: max(1, len(examples) // _CONTENTS_HASHED)]:
            with open(self.files.chosen(example, None)[0], "rb") as file:
                yield file.read()

    @cached_property
    def _decoded(self) -> Split | None:
        if self.known is not None or not self._fits():
            return self.known
        parts = list(replace(self, often=False).read(self._all()))
        return Split(torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))

    def _fits(self) -> bool:
        return fits_in_memory((len(self), *self.shape), share=_KEPT_SHARE)

    def _all(self) -> Pass:
        steps = [Step(i, part, len(part)) for i, part in enumerate(torch.split(torch.arange(len(self)), 64))]
        return Pass(steps, None, 0, 0, 0, 1, torch.zeros(self.shape[0]), pin=False, workers=None)

    def _raw(self, examples: Tensor) -> Tensor:
        fetch = Fetch(self.files, None, torch.zeros(self.shape[0]))
        images, _, broken = fetch.__getitems__([Wanted(example, None) for example in examples.tolist()])
        self._judge(broken)
        return images

    def _judge(self, broken: list[Broken]) -> None:
        for path, reason in broken:
            if not self.files.skip_broken:
                remedy = "put a readable copy in its place and repeat the command, or begin with the option broken=skip"
                raise DataError(f"image {shown(path)}", "must be readable to its end", value=reason, remedy=remedy)
            _LOG.warning("image %s left out: %s", shown(path), reason)


@dataclass(frozen=True, eq=False)
class _Wanted:
    """The examples of each step of a pass, with their seeds, made when they are asked for."""

    examples: Tensor
    plan: Pass

    def __len__(self) -> int:
        return len(self.plan.steps)

    def __iter__(self) -> Iterator[list[Wanted]]:
        for step in self.plan.steps:
            yield [Wanted(example, self._seed(example)) for example in self.examples[step.indices].tolist()]

    def _seed(self, example: int) -> int | None:
        if self.plan.augmentation is None:
            return None
        return derive_seed(self.plan.seed, "augmentation", self.plan.epoch, "example", example)
