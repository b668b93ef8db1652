# SHViT on ImageNet: the recipe of the authors' training code (main.py), for a total batch of 2048 images.
_base_ = [
    'mmpretrain::_base_/schedules/imagenet_bs2048_adamw_levit.py',
    'mmpretrain::_base_/default_runtime.py',
    './shvit_variants.py',
]
custom_imports = dict(imports=['shvit_det'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(type='SHViT', arch='s4', out_indices=(2,)),
    head=dict(
        type='SHViTHead',
        num_classes=1000,
        in_channels=_base_.variants.s4.channels[-1],
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        topk=(1, 5),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),  # each half of the time
)

max_epochs = 300
learning_rate = 4e-3  # 1e-3 for every 512 images
optim_wrapper = dict(
    optimizer=dict(lr=learning_rate),
    paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.0),  # no weight decay of vectors, which norms and biases are
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6 / learning_rate, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=max_epochs),
]
train_cfg = dict(_delete_=True, type='ResumableEpochLoop', max_epochs=max_epochs)
# As in runtime.py, which is for mmdet.
runner_type = 'SHViTRunner'
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),
    step_seed=dict(type='StepSeedHook'),
    finite_check=dict(type='FiniteCheckHook'),
    termination=dict(type='TerminationHook'),
    run_summary=dict(type='RunSummaryHook'),
)
# Validation and the saved state_dict are the moving average's.
custom_hooks = [
    dict(type='AdaptiveGradientClippingHook', clip_factor=0.02),
    dict(type='EMAHook', momentum=4e-5, update_buffers=True),
]
