"""Networks by name: registered families, torchvision, timm, and the user's own."""

from pgnas.supernets import multibranch as multibranch
from pgnas.supernets.building import BuiltModel, build_model, uniform_width
from pgnas.supernets.registry import MODELS, RegisteredModel, register
from pgnas.supernets.weights import load_weights

__all__ = ["MODELS", "BuiltModel", "RegisteredModel", "build_model", "load_weights", "register", "uniform_width"]
