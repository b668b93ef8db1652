"""Modules as ONNX files."""

import warnings
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ..common.errors import UsageError, first_line

OPSET = 17
"""Of the files; the oldest that has all we need is 16, for RoiAlign as mmdet's."""


def trace(module: nn.Module, inputs: tuple[torch.Tensor, ...], name: str, **names: Any) -> bytes:
    """Return a module as the content of an ONNX file.

    torch's older exporter is used, which traces a run: the newer one needs the package onnxscript. ``names`` are its
    arguments ``input_names``, ``output_names`` and ``dynamic_axes``.

    Args:
        module: In eval mode.
        inputs: What it is run on; the file takes their sizes only, but for ``dynamic_axes``.
        name: What errors call the module.
    """
    with TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        path = Path(folder, 'module.onnx')
        warnings.simplefilter('ignore')  # of its deprecation, and of every condition that the trace fixes
        try:
            torch.onnx.export(module, inputs, path, dynamo=False, opset_version=OPSET, **names)
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError) as error:
            raise UsageError(f'{name} cannot be exported as ONNX: {first_line(error)}') from error
        return path.read_bytes()


def add_metadata(content: bytes, metadata: dict[str, str]) -> Any:
    """Return an ONNX file's content as an ONNX model with metadata, and check that its operators are standard ones."""
    onnx = import_module('onnx')
    model = onnx.load_from_string(content)
    model.producer_name = 'shvit_det'
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    domains = {node.domain for node in model.graph.node}
    assert domains <= {'', 'ai.onnx'}, f'operators of {domains}'
    return model
