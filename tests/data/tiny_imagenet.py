# The ImageNet recipe with a tiny network, six classes and a handful of small images: a whole run in seconds.
_base_ = '../../configs/shvit_s1_imagenet.py'
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=(16, 24, 32), depths=(1, 1, 1), attn_dims=(8, 8, 8))),
    head=dict(in_channels=32, num_classes=6),
)
data_preprocessor = dict(num_classes=6)
classes = ('disc', 'square', 'triangle', 'star', 'cross', 'ring')
pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
loader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(metainfo=dict(classes=classes), pipeline=pipeline),
)
train_dataloader = loader
val_dataloader = loader
test_dataloader = loader
train_cfg = dict(max_epochs=2)
custom_hooks = [
    dict(type='AdaptiveGradientClippingHook', clip_factor=0.02),
    dict(type='EMAHook', momentum=0.5, update_buffers=True),
]
