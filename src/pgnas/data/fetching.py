"""Decoding of batches in worker processes, in an order and with a randomness that do not depend on them."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pgnas.data.inspection import quiet_pillow
from pgnas.data.packed import PackedPaths
from pgnas.data.pipelines import Pipeline, Pixels, ResizedCrop, UnreadableError
from pgnas.errors import DataError, RunError
from pgnas.launch import processes_here
from pgnas.seeds import derive_seed

WORKERS = "PGNAS_WORKERS"
"""Environment variable: processes that decode, of each training process; 0: none but that."""
_MOST_WORKERS = 8
Broken = tuple[str, str]  # a path and, in a few words, why it cannot be read


@dataclass(frozen=True, eq=False)
class Files:
    """The files behind a data set, shared by its splits.

    Attributes:
        root: The folder that the paths are relative to.
        paths: Of all files, those of an example next to each other.
        starts: (M + 1,) int64: the files of example i are ``starts[i]`` to ``starts[i + 1]``, without the last.
        frames: T, frames taken of each clip; ``None``: an example is one image.
        pipeline: What happens to an image.
        skip_broken: Leave out what turns out to be broken, and log it, rather than stop.
        mean: Of each channel, in 0..1; ``None``: to be measured.
        std: Likewise.
    """

    root: str
    paths: PackedPaths
    starts: np.ndarray[Any, np.dtype[np.int64]]
    frames: int | None
    pipeline: Pipeline
    skip_broken: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def chosen(self, example: int, generator: torch.Generator | None) -> list[str]:
        """The files to decode: one image, or a frame of each of T equal segments of a clip.

        Args:
            example: Position of the example.
            generator: Draws the frame within its segment; ``None``: the middle (Wang et al., TSN, 2016).
        """
        start, count = int(self.starts[example]), int(self.starts[example + 1] - self.starts[example])
        if self.frames is None:
            return [self.path(start)]
        within = torch.full((self.frames,), 0.5, dtype=torch.float64)
        if generator is not None:
            within = torch.rand(self.frames, generator=generator, dtype=torch.float64)
        position = ((torch.arange(self.frames) + within) * count / self.frames).long().clamp_max(count - 1)
        return [self.path(start + i) for i in position.tolist()]

    def path(self, i: int) -> str:
        """Of file i, with the root."""
        return os.path.join(self.root, self.paths[i])


class Wanted(NamedTuple):
    """One example of a batch: its position among all, and the seed of its augmentation (``None``: none)."""

    example: int
    seed: int | None


class Fetched(NamedTuple):
    """A decoded batch.

    Attributes:
        images: (n, C, [T,] H, W) uint8, channels last in memory.
        kept: Which of the wanted examples these are: all that are not broken.
        broken: Those that are.
    """

    images: Tensor
    kept: list[int]
    broken: list[Broken]


class WantedBatches(Protocol):
    """The examples of each batch; may be made one after another."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[Wanted]]: ...


class Fetch(Dataset[Fetched]):
    """Decodes batches, in a worker process or in this one.

    Args:
        files: What is on disk.
        augmentation: For examples that have a seed.
        fill: (C,) values of a hole, in 0..255.
    """

    def __init__(self, files: Files, augmentation: ResizedCrop | None, fill: Tensor) -> None:
        self._files, self._augmentation, self._fill = files, augmentation, fill

    def __getitems__(self, wanted: list[Wanted]) -> Fetched:
        """The batch of the examples wanted; torch's DataLoader calls this, too."""
        files = self._files
        kept: list[int] = []
        broken: list[Broken] = []
        shape = (files.frames or 1, files.pipeline.height, files.pipeline.width, files.pipeline.channels)
        pixels = np.empty((len(wanted), *shape), dtype=np.uint8)
        with quiet_pillow():
            for position, one in enumerate(wanted):
                try:
                    pixels[len(kept)] = self._decoded(one)
                    kept.append(position)
                except UnreadableError as error:
                    broken.append((error.path, error.reason))
        images = torch.from_numpy(pixels[: len(kept)]).permute(0, 4, 1, 2, 3)
        return Fetched(images.squeeze(2) if files.frames is None else images, kept, broken)

    def _decoded(self, wanted: Wanted) -> Pixels:
        files, augmentation, seed = self._files, self._augmentation, wanted.seed
        if augmentation is None or seed is None:
            return files.pipeline.evaluation(files.chosen(wanted.example, None))
        generator = torch.Generator().manual_seed(derive_seed(seed, "frames"))
        return files.pipeline.training(files.chosen(wanted.example, generator), augmentation, seed, self._fill)


def fetched_in_order(fetch: Fetch, wanted: WantedBatches, workers: int | None, *, pin: bool) -> Iterator[Fetched]:
    """What ``fetch`` makes of each batch, in order, decoded ahead by worker processes: two batches each.

    Raises:
        RunError: A worker process died.
    """
    count = min(default_workers() if workers is None else workers, len(wanted))
    if count == 0:
        for batch in wanted:
            images, kept, broken = fetch.__getitems__(batch)
            yield Fetched(images.pin_memory() if pin else images, kept, broken)
        return
    with _quiet_start():
        iterator = iter(
            DataLoader(
                fetch,
                batch_sampler=wanted,
                num_workers=count,
                collate_fn=_as_it_is,
                worker_init_fn=_ignore_ctrl_c,
                pin_memory=pin,
                generator=torch.Generator(),  # else it would draw from the global one
            )
        )
    while True:
        try:
            yield next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            remedy = f"free memory, enlarge /dev/shm, or set {WORKERS} to a smaller number (0: no such process)"
            raise RunError("processes that decode images", "must stay alive", value=error, remedy=remedy) from error


def default_workers() -> int:
    """``$PGNAS_WORKERS``, by default this process's share of the processors, 1 to 8.

    Raises:
        DataError: The variable is not a whole number in 0..256.
    """
    text = os.environ.get(WORKERS)
    if text is None:
        return max(1, min(_MOST_WORKERS, _processors() // processes_here()))
    if not text.isdecimal() or int(text) > 256:
        remedy = "unset it or choose a number inside"
        raise DataError(f"environment variable {WORKERS}", "must lie in 0..256", value=repr(text), remedy=remedy)
    return int(text)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ignore_ctrl_c(number: int) -> None:
    """A terminal's Ctrl-C reaches workers, too; the process that they work for lets them finish the step at hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(fetched: Any) -> Any:
    return fetched


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Without two warnings: of more processes than processors, and of fork in a program that has threads.

    The number is the user's. The children run Pillow and numpy on one thread and touch no lock of the parent's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        yield
