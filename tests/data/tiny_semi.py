# The tiny RetinaNet as student and teacher of a semi-supervised detector, as mmdet's configs of Soft Teacher have them.
_base_ = 'tiny_retinanet.py'
detector = _base_.model
model = dict(
    _delete_=True,
    type='SemiBaseDetector',
    detector=detector,
    data_preprocessor=dict(type='MultiBranchDataPreprocessor', data_preprocessor=detector.data_preprocessor),
    semi_train_cfg=dict(freeze_teacher=True, sup_weight=1.0, unsup_weight=1.0, cls_pseudo_thr=0.5),
    semi_test_cfg=dict(predict_on='teacher'),
)
