"""What papers report of SHViT-S4 and its peers, as data. Their hardware, not ours: only ratios compare."""

import re
from dataclasses import dataclass
from pathlib import PurePath

from .forms import split_forms

PAPER = 'Yun and Ro, SHViT, CVPR 2024'
TABLE_5 = f'{PAPER}, Table 5'
REFERENCE = 'SHViT-S4'
GPU = 'an A100 with batch 32'
CPU = 'one thread of a Xeon Gold 5218R with batch 16'
MOBILE = 'an iPhone 12 with batch 1'


@dataclass(frozen=True)
class Latency:
    """Milliseconds per image of 512x512, of the backbone without a head (the paper's Table 5)."""

    gpu_ms: float  # on GPU
    cpu_ms: float  # on CPU
    mobile_ms: float  # on MOBILE


@dataclass(frozen=True)
class Accuracy:
    """Average precision on COCO after the 1x schedule, and who reports it."""

    source: str
    retinanet_ap: float | None = None
    box_ap: float | None = None  # of Mask R-CNN
    mask_ap: float | None = None


@dataclass(frozen=True)
class ClassifierSpeed:
    """Speed of the ImageNet classifier at 256x256 (the paper): no backbone of a detector, and not at 512x512."""

    gpu_images_s: float
    cpu_onnx_images_s: float  # ONNX Runtime
    mobile_ms: float


@dataclass(frozen=True)
class Published:
    """What is published of one backbone."""

    backbone: str
    names: tuple[str, ...]  # timm's, the one after 'shvit:' for ours, and those in names of configs
    latency: Latency | None = None
    accuracy: Accuracy | None = None
    classifier: ClassifierSpeed | None = None


def _table_5(
    backbone: str,
    names: tuple[str, ...],
    latency: Latency,
    *ap: float | None,
    classifier: ClassifierSpeed | None = None,
) -> Published:
    return Published(backbone, names, latency, Accuracy(TABLE_5, *ap), classifier)


def _peer(backbone: str, name: str, source: str, *ap: float | None) -> Published:
    return Published(backbone, (name,), accuracy=Accuracy(source, *ap))


# Table 5 has no name that timm knows for MobileNetV3 (which size is not said) and EdgeViT.
PUBLISHED = (
    _table_5(
        REFERENCE, ('shvit_s4',), Latency(0.28, 5.0, 3.3), 38.8, 39.0, 35.9, classifier=ClassifierSpeed(14283, 509, 1.6)
    ),
    _table_5('MobileNetV3', (), Latency(0.34, 7.5, 7.5), 29.9),
    _table_5('EfficientViT-M4', ('efficientvit_m4',), Latency(0.33, 7.3, 7.8), 32.7, 32.8, 31.0),
    _table_5('PVTv2-B0', ('pvt_v2_b0', 'pvtv2_b0'), Latency(0.73, 115.4, 27.5), 37.2),
    _table_5('EdgeViT-XXS', ('edgevit_xxs',), Latency(0.88, 38.4, 12.9), 38.7),
    _table_5('PoolFormer-S12', ('poolformer_s12',), Latency(1.20, 40.4, 6.8), None, 37.3, 34.6),
    _table_5('EfficientFormer-L1', ('efficientformer_l1',), Latency(0.84, 21.0, 4.3), None, 37.9, 35.4),
    _table_5('ResNet-50', ('resnet50', 'r50'), Latency(0.94, 19.0, 8.8), None, 38.0, 34.4),
    _table_5('FastViT-SA12', ('fastvit_sa12',), Latency(1.06, 39.4, 6.5), None, 38.9, 35.9),
    Published('MobileViTv2 x1.0', ('mobilevitv2_100',), classifier=ClassifierSpeed(4345, 63, 3.8)),
    _peer('SHViT-S3', 'shvit_s3', "LSNet's paper", 36.1, 36.9, 34.4),
    _peer('LSNet-T', 'lsnet_t', "LSNet's paper", 34.2, 35.0, 32.7),
    _peer('LSNet-S', 'lsnet_s', "LSNet's paper", 36.5, 37.4, 34.8),
    _peer('LSNet-B', 'lsnet_b', "LSNet's paper", 39.2, 40.8, 37.8),
    _peer('EfficientViM-M4', 'efficientvim_m4', "EfficientViM's paper", 38.8, 39.7, 36.4),
    _peer('RepViT-M1.1', 'repvit_m1_1', "RepViT's paper", None, 39.8, 37.2),
    _peer('MobileMamba-B1', 'mobilemamba_b1', "MobileMamba's paper", 39.6, 40.6, 37.4),
    _peer('iFormer-M', 'iformer_m', "iFormer's paper", None, 40.8, 37.9),
    _peer('RecNeXt-M3', 'recnext_m3', "RecNeXt's paper", None, 41.7, 38.6),
)


def published_for(subject_name_or_source: str) -> Published | None:
    """Return what is published of the backbone that a subject names, or None.

    Of ``timm:NAME`` the architecture has to be the same, not only similar (``timm:wide_resnet50_2`` is no ResNet-50);
    a pretrained tag does not matter. In the name of a config the backbone's name has to stand whole.
    """
    source = split_forms(subject_name_or_source)[1]
    kind, colon, name = source.partition(':')
    if kind == 'timm':
        wanted = name.partition('.')[0]
        return next((row for row in PUBLISHED if wanted in row.names), None)
    words = source if kind == 'shvit' and colon else PurePath(source).stem
    words = f'_{re.sub("[^a-z0-9]+", "_", words.lower())}_'
    return next((row for row in PUBLISHED if any(f'_{name}_' in words for name in row.names)), None)
