# mmdet's own ATSS with our backbone and neck, one finer and one coarser level: strides 8 to 128 as it expects.
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'
custom_imports = dict(imports=['shvit_det'])
model = dict(
    backbone=dict(_delete_=True, type='SHViT', arch='s1'),
    neck=dict(
        _delete_=True,
        type='SHViTFPN',
        in_channels=[128, 224, 320],
        num_outs=5,
        num_upsamples=1,
        add_extra_convs='on_input',
    ),
)
