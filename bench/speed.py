"""How much faster an extracted network is than its original, beside the multiply-adds that it saves.

    python bench/speed.py --models resnet18,resnet50,densenet121,mobilenet_v2 --share 50% --round-to 8

Each network of torchvision (random weights, 224x224) becomes a supernet whose units have random keep probabilities, all
above one half; its most probable architecture, the whole network, is brought under the cap as in a search, with the
device's costs measured. The original and the extracted network run in turn under onnxruntime and torch.compile, and the
ratio of their best times is printed. Results are kept in a folder, one file a network; what is there is not measured
again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import pgnas
from pgnas.bayes import GibbsPrior
from pgnas.config import RunConfig
from pgnas.nn import extract_small
from pgnas.stages.engine import make_engine
from pgnas.stages.exporting import ExportMetadata, export_onnx
from pgnas.stages.recipe import Recipe
from pgnas.stages.training import accuracy

Runner = Callable[[], Any]


def main() -> None:
    """Measure what has not been measured, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18,resnet50,densenet121,mobilenet_v2")
    parser.add_argument("--share", default="50%", help="cap on the multiply-adds")
    parser.add_argument("--round-to", type=int, default=8)
    parser.add_argument("--selections", default="auto", help="as --avoid-selections of pgnas run")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/speed")
    a = parser.parse_args()
    folder = Path(a.out)
    folder.mkdir(parents=True, exist_ok=True)
    batches = [int(b) for b in a.batches.split(",")]
    results = []
    for name in a.models.split(","):
        path = folder / f"{name}-{a.share.rstrip('%')}-r{a.round_to}-{a.selections}-s{a.seed}.json"
        if not path.exists():
            path.write_text(json.dumps(measure(name, a, batches), indent=2))
        results.append(json.loads(path.read_text()))
    show(results)


def measure(name: str, a: argparse.Namespace, batches: list[int]) -> dict[str, Any]:
    """Times of one network and its extracted one."""
    torch.manual_seed(a.seed)
    model = getattr(torchvision.models, name)().eval()
    supernet = pgnas.supernet(model, torch.randn(2, 3, a.size, a.size))
    with torch.no_grad():
        for logits in supernet.gates.parameters():
            logits.normal_().abs_()
    full = supernet.count(supernet.open())
    config = RunConfig(
        model=name, data="", out="", max_macs=a.share, round_to=a.round_to, avoid_selections=a.selections,
        decide_at="never", candidates=1,
    )  # fmt: skip
    recipe = Recipe(config, make_engine("cpu", "fp32"), F.cross_entropy, accuracy, full, 1, 1, 1, 1.0, GibbsPrior())
    started = time.perf_counter()
    candidate = recipe.draw(supernet)[0]
    drawn = time.perf_counter()
    small = extract_small(supernet, candidate.architecture)
    extracted = time.perf_counter()
    result: dict[str, Any] = {
        "model": name,
        "macs": candidate.counts.macs / full.macs,
        "params": candidate.counts.params / full.params,
        "picks": small.selections,
        "seconds_to_fit": drawn - started,
        "seconds_to_extract": extracted - drawn,
        "threads": torch.get_num_threads(),
    }
    networks = {"full": model, "small": small.module}
    for batch in batches:
        x = torch.randn(batch, 3, a.size, a.size)
        for runtime, prepare in (("onnxruntime", _onnxruntime), ("torch.compile", _compiled)):
            runners = {key: prepare(network, x) for key, network in networks.items()}
            result[f"{runtime}, batch {batch}"] = in_turn(runners, a.rounds)
            torch._dynamo.reset()
    return result


def in_turn(runners: dict[str, Runner], rounds: int) -> dict[str, float]:
    """Seconds of each at its best, in alternating blocks: another process can only slow a block down."""
    times: dict[str, list[float]] = {key: [] for key in runners}
    for run in runners.values():
        for _ in range(3):
            run()
    for _ in range(rounds):
        for key, run in runners.items():
            start, calls = time.perf_counter(), 0
            while calls < 2 or time.perf_counter() - start < 0.3:
                run()
                calls += 1
            times[key].append((time.perf_counter() - start) / calls)
    return {key: min(values) for key, values in times.items()}


def _onnxruntime(network: nn.Module, x: Tensor) -> Runner:
    metadata = ExportMetadata((), {}, "", 0, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(network, x[:1], path, metadata)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {"images": x.numpy()}
    return lambda: session.run(None, feed)


def _compiled(network: nn.Module, x: Tensor) -> Runner:
    compiled = torch.compile(network.eval())

    def run() -> Any:
        with torch.inference_mode():
            return compiled(x)

    return run


def show(results: list[dict[str, Any]]) -> None:
    """Print the table: speed-ups, and their share of the reduction in multiply-adds."""
    keys = [key for key in results[0] if "batch" in key]
    print("| network | MACs kept | picks | " + " | ".join(keys) + " |")
    print("|---" * (3 + len(keys)) + "|")
    for result in results:
        reduction = 1 / result["macs"]
        cells = []
        for key in keys:
            speedup = result[key]["full"] / result[key]["small"]
            milliseconds = 1e3 * result[key]["small"]
            cells.append(f"{speedup:.2f}x ({speedup / reduction:.2f} of the reduction), {milliseconds:.1f} ms")
        print(f"| {result['model']} | {result['macs']:.1%} | {result['picks']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
