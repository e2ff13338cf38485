"""The processes of a run: what they tell each other, and how the failure of one becomes the failure of all.

Messages are JSON and tensors, never pickles. Everything here is done by all processes in the same order, except inside
``together``, ``from_first`` and ``alone``, where each works by itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pgnas import errors
from pgnas.errors import PgnasError, RunError, first_line
from pgnas.launch import launched

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others. What only the first does (exporting, timing) must take less."""
BUCKET_BYTES = 32 * 2**20
"""Tensors are averaged in pieces of about this size: large enough for the network, small beside the gradients."""


class Processes:
    """This process among those of a run.

    Args:
        rank: Its number, 0 for the first.
        world_size: How many there are.
        group: For messages in the CPU's memory; None: the default group, which must take them.

    Attributes:
        rank: As above.
        world_size: As above.
        communicates: Whether there are others, and this process is not working by itself for the moment.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, *, group: dist.ProcessGroup | None = None) -> None:
        self.rank, self.world_size = rank, world_size
        self.communicates = world_size > 1
        self._group = group

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def turn(self) -> tuple[int, int]:
        """(i, n): of work that is shared out now, this process does items i, i + n, i + 2 n, ..."""
        return (self.rank, self.world_size) if self.communicates else (0, 1)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Work by itself: inside, nothing is told or awaited."""
        before, self.communicates = self.communicates, False
        try:
            yield
        finally:
            self.communicates = before

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A piece of work that every process does alone; if it fails on one, it fails on all.

        Raises:
            PgnasError: That of the lowest rank that failed.
            RunError: Another process failed with an error that pgnas cannot explain.
        """
        error = None
        try:
            with self.alone():
                yield
        except Exception as caught:
            error = caught
        self.agree(error)

    def agree(self, error: Exception | None = None, *, signal: int = 0) -> int:
        """Tell the others of an error, or hear of theirs.

        Args:
            error: What went wrong here.
            signal: A number for the others.

        Returns:
            The largest signal of all processes.

        Raises:
            PgnasError: As :meth:`together`.
        """
        if not self.communicates:
            if error is not None:
                raise error
            return signal
        flags = torch.tensor([int(error is not None), signal])
        with _explained():
            dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        if not flags[0]:
            return int(flags[1])
        told = self.gather(None if error is None else _to_json(error))
        first = next(rank for rank, value in enumerate(told) if value is not None)
        if error is not None and first == self.rank:
            raise error
        raise _from_json(told[first], first) from error

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What the first process gets from ``work``, which it does alone; a JSON value (tuples become lists).

        Raises:
            PgnasError: The first process failed.
        """
        if not self.communicates:
            return work()
        result, error = b"", None
        if self.is_first:
            try:
                with self.alone():
                    result = json.dumps(work()).encode()
            except Exception as caught:
                error = caught
        self.agree(error)
        return json.loads(self.send(result))

    def send(self, data: bytes) -> bytes:
        """The first process's ``data``."""
        if not self.communicates:
            return data
        with _explained():
            size = torch.tensor([len(data)])
            dist.broadcast(size, 0, group=self._group)
            values = torch.empty(int(size), dtype=torch.uint8)
            if self.is_first:
                values.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            dist.broadcast(values, 0, group=self._group)
        return values.numpy().tobytes()

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, by rank, on every process."""
        if not self.communicates:
            return [value]
        data = json.dumps(value).encode()
        with _explained():
            sizes = [torch.zeros(1, dtype=torch.long) for _ in range(self.world_size)]
            dist.all_gather(sizes, torch.tensor([len(data)]), group=self._group)
            longest = max(int(size) for size in sizes)
            padded = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world_size)]
            dist.all_gather(parts, padded, group=self._group)
        return [json.loads(part.numpy().tobytes()) for part in parts]  # JSON does not mind the blanks at the end

    @torch.no_grad()
    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, the same to the bit on each."""
        if not self.communicates:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with _explained():
                dist.all_reduce(flat)
            flat /= self.world_size
            for tensor, mean in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(mean.view(tensor.shape))

    @torch.no_grad()
    def copy_first_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by the first process's."""
        if self.communicates:
            with _explained():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def require_same(self, what: str, digest: str) -> None:
        """Check that a digest is the same on every process.

        Raises:
            RunError: It is not.
        """
        digests = self.gather(digest)
        if len(set(digests)) > 1:
            odd = [str(rank) for rank, other in enumerate(digests) if other != digests[0]]
            raise RunError(
                what,
                "must be the same on every process",
                value=f"others on process {', '.join(odd)} than on process 0",
                remedy="give all processes the same data, network, library versions and kind of device; "
                "the same command resumes from the last checkpoint",
            )


@functools.cache
def join() -> Processes:
    """The processes that this one was launched with; meets them the first time.

    Raises:
        RunError: They cannot be reached.
    """
    if dist.is_available() and dist.is_initialized():  # by the caller, perhaps without a way for messages on the CPU
        group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        assert isinstance(group, dist.ProcessGroup)  # of all processes, this one among them
        return Processes(dist.get_rank(), dist.get_world_size(), group=group)
    rank, world_size = launched()
    if world_size == 1:
        return Processes()
    if not dist.is_available():
        rule = "need a PyTorch that was built with torch.distributed"
        raise RunError("several processes", rule, value=torch.__version__, remedy="install one, or launch one process")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    # Its functions have the group that there is when they are imported as a default, and would keep it past the end.
    importlib.import_module("torch.distributed.nn.functional")
    with _explained():
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=TIMEOUT)
    atexit.register(_part)
    return Processes(rank, world_size)


def _part() -> None:
    """Leave the group before the interpreter ends: threads that outlive it abort the process."""
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise RunError(
            "another process of the run",
            "ended, or did not answer in time",
            value=first_line(error)[:200],
            remedy="see what it says; the same command resumes from the last checkpoint",
        ) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in pieces of one type and about ``BUCKET_BYTES``."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= BUCKET_BYTES or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def _to_json(error: Exception) -> dict[str, Any]:
    if not isinstance(error, PgnasError):
        first = (str(error).strip().splitlines() or [""])[0]
        return {"kind": None, "value": f"{type(error).__name__}: {first}"}
    value = None if error.value is None else str(error.value)
    return {
        "kind": type(error).__name__,
        "subject": error.subject,
        "rule": error.rule,
        "value": value,
        "remedy": error.remedy,
    }


def _from_json(told: dict[str, Any], rank: int) -> PgnasError:
    if told["kind"] is None:
        return RunError(f"process {rank}", "failed", value=told["value"], remedy="see what it says")
    kind = getattr(errors, told["kind"], RunError)
    made: PgnasError = kind(told["subject"], told["rule"], value=told["value"], remedy=told["remedy"])
    return made
