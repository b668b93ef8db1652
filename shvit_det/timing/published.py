"""Published figures of SHViT-S4 and its peers. Their hardware is not ours: only ratios compare."""

import re
from pathlib import PurePath
from typing import NamedTuple

from .settings import split_prefixes

TABLE_5 = 'Yun and Ro, SHViT, CVPR 2024, Table 5'
REFERENCE = 'SHViT-S4'
GPU = 'an A100 with batch 32'
CPU = 'one thread of a Xeon Gold 5218R with batch 16'


class Latency(NamedTuple):
    """Milliseconds per image of 512x512, of the backbone without a head (the paper's Table 5)."""

    gpu_ms: float  # on GPU
    cpu_ms: float  # on CPU
    mobile_ms: float  # on an iPhone 12 with batch 1


class Classifier(NamedTuple):
    """Speed of the ImageNet classifier at 256x256 (the paper)."""

    gpu_images_s: float
    cpu_onnx_images_s: float  # ONNX Runtime
    mobile_ms: float


class Published(NamedTuple):
    """The published figures of one backbone; average precision is on COCO, after the 1x schedule."""

    backbone: str
    names: tuple[str, ...]  # timm's, ours, and those in names of configs
    latency: Latency | None
    retinanet_ap: float | None
    box_ap: float | None  # of Mask R-CNN
    mask_ap: float | None
    source: str = TABLE_5  # of the average precision
    classifier: Classifier | None = None


# Table 5 does not say the size of MobileNetV3, which timm's names have.
PUBLISHED = (
    Published(
        REFERENCE, ('shvit_s4',), Latency(0.28, 5.0, 3.3), 38.8, 39.0, 35.9, classifier=Classifier(14283, 509, 1.6)
    ),
    Published('MobileNetV3', (), Latency(0.34, 7.5, 7.5), 29.9, None, None),
    Published('EfficientViT-M4', ('efficientvit_m4',), Latency(0.33, 7.3, 7.8), 32.7, 32.8, 31.0),
    Published('PVTv2-B0', ('pvt_v2_b0', 'pvtv2_b0'), Latency(0.73, 115.4, 27.5), 37.2, None, None),
    Published('EdgeViT-XXS', ('edgevit_xxs',), Latency(0.88, 38.4, 12.9), 38.7, None, None),
    Published('PoolFormer-S12', ('poolformer_s12',), Latency(1.20, 40.4, 6.8), None, 37.3, 34.6),
    Published('EfficientFormer-L1', ('efficientformer_l1',), Latency(0.84, 21.0, 4.3), None, 37.9, 35.4),
    Published('ResNet-50', ('resnet50', 'r50'), Latency(0.94, 19.0, 8.8), None, 38.0, 34.4),
    Published('FastViT-SA12', ('fastvit_sa12',), Latency(1.06, 39.4, 6.5), None, 38.9, 35.9),
    Published('MobileViTv2 x1.0', ('mobilevitv2_100',), None, None, None, None, classifier=Classifier(4345, 63, 3.8)),
    Published('SHViT-S3', ('shvit_s3',), None, 36.1, 36.9, 34.4, "LSNet's paper"),
    Published('LSNet-T', ('lsnet_t',), None, 34.2, 35.0, 32.7, "LSNet's paper"),
    Published('LSNet-S', ('lsnet_s',), None, 36.5, 37.4, 34.8, "LSNet's paper"),
    Published('LSNet-B', ('lsnet_b',), None, 39.2, 40.8, 37.8, "LSNet's paper"),
    Published('EfficientViM-M4', ('efficientvim_m4',), None, 38.8, 39.7, 36.4, "EfficientViM's paper"),
    Published('RepViT-M1.1', ('repvit_m1_1',), None, None, 39.8, 37.2, "RepViT's paper"),
    Published('MobileMamba-B1', ('mobilemamba_b1',), None, 39.6, 40.6, 37.4, "MobileMamba's paper"),
    Published('iFormer-M', ('iformer_m',), None, None, 40.8, 37.9, "iFormer's paper"),
    Published('RecNeXt-M3', ('recnext_m3',), None, None, 41.7, 38.6, "RecNeXt's paper"),
)


def published_for(source: str) -> Published | None:
    """Return the published figures of the backbone in a source or in a config's name; None if there are none.

    The architecture has to be the same: ``timm:wide_resnet50_2`` is no ResNet-50. A pretrained tag does not matter.
    """
    source = split_prefixes(source)[1]
    kind, colon, name = source.partition(':')
    if kind == 'timm':
        wanted = name.partition('.')[0]
        return next((row for row in PUBLISHED if wanted in row.names), None)
    words = source if kind == 'shvit' and colon else PurePath(source).stem
    words = f'_{re.sub("[^a-z0-9]+", "_", words.lower())}_'
    return next((row for row in PUBLISHED if any(f'_{name}_' in words for name in row.names)), None)
