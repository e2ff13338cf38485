"""Whether an exported file reproduces the network that it was made of.

This runs files that this process has written itself a moment ago, before they get their names. Nothing here is for
files from elsewhere, and :func:`pgnas.load` does not come by: it builds from a description
(:mod:`pgnas.stages.network_file`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.errors import ExportError, FileError, ModelError

TOLERANCE = 1e-4  # of the largest logit
_CHECKED_SIZES = (1, 3)

Network = Callable[[Tensor], Tensor]


def verify(path: Path, images: Tensor, expected: Tensor) -> float:
    """Run an exported file and compare. It is opened as a program: only for files of one's own.

    Args:
        path: A .pt2 or .onnx file.
        images: (B, C, H, W) as the network takes them.
        expected: The network's logits (B, K).

    Returns:
        The largest difference, as a share of the largest absolute logit.

    Raises:
        FileError: The file is none of these.
        ExportError: The difference is over ``TOLERANCE``.
    """
    return _compare(path, open_program(path), images, expected)


def require_same(path: Path, found: Network, network: nn.Module, example: Tensor) -> None:
    """Check that what ``path`` holds gives the network's outputs on noise of other batch sizes than the traced one.

    Raises:
        ExportError: It does not.
    """
    for size in _CHECKED_SIZES:
        images = noise(example, size)
        _compare(path, found, images, logits(network, images))


def open_program(path: Path) -> Network:
    """What runs a .pt2 or .onnx file of our own.

    Raises:
        FileError: The file is none of these.
    """
    readers: dict[str, Callable[[Path], Network]] = {".pt2": _open_pt2, ".onnx": _open_onnx}
    if path.suffix not in readers:
        raise FileError(str(path), "must be a .pt2 or .onnx file", remedy="give one that pgnas export wrote")
    return readers[path.suffix](path)


def run_generated_source(text: str, path: Path) -> dict[str, Any]:
    """The names that source defines which this process has just generated; never for the text of a file."""
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(text, str(path), "exec", dont_inherit=True), names)
    return names


@torch.no_grad()
def logits(network: nn.Module, images: Tensor) -> Tensor:
    """The network's output (B, K).

    Raises:
        ModelError: It is not one tensor.
    """
    output = network(images)
    if not isinstance(output, Tensor):
        value = type(output).__name__
        raise ModelError(
            "network", "must return one tensor to be exported", value=value, remedy="return the logits alone"
        )
    return output


def noise(example: Tensor, size: int) -> Tensor:
    """Noise shaped and typed like the example: files must not hold anyone's images."""
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, *example.shape[1:], generator=generator).to(example.dtype)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch's and onnxscript's remarks about their own internals from the user, who can do nothing about them."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield


def _compare(path: Path, found: Network, images: Tensor, expected: Tensor) -> float:
    remedy = "use another of the exported files, and report it with the model's name"
    expected = expected.detach().cpu()
    with torch.no_grad():
        output = found(images.detach().cpu())
    if output.shape != expected.shape:
        value = f"{tuple(output.shape)}, not {tuple(expected.shape)}"
        raise ExportError(str(path), "must reproduce the shape of the network's output", value=value, remedy=remedy)
    scale = float(expected.abs().max()) or 1.0
    difference = float((output - expected).abs().max()) / scale
    if not difference <= TOLERANCE:  # NaN too
        value = f"a difference of {difference:.2g} of the largest logit, on a batch of {len(images)}"
        raise ExportError(str(path), "must reproduce the network's output", value=value, remedy=remedy)
    return difference


def _open_pt2(path: Path) -> Network:
    with quiet():
        network: Network = torch.export.load(path).module()
    return network


def _open_onnx(path: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])
