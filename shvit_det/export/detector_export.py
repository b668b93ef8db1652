"""Whole detectors as files for ONNX Runtime and OpenVINO: ``tools/export.py --to onnx|openvino``."""

import shutil
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log

from ..common.atomic_files import saving
from ..common.errors import UsageError
from ..common.output_paths import check_output_file
from ..configuration.detection import Detection, class_heads
from ..configuration.detector_or_classifier import task_of
from ..configuration.reading import load_config
from ..deployment import check_deployable, deploy
from ..runtimes.onnx_file import add_metadata, trace
from ..runtimes.packages import require
from ..version import __version__
from .detector_graph import INPUTS, DetectorGraph, OneStageGraph, TwoStageGraph
from .detector_weights import detector_with_weights
from .metadata import FORMAT, KEY, Metadata, resize_rule

SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml'}
IMAGES = 'uint8, batch x 3 x height x width, BGR, resized, not padded, all of one size'
EXAMPLE_SHAPE = (2, 3, 160, 224)


def export_detector(
    config_path: str,
    checkpoint: str,
    to: str,
    out: str | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Path:
    """Write a detector as a file that another runtime runs, from image tensor to detections.

    Args:
        config_path: The config.
        checkpoint: Its weights; ``'random'`` for weights that were not trained but find something.
        to: ``'onnx'``, or ``'openvino'``, which has its weights in a second file (.bin) beside the .xml.
        out: The file; None for the checkpoint's name with the suffix of the format, in the working folder.
        cfg_options: Changes of single values of the config, such as the score threshold.

    Returns:
        The path of the file.

    Raises:
        UsageError: If the detector cannot be exported, the checkpoint does not fit, a package is missing, or the file
            cannot be written.
    """
    suffix = SUFFIXES[to]
    path = Path(out or Path(checkpoint).with_suffix(suffix).name)
    if path.suffix != suffix:
        raise UsageError(f'--to {to} writes a file that ends in {suffix}, but --out is {path}')
    files = [path, path.with_suffix('.bin')] if to == 'openvino' else [path]  # the last has the weights
    for file in files:
        check_output_file(file, '--out', inputs=[config_path, checkpoint])
    for package in ('onnx', 'openvino') if to == 'openvino' else ('onnx',):
        require(package, f'--to {to}')

    config = load_config(config_path, cfg_options)
    if not isinstance(task_of(config), Detection):
        raise UsageError(f'{config_path} has a classifier, and only detectors can be exported')
    rule = resize_rule(config)
    detector = detector_with_weights(config, config_path, checkpoint)
    graph = graph_of(detector)
    metadata = Metadata(
        format=FORMAT,
        version=__version__,
        detector=type(detector).__name__,
        config=Path(config_path.rsplit('::', 1)[-1]).name,
        weights=Path(checkpoint).name,
        classes=class_names(config, detector),
        images=IMAGES,
        resize=rule,
        outputs=graph.outputs,
    )
    model = add_metadata(onnx_content(graph), {KEY: metadata.dump()})
    if to == 'onnx':
        with saving(path) as part:
            part.write_bytes(model.SerializeToString())
    else:
        write_openvino(model, metadata, path)
    print_log(
        f'{path}: {metadata.detector}, {len(metadata.classes)} classes, {files[-1].stat().st_size / 2**20:.0f} MiB; '
        f'{", ".join(INPUTS)} -> {", ".join(graph.outputs)}',
        'current',
    )
    return path


def graph_of(detector: Any) -> DetectorGraph:
    """Return a detector as a module from images to detections, by the networks of its deployed form if it has one."""
    if can_be_deployed(detector):
        detector = deploy(detector, channels_last=False)
    return (TwoStageGraph if hasattr(detector, 'roi_head') else OneStageGraph)(detector).eval()


def can_be_deployed(detector: Any) -> bool:
    """Tell whether a detector has a deployed form and is not one already."""
    try:
        check_deployable(detector)
    except UsageError:
        return False
    return True


def onnx_content(graph: DetectorGraph) -> bytes:
    """Return a graph as the content of an ONNX file that takes images of any size and number."""
    images = torch.randint(0, 256, EXAMPLE_SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    original_size = torch.tensor([2 * EXAMPLE_SHAPE[2], 2 * EXAMPLE_SHAPE[3]])
    axes: dict[str, dict[int, str]] = {name: {0: 'detections'} for name in graph.outputs}
    axes['images'] = {0: 'batch', 2: 'height', 3: 'width'}
    if 'masks' in axes:
        axes['masks'].update({1: 'original_height', 2: 'original_width'})
    names = dict(input_names=INPUTS, output_names=graph.outputs, dynamic_axes=axes)
    return trace(graph, (images, original_size), type(graph.detector).__name__, **names)


def class_names(config: Config, detector: Any) -> tuple[str, ...]:
    """Return the names of the classes that the config's data sets state; numbers where they state none."""
    _, head = next(class_heads(detector))
    numbers = tuple(map(str, range(head.num_classes)))
    return next((classes for _, classes in Detection().stated_classes(config, ('test', 'val', 'train'))), numbers)


def write_openvino(model: Any, metadata: Metadata, path: Path) -> None:
    """Write an ONNX model as OpenVINO's two files, with its weights in full precision."""
    openvino = import_module('openvino')
    with tempfile.TemporaryDirectory() as folder:
        source, written = Path(folder, 'model.onnx'), Path(folder, 'model.xml')
        import_module('onnx').save(model, source)
        converted = openvino.convert_model(source)
        converted.set_rt_info(metadata.dump(), KEY)
        openvino.save_model(converted, written, compress_to_fp16=False)
        with saving(path) as structure, saving(path.with_suffix('.bin')) as weights:  # both or none
            shutil.copyfile(written.with_suffix('.bin'), weights)
            shutil.copyfile(written, structure)
