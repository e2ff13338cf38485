"""What gates cost in memory: the peak of a training step of the supernet against that of the same network without.

    python bench/memory.py

Each network trains in a process of its own. Two numbers are printed: the growth of the process's largest resident set
(getrusage) from before the first step, which is what the machine must have, and the most bytes of tensors at once that
a step allocates (torch's profiler), which is exact and repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import pgnas
from pgnas.bayes import GibbsPrior
from pgnas.stages.engine import make_engine
from pgnas.stages.phases import NetworkPhase, PosteriorPhase, PosteriorSettings
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.training import Phase
from pgnas.supernets import build_model

CASES = (("multibranch-resnet:width=32,blocks=2", 32, 64), ("torchvision:resnet50", 96, 16))
"""Model, side of the images in pixels, images a step."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--granularity", default="channel")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--one", nargs=4, metavar=("KIND", "MODEL", "SIZE", "BATCH"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one is not None:
        kind, model, size, batch = a.one
        print(json.dumps(_measure(kind, model, int(size), int(batch), a.granularity, a.compile)))
        return
    for model, size, batch in CASES:
        found = {}
        for kind in ("plain", "gated"):
            words = [sys.executable, __file__, "--granularity", a.granularity, *(["--compile"] if a.compile else [])]
            words += ["--one", kind, model, str(size), str(batch)]
            done = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ)
            found[kind] = json.loads(done.stdout.splitlines()[-1])
        for what in ("resident", "tensors"):
            plain, gated = (found[kind][what] / 1e6 for kind in ("plain", "gated"))
            print(f"{model} {size}x{size} x{batch}, {what}: {plain:.1f} -> {gated:.1f} MB, {gated / plain:.3f} times")


def _measure(kind: str, model: str, size: int, batch: int, granularity: str, compiled: bool) -> dict[str, int]:
    x, y = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))
    phase = _phase(kind, model, x, granularity, compiled)
    inputs, targets = phase.engine.batch((x, y))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for step in range(3):
        phase.step(inputs, targets, step)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        phase.step(inputs, targets, 3)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = torch.tensor([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]).cumsum(0)
    return {"resident": resident, "tensors": int(held.max())}


def _phase(kind: str, model: str, x: torch.Tensor, granularity: str, compiled: bool) -> Phase:
    engine, schedule = make_engine("cpu", "fp32"), cosine_schedule(0.1, 1_000)
    size = (x.shape[2], x.shape[3])
    network: nn.Module = build_model(model, in_channels=3, num_classes=10, image_size=size, seed=0).module
    if kind == "plain":
        engine.place(network)
        return NetworkPhase(
            network, name="plain", engine=engine, schedule=schedule, loss=F.cross_entropy, weight_decay=5e-4,
            compiled=compiled,
        )  # fmt: skip
    supernet = pgnas.supernet(network, x[:2], granularity)
    engine.place(supernet)
    settings = PosteriorSettings(GibbsPrior(), 1e5, {"macs": 0.4}, 1_000)
    return PosteriorPhase(supernet, settings, engine=engine, schedule=schedule, loss=F.cross_entropy, compiled=compiled)


if __name__ == "__main__":
    main()
