"""Every model of a zoo: converted, extracted exactly, counted and exported. One table.

    python bench/zoo.py                      # torchvision's classification models
    python bench/zoo.py --timm-count 30      # timm's convolutional families, drawn by --seed
    python bench/zoo.py --timm NAME,NAME     # these of timm
    python bench/zoo.py --only resnet18,...  # some of torchvision's

Each model has random weights and random BatchNorm statistics, runs in a process of its own and leaves one JSON file in
``--out``; a rerun does what is missing, ``--again`` also what failed. Checked are three random architectures (hardly
anything kept, half with whole gates closed, nearly all kept): the extracted network's output against that of the
supernet with the architecture fixed, its parameters and multiply-adds against the count, and for the middle one the
.pt2 and .onnx files against the network on batches of other sizes. Then what a search under a cap does with it, with
gates on streams too (``--search-only``: this alone): the expected cost of the whole network against its count,
extraction once more, a training step's gradients of all gates, and the supernet that sheds a tenth of the units against
the one that has them closed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import pgnas
from pgnas.errors import PgnasError
from pgnas.nn import ShedSupernet, Supernet, extract, measure
from pgnas.nn.cost import CostName
from pgnas.stages.exporting import ExportMetadata, export_onnx, export_pt2

KEEPS = (0.05, 0.5, 0.95)
TOLERANCE, TOLERANCE_64 = 1e-4, 1e-10  # of the output's scale
EXPORTED_PARAMS = 300_000_000  # above, exactness alone
DOUBLE_PARAMS = 60_000_000  # above, float32 alone
SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 480, 512, 518)
CLOSED = 0.1  # of the units, when a supernet sheds
KINDS: tuple[CostName, ...] = ("macs", "params")
SPATIAL_SHARE = 1 / 8  # of the layers look at neighbouring pixels in a convolutional network


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of torchvision models, by comma")
    parser.add_argument("--timm", help="names of timm models, by comma")
    parser.add_argument("--timm-count", type=int, default=0, help="how many convolutional models of timm")
    parser.add_argument("--seed", type=int, default=0, help="draws the timm models, the weights and the architectures")
    parser.add_argument("--out", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--again", action="store_true", help="also run what failed before")
    parser.add_argument("--no-exports", action="store_true")
    parser.add_argument("--search-only", action="store_true", help="what a search does with it, and nothing else")
    parser.add_argument("--limit", type=int, default=1800, help="seconds a model may take")
    parser.add_argument("--entry", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.entry:
        print(json.dumps(run_entry(a.entry, seed=a.seed, exports=not a.no_exports, search_only=a.search_only)))
        return
    a.out.mkdir(parents=True, exist_ok=True)
    names = list(entries(a))
    for position, name in enumerate(names, 1):
        found = _read(a.out, name)
        if found is None or (a.again and found["status"] != "ok"):
            found = _in_process(name, a)
            (a.out / f"{_file(name)}.json").write_text(json.dumps(found, indent=1))
            print(f"{position}/{len(names)} {name}: {found['status']} {found.get('error', '')}", flush=True)
    print(table([_read(a.out, name) or {"model": name, "status": "missing"} for name in names]))


def entries(a: argparse.Namespace) -> Iterator[str]:
    """The models asked for, as ``torchvision:NAME`` or ``timm:NAME``."""
    if a.timm:
        yield from (f"timm:{name}" for name in a.timm.split(","))
    if a.timm_count:
        yield from (f"timm:{name}" for name in draw_timm(a.timm_count, a.seed))
    if a.only or not (a.timm or a.timm_count):
        from torchvision import models

        known = models.list_models(module=models)
        yield from (f"torchvision:{name}" for name in (a.only.split(",") if a.only else known))


def draw_timm(count: int, seed: int) -> list[str]:
    """One convolutional model of each of ``count`` timm families, which are told by the letters their names begin with.

    Of three drawn from a family the one with the fewest parameters is taken.
    """
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models(exclude_filters="test_*"):
        letters = re.match(r"(tf_)?[a-z]+(v\d)?", name)
        families.setdefault(letters.group() if letters else name, []).append(name)
    rng = random.Random(seed)
    chosen: list[str] = []
    for family in rng.sample(sorted(families), len(families)):
        drawn = rng.sample(families[family], min(3, len(families[family])))
        with torch.device("meta"), _quiet():
            built = {}
            for name in drawn:
                with contextlib.suppress(Exception):  # a few cannot be built without data
                    built[name] = timm.create_model(name)
        convolutional = {name: _params(net) for name, net in built.items() if _is_convolutional(net)}
        if convolutional:
            chosen.append(min(convolutional, key=lambda name: convolutional[name]))
        if len(chosen) == count:
            break
    return sorted(chosen)


def _is_convolutional(net: nn.Module) -> bool:
    """Whether enough of its layers look at neighbouring pixels."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    spatial = [layer for layer in layers if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1]
    return len(spatial) >= SPATIAL_SHARE * len(layers) > 0


