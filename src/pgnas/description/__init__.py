"""A network as data: a JSON description that fits a set of tensors, safe to read from a stranger's file."""

from pgnas.description.errors import DescriptionError
from pgnas.description.opening import opened
from pgnas.description.reading import FORMAT, build, parse
from pgnas.description.writing import describe

__all__ = ["FORMAT", "DescriptionError", "build", "describe", "opened", "parse"]
