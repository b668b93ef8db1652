# The authors' schedule: 12 epochs, AdamW, steps at 8 and 11, linear warm-up over 500 iterations, no gradient clipping.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

train_cfg = dict(type='ResumableEpochLoop')  # mmengine's EpochBasedTrainLoop, but resumed within an epoch
optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05))
