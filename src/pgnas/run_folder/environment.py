"""What a run ran on, for ``env.json``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys

import torch

from pgnas.launch import launched

PACKAGES = ("pgnas", "torch", "torchvision", "accelerate", "numpy")
_COMPARED = ("python", *PACKAGES, "machine")


def describe() -> dict[str, object]:
    """Versions, machine and command line of this process."""
    cuda = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": launched()[1],
        "cuda_devices": cuda,
        "command": shlex.join(sys.argv),
    }


def version(package: str) -> str | None:
    """The installed version of ``package``; ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def differences(before: dict[str, object], now: dict[str, object]) -> list[str]:
    """What could make a resumed run differ from an uninterrupted one, as ``"torch: 2.6 there, 2.7 now"``."""
    changed = [name for name in _COMPARED if before.get(name) != now.get(name)]
    return [f"{name}: {before.get(name)} there, {now.get(name)} now" for name in changed]