def run_entry(
    name: str, *, seed: int = 0, exports: bool = True, search_only: bool = False, sizes: tuple[int, ...] = SIZES
) -> dict[str, Any]:
    """Check one model; ``status`` is "ok" or what did not hold."""
    start = time.monotonic()
    torch.manual_seed(seed)
    with _quiet():
        net, native = build(name)
        x = image(net, sizes, native)
        randomise(net, x)
        full = measure(net, (x,))
        found: dict[str, Any] = {"model": name, "image": x.shape[-1], "params": full.params, "macs": full.macs}
        try:
            if not search_only:
                found |= _check(net, x, seed, exports and full.params <= EXPORTED_PARAMS)
            found["search"] = _search(net, x, seed)
            found["status"] = _status(found)
        except PgnasError as error:
            found |= {"status": "refused", "error": str(error)[:600]}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found | {"seconds": round(time.monotonic() - start, 1), "peak_gb": round(memory, 2)}


def _check(net: nn.Module, x: Tensor, seed: int, exports: bool) -> dict[str, Any]:
    params = _params(net)
    double = copy.deepcopy(net).double() if params <= DOUBLE_PARAMS else None
    gated = pgnas.supernet(net, x)
    report = gated.report
    found: dict[str, Any] = {
        "gated": len(report.gated),
        "units": gated.gates.units,
        "ungated": dict(Counter(entry.reason for entry in report.ungated)),
        "barriers": dict(Counter(report.barriers.values())),
        "notes": list(report.notes),
        "removable": 1 - gated.count(_first(gated, 0)).macs / measure(net, (x,)).macs,
        "at_half": gated.count(_first(gated, 0.5)).macs / measure(net, (x,)).macs,
    }
    wanted = architectures(gated, seed)
    found["errors"] = [difference(gated, architecture, x) for architecture in wanted]
    found["counted"] = all(gated.count(a) == measure(extract(gated, a), (x,)) for a in wanted)
    if double is not None:
        exact = pgnas.supernet(double, x.double())
        found["errors_64"] = [difference(exact, architecture, x.double()) for architecture in wanted]
        del exact, double
    small = extract(gated, wanted[1])
    if exports:
        found["exports"] = {"pt2": _try(export_pt2, small, x), "onnx": _try(export_onnx, small, x)}
    return found


