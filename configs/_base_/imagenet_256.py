# ImageNet at 256x256: mmpretrain's data, tested on the centre of images resized to 292; 256 images a GPU.
_base_ = 'mmpretrain::_base_/datasets/imagenet_bs64_swin_256.py'

train_dataloader = dict(
    batch_size=256,
    drop_last=True,
    persistent_workers=True,
    sampler=dict(type='RepeatAugSampler'),  # three times each image
)
val_dataloader = dict(persistent_workers=True)
test_dataloader = dict(persistent_workers=True)
