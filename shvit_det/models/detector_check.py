"""A detector whose backbone, neck and heads do not fit together fails when it is built, not an hour into training.

mmdet builds backbone, neck and heads without comparing them. Wrong channels end in a shape error at the first image;
wrong strides cause no error at all: anchors and RoIs are in the wrong places, and the detector learns badly.

The backbone states its channels and strides. The channels and strides behind a neck or a head are not read from its
arguments, whose meaning differs from class to class; :mod:`.shape_trial` runs it. Where a trial fails without a known
cause, neither the part nor what follows it is checked. The same holds for detectors and RoI heads that override mmdet's
methods for using the levels. All checks raise ``UsageError`` with a sentence that names both numbers.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from ..common.errors import UsageError
from .backbone import SHViT
from .shape_trial import (
    IMAGE_SIZE,
    Levels,
    MapSize,
    as_levels,
    compare_channels,
    compare_layer,
    compare_strides,
    try_on,
)


def install() -> None:
    """Make mmdet's detectors run :func:`check_detector` at the end of their construction.

    The check runs after the constructor of the object's own class, which may change parts after mmdet's has returned.
    """
    from mmdet.models.detectors import BaseDetector

    def check_class(cls: type, **kwargs: Any) -> None:
        super(BaseDetector, cls).__init_subclass__(**kwargs)
        add_check(cls)

    BaseDetector.__init_subclass__ = classmethod(check_class)  # type: ignore[assignment]
    classes: list[Any] = [BaseDetector]
    for cls in classes:
        add_check(cls)
        classes += cls.__subclasses__()


def add_check(cls: Any) -> None:
    """Make the constructor of a class run the check after it has built an object of exactly this class.

    For an object of a subclass, the constructor of the subclass runs the check, since that one returns last.
    """
    init: Callable = cls.__init__
    if hasattr(init, 'checked_by_shvit_det'):
        return

    @functools.wraps(init)
    def checked_init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self).__init__ is checked_init:
            check_detector(self)

    checked_init.checked_by_shvit_det = True  # type: ignore[attr-defined]
    cls.__init__ = checked_init


def check_detector(detector: Any) -> None:
    """Compare the parts of a built mmdet detector whose backbone is a SHViT; others are left alone."""
    backbone = getattr(detector, 'backbone', None)
    if not isinstance(backbone, SHViT) or type(backbone).forward is not SHViT.forward:
        return
    if not is_of_mmdet(detector, ['extract_feat']):
        return
    sizes = [IMAGE_SIZE // stride for stride in backbone.out_strides]
    maps = [MapSize(channels, size, size) for channels, size in zip(backbone.out_channels, sizes, strict=True)]
    levels: Levels | None = Levels(maps, 'the levels made by the backbone', "the backbone's out_channels")
    neck = getattr(detector, 'neck', None)
    if neck is not None:
        levels = levels_after(neck, 'neck', levels)
    if levels is not None and is_of_mmdet(detector, ['loss', 'predict', 'pre_transformer']):
        check_heads(detector, levels)


def is_of_mmdet(part: Any, methods: Sequence[str]) -> bool:
    """Return whether all of these methods that a part has are defined by mmdet, so that we know what they do."""
    found = [getattr(type(part), name) for name in methods if hasattr(type(part), name)]
    return all(method.__module__.partition('.')[0] == 'mmdet' for method in found)


def levels_after(neck: nn.Module, name: str, levels: Levels | None) -> Levels | None:
    """Return the levels that a neck makes of those it is given, or None where that cannot be known."""
    if isinstance(neck, nn.Sequential) and type(neck).forward is nn.Sequential.forward:  # a list of necks
        for index, part in enumerate(neck):
            levels = levels_after(part, f'{name}.{index}', levels)
        return levels
    outputs = None if levels is None else outputs_of(neck, name, levels)
    return named_levels(outputs, f'the levels made by {"the neck" if name == "neck" else name}')


def outputs_of(part: Any, name: str, levels: Levels) -> Any:
    """Return what a part makes of the levels; None where it fails, unless the channels are known to be the cause."""
    trial = try_on(part, levels.maps)
    if trial.failed:
        compare_channels(part, name, levels, trial)
    return trial.outputs


def named_levels(outputs: Any, name: str) -> Levels | None:
    """Return the feature maps that a part returned, or None where it is something else."""
    maps = as_levels(outputs)
    return None if maps is None else Levels(maps, name, f'the channels of {name}')


def check_heads(detector: Any, levels: Levels) -> None:
    """Compare everything in a detector that takes the levels with them."""
    from mmdet.models.detectors import RPN, DetectionTransformer

    if isinstance(detector, DetectionTransformer):
        check_transformer(detector, levels)
        return
    for name in ('rpn_head', 'bbox_head', 'mask_head', 'semantic_head'):
        name_in_config = 'rpn_head' if isinstance(detector, RPN) else name
        for head, head_name in parts_of(getattr(detector, name, None), name_in_config):
            check_dense_head(head, head_name, levels)
    decoder = getattr(getattr(detector, 'panoptic_head', None), 'pixel_decoder', None)
    if decoder is not None:
        check_pixel_decoder(decoder, 'panoptic_head.pixel_decoder', levels)
    roi_head = getattr(detector, 'roi_head', None)
    if roi_head is not None and is_of_mmdet(roi_head, ['loss', 'predict', '_bbox_forward', '_mask_forward']):
        check_roi_head(roi_head, levels)


def parts_of(module: nn.Module | None, name: str) -> Iterator[tuple[Any, str]]:
    """Yield a module, or those of a list of them, with their names in the config."""
    if isinstance(module, nn.ModuleList):
        for index, part in enumerate(module):
            yield part, f'{name}.{index}'
    elif module is not None:
        yield module, name


def check_dense_head(head: Any, name: str, levels: Levels) -> None:
    """Compare a head that predicts at every position of the levels: its channels, anchors or points, and ranges."""
    from mmdet.models.dense_heads import CondInstBboxHead, FCOSHead, SOLOHead, SOLOV2Head
    from mmdet.models.task_modules.prior_generators import AnchorGenerator, MlvlPointGenerator

    stages = getattr(head, 'stages', None)
    if isinstance(stages, nn.ModuleList) and len(stages):  # CascadeRPNHead, whose later stages need the first's boxes
        head, name = stages[0], f'{name}.stages.0'
    mask_features = getattr(head, 'mask_feature_head', None)
    if mask_features is not None:  # of CondInst and SOLOv2
        check_mask_features(mask_features, f'{name}.mask_feature_head', levels)
    outputs = outputs_of(head, name, levels)
    if outputs is None:
        return
    strides_name = f'the strides of {name}'
    if isinstance(head, SOLOHead) and not isinstance(head, SOLOV2Head):
        resized = as_levels(try_on(head, levels.maps, method='resize_feats').outputs)
        compare_strides(strides_name, head.strides, f'the strides of {levels.name}, as it resizes them,', resized)
        return
    maps = as_levels(outputs[0]) if isinstance(outputs, (list, tuple)) else None
    for value in vars(head).values():
        if isinstance(value, (AnchorGenerator, MlvlPointGenerator)):
            for_one_size = is_for_one_size(value)
            compare_strides(strides_name, value.strides, f'the strides of {levels.name}', maps, for_one_size)
    ranged = (FCOSHead.get_targets, CondInstBboxHead.get_targets)  # others have regress_ranges that they never use
    uses_ranges = getattr(type(head), 'get_targets', None) in ranged
    if maps is not None and uses_ranges and len(head.regress_ranges) != len(maps):
        raise UsageError(
            f'{name}.regress_ranges has {len(head.regress_ranges)} ranges, but {name} works on {len(maps)} levels: '
            f'give it a range for each level'
        )


def is_for_one_size(generator: Any) -> bool:
    """Return whether a generator's strides were computed for one image size, as those of SSD and YOLACT."""
    from mmdet.models.task_modules.prior_generators import SSDAnchorGenerator

    return isinstance(generator, SSDAnchorGenerator) or any(x != int(x) for pair in generator.strides for x in pair)