def _search(net: nn.Module, x: Tensor, seed: int) -> dict[str, Any]:
    """What a search under a cap begins with: gates on streams too, the expected cost, a step, and shedding."""
    gated = pgnas.supernet(net, x, streams=True)
    _, middle, most = architectures(gated, seed)
    found: dict[str, Any] = {
        "units": gated.gates.units,
        "error": max(difference(gated, architecture, x) for architecture in (middle, most)),
        "costs": [float(gated.expected_cost_at(kind, torch.full((gated.gates.units,), 1e4))) for kind in KINDS],
    }
    outputs = gated.train()(x)
    (outputs if isinstance(outputs, Tensor) else outputs[0]).square().sum().backward()
    gradients = [parameter.grad for parameter in gated.gates.parameters()]
    found["gradients"] = all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    gated.gates.close_(torch.rand(gated.gates.units, generator=torch.Generator().manual_seed(seed)) < CLOSED)
    shed = ShedSupernet(gated)
    with torch.no_grad():
        expected = gated.eval()(x)
        found["shed_error"] = float((shed.eval()(x) - expected).abs().max() / expected.abs().max())
    return found | {"shed": shed.counts.macs / gated.count(gated.open()).macs}


def _status(found: dict[str, Any]) -> str:
    search = found["search"]
    errors = [*found.get("errors", []), search["error"], search["shed_error"]]
    exact = max(errors) <= TOLERANCE and max(found.get("errors_64", [0])) <= TOLERANCE_64
    exported = all(answer == "ok" for answer in found.get("exports", {}).values())
    wrong = [("inexact", exact), ("miscounted", found.get("counted", True)), ("not exported", exported)]
    wrong += [("misjudged", all(abs(cost - 1) < 1e-3 for cost in search["costs"]))]
    wrong += [("no gradients", search["gradients"])]
    return ", ".join(name for name, holds in wrong if not holds) or "ok"


def build(name: str) -> tuple[nn.Module, int]:
    """A model in eval mode and its native image size."""
    source, _, model = name.partition(":")
    if source == "timm":
        import timm

        net = timm.create_model(model).eval()
        return net, net.pretrained_cfg["input_size"][-1]
    from torchvision import models

    return models.get_model(model, weights=None).eval(), 224


@torch.no_grad()
def image(net: nn.Module, sizes: tuple[int, ...], native: int) -> Tensor:
    """Two images of the smallest size that the network takes."""
    for size in sorted({*sizes, native}):
        x = torch.randn(2, 3, size, size)
        with contextlib.suppress(Exception):  # each network refuses small images in its own way
            net(x)
            return x
    raise ValueError("the network takes none of the image sizes")


@torch.no_grad()
def randomise(net: nn.Module, x: Tensor) -> None:
    """Random weights, none of them 0 or 1 by accident, and statistics a random way off those of noise.

    Scales are below 1 and no channel's spread far below the others': otherwise deep networks amplify rounding itself.
    """
    for parameter in net.parameters():
        noise = torch.randn_like(parameter)
        fan = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.copy_(noise / max(1, fan) ** 0.5 if parameter.ndim > 1 else 0.15 * noise + 0.5 * (parameter != 0))

    def forget(layer: _BatchNorm, args: tuple[Tensor]) -> None:
        if layer.running_mean is not None and layer.running_var is not None:
            axes = [axis for axis in range(args[0].ndim) if axis != 1]
            variance, mean = torch.var_mean(args[0], axes)
            spread = variance + 0.1 * variance.mean() + 1e-6
            layer.running_mean.copy_(mean + 0.3 * spread.sqrt() * torch.randn_like(mean))
            layer.running_var.copy_(spread * (0.5 + torch.rand_like(mean)))

    hooks = [m.register_forward_pre_hook(forget) for m in net.modules() if isinstance(m, _BatchNorm)]
    net(torch.randn(8, *x.shape[1:]))
    for hook in hooks:
        hook.remove()


def architectures(gated: Supernet, seed: int) -> list[pgnas.Architecture]:
    """One a keep rate; of the middle one a tenth of the gates is closed whole."""
    rng = torch.Generator().manual_seed(seed)
    masks = [torch.rand(gated.gates.units, generator=rng) < keep for keep in KEEPS]
    for part in gated.gates.split(masks[1]).values():
        if torch.rand((), generator=rng) < 0.1:
            part[:] = False
    return [gated.gates.architecture(mask) for mask in masks]


