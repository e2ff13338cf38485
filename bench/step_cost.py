"""What gates cost: a compiled training step of the supernet against the same network without gates, side by side.

    python bench/step_cost.py

Both are compiled, both see the same batches; blocks of steps alternate and the ratio of the medians is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

import pgnas
from pgnas.bayes import GibbsPrior
from pgnas.config import RunConfig
from pgnas.nn import Counts
from pgnas.stages.engine import make_engine
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.recipe import Recipe
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.training import Phase, accuracy
from pgnas.supernets import build_model


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="multibranch-resnet:width=32,blocks=1")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--granularity", default="channel")
    a = parser.parse_args()
    engine = make_engine("cpu", "fp32")
    build = lambda: build_model(a.model, in_channels=3, num_classes=10, image_size=(a.size, a.size), seed=0).module  # noqa: E731
    x = torch.randn(a.batch, 3, a.size, a.size).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (a.batch,))
    plain, supernet = build(), pgnas.supernet(build(), x, a.granularity)
    engine.place(plain)
    engine.place(supernet)
    config = RunConfig(model="", data="", out="", max_macs="40%")
    full: Counts = pgnas.measure(plain, (x,))
    recipe = Recipe(config, engine, F.cross_entropy, accuracy, full, 100, 100, 12_800, 1e5, GibbsPrior())
    gated = recipe.posterior_phase(supernet, compiled=True)
    schedule = cosine_schedule(0.1, 10_000)
    loss = F.cross_entropy
    bare = NetworkPhase(
        plain, name="plain", engine=engine, schedule=schedule, loss=loss, weight_decay=5e-4, compiled=True
    )
    phases: dict[str, Phase] = {"plain": bare, "gated": gated}
    for phase in phases.values():
        for index in range(5):
            phase.step((x,), y, index)
    times: dict[str, list[float]] = {name: [] for name in phases}
    for _ in range(a.rounds):
        for name, phase in phases.items():
            start = time.perf_counter()
            for index in range(a.steps):
                phase.step((x,), y, index)
            times[name].append((time.perf_counter() - start) / a.steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        print(f"{name}: median {medians[name] * 1e3:.1f} ms a step, {min(values) * 1e3:.1f}..{max(values) * 1e3:.1f}")
    ratios = [g / p for g, p in zip(times["gated"], times["plain"], strict=True)]
    print(f"gated / plain: {medians['gated'] / medians['plain']:.3f} (rounds {min(ratios):.3f}..{max(ratios):.3f})")


if __name__ == "__main__":
    main()
