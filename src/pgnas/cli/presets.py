"""``--preset`` and ``--scale``, and what ``pgnas list presets NAME`` shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgnas.cli.flags import flag_names
from pgnas.errors import ConfigError

# pgnas.presets imports torch, which takes seconds: only where a preset is named.


def layer(preset: str | None, scale: str | None) -> tuple[dict[str, object], list[str]]:
    """The settings of a preset, shrunk if asked, and notes on what became of each; nothing without a preset.

    Raises:
        ConfigError: There is no such preset, or the scale is no share, or there is nothing to scale.
    """
    if preset is None:
        if scale is not None:
            raise ConfigError("--scale", "shrinks a preset", value="no --preset", remedy="add --preset or drop --scale")
        return {}, []
    from pgnas import presets

    values = presets.preset_named(preset, presets.PRESETS).values()
    if scale is None:
        return values, []
    small = presets.scaled(values, presets.parse_scale(scale))
    became = [f"{c.name} {_text(c.before)} -> {_text(c.after)}" for c in presets.changes(values, small)]
    return small, [f"{preset} at {scale}: {'; '.join(became)}"]


def describe(what: str, name: str | None, scale: str | None) -> Iterable[str]:
    """Every setting of a preset, where it comes from, and, with a scale, what becomes of it.

    Raises:
        ConfigError: Something else than one preset is asked for.
    """
    if what != "presets" or name is None:
        raise ConfigError("pgnas list", "shows one entry in full for presets only", remedy="pgnas list presets NAME")
    from pgnas import presets
    from pgnas.presets import scaling

    preset = presets.preset_named(name, presets.PRESETS)
    values = preset.values()
    small = values if scale is None else presets.scaled(values, presets.parse_scale(scale))
    rows = [("flag", "value", *(["scaled"] if scale else []), "from", "")]
    for key, flag in flag_names().items():
        if key in preset.settings:
            setting = preset.settings[key]
            after = [_text(small.get(key)) if small.get(key) != setting.value else "as before"] if scale else []
            rows.append((flag, _text(setting.value), *after, setting.source, setting.note))
    yield f"{preset.name}: {preset.summary}"
    if "data" not in preset.settings:
        yield f"--data is yours to give: {preset.data}"
    yield ""
    yield from _aligned(rows)
    if scale is not None:
        yield ""
        yield from (scaling.__doc__ or "").strip().splitlines()


def _aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _text(value: object) -> str:
    if value is None:
        return "by default"
    if isinstance(value, tuple):
        return ",".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