def check_mask_features(head: Any, name: str, levels: Levels) -> None:
    """Compare the module that computes the one map for all masks: its channels, and the stride of the map."""
    features = outputs_of(head, name, levels)
    if isinstance(features, Tensor):
        compare_strides(f'{name}.mask_stride', [head.mask_stride], 'the stride of its map', as_levels([features]))


def check_pixel_decoder(decoder: Any, name: str, levels: Levels) -> None:
    """Compare the pixel decoder of MaskFormer or Mask2Former: its channels and the number of levels."""
    number = getattr(decoder, 'num_input_levels', getattr(decoder, 'num_inputs', 0))
    if number > len(levels.maps):
        raise UsageError(
            f'{name} takes {number} levels, but {levels.channels_name} is {levels.channels}: make the '
            f"panoptic head's in_channels and strides those of these {len(levels.maps)} levels"
        )
    takes_metas = 'batch_img_metas' in inspect.signature(decoder.forward).parameters
    metas = [dict(batch_input_shape=(IMAGE_SIZE,) * 2, img_shape=(IMAGE_SIZE,) * 2)]
    compare_channels(decoder, name, levels, try_on(decoder, levels.maps, *[metas] * takes_metas))


def check_transformer(detector: Any, levels: Levels) -> None:
    """Compare the width and the number of levels of a detector of the DETR kind, which flattens the levels."""
    number = getattr(detector, 'num_feature_levels', None)  # of those with deformable attention; others use the last
    if number is not None and number != len(levels.maps):
        raise UsageError(
            f'num_feature_levels is {number}, but {levels.name} are {len(levels.maps)}: make them equal, with num_outs '
            f'of a ChannelMapper as neck for instance'
        )
    channels = levels.channels if number is not None else levels.channels[-1:]
    if any(width != detector.embed_dims for width in channels):
        raise UsageError(
            f'embed_dims of the encoder is {detector.embed_dims}, but {levels.channels_name} is {levels.channels}: '
            f'make them equal, with a ChannelMapper as neck for instance'
        )


