"""Write a network to files that other programs run: .pt2, .onnx, .safetensors and its own source.

No file is put in place before it has reproduced the network's outputs on batches of other sizes than that which it was
traced with.

Shapes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.errors import ExportError, FileError, ModelError
from pgnas.run_folder.storage import atomic
from pgnas.run_folder.tensors import save_tensors
from pgnas.stages.export_metadata import ExportMetadata
from pgnas.stages.source_code import WEIGHTS_NAME, source_code

__all__ = [
    "METADATA_NAME",
    "ONNX_NAME",
    "PT2_NAME",
    "SOURCE_NAME",
    "TOLERANCE",
    "WEIGHTS_NAME",
    "ExportMetadata",
    "export_onnx",
    "export_pt2",
    "export_safetensors",
    "export_source",
    "source_code",
    "verify",
]

PT2_NAME, ONNX_NAME, SOURCE_NAME, METADATA_NAME = "model.pt2", "model.onnx", "model.py", "pgnas.json"

TOLERANCE = 1e-4  # of the largest logit
_CHECKED_SIZES = (1, 3)
_TRACED_SIZE = 2  # a batch of one would be taken for a constant
_ONNX_LIMIT = 2**31 - 2**20  # a protobuf is under 2 GB; 1 MB for the graph
_OPSET = 18

Network = Callable[[Tensor], Tensor]


def export_pt2(module: nn.Module, example: Tensor, path: Path, metadata: ExportMetadata) -> None:
    """Write ``module`` as a torch.export archive: ``torch.export.load(path).module()(images)``.

    Args:
        module: The network; it is not changed.
        example: Images as the network takes them, (B, C, H, W); only their shape and type are used.
        path: Where to; written whole or not at all.
        metadata: Goes into the archive as ``pgnas.json``.

    Raises:
        ModelError: torch.export cannot take the network with a batch of any size.
        ExportError: The file does not reproduce the network.
        StorageError: The disk refused the write.
    """
    network = _copy(module)
    program = _program(network, example)
    buffer = io.BytesIO()  # not the path: torch does not tell why a disk refuses
    with _quiet():
        torch.export.save(program, buffer, extra_files={METADATA_NAME: metadata.to_json()})
    _put(path, buffer.getvalue(), network, example)


def export_onnx(module: nn.Module, example: Tensor, path: Path, metadata: ExportMetadata) -> None:
    """Write ``module`` as one ONNX file with input ``images`` (B, C, H, W) and output ``logits`` (B, K).

    Arguments and errors are those of :func:`export_pt2`; the metadata are the model's properties.
    """
    import onnx  # here, as it takes a second and most commands do not need it

    network = _copy(module)
    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    if size > _ONNX_LIMIT:
        remedy = f"use {PT2_NAME} or {WEIGHTS_NAME}"
        raise ModelError(str(path), "must be under 2 GB to be one ONNX file", value=f"{size:,} bytes", remedy=remedy)
    program = _program(network, example)
    try:
        with _quiet():
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                opset_version=_OPSET,
                verbose=False,
            )
            model = exported.model_proto
    except Exception as error:
        raise _refusal("torch.onnx", error) from error
    _tidy_onnx(model)
    onnx.helper.set_model_props(model, metadata.to_strings())
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise _refusal("the ONNX checker", error) from error
    _put(path, model.SerializeToString(deterministic=True), network, example)


def export_safetensors(module: nn.Module, path: Path, metadata: ExportMetadata) -> None:
    """Write the state dict of ``module``, each tensor contiguous and by itself, and the metadata.

    Raises:
        StorageError: The disk refused the write.
    """
    save_tensors(path, module.state_dict(), metadata.to_strings())


def export_source(module: nn.Module, example: Tensor, path: Path, metadata: ExportMetadata) -> None:
    """Write the source of ``module`` for the weights that :func:`export_safetensors` writes beside it.

    Raises:
        ModelError: A layer or an operation cannot be written as source; it is named. The run may go on without.
        ExportError: The source does not reproduce the network.
        StorageError: The disk refused the write.
    """
    network = _copy(module)
    text = source_code(network, metadata=metadata)
    with torch.device("meta"):  # no initial weights: they cost time and random numbers
        again: nn.Module = _run_source(text, path)["Network"]()
    again.load_state_dict(network.state_dict(), assign=True)
    _require_same(path, again.eval(), network, example)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def verify(path: Path, images: Tensor, expected: Tensor) -> float:
    """Run an exported file and compare.

    Args:
        path: A .pt2 or .onnx file, or a model.py beside its weights.
        images: (B, C, H, W) as the network takes them.
        expected: The network's logits (B, K).

    Returns:
        The largest difference, as a share of the largest absolute logit.

    Raises:
        FileError: The file is none of these.
        ExportError: The difference is over ``TOLERANCE``.
    """
    return _compare(path, _open(path), images, expected)


def _put(path: Path, data: bytes, network: nn.Module, example: Tensor) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)
        _require_same(path, _open(temporary), network, example)


def _require_same(path: Path, found: Network, network: nn.Module, example: Tensor) -> None:
    for size in _CHECKED_SIZES:
        images = _noise(example, size)
        _compare(path, found, images, _logits(network, images))


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


def _open(path: Path) -> Network:
    """What runs an exported file."""
    readers: dict[str, Callable[[Path], Network]] = {".pt2": _open_pt2, ".onnx": _open_onnx, ".py": _open_source}
    if path.suffix not in readers:
        raise FileError(str(path), "must be a .pt2, .onnx or .py file", remedy="give one that pgnas export wrote")
    return readers[path.suffix](path)


def _open_pt2(path: Path) -> Network:
    with _quiet():
        network: Network = torch.export.load(path).module()
    return network


def _open_onnx(path: Path) -> Network:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.contiguous().numpy()})[0])


def _open_source(path: Path) -> Network:
    network: Network = _run_source(path.read_text(encoding="utf-8"), path)["load"]()
    return network


def _run_source(text: str, path: Path) -> dict[str, Any]:
    """The names that the source defines."""
    names: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(text, str(path), "exec", dont_inherit=True), names)
    return names


def _copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU in eval mode, as exporters move and mark what they are given."""
    return copy.deepcopy(module).cpu().eval().requires_grad_(False)


