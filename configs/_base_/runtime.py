# What our configs add to mmdet's runtime: the runner and hooks that let a run survive interruptions and bad numbers.
# Each can be changed or dropped (None): docs/training.md. The loop stands with the schedule, as train_cfg.type.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['shvit_det'], allow_failed_imports=False)
runner_type = 'SHViTRunner'  # 'Runner' is mmengine's
default_hooks = dict(
    checkpoint=dict(type='SafeCheckpointHook', max_keep_ckpts=3),  # writes a checkpoint before it removes one
    step_seed=dict(type='StepSeedHook'),  # a resumed run draws the random numbers of an uninterrupted one
    finite_check=dict(type='FiniteCheckHook'),  # ends the run before NaN or infinity reaches the weights
    termination=dict(type='TerminationHook'),  # saves at SIGTERM and ends
    run_summary=dict(type='RunSummaryHook'),  # logs the number of images, and when the run will end
)
bad_data = 'refuse'  # or 'skip'; what each does: docs/reliability.md
