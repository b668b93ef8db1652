"""The task of a detector's config: models of mmdet, data in COCO's format, average precision."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.evaluation import DumpDetResults, LVISMetric
from mmdet.models.detectors import RPN, BaseDetector, SemiBaseDetector, SingleStageDetector, TwoStageDetector
from mmdet.models.reid import LinearReIDHead
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmdet.models.seg_heads.base_semantic_head import BaseSemanticHead
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.evaluator import DumpResults
from torch import nn

from ..common.atomic_files import PART
from ..common.errors import UsageError
from .cfg_options import dicts_in, pasteable
from .changing import use_checked_datasets
from .coco_set_checks import FirstImages, check_before_run, draw_sample_set
from .evaluators import AP_ITEMS, coco_scorings, merge_same, remove_metrics, scorings
from .reading import named_classes, type_of
from .task import Task, table_of_numbers
from .unread_settings import check_model_settings, warn_of_moving, warn_of_normalization

COLUMNS = {  # of a table, by the name of the first score: COCO's and LVIS's
    'mAP': {'mAP': 'AP', 'mAP_50': 'AP50', 'mAP_75': 'AP75', 'mAP_s': 'APs', 'mAP_m': 'APm', 'mAP_l': 'APl'},
    'AP': {name: name for name in ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf')},
}

OUTPUTS = ('bbox', 'segm')
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

        Settings that nothing reads, or that spoil the scores, are found here too.
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
        if 'segm' in metrics and not has_masks(model):
            raise UsageError(
                f'--eval segm needs masks, and {type(model).__name__} predicts boxes only: use --eval bbox'
            )
        merge_same(self, config, '--eval')
        for scoring in coco_scorings(self, config, '--eval'):
            scoring.metric['metric'] = list(metrics)

    def set_classwise(self, config: Config) -> None:
        for scoring in coco_scorings(self, config, '--classwise'):
            scoring.metric['classwise'] = True

    def set_format_only(self, config: Config, folder: Path) -> list[Path]:
        merge_same(self, config, '--format-only')
        found = scorings(self, config, 'test')
        others = [each for each in found if not each.is_coco and not issubclass(each.kind, DumpResults)]
        if any(each.name for each in others):
            raise UsageError(
                f'--format-only writes the files of CocoMetric, and {others[0].key} is another metric: leave out the '
                f'option or this metric'
            )
        remove_metrics(config, others)
        found = [each for each in found if each.is_coco]
        names = []
        for number, scoring in enumerate(found):
            end = f'_{scoring.name or number}'.replace('/', '_') if len(found) > 1 else ''
            names.append(folder / f'results{end}')
            scoring.metric.update(format_only=True, outfile_prefix=f'{names[-1]}{PART}')
        return names

    def check_report(self, config: Config) -> None:
        found = coco_scorings(self, config, '--report')
        if all(issubclass(each.kind, LVISMetric) for each in found):
            raise UsageError("--report needs a CocoMetric in test_evaluator, and LVIS's way to score is another")
        if not any(each.scored & {*OUTPUTS} for each in found):
            raise UsageError('--report needs scores of boxes or masks: add --eval bbox, or --eval bbox segm')
        if any(each.writes_only for each in found):
            raise UsageError(f'--report needs scores: add {pasteable({f"{found[0].key}.format_only": False})}')

    def score_names(self, config: Config) -> list[str]:
        found = scorings(self, config, 'val')
        if not all(each.is_coco and each.scored <= {*OUTPUTS} and not each.metric.get('classwise') for each in found):
            return []
        return [
            f'{each.prefix}/{output}_{item}'
            for each in found
            for output in OUTPUTS
            if output in each.scored
            for item in each.metric.get('metric_items') or AP_ITEMS
        ]

    def table(self, metrics: Mapping[str, float]) -> str:
        """Return the average precisions (mmdet's names) as tables, one for each data set and metric.

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
        parts = [(f'{prefix}\n' if len(tables) > 1 else '') + '\n'.join(rows) for prefix, rows in tables.items()]
        return '\n'.join(filter(None, [*parts, table_of_numbers(others, '')]))


def check_mixing(config: Config) -> None:
    """Refuse transforms of training images that leave masks as they are, or fail with them, where masks are loaded."""
    steps = list(dicts_in(config.get('train_dataloader'), 'train_dataloader'))
    if any(type_of(node) == 'LoadAnnotations' and node.get('with_mask') for _, node in steps):
        for place, node in steps:
            if (kind := type_of(node)) in WITHOUT_MASKS:
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
            names = ('backbone', 'neck', 'rpn_head', *(['bbox_head'] if isinstance(module, RPN) else []))
            parts = [module] if hasattr(module, 'language_model') else [getattr(module, name, None) for name in names]
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
