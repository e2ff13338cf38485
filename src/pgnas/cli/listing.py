"""What ``pgnas list`` shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable

_LONGEST_VALUE = 12
Entries = Iterable[tuple[str, str]]  # a name and, in one line, what it is


def describe(what: str) -> list[str]:
    """One line for each entry of the registry ``what`` (``"models"``, ``"data"``, ``"priors"``, ``"presets"``)."""
    entries = list(_REGISTRIES[what]())
    width = max((len(name) for name, _ in entries), default=0)
    return [f"{name:<{width}}  {text}".rstrip() for name, text in entries]


def _models() -> Entries:
    from pgnas.supernets import MODELS

    for name, model in MODELS.items():
        given = ",".join(f"{key}={_shown(value)}" for key, value in model.parameters.items())
        yield name, f"{model.description}; {given}" if given else model.description


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= _LONGEST_VALUE else "…"


def _data() -> Entries:
    from pgnas.data import registered_sources

    return ((source.name, source.description) for source in registered_sources())


def _priors() -> Entries:
    from pgnas.bayes import PRIORS

    return ((name, prior.summary) for name, prior in PRIORS.items())


def _presets() -> Entries:
    from pgnas.presets import PRESETS

    return ((name, preset.summary) for name, preset in PRESETS.items())


_REGISTRIES: dict[str, Callable[[], Entries]] = {
    "models": _models,
    "data": _data,
    "priors": _priors,
    "presets": _presets,
}
