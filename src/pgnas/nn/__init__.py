"""Gates on a live network: tracing, conversion, cost, extraction.

To teach it a layer, function or tensor method of yours, register a rule with :func:`pgnas.channel_rule` (how its output
channels depend on its input channels, and how its tensors are cut) and check it with
:func:`pgnas.testing.check_layer`.
"""

from pgnas.nn.convert import supernet
from pgnas.nn.cost import Counts, measure
from pgnas.nn.cut import Cut, cut_rule
from pgnas.nn.extract import extract, extract_small
from pgnas.nn.gate import Gates
from pgnas.nn.rebuild import SmallNetwork
from pgnas.nn.shedding import ShedSupernet
from pgnas.nn.supernet import Supernet, SupernetReport

__all__ = [
    "Counts",
    "Cut",
    "Gates",
    "ShedSupernet",
    "SmallNetwork",
    "Supernet",
    "SupernetReport",
    "cut_rule",
    "extract",
    "extract_small",
    "measure",
    "supernet",
]
