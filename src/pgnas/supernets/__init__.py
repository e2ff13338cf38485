"""Networks by name: registered families, torchvision, timm, and the user's own."""

from pgnas.supernets import enas as enas
from pgnas.supernets import multibranch as multibranch
from pgnas.supernets import multikernel as multikernel
from pgnas.supernets import nats_size as nats_size
from pgnas.supernets import nats_topology as nats_topology
from pgnas.supernets.building import BuiltModel, build_model, has_width, uniform_width
from pgnas.supernets.densenet import inflate_weights
from pgnas.supernets.enas_cells import ramp_drop_path
from pgnas.supernets.fitting import require_outputs
from pgnas.supernets.paper import PAPER_SUPERNETS, PaperSupernet
from pgnas.supernets.registry import MODELS, RegisteredModel, register
from pgnas.supernets.weights import load_state, load_weights

__all__ = [
    "MODELS",
    "PAPER_SUPERNETS",
    "BuiltModel",
    "PaperSupernet",
    "RegisteredModel",
    "build_model",
    "has_width",
    "inflate_weights",
    "load_state",
    "load_weights",
    "ramp_drop_path",
    "register",
    "require_outputs",
    "uniform_width",
]
