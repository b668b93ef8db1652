# Mask R-CNN for many small objects of one class, from random weights: half of COCO's width, anchors from 16 pixels on,
# norms in the RoI heads, objects on coarser levels than in COCO's large pictures, hundreds of them in a picture.
_base_ = 'mmdet::_base_/models/mask-rcnn_r50_fpn.py'

group_norm = dict(type='GN', num_groups=16)
model = dict(
    neck=dict(out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(
            type='ConvFCBBoxHead',
            num_shared_convs=1,
            num_shared_fcs=1,
            in_channels=128,
            conv_out_channels=128,
            fc_out_channels=512,
            norm_cfg=group_norm,
            num_classes=1,
        ),
        mask_roi_extractor=dict(out_channels=128, finest_scale=28, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=128, conv_out_channels=128, num_convs=2, norm_cfg=group_norm, num_classes=1),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=1000, max_per_img=300), rcnn=dict(sampler=dict(num=128))),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=1000), rcnn=dict(max_per_img=400)),
)
