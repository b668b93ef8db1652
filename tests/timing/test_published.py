"""The published figures: found by the names that subjects have, and the same as in the README."""

import re

import pytest
from paths import ROOT

from shvit_det.timing.published import PUBLISHED, TABLE_5, published_for

BY_BACKBONE = {row.backbone: row for row in PUBLISHED}


@pytest.mark.parametrize(
    'name, backbone',
    {
        'shvit:s4': 'SHViT-S4',
        'shvit:s3': 'SHViT-S3',
        'timm:shvit_s4': 'SHViT-S4',
        'timm:shvit_s4.in1k': 'SHViT-S4',
        'timm:fastvit_sa12': 'FastViT-SA12',
        'timm:fastvit_sa12.apple_dist_in1k': 'FastViT-SA12',
        'timm:resnet50': 'ResNet-50',
        'timm:resnet50.a1_in1k': 'ResNet-50',
        'timm:efficientvit_m4': 'EfficientViT-M4',
        'timm:poolformer_s12': 'PoolFormer-S12',
        'timm:mobilevitv2_100': 'MobileViTv2 x1.0',
        'timm:repvit_m1_1': 'RepViT-M1.1',
        'mask_rcnn_shvit_s4_coco': 'SHViT-S4',
        'configs/retinanet_shvit_s4_coco.py': 'SHViT-S4',
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py': 'ResNet-50',
        'mmdet::pvt/retinanet_pvtv2-b0_fpn_1x_coco.py': 'PVTv2-B0',
    }.items(),
)
def test_names_find_their_row(name, backbone):
    assert published_for(name).backbone == backbone


@pytest.mark.parametrize(
    'name',
    [
        'shvit:s1',
        'shvit:s2',
        'timm:wide_resnet50_2',
        'timm:resnet50d',
        'timm:resnet50_gn',
        'timm:resnet18',
        'timm:poolformerv2_s12',
        'timm:mobilevitv2_075',
        'timm:efficientvit_b1',
        'timm:efficientvit_m4x',
        'mask_rcnn_shvit_s1_coco',
        'shvit_s4/mask-rcnn_r101_fpn_1x_coco.py',
        's4',
        '',
    ],
)
def test_similar_names_find_none(name):
    assert published_for(name) is None


def test_names_are_of_one_backbone():
    names = [name for row in PUBLISHED for name in row.names]
    assert len(names) == len(set(names))
    assert len(BY_BACKBONE) == len(PUBLISHED)


def test_the_classifier_is_kept_apart_from_the_backbones():
    other, own = published_for('timm:mobilevitv2_100'), published_for('shvit:s4')
    assert other.latency is other.box_ap is other.retinanet_ap is None
    ratios = [
        own.classifier.gpu_images_s / other.classifier.gpu_images_s,
        own.classifier.cpu_onnx_images_s / other.classifier.cpu_onnx_images_s,
        other.classifier.mobile_ms / own.classifier.mobile_ms,
    ]
    assert [round(ratio, 1) for ratio in ratios] == [3.3, 8.1, 2.4]  # as the paper's abstract has them


def test_the_readme_has_the_same_figures():
    text = (ROOT / 'README.md').read_text()
    pattern = r'^\| \**([\w. -]+?)\** \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|(?: ([\d.]+) \|)?'
    rows = re.findall(pattern, text, re.MULTILINE)
    assert len(rows) == 11
    for backbone, gpu, cpu, mobile, box_ap, mask_ap in rows:
        published = BY_BACKBONE[backbone]
        assert published.source == TABLE_5
        assert published.latency == (float(gpu), float(cpu), float(mobile))
        if mask_ap:
            assert (published.box_ap, published.mask_ap) == (float(box_ap), float(mask_ap))
        else:
            assert published.retinanet_ap == float(box_ap)
