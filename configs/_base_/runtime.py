# What every config of ours adds to mmdet's runtime.
_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['shvit_det'], allow_failed_imports=False)
default_hooks = dict(checkpoint=dict(max_keep_ckpts=3))
bad_data = 'refuse'  # or 'skip'; what each does: docs/reliability.md
