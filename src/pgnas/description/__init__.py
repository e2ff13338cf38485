"""A network as data: a JSON description that fits a set of tensors, written for files and read from files of strangers."""

from pgnas.description.opening import opened
from pgnas.description.problem import DescriptionProblem
from pgnas.description.reading import FORMAT, build, parse
from pgnas.description.writing import describe

__all__ = ["FORMAT", "DescriptionProblem", "build", "describe", "opened", "parse"]
