"""The task of a detector's config: models of mmdet, data in COCO's format, average precision."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import DumpDetResults
from mmdet.models.detectors import RPN, BaseDetector, SemiBaseDetector, SingleStageDetector, TwoStageDetector
from mmdet.models.reid import LinearReIDHead
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmdet.models.seg_heads.base_semantic_head import BaseSemanticHead
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

from ..common.errors import UsageError
from .cfg_options import pasteable, places_in
from .changing import use_checked_datasets
from .coco_set_checks import FirstImages, check_before_run, draw_sample_set
from .evaluators import average_precisions, check_reported, coco_scorings, format_results, select_scores
from .reading import named_classes, type_of
from .task import Task, table_of_numbers
from .unread_settings import check_model_settings, warn_of_moving, warn_of_normalization

COLUMNS = {  # of a table, by the name of the first score: COCO's and LVIS's
    'mAP': {'mAP': 'AP', 'mAP_50': 'AP50', 'mAP_75': 'AP75', 'mAP_s': 'APs', 'mAP_m': 'APm', 'mAP_l': 'APl'},
    'AP': {name: name for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf')},
}

IN_PIPELINE = 'in the pipeline of the data set itself, without MultiImageMixDataset'
WITHOUT_MASKS = dict(
    Mosaic=f'use CachedMosaic, {IN_PIPELINE}',
    MixUp=f'use CachedMixUp, {IN_PIPELINE}',
    RandomAffine='leave it out, or use Rotate, ShearX, ShearY or TranslateX',
    RandomCenterCropPad='use RandomCrop and Pad',
)


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
            UsageError: If the numbers differ, or predictions would be of a type that numpy lacks, or no part of the
                model reads a key of its ``train_cfg`` or ``test_cfg``.
        """
        check_mixing(config)
        check_model_settings(config, model)
        warn_of_moving(config, splits)
        warn_of_normalization(config, splits)
        for split in splits:
            if config[f'{split}_cfg'].get('fp16') and not torch.cuda.is_available():
                raise UsageError(
                    f'{split}_cfg.fp16 needs a GPU: on a CPU predictions would be in bfloat16, which evaluators cannot '
                    f'score: leave it out'
                )
        heads = dict(class_heads(model))
        for split, dataset, kind in self.datasets(config, splits):
            classes = named_classes(dataset, kind)
            if classes is None:
                continue
            # of panoptic data, boxes have the classes of things, and some heads those of things and stuff
            things = ((getattr(kind, 'METAINFO', None) or {}) | (dataset.get('metainfo') or {})).get('thing_classes')
            wanted = {
                name: len(classes if hasattr(head, 'num_stuff_classes') else things or classes)
                for name, head in heads.items()
            }
            wrong = [name for name, head in heads.items() if head.num_classes != wanted[name]]
            if wrong:
                keys = {key: wanted[name] for name in wrong if (key := key_of_part(config, name))}
                raise UsageError(
                    f'model.{wrong[0]}.num_classes is {heads[wrong[0]].num_classes}, but the {split} data set has '
                    f'{wanted[wrong[0]]} classes: set {pasteable(keys) if keys else "it"}, or '
                    f'metainfo=dict(classes=...) of the datasets'
                )

    def check_data(self, config: Config, model: nn.Module, splits: Sequence[str]) -> FirstImages:
        """Check the annotations of COCO data sets and that their images exist; the run checks what it loads.

        The data of a config with ``sample_set`` are drawn first if they are missing.

        Raises:
            UsageError: If a file or folder is missing, or has errors, or contradicts the config.
        """
        difference = self.class_difference(config, splits)
        if not difference:
            draw_sample_set(config)
        first_images = check_before_run(self, config, splits)
        if difference:
            raise UsageError(difference)
        use_checked_datasets(config)  # our runner does so too, others do not
        return first_images

    def set_metrics(self, config: Config, model: nn.Module, metrics: Sequence[str]) -> None:
        """Make the COCO evaluators compute ``metrics``.

        Raises:
            UsageError: If there is no such evaluator, or the model predicts no masks.
        """
        if 'segm' in metrics and not has_masks(model):
            raise UsageError(
                f'--eval segm needs masks, and {type(model).__name__} predicts boxes only: use --eval bbox'
            )
        select_scores(self, config, metrics)

    def set_classwise(self, config: Config) -> None:
        for scoring in coco_scorings(self, config, '--classwise'):
            scoring.metric['classwise'] = True

    def set_format_only(self, config: Config, folder: Path) -> list[Path]:
        return format_results(self, config, folder)

    def check_report(self, config: Config) -> None:
        check_reported(self, config)

    def score_names(self, config: Config) -> list[str]:
        return average_precisions(self, config, 'val')

    def table(self, metrics: Mapping[str, float]) -> str:
        return coco_table(metrics)


