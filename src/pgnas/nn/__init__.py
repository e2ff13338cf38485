"""Gates on a live network: tracing, conversion, cost, extraction."""

from pgnas.nn.convert import supernet
from pgnas.nn.cost import Counts, measure
from pgnas.nn.cut import Cut, cut_rule
from pgnas.nn.extract import extract, extract_small
from pgnas.nn.gate import Gates
from pgnas.nn.rebuild import SmallNetwork
from pgnas.nn.supernet import Supernet, SupernetReport

__all__ = [
    "Counts",
    "Cut",
    "Gates",
    "SmallNetwork",
    "Supernet",
    "SupernetReport",
    "cut_rule",
    "extract",
    "extract_small",
    "measure",
    "supernet",
]
