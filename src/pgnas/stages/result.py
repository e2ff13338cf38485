"""What a run returns: the fields of ``result.json``, the network, and where everything is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pgnas.errors import FileError
from pgnas.run_folder import RunFolder

_COUNTS = ("params", "macs")
_RULE = "must hold the result of a run"
_REMEDY = "restore it from a copy, or run again with another --out"


def result_fields(folder: RunFolder) -> dict[str, Any]:
    """The fields of ``result.json``, of which at least a summary can be made.

    Raises:
        RunFolderError: It is not there.
        FileError: It is damaged.
    """
    values, path = folder.read_json("result.json", stage="evaluate"), folder.file("result.json")
    if not isinstance(values, dict):
        raise FileError(str(path), "must be a JSON object", remedy=_REMEDY)
    try:
        RunResult(folder.path, values).summary()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileError(str(path), _RULE, remedy=_REMEDY) from error
    return values


def read_result(folder: RunFolder) -> dict[str, Any]:
    """The fields of ``result.json``, with the counts of the full and the found network among them.

    Raises:
        RunFolderError: It is not there.
        FileError: It is damaged, or another program's.
    """
    values = result_fields(folder)
    networks = [values.get(name) for name in ("full", "found")]
    counts = [network.get(name) if isinstance(network, dict) else None for network in networks for name in _COUNTS]
    if all(isinstance(count, int) for count in counts):
        return values
    raise FileError(str(folder.file("result.json")), _RULE, remedy=_REMEDY)


@dataclass(frozen=True)
class RunResult:
    """The outcome of a run, or of the stages done so far.

    Attributes:
        path: The run folder.
        values: The fields of ``result.json``; those of stages not yet done are missing.
    """

    path: Path
    values: Mapping[str, Any]
    _load: Callable[[], nn.Module] | None = field(default=None, repr=False)

    @property
    def model(self) -> nn.Module:
        """The found network, a plain module in eval mode.

        Raises:
            RunFolderError: It has not been extracted yet.
        """
        if self._load is None:
            raise AttributeError("this result has no network")
        return self._load()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def summary(self) -> list[str]:
        """The result in a few lines."""
        lines = [self.values["sentence"]] if self.values.get("sentence") else []
        full, found = self.values.get("full"), self.values.get("found")
        if full:
            lines.append(_row("full network", full))
        supernet = self.values.get("supernet") or {}
        if supernet.get("val_accuracy") is not None:
            lines.append(_row("supernet (posterior mean)", supernet))
        if found:
            lines.append(_row("found network", found, full))
        if self.values.get("finetuned"):
            lines.append(_row("found network, fine-tuned", self.values["finetuned"], full))
        for name, baseline in (self.values.get("baselines") or {}).items():
            lines.append(_row(f"baseline {name}", baseline, full))
        if self.values.get("choice"):
            lines.append(_of_the_choice(self.values["choice"]))
        lines.extend(_of_the_predictions(self.values.get("uncertainty") or {}))
        lines.extend(self.values.get("notes") or [])
        lines.append(f"run folder: {self.path}")
        return lines


def _row(name: str, values: Mapping[str, Any], full: Mapping[str, Any] | None = None) -> str:
    parts = [f"{name}:"]
    if values.get("params") is not None:
        parts.append(f"{values['params']:,} parameters, {values['macs']:,} multiply-adds")
    if full and values.get("macs") is not None:
        parts.append(f"({values['macs'] / max(1, full['macs']):.1%} of the full network's)")
    if values.get("latency_ms") is not None:
        parts.append(f"{values['latency_ms']:.3g} ms")
    for key, title in (("val_accuracy", "validation"), ("test_accuracy", "test")):
        if values.get(key) is not None:
            parts.append(f"{title} {values[key]:.4f}")
    return " ".join(parts)


def _of_the_choice(values: Mapping[str, Any]) -> str:
    low, high = values["interval"]
    text = (
        f"choice: the best of {values['candidates']:,} candidates scored {values['selected_accuracy']:.4f} where it "
        f"was chosen, {values['accuracy']:.4f} [{low:.4f}, {high:.4f}] on {values['images']:,} other images"
    )
    second = values.get("runner_up")
    return (
        text
        if not second
        else f"{text}; the runner-up is truly better with probability {second['probability_better']:.2f}"
    )


_SOURCES = {"found": "found network", "ensemble": "average of {samples} sampled networks", "full": "full network"}
_SCORES = {"accuracy": "accuracy", "nll": "NLL", "brier": "Brier", "ece": "ECE"}
_APART = {"entropy": "entropy", "mutual_information": "mutual information"}


def _of_the_predictions(values: Mapping[str, Any]) -> Iterator[str]:
    """One line a source: its scores with their intervals; then how well uncertainty tells other data."""
    names = {key: title.format(samples=values.get("samples")) for key, title in _SOURCES.items()}
    for key, scored in (values.get("networks") or {}).items():
        parts = [
            f"{title} {scored[name]['value']:.4f} [{scored[name]['low']:.4f}, {scored[name]['high']:.4f}]"
            for name, title in _SCORES.items()
        ]
        after = scored["calibrated"]
        parts.append(
            f"at temperature {scored['temperature']:.2f} NLL {after['nll']['value']:.4f}, "
            f"ECE {after['ece']['value']:.4f}"
        )
        yield f"{names[key]} on the test images: {', '.join(parts)}"
    for spec, apart in (values.get("ood") or {}).items():
        told = [
            f"{names[key]} {', '.join(f'{_APART[score]} {value:.4f}' for score, value in apart[key].items())}"
            for key in names
            if key in apart
        ]
        yield f"AUROC of telling {spec} ({apart['images']:,} images) from the test images: {'; '.join(told)}"
