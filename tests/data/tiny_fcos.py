# A tiny FCOS, whose losses are divided by the objects of all processes together.
_base_ = 'tiny_retinanet.py'
model = dict(
    type='FCOS',
    bbox_head=dict(
        _delete_=True,
        type='FCOSHead',
        num_classes=5,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        strides=[8, 16, 32, 64, 128],
        norm_cfg=dict(type='GN', num_groups=4),
    ),
    train_cfg=None,
)