def check_mixing(config: Config) -> None:
    """Compare the transforms of training images with what they have to carry.

    Raises:
        UsageError: If one that leaves masks as they are, or refuses them, gets masks.
    """
    steps = list(places_in(config.get('train_dataloader'), 'train_dataloader'))
    kinds = {place: type_of(node) for place, node in steps if isinstance(node, Mapping)}
    if any(kinds[place] == 'LoadAnnotations' and node.get('with_mask') for place, node in steps if place in kinds):
        for place, kind in kinds.items():
            if kind in WITHOUT_MASKS:
                raise UsageError(f'{place} is {kind}, which moves no masks, and some are loaded: {WITHOUT_MASKS[kind]}')


def class_heads(detector: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a detector that tell the classes of the data apart, each with its name.

    Left out are those that tell objects from background (RPN) or pixels (semantic segmentation) or persons (re-id),
    and detectors that read their classes as text.
    """
    others: set[nn.Module] = set()
    for module in detector.modules():
        if isinstance(module, BaseDetector):
            others.add(module)
            names = ('backbone', 'neck', 'rpn_head', 'bbox_head' if isinstance(module, RPN) else 'language_model')
            parts = [getattr(module, name, None) for name in names]
            if hasattr(module, 'language_model'):
                parts = [module]
            others.update(each for part in parts if isinstance(part, nn.Module) for each in part.modules())
        elif isinstance(module, BaseSemanticHead | FusedSemanticHead | LinearReIDHead):
            others.update(module.modules())
    for name, module in detector.named_modules():
        number = getattr(module, 'num_classes', None)
        if module not in others and isinstance(number, int) and number > 0:
            yield name, module


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


def key_of_part(config: Config, name: str) -> str | None:
    """Return the key of the number of classes of a part of the model; None if the config has no such part.

    Some parts are made several times from one dict.
    """
    node: Any = config.model
    parts = ['model']
    if 'detector' in node:  # from which student and teacher of a semi-supervised detector are made
        name = re.sub(r'^(student|teacher)\.', 'detector.', name)
    for part in name.split('.'):
        if part.isdigit() and isinstance(node, Mapping):
            continue
        node = node[int(part)] if part.isdigit() else node.get(part)
        if node is None:
            return None
        parts.append(part)
    return '.'.join([*parts, 'num_classes'])


def coco_table(metrics: Mapping[str, float]) -> str:
    """Return the average precisions among ``metrics`` (mmdet's names) as tables, one for each data set and metric.

    A table has one row per kind of output. Where there are several, each has a title.
    """
    tables: dict[str, list[str]] = {}
    for name in metrics:
        prefix, slash, last = name.rpartition('/')
        kind, _, score = last.rpartition('_')
        columns = COLUMNS.get(score)
        if not kind or columns is None:
            continue
        values = [metrics.get(f'{prefix}{slash}{kind}_{column}') for column in columns]
        cells = ['  none' if value is None or value < 0 else f'{value:6.3f}' for value in values]
        header = ' ' * 6 + '  '.join(f'{title:>6}' for title in columns.values())
        tables.setdefault(prefix, [header]).append(f'{kind:<6}' + '  '.join(cells))
    others = {name: value for name, value in metrics.items() if name.rpartition('/')[0] not in tables}
    if not tables:
        return table_of_numbers(others, 'no average precision was measured')
    titles = [f'{prefix}\n' if len(tables) > 1 else '' for prefix in tables]
    parts = [title + '\n'.join(rows) for title, rows in zip(titles, tables.values(), strict=True)]
    return '\n'.join(filter(None, [*parts, table_of_numbers(others, '')]))