@torch.no_grad()
def _logits(network: nn.Module, images: Tensor) -> Tensor:
    output = network(images)
    if not isinstance(output, Tensor):
        value = type(output).__name__
        raise ModelError(
            "network", "must return one tensor to be exported", value=value, remedy="return the logits alone"
        )
    return output


def _noise(example: Tensor, size: int) -> Tensor:
    """Noise shaped and typed like the example: files must not hold anyone's images."""
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, *example.shape[1:], generator=generator).to(example.dtype)


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network traced by torch.export with a dynamic batch dimension."""
    images = _noise(example, _TRACED_SIZE)
    _logits(network, images)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(
                network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
            )
    except Exception as error:
        raise _refusal("torch.export", error) from error
    for graph in (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)):
        for node in graph.nodes:
            node.meta.pop("stack_trace", None)  # it names files of this machine
    return program


def _refusal(exporter: str, error: Exception) -> ModelError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return ModelError(
        "network",
        f"must be exportable by {exporter} with a batch of any size",
        value=lines[0][:300],
        remedy=f"use {WEIGHTS_NAME} with {SOURCE_NAME}",
    )


def _tidy_onnx(model: Any) -> None:
    """Drop the exporter's notes, which name files of this machine, and call the batch dimension "batch"."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    for item in [*graph.node, *graph.initializer, *values, graph, *model.functions]:
        del item.metadata_props[:]
        item.doc_string = ""
    del model.metadata_props[:]
    batch = re.compile(rf"\b{re.escape(graph.input[0].type.tensor_type.shape.dim[0].dim_param)}\b")
    for value in values:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = batch.sub("batch", dimension.dim_param)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's and onnxscript's remarks about their own internals from the user, who can do nothing about them."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield
