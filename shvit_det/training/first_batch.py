"""A few images of each data set taken through pipeline, model and metric before a run starts and writes anything."""

import io
import json
import re
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import ConcatDataset
from mmengine.logging import MessageHub
from mmengine.registry import DATASETS, METRICS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from ..common.errors import RunError, UsageError
from ..configuration.build_errors import reason_of
from ..configuration.cfg_options import dicts_in, places_in
from ..configuration.coco_set_checks import FirstImages
from ..configuration.evaluators import scorings
from ..configuration.reading import dataset_places, path_within, type_of
from ..configuration.task import Task
from .hooks.validation_loss import ValidationLossHook, mean_losses, with_annotations_first
from .seeding import same_random_numbers
from .settings_check import has_hook
from .trial_build import own_instances

DRAWS = 3  # of each image, since transforms are random
LONGEST_SIDE = 256  # pixels to which an image is made smaller for the model, which may be large and the processor slow
MOST: dict[str, float] = dict(score_thr=0.0, nms_pre=100, max_per_img=20)  # what predictions of the trial have at most
MOST_SETTINGS, LONGEST_TEXT = 4, 120  # of a dict that a message repeats
FROM_META_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')


def try_first_batch(
    task: Task, config: Config, model: nn.Module, splits: Sequence[str], first_images: FirstImages
) -> None:
    """Do once what a run does first: load and transform images, compute a loss or predict, and score the predictions.

    Data sets of other kinds than COCO's are left to the run. The config stays as it is. The model is of no use for a
    run afterwards: its statistics and its settings for a test have changed.

    Raises:
        UsageError: If a part of the config fails.
    """
    quiet = redirect_stdout(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, own_instances(), same_random_numbers(), quiet:
        DefaultScope.get_instance('first_batch', scope_name=config.get('default_scope') or task.scope)
        MessageHub.get_current_instance().update_info_dict(dict(iter=0, epoch=0))
        for split in splits:
            shortened = with_first_images(config, split, first_images, Path(folder))
            if shortened is not None:
                _try_split(task, shortened, model, split)
                if split == 'val' and has_hook(config, ValidationLossHook):
                    _try_losses(shortened, model)


def with_first_images(config: Config, split: str, first_images: FirstImages, folder: Path) -> Config | None:
    """Return a copy of a config in which a split has only the first images; None if they are not known."""
    shortened = deepcopy(config)
    for number, (_, dataset) in enumerate(dataset_places(shortened, split)):
        content = dict(first_images.get(Path(path_within(dataset, dataset.get('ann_file') or '')), {}))
        if not content or 'proposal_file' in dataset:  # which has an entry for each image
            return None
        if split != 'train':  # a metric wants a prediction for each image
            content['images'] = content['images'][:1]
            content['annotations'] = [
                each for each in content['annotations'] if each['image_id'] == content['images'][0]['id']
            ]
        file = folder / f'{split}_{number}.json'
        file.write_text(json.dumps(content), encoding='utf-8')
        # mmengine collects garbage when it serializes, which takes longer than all else here
        dataset.update(ann_file=str(file), filter_cfg=None, serialize_data=False)
        dataset.pop('indices', None)
    return shortened


def may_need_gpu(error: Exception) -> bool:
    """Tell whether an operation may have failed only because it has no form for a CPU; the run has a GPU then."""
    return torch.cuda.is_available() and isinstance(error, RuntimeError)


def _try_split(task: Task, config: Config, model: nn.Module, split: str) -> None:
    loader = config[f'{split}_dataloader']
    part, path = f'{split}_dataloader', f'the first image of {split}_dataloader'
    try:
        dataset = DATASETS.build(loader['dataset'])
        starts = [0, *dataset.cumulative_sizes[:-1]] if isinstance(dataset, ConcatDataset) else [0]
        samples = [dataset[start] for _ in range(DRAWS) for start in starts]
        if not all(isinstance(sample, Mapping) and 'inputs' in sample for sample in samples):
            raise UsageError(
                f'{part}: the pipeline ends without PackDetInputs, which gives the model its inputs: add it at the end'
            )
        path = getattr(samples[0].get('data_samples'), 'img_path', path)
        # two images at once where the run has several: norms may need them
        samples = samples[: len(starts) * (2 if split == 'train' and loader.get('batch_size') != 1 else 1)]
        part = 'model'
        try:
            outputs, batch = _run_model(model, [_smaller(sample) for sample in samples], loader, split)
        except Exception:  # perhaps because the image is too small
            outputs, batch = _run_model(model, samples, loader, split)
        part = f'{split}_evaluator'
        for scoring in scorings(task, config, split):
            if scoring.is_coco and len(scoring.datasets) == len(starts) == 1:
                (own,) = scoring.datasets.values()
                file = own['ann_file'] if scoring.metric.get('ann_file') is not None else None
                metric = METRICS.build(dict(scoring.metric, ann_file=file, outfile_prefix=None, format_only=False))
                metric.dataset_meta = dataset.metainfo
                metric.process(batch, [sample.to_dict() for sample in outputs])
                metric.compute_metrics(metric.results)
    except UsageError:
        raise
    except RunError as error:
        if error.__cause__ is not None:  # of a transform
            raise UsageError(failure(error, config, part, path)) from error
        if config.get('bad_data') != 'skip':
            raise UsageError(str(error)) from error
    except Exception as error:
        if part != 'model' or not may_need_gpu(error):
            raise UsageError(failure(error, config, part, path)) from error


def _try_losses(config: Config, model: nn.Module) -> None:
    """Compute the losses of an image of the validation, as ``ValidationLossHook`` will."""
    loader, path = with_annotations_first(config.val_dataloader), 'the first image of val_dataloader'
    try:
        sample = DATASETS.build(loader['dataset'])[0]
        path = getattr(sample.get('data_samples'), 'img_path', path)
        mean_losses(model.eval(), _in_one_batch([_smaller(sample)], loader))
    except Exception as error:
        if not may_need_gpu(error):
            raise UsageError(f'{failure(error, config, "model", path)}: train without --val-loss') from error


def _in_one_batch(samples: Sequence[Any], loader: Mapping[str, Any]) -> DataLoader:
    """Return a loader of samples that are put together in the way of a loader in the config."""
    sampler = dict(type='DefaultSampler', shuffle=False)
    settings: Any = dict(dataset=samples, sampler=sampler, batch_size=len(samples), num_workers=0)
    return Runner.build_dataloader(settings | {key: loader[key] for key in ('collate_fn',) if key in loader})


def _run_model(model: Any, samples: Sequence[Any], loader: Mapping[str, Any], split: str) -> tuple[Any, Any]:
    """Return what the model makes of a batch, losses or predictions, and the batch."""
    (batch,) = _in_one_batch(samples, loader)
    model.train(split == 'train')
    with torch.no_grad():
        if split == 'train':
            return model(**model.data_preprocessor(deepcopy(batch), True), mode='loss'), batch
        keep_few_of_any_score(model)
        return model.test_step(deepcopy(batch)), batch


def keep_few_of_any_score(model: nn.Module) -> None:
    """Make parts of a model keep few predictions, but of any score, so that an untrained one has some."""
    for module in model.modules():
        settings: Any = dicts_in(getattr(module, 'test_cfg', None), 'test_cfg')
        for _, node in settings:
            for key, most in MOST.items():
                if isinstance(node.get(key), int | float):
                    node[key] = min(node[key], most)


def _smaller(sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a sample whose image has no side above ``LONGEST_SIDE``, or the sample where that is not simple."""
    inputs, packed = sample['inputs'], deepcopy(sample.get('data_samples'))
    if not isinstance(inputs, Tensor) or not isinstance(packed, DetDataSample) or 'gt_sem_seg' in packed:
        return sample
    height, width = inputs.shape[-2:]
    if max(height, width) <= LONGEST_SIDE:
        return sample
    size = [max(1, side * LONGEST_SIDE // max(height, width)) for side in (height, width)]
    factors = size[1] / width, size[0] / height
    resized = interpolate(inputs[None].float(), size)[0].to(inputs.dtype)
    packed.set_metainfo(dict(img_shape=tuple(size)))
    if 'scale_factor' in packed:
        old = packed.scale_factor
        packed.set_metainfo(dict(scale_factor=tuple(one * other for one, other in zip(old, factors, strict=True))))
    for name in ('gt_instances', 'ignored_instances'):
        objects = packed.get(name, {})
        if 'bboxes' in objects:
            objects.bboxes = objects.bboxes.clone()
            objects.bboxes.rescale_(factors)
        if 'masks' in objects:
            objects.masks = objects.masks.resize(tuple(size))
    return dict(sample, inputs=resized, data_samples=packed)


def failure(error: Exception, config: Config, part: str, path: str) -> str:
    """Return the sentence about an error in the first batch: which dict of the config failed, and with which image.

    ``part`` is the key at the top of the config whose part failed, and ``path`` the image, unless the error names it.
    """
    in_data_set = re.match(r'the pipeline fails on the image (.*) \(\w+: ', str(error))  # of CheckedCocoDataset
    if in_data_set and isinstance(error.__cause__, Exception):
        error, path = error.__cause__, in_data_set[1]
    reason, tree = reason_of(error), config.get(part)
    owners = [type(frame.f_locals.get('self')).__name__ for frame, _ in traceback.walk_tb(error.__traceback__)]
    dicts = list(dicts_in(tree, part))
    kind = next((kind for kind in reversed(owners) if any(type_of(node) == kind for _, node in dicts)), None)
    of_owner = [(place, node) for place, node in dicts if type_of(node) == kind]
    what = f'{of_owner[0][0] if len(of_owner) == 1 else part} ({kind})' if kind else part
    texts = [(place, value) for place, value in places_in(tree, part) if isinstance(value, str)]
    if len(named := [each for each in texts if re.search(rf'(?<!\w){re.escape(each[1])}(?!\w)', reason)]) == 1:
        what += f', with {named[0][0]}={named[0][1]!r},'
    elif len(of_owner) == 1 and (settings := settings_of(of_owner[0][1])):
        what += f', with {settings},'
    absent = re.search(r"^(?:KeyError|AttributeError): .*'(\w+)'$|img_metas?(?:\.get\(|\[)'(\w+)'", reason)
    lacking = (absent[1] or absent[2]) if absent else ''
    hint, in_loader = '', part.endswith('dataloader')
    if (part == 'model' and lacking in ('bboxes', 'labels', 'masks')) or (in_loader and lacking.startswith('gt_')):
        not_loaded = 'such annotations' if in_loader else lacking
        hint = f', since the pipeline loads no {not_loaded}: LoadAnnotations has with_bbox, with_label and with_mask'
    elif not in_loader and lacking in FROM_META_KEYS:
        hint = ': name it in meta_keys of PackDetInputs'
        hint += ', and have a Resize before it' if lacking == 'scale_factor' else ''
    return f'{what} fails in a trial with {path}: {reason}{hint}'


def settings_of(node: Mapping[str, Any]) -> str:
    """Return the settings of a dict that may be to blame, as text; none if they are many or long."""
    found = {key: value for key, value in node.items() if key not in ('type', 'ann_file') and str(key)[:1] != '_'}
    text = ', '.join(f'{key}={value!r}' for key, value in found.items())
    return text if len(found) <= MOST_SETTINGS and len(text) <= LONGEST_TEXT else ''
