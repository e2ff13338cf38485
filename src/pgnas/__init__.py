"""pgnas: posterior-guided neural architecture search.

supernet = pgnas.supernet(model, x)             # x: example inputs (B, C, H, W)
result = pgnas.search(supernet, train_loader, val_loader, max_macs="40%")
small = pgnas.extract(supernet, architecture)   # a plain torch.nn.Module

or, from a model and a data folder to an exported network, ``pgnas.run(model=..., data=..., out=...)``.

Names are imported when first used: ``import pgnas`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgnas.architecture import Architecture as Architecture
    from pgnas.config import RunConfig as RunConfig
    from pgnas.data import DataSet as DataSet
    from pgnas.data import load_data as load_data
    from pgnas.errors import InputError as InputError
    from pgnas.errors import PgnasError as PgnasError
    from pgnas.errors import RunError as RunError
    from pgnas.nn import Counts as Counts
    from pgnas.nn import Supernet as Supernet
    from pgnas.nn import measure as measure
    from pgnas.nn.channels import channel_rule as channel_rule
    from pgnas.nn.choice import AnyOf as AnyOf
    from pgnas.nn.choice import OneOf as OneOf
    from pgnas.nn.convert import supernet as supernet
    from pgnas.nn.extract import extract as extract
    from pgnas.nn.inspection import Inspection as Inspection
    from pgnas.nn.stopwatch import measure_device as measure_device
    from pgnas.stages import RunResult as RunResult
    from pgnas.stages import SearchResult as SearchResult
    from pgnas.stages import inspect as inspect
    from pgnas.stages import load as load
    from pgnas.stages import run_values as run
    from pgnas.stages import search as search
    from pgnas.stages.predicting import predict_images as predict

_HOMES = {
    "AnyOf": ("pgnas.nn.choice", "AnyOf"),
    "Architecture": ("pgnas.architecture", "Architecture"),
    "Counts": ("pgnas.nn", "Counts"),
    "DataSet": ("pgnas.data", "DataSet"),
    "Inspection": ("pgnas.nn.inspection", "Inspection"),
    "InputError": ("pgnas.errors", "InputError"),
    "OneOf": ("pgnas.nn.choice", "OneOf"),
    "PgnasError": ("pgnas.errors", "PgnasError"),
    "RunConfig": ("pgnas.config", "RunConfig"),
    "RunError": ("pgnas.errors", "RunError"),
    "RunResult": ("pgnas.stages", "RunResult"),
    "SearchResult": ("pgnas.stages", "SearchResult"),
    "Supernet": ("pgnas.nn", "Supernet"),
    "channel_rule": ("pgnas.nn.channels", "channel_rule"),
    "extract": ("pgnas.nn", "extract"),
    "inspect": ("pgnas.stages", "inspect"),
    "load": ("pgnas.stages", "load"),
    "load_data": ("pgnas.data", "load_data"),
    "measure": ("pgnas.nn", "measure"),
    "measure_device": ("pgnas.nn.stopwatch", "measure_device"),
    "predict": ("pgnas.stages.predicting", "predict_images"),
    "run": ("pgnas.stages", "run_values"),
    "search": ("pgnas.stages", "search"),
    "supernet": ("pgnas.nn", "supernet"),
}

__all__ = [
    "AnyOf",
    "Architecture",
    "Counts",
    "DataSet",
    "InputError",
    "Inspection",
    "OneOf",
    "PgnasError",
    "RunConfig",
    "RunError",
    "RunResult",
    "SearchResult",
    "Supernet",
    "channel_rule",
    "extract",
    "inspect",
    "load",
    "load_data",
    "measure",
    "measure_device",
    "predict",
    "run",
    "search",
    "supernet",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pgnas' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
