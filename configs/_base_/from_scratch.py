# From random weights, on a small data set: what `train.py --data DIR --no-pretrained` changes in a config. Norms learn
# their statistics, nothing is frozen, the rate is higher than for pretrained weights, gradients are clipped.
model = dict(backbone=dict(norm_eval=False, frozen_stages=-1))  # where the backbone has other values
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10),
)
auto_scale_lr = dict(base_batch_size=4)
