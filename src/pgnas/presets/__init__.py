"""The paper's experiments by name: every setting of each, where it comes from, and how it is shrunk."""

from pgnas.presets.paper import PRESETS
from pgnas.presets.preset import Preset, Setting, Source, preset_named
from pgnas.presets.scaling import Change, changes, parse_scale, scaled

__all__ = ["PRESETS", "Change", "Preset", "Setting", "Source", "changes", "parse_scale", "preset_named", "scaled"]
