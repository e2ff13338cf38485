"""Two processes that talk over gloo, forked from the test's: no second start of Python, no second import of torch."""

from __future__ import annotations

import multiprocessing
import pickle
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pgnas.processes import Processes, join


def on_processes(folder: Path, work: Callable[[Processes], Any], *, count: int = 2, seconds: float = 60) -> list[Any]:
    """What ``work`` returns, or the exception that it raises, on each process; None where one died."""
    context = multiprocessing.get_context("fork")
    children, pipes = [], []
    for rank in range(count):
        mine, theirs = context.Pipe(duplex=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside threads, which do nothing here
            child = context.Process(target=_child, args=(folder, work, rank, count, theirs))
            child.start()
        theirs.close()
        children.append(child)
        pipes.append(mine)
    try:
        found = [_receive(pipe, seconds) for pipe in pipes]
    finally:
        for child in children:
            child.join(5)
            if child.is_alive():
                child.kill()
                child.join()
    return found


def _receive(pipe: Any, seconds: float) -> Any:
    if not pipe.poll(seconds):
        raise TimeoutError(f"a process did not end within {seconds} s")
    try:
        return pickle.loads(pipe.recv_bytes())
    except EOFError:
        return None


def _child(folder: Path, work: Callable[[Processes], Any], rank: int, count: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    join.cache_clear()
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=count, timeout=timedelta(seconds=30))
    try:
        found = work(join())
    except Exception as error:
        traceback.print_exc()
        found = error
    pipe.send_bytes(pickle.dumps(found))
    pipe.close()
    dist.destroy_process_group()
