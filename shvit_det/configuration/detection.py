"""The task of a detector's config: models of mmdet, data in COCO's format, average precision."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import DumpDetResults
from mmdet.models.detectors import SemiBaseDetector, SingleStageDetector, TwoStageDetector
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from ..common.errors import UsageError
from ..data.sample import ensure_sample
from .changing import draw_by_hook
from .coco_sets import check_before_run, use_checked_datasets
from .reading import coco_evaluators, named_classes
from .task import Task, table_of_numbers

AP_COLUMNS = {'mAP': 'AP', 'mAP_50': 'AP50', 'mAP_75': 'AP75', 'mAP_s': 'APs', 'mAP_m': 'APm', 'mAP_l': 'APl'}


class Detection(Task):
    """The task of an mmdet config."""

    scope = 'mmdet'
    noun = 'detector'
    metrics = ('bbox', 'segm', 'proposal', 'proposal_fast')
    dump_type = DumpDetResults  # with masks as RLE

    def register(self) -> None:
        register_all_modules(init_default_scope=False)

    def check_model(self, config: Config, model: nn.Module, splits: Sequence[str]) -> None:
        """Compare the number of classes of data and heads, and the precision with what the evaluators can take.

        Raises:
            UsageError: If the numbers differ, or predictions would be of a type that numpy lacks.
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
        """Check the annotations of COCO data sets and that their images exist; the run checks what it loads.

        The data of a config with ``sample_set`` are drawn first if they are missing.

        Raises:
            UsageError: If a file or folder is missing, or has errors, or contradicts the config.
        """
        if 'sample_set' in config:
            ensure_sample(config.data_root, **config.sample_set)
        check_before_run(self, config, splits)
        use_checked_datasets(self, config, splits)

    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Make the COCO evaluators compute ``metrics``.

        Raises:
            UsageError: If there is no such evaluator, or the model predicts no masks.
        """
        if 'segm' in metrics and not has_masks(model):
            raise UsageError(
                f'--eval segm needs masks, and {type(model).__name__} predicts boxes only: use --eval bbox'
            )
        for evaluator in coco_evaluators(config, '--eval'):
            evaluator['metric'] = list(metrics)

    def draw_into(self, config: Config, folder: str) -> None:
        draw_by_hook(config, draw=True, test_out_dir=str(Path(folder).resolve()))

    def table(self, metrics: Mapping[str, float]) -> str:
        return coco_table(metrics)


def predicting_part(detector: nn.Module) -> Any:
    """Return the detector that predicts: the teacher or the student of a semi-supervised one, else the one given."""
    if not isinstance(detector, SemiBaseDetector):
        return detector
    return getattr(detector, (detector.semi_test_cfg or {}).get('predict_on', 'teacher'))


def has_masks(detector: nn.Module) -> bool:
    """Return whether a detector predicts masks; True for kinds of detectors that do not tell."""
    detector = predicting_part(detector)
    if not isinstance(detector, SingleStageDetector | TwoStageDetector):
        return True
    heads = [getattr(detector, name, None) for name in ('roi_head', 'bbox_head', 'mask_head')]
    return detector.with_mask or any(hasattr(head, 'mask_head') for head in heads)


def coco_table(metrics: Mapping[str, float]) -> str:
    """Return the COCO average precisions among ``metrics`` (mmdet's names) as a table, one row per kind of output."""
    rows = []
    for kind in ('bbox', 'segm'):
        values = [metrics.get(f'coco/{kind}_{key}') for key in AP_COLUMNS]
        if values[0] is not None:
            cells = ['  none' if value is None or value < 0 else f'{value:6.3f}' for value in values]
            rows.append(f'{kind:<6}' + '  '.join(cells))
    header = ' ' * 6 + '  '.join(f'{name:>6}' for name in AP_COLUMNS.values())
    return '\n'.join([header, *rows]) if rows else table_of_numbers(metrics, 'no average precision was measured')
