"""Write a network to files that other programs run: .pt2, .onnx, .safetensors and its own source.

No file is put in place before it has reproduced the network's outputs on batches of other sizes than that which it was
traced with.

Shapes: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgnas.errors import ModelError
from pgnas.nn.copying import copied
from pgnas.run_folder.storage import atomic
from pgnas.run_folder.tensors import save_tensors
from pgnas.stages.describing import describe_network, plain_network
from pgnas.stages.describing import write_description as export_description
from pgnas.stages.export_check import logits, noise, open_program, quiet, require_same, run_generated_source
from pgnas.stages.export_metadata import ExportMetadata
from pgnas.stages.network_file import NETWORK_NAME, WEIGHTS_NAME, description_metadata
from pgnas.stages.source_code import source_code

__all__ = [
    "METADATA_NAME",
    "NETWORK_NAME",
    "ONNX_NAME",
    "PT2_NAME",
    "SOURCE_NAME",
    "WEIGHTS_NAME",
    "ExportMetadata",
    "describe_network",
    "export_description",
    "export_onnx",
    "export_pt2",
    "export_safetensors",
    "export_source",
    "plain_network",
]

PT2_NAME, ONNX_NAME, SOURCE_NAME, METADATA_NAME = "model.pt2", "model.onnx", "model.py", "pgnas.json"

_TRACED_SIZE = 2  # a batch of one would be taken for a constant
_ONNX_LIMIT = 2**31 - 2**20  # a protobuf is under 2 GB; 1 MB for the graph
_OPSET = 18


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
    with quiet():
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
        with quiet():
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


def export_safetensors(
    module: nn.Module, path: Path, metadata: ExportMetadata, description: Mapping[str, Any] | None = None
) -> None:
    """Write the state dict of ``module``, each tensor contiguous and by itself, and the metadata.

    Args:
        module: The network; see :func:`plain_network`.
        path: Where to; written whole or not at all.
        metadata: Goes into the file.
        description: Of the network, from :func:`describe_network`: with it, ``pgnas.load`` needs this file alone.

    Raises:
        StorageError: The disk refused the write.
    """
    network = {} if description is None else description_metadata(description)
    save_tensors(path, module.state_dict(), {**metadata.to_strings(), **network})


def export_source(module: nn.Module, example: Tensor, path: Path, metadata: ExportMetadata) -> None:
    """Write the source of ``module`` for the weights that :func:`export_safetensors` writes beside it.

    Raises:
        ModelError: A layer or an operation cannot be written as source; it is named. The run may go on without.
        ExportError: The source does not reproduce the network.
        StorageError: The disk refused the write.
    """
    original = _copy(module)
    network = plain_network(original, example)
    text = source_code(network, metadata=metadata)
    with torch.device("meta"):  # no initial weights: they cost time and random numbers
        again: nn.Module = run_generated_source(text, path)["Network"]()
    again.load_state_dict(network.state_dict(), assign=True)
    require_same(path, again.eval(), original, example)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _put(path: Path, data: bytes, network: nn.Module, example: Tensor) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes(data)
        require_same(path, open_program(temporary), network, example)


def _copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU in eval mode, as exporters move and mark what they are given."""
    return copied(module).cpu().eval().requires_grad_(False)


def _program(network: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The network traced by torch.export with a dynamic batch dimension."""
    images = noise(example, _TRACED_SIZE)
    logits(network, images)
    try:
        with quiet(), torch.no_grad():
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
