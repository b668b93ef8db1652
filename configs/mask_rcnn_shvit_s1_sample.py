# Mask R-CNN, SHViT-S1, sample set, from random weights: what `make demo` trains.
#   python tools/train.py configs/mask_rcnn_shvit_s1_sample.py
_base_ = ['./_base_/mask_rcnn_shvit.py', './_base_/sample.py', './_base_/runtime.py']

# A quarter of the COCO detectors' width and fewer regions per image: enough for five shapes.
model = dict(
    backbone=dict(arch='s1', norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[128, 224, 320], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, num_classes=5),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)
