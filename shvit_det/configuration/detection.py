"""Detection: data in COCO's format, average precision, models of mmdet."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmdet.evaluation import DumpDetResults
from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from ..common.errors import UsageError
from ..data.sample import ensure_sample
from .coco_sets import check_before_run, use_checked_datasets
from .prediction_dump import WholeDump
from .scores import coco_table
from .task import Task, coco_evaluators, draw_by_hook, named_classes


class DetectionDump(WholeDump, DumpDetResults):
    """mmdet's, with masks as RLE."""


class Detection(Task):
    """The task of an mmdet config."""

    scope = 'mmdet'
    noun = 'detector'
    metrics = ('bbox', 'segm', 'proposal', 'proposal_fast')

    def register(self) -> None:
        register_all_modules(init_default_scope=False)

    def check_model(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Compare the classes of the data with those the heads were made for, and the precision with the evaluators.

        Raises:
            UsageError: If the classes differ in number, or the predictions would be in a type that numpy lacks.
        """
        for split in splits:
            if config[f'{split}_cfg'].get('fp16') and not torch.cuda.is_available():
                raise UsageError(
                    f'{split}_cfg.fp16 needs a GPU: on a CPU it means bfloat16, of which no evaluator here can compute '
                    f'scores: leave it out'
                )
        heads = {
            name: module.num_classes
            for name, module in model.named_modules()
            if name.endswith(('bbox_head', 'mask_head')) and hasattr(module, 'num_classes')
        }
        for split, dataset, kind in self.datasets(config, splits):
            classes = named_classes(dataset, kind)
            for name, num_classes in heads.items():
                if classes is not None and num_classes != len(classes):
                    raise UsageError(
                        f'{name}.num_classes is {num_classes}, but the {split} data set has {len(classes)} classes: '
                        f'set it, or metainfo=dict(classes=...) of the datasets'
                    )

    def check_data(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Look at the annotation files and for the images of COCO data sets, and let the run check what it loads.

        A config with ``sample_set`` gets its data drawn first, where it is not there yet.

        Raises:
            UsageError: If a file or folder is missing, or its content has errors or does not fit the config.
        """
        if 'sample_set' in config:
            ensure_sample(config.data_root, **config.sample_set)
        check_before_run(self, config, splits)
        use_checked_datasets(self, config, splits)

    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Let the COCO evaluators compute ``metrics``.

        Raises:
            UsageError: If there is no such evaluator, or the model predicts no masks.
        """
        if 'segm' in metrics and not has_masks(model):
            raise UsageError(
                f'--eval segm needs masks, and {type(model).__name__} predicts boxes only: use --eval bbox'
            )
        for evaluator in coco_evaluators(config, '--eval'):
            evaluator['metric'] = list(metrics)

    def dump(self, path: str) -> WholeDump:
        return DetectionDump(out_file_path=path)

    def draw_into(self, config: Config, folder: str) -> None:
        draw_by_hook(config, draw=True, test_out_dir=str(Path(folder).resolve()))

    def table(self, metrics: Mapping[str, float]) -> str:
        return coco_table(metrics)


def has_masks(detector: nn.Module) -> bool:
    """Tell whether a detector predicts masks; True for the kinds that this cannot be seen of."""
    if not isinstance(detector, SingleStageDetector | TwoStageDetector):
        return True
    heads = [getattr(detector, name, None) for name in ('roi_head', 'bbox_head', 'mask_head')]
    return detector.with_mask or any(hasattr(head, 'mask_head') for head in heads)
