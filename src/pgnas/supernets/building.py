"""Build the network that ``--model`` names, for the data at hand."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pgnas.errors import ModelError
from pgnas.supernets.fitting import fit_classifier, try_channels
from pgnas.supernets.registry import MODELS, parse_parameters


@dataclass(frozen=True)
class BuiltModel:
    """A network for one data set.

    Attributes:
        module: The network; its output on images (B, in_channels, H, W) is (B, num_classes).
        in_channels: The image channels that it reads.
        head: Name of the classifier layer that was replaced, if one was.
        notes: What a user should know.
        ties: Lists of layers that share a gate, as the family states them.
    """

    module: nn.Module
    in_channels: int
    head: str | None = None
    notes: tuple[str, ...] = field(default=())
    ties: tuple[tuple[str, ...], ...] = ()

    def ties_without(self, exclude: Iterable[str]) -> list[list[str]]:
        """The ties without the layers that match one of the shell-style patterns ``exclude``: those have no gate."""
        patterns = list(exclude)
        remaining = [[t for t in tie if not any(fnmatchcase(t, p) for p in patterns)] for tie in self.ties]
        return [tie for tie in remaining if tie]


def build_model(spec: str, *, in_channels: int, num_classes: int, image_size: tuple[int, ...], seed: int) -> BuiltModel:
    """Build the network that ``spec`` names; its classifier gets ``num_classes`` outputs.

    Args:
        spec: ``name:key=value,...`` of a registered family, ``torchvision:NAME``, ``timm:NAME`` or
            ``package.module:factory``. A factory is given ``num_classes`` and ``in_channels`` if it takes them.
        in_channels: Channels of the images.
        num_classes: Classes of the data.
        image_size: (height, width) of the images; (frames, height, width) of clips and volumes.
        seed: Seed of the initial weights; the global random state is left as it was.

    Raises:
        ModelError: There is no such network, or it cannot be built or run on such images.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = _build(spec, in_channels, num_classes)
        trial = try_channels(spec, module, in_channels, image_size)
        reads = trial.channels
        notes = [] if reads == in_channels else [f"the network reads {reads} channels: grey images are repeated"]
        if reads != in_channels and in_channels != 1:
            raise ModelError(
                f"--model {spec}",
                f"must read images of {in_channels} channels",
                value=reads,
                remedy="build it with that many input channels",
            )
        head = fit_classifier(spec, module, trial, num_classes)
    if head is not None:
        notes.append(f"classifier '{head}' was replaced by a new one: {num_classes} classes")
    family = MODELS.get(spec.partition(":")[0])
    ties = family.ties(module) if family is not None and family.ties is not None else ()
    return BuiltModel(module, reads, head, tuple(notes), ties)


def has_width(spec: str) -> bool:
    """Whether ``spec`` names a family with a uniform width to scale."""
    model = MODELS.get(spec.partition(":")[0])
    return model is not None and model.width is not None


def uniform_width(spec: str, measure: Callable[[nn.Module], bool], *, in_channels: int, num_classes: int) -> str | None:
    """The same family at the largest uniform width for which ``measure`` (is it under the cap?) holds, as a spec.

    None if the family has no width or no width fits.
    """
    name, _, text = spec.partition(":")
    model = MODELS.get(name)
    if model is None or model.width is None:
        return None
    parameters = {**model.parameters, **parse_parameters(model, text)}
    fitting = None
    for width in range(1, int(parameters[model.width]) + 1):
        candidate = {**parameters, model.width: width}
        if not measure(model.factory(in_channels=in_channels, num_classes=num_classes, **candidate)):
            break
        fitting = candidate
    if fitting is None:
        return None
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in fitting.items())


def _build(spec: str, in_channels: int, num_classes: int) -> nn.Module:
    name, _, rest = spec.partition(":")
    if name in MODELS:
        model = MODELS[name]
        return model.factory(in_channels=in_channels, num_classes=num_classes, **parse_parameters(model, rest))
    if name == "torchvision":
        return _from_torchvision(rest, num_classes)
    if name == "timm":
        return _from_timm(rest, in_channels, num_classes)
    if rest:
        return _from_factory(spec, name, rest, in_channels, num_classes)
    raise ModelError(
        "--model",
        "must be a registered name, torchvision:NAME, timm:NAME or package.module:factory",
        value=repr(spec),
        remedy=_did_you_mean(name, MODELS, 1) or "see pgnas list models",
    )


def _did_you_mean(name: str, known: Iterable[str], most: int) -> str | None:
    near = difflib.get_close_matches(name, list(known), most)
    return f"did you mean {', '.join(near)}?" if near else None


def _from_torchvision(name: str, num_classes: int) -> nn.Module:
    from torchvision import models  # seconds to import

    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(
            "--model torchvision:",
            "must be followed by a classification model of torchvision",
            value=repr(name),
            remedy=_did_you_mean(name, known, 3) or "see torchvision.models.list_models()",
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The default weight initialization", category=FutureWarning)
        built: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    return built


def _from_timm(name: str, in_channels: int, num_classes: int) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise ModelError("--model timm:", "needs the package timm", remedy="pip install 'pgnas[timm]'") from error
    if not timm.is_model(name):
        raise ModelError(
            "--model timm:",
            "must be followed by a model of timm",
            value=repr(name),
            remedy=_did_you_mean(name, timm.list_models(), 3) or "see timm.list_models()",
        )
    built: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels)
    return built


def _from_factory(spec: str, module_name: str, attribute: str, in_channels: int, num_classes: int) -> nn.Module:
    subject = f"--model {spec}"
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # as python -m does, so that a user's own file is found
        sys.path.insert(0, here)
    try:
        factory: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ModelError(
            subject,
            "must name an importable package.module:factory",
            value=str(error),
            remedy="check the spelling, and that the module is in the working folder or installed; "
            "pgnas list models shows the registered names",
        ) from error
    except Exception as error:
        raise ModelError(
            subject,
            "must be importable",
            value=f"{type(error).__name__}: {error}",
            remedy="import it in Python to see why",
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    offered = {"num_classes": num_classes, "in_channels": in_channels}
    try:
        takes = inspect.signature(factory).parameters
        built = factory(**{key: value for key, value in offered.items() if key in takes})
    except Exception as error:
        raise ModelError(
            subject,
            "must be callable with num_classes and in_channels, or without arguments",
            value=f"{type(error).__name__}: {error}",
            remedy="give its other parameters defaults",
        ) from error
    if not isinstance(built, nn.Module):
        raise ModelError(
            subject, "must return a torch.nn.Module", value=type(built).__name__, remedy="return the network"
        )
    return built
