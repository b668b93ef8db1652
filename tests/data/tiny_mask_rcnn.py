# The sample config with a tiny network and a handful of images: a whole run in seconds.
_base_ = '../../configs/mask_rcnn_shvit_s1_sample.py'
sample_set = dict(num_train=8, num_val=4)
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8))),
    neck=dict(in_channels=[16, 24, 32], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, conv_out_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
    test_cfg=dict(rcnn=dict(max_per_img=20)),
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=1)