def _first(gated: Supernet, share: float) -> pgnas.Architecture:
    """The first units of every gate, at least one: where all can be shrunk, half of them cost a quarter."""
    sizes = gated.gates.sizes
    return pgnas.Architecture(sizes, {name: tuple(range(max(1, int(size * share)))) for name, size in sizes.items()})


@torch.no_grad()
def difference(gated: Supernet, architecture: pgnas.Architecture, x: Tensor) -> float:
    """The largest difference between the extracted network and the supernet, as a share of the output's scale."""
    more = torch.cat([x, x[:1].flip(-1)])
    gated.eval()
    with gated.fixed(architecture):
        expected = gated(more)
    found = extract(gated, architecture)(more)
    return float((found - expected).abs().max() / expected.abs().max())


def _try(export: Callable[..., None], small: nn.Module, x: Tensor) -> str:
    """Export to a file that is thrown away; "ok" if it reproduces the network."""
    steps = {"channels": 3, "height": x.shape[2], "width": x.shape[3], "mean": [0] * 3, "std": [1] * 3}
    metadata = ExportMetadata((), steps, "", 0, 0)
    suffix = export.__name__.removeprefix("export_")
    with tempfile.TemporaryDirectory() as folder:
        try:
            export(small, x, Path(folder) / f"model.{suffix}", metadata)
        except PgnasError as error:
            return str(error)[:600]
    return "ok"


def table(rows: list[dict[str, Any]]) -> str:
    """What was found, one model a line, and the sums.

    "one each" and "half" are the MACs left, as a share, when every gate keeps one unit or the first half of them.
    """
    head = (
        f"{'model':44} {'image':>5} {'gated':>5} {'barriers':>8} {'params':>8} {'GMACs':>7} "
        f"{'one each':>8} {'half':>6} {'error':>8} {'float64':>8} {'pt2 onnx':>8} {'s':>5}  status"
    )
    lines = [head, *map(_line, rows), ""]
    good = sum(row["status"] == "ok" for row in rows)
    reasons = Counter[str]()
    for row in rows:
        reasons.update(row.get("barriers", {}))
    lines += [f"{good} of {len(rows)} hold in everything", "barriers, all models:"]
    return "\n".join(lines + [f"{count:6}  {reason}" for reason, count in reasons.most_common(40)])


def _line(row: dict[str, Any]) -> str:
    if row["status"] == "ok" and "errors" not in row:
        return f"{row['model']:44} the search holds"
    if "errors" not in row:
        return f"{row['model']:44} {row['status']}: {row.get('error', '')}"
    files = "".join("yes " if answer == "ok" else "NO  " for answer in row.get("exports", {}).values()) or "-"
    double = f"{max(row['errors_64']):8.0e}" if "errors_64" in row else f"{'-':>8}"
    barriers = sum(row["barriers"].values())
    return (
        f"{row['model']:44} {row['image']:5} {row['gated']:5} {barriers:8} {row['params'] / 1e6:7.1f}M "
        f"{row['macs'] / 1e9:7.2f} {1 - row['removable']:8.1%} {row['at_half']:6.1%} "
        f"{max(row['errors']):8.0e} {double} {files:>8} {row['seconds']:5.0f}  {row['status']}"
    )


def _in_process(name: str, a: argparse.Namespace) -> dict[str, Any]:
    """One entry in a process of its own, so that its memory is given back and its death is an entry like others."""
    command = [sys.executable, __file__, "--entry", name, "--seed", str(a.seed)]
    command += ["--no-exports"] if a.no_exports else []
    command += ["--search-only"] if a.search_only else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=a.limit)
    except subprocess.TimeoutExpired:
        return {"model": name, "status": "failed", "error": f"took over {a.limit} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {"model": name, "status": "failed", "error": lines[-1][:600], "trace": lines[-40:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _read(folder: Path, name: str) -> dict[str, Any] | None:
    path = folder / f"{_file(name)}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _file(name: str) -> str:
    return name.replace(":", "-").replace("/", "-")


def _params(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
