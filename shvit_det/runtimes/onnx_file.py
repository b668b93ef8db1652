"""Modules as ONNX files."""

import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..common.errors import UsageError
from .packages import first_line

OPSET = 17
"""Of the files; the oldest that has all we need is 16, for RoiAlign as mmdet's."""


def trace(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    name: str,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: Mapping[str, Mapping[int, str]] | None = None,
) -> bytes:
    """Return a module as the content of an ONNX file.

    torch's older exporter is used, which traces a run: the newer one needs the package onnxscript.

    Args:
        module: In eval mode.
        inputs: What it is run on; the file takes their sizes only, but for ``dynamic_axes``.
        name: What errors call the module.
        input_names: Of the file.
        output_names: Of the file.
        dynamic_axes: Axes of any size: their names by input or output and axis.

    Raises:
        UsageError: If the module has something that the exporter cannot express.
    """
    with TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        path = Path(folder, 'module.onnx')
        warnings.simplefilter('ignore')  # of its deprecation, and of every condition that the trace fixes
        try:
            torch.onnx.export(
                module,
                inputs,
                path,
                dynamo=False,
                opset_version=OPSET,
                input_names=input_names,
                output_names=output_names,
                dynamic_axes=dynamic_axes,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
            raise UsageError(f'{name} cannot be exported as ONNX: {first_line(error)}') from error
        return path.read_bytes()


def add_metadata(content: bytes, metadata: Mapping[str, str]) -> Any:
    """Return an ONNX file's content as an ONNX model with metadata, and check that its operators are standard ones."""
    onnx = import_module('onnx')
    model = onnx.load_from_string(content)
    model.producer_name = 'shvit_det'
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model)
    domains = {node.domain for node in model.graph.node}
    assert domains <= {'', 'ai.onnx'}, f'operators of {domains}'
    return model
