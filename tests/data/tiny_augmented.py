# The tiny RetinaNet with all that has a state of its own: random augmentation in two workers, averages of weights,
# momentum, a schedule by iterations and one by epochs, gradients clipped; two epochs between evaluations.
_base_ = 'tiny_retinanet.py'
sample_set = dict(num_train=12, num_val=6)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=[(96, 96), (192, 192)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(
    num_workers=2,
    persistent_workers=True,
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(pipeline=train_pipeline),
)
optim_wrapper = dict(_delete_=True, optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=10),
    dict(type='MultiStepLR', by_epoch=True, milestones=[2, 4], gamma=0.5),
]
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
default_hooks = dict(checkpoint=dict(max_keep_ckpts=2))
train_cfg = dict(max_epochs=6, val_interval=2)