def check_roi_head(roi_head: Any, levels: Levels) -> None:
    """Compare the RoI extractors of a RoI head with the levels, and its other parts with the extractors."""
    for kind in ('bbox', 'mask', 'grid'):
        extractors = parts_of(getattr(roi_head, f'{kind}_roi_extractor', None), f'roi_head.{kind}_roi_extractor')
        features = [roi_features(extractor, name, levels) for extractor, name in extractors]
        heads = parts_of(getattr(roi_head, f'{kind}_head', None), f'roi_head.{kind}_head')
        for (head, name), feature in zip(heads, features, strict=False):
            check_roi_part(head, name, roi_head, feature)
    semantic = getattr(roi_head, 'semantic_head', None)  # of HTC and SCNet
    outputs = None if semantic is None else outputs_of(semantic, 'roi_head.semantic_head', levels)
    if outputs is not None:
        name = 'roi_head.semantic_roi_extractor.featmap_strides'
        strides, maps = roi_head.semantic_roi_extractor.featmap_strides, as_levels(outputs[1:])
        compare_strides(name, strides, "the stride of the semantic head's map", maps)


def roi_features(extractor: Any, name: str, levels: Levels) -> Levels | None:
    """Compare strides and channels of a RoI extractor, and return the features of a RoI, None if unknown."""
    from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor, GenericRoIExtractor

    if not isinstance(extractor, BaseRoIExtractor) or not is_of_mmdet(extractor, ['forward']):
        return None
    maps = levels.maps[: extractor.num_inputs]
    strides_name = f'featmap_strides of the RoI extractor {name}'
    compare_strides(strides_name, extractor.featmap_strides, f'the strides of {levels.name}', maps)
    channels = extractor.out_channels
    if len(maps) == 1:
        channels = maps[0].channels  # with one level it returns features of any number of channels
    elif not getattr(extractor, 'with_pre', False):
        given = [level.channels for level in maps]
        joined = isinstance(extractor, GenericRoIExtractor) and extractor.aggregation == 'concat'
        if channels != sum(given) if joined else any(channels != number for number in given):
            raise UsageError(
                f'out_channels of the RoI extractor {name} is {channels}, but {levels.channels_name} is {given}: make '
                f'them equal in the config{", in sum" * joined}'
            )
    height, width = extractor.roi_layers[0].output_size
    features = f'the RoI features of {height}x{width} made by {name}'
    return Levels([MapSize(channels, height, width)], features, f'the channels of {features}')


def check_roi_part(head: Any, name: str, roi_head: Any, features: Levels | None) -> None:
    """Compare the channels of a box or mask head, and of the layers that both share, with the features of a RoI."""
    for part, part_name in ((getattr(roi_head, 'shared_head', None), 'roi_head.shared_head'), (head, name)):
        if part is not None and features is not None:
            trial = try_on(part, features.maps[0])
            compare_layer(part_name, features, trial)
            features = named_levels([trial.outputs], f'the RoI features made by {part_name}')
