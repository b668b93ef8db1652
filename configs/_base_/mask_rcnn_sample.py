# Mask R-CNN with SHViT-S1 for the drawn sample set, from random weights. A quarter of the COCO detectors' width and few
# regions per image are enough for five shapes; the RoI heads have norms, because nothing is pretrained; objects go to
# coarser levels than in COCO's large images.
_base_ = './mask_rcnn_shvit.py'

group_norm = dict(type='GN', num_groups=8)
model = dict(
    backbone=dict(arch='s1', norm_eval=False, init_cfg=None),
    neck=dict(in_channels=_base_.variants.s1.channels, out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            in_channels=64,
            conv_out_channels=64,
            fc_out_channels=256,
            norm_cfg=group_norm,
            num_classes=5,
        ),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_convs=2, norm_cfg=group_norm, num_classes=5),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=500, max_per_img=100), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100)),
)
