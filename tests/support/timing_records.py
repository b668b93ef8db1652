"""Benchmark records made by hand: plausible figures, round enough to check in one's head."""

from typing import Any

from shvit_det.timing.record import FORMAT, UNATTRIBUTED, PartCost, PartTime, Ratio, Record, Subject, Times

# The parts of a run in ms; cost in million parameters, GMAC, MB moved, MiB at the peak.
TWO_STAGE = {
    'preprocess': (4, None),
    'backbone': (200, (16, 16, 900, 120)),
    'neck': (400, (4, 58, 1200, 300)),
    'RPN conv': (240, (0.6, 52, 500, 180)),
    'proposals': (20, (0, 0, 40, 20)),
    'RoI features': (60, (0, 0, 300, 50)),
    'box head': (80, (14, 13, 80, 60)),
    'mask head': (300, (2.6, 50, 400, 90)),
    'post-processing': (30, None),
}
ONE_STAGE = {
    'preprocess': (4, None),
    'backbone': (200, (16, 16, 900, 120)),
    'neck': (100, (3, 14, 300, 80)),
    'head': (500, (5, 120, 1500, 200)),
    'post-processing': (46, None),
}
CEILINGS = dict(matmul_gflop_s=600.0, matmul_by='oneDNN', copy_gb_s=32.0)


def times(median_ms: float, runs: int = 30) -> Times:
    """A distribution 3 percent down and 5 percent up from its median."""
    return Times(
        median_ms=median_ms, p10_ms=0.97 * median_ms, p90_ms=1.05 * median_ms, min_ms=0.95 * median_ms, runs=runs
    )


def cost(name: str, figures: tuple[float, float, float, float], uncounted: dict[str, int] | None = None) -> PartCost:
    parameters, macs, moved, peak = figures
    return PartCost(
        name=name,
        parameters=int(parameters * 1e6),
        macs=int(macs * 1e9),
        moved_bytes=int(moved * 1e6),
        peak_memory_bytes=int(peak * 2**20),
        uncounted=uncounted or {},
    )


def subject(name: str, kind: str, **changes: Any) -> Subject:
    base = Subject(
        name=name,
        source=name,
        kind=kind,
        weights='random',
        config_sha256=None,
        prepared=[],
        parameters=16_000_000,
        input_shape=[1, 3, 800, 1344],
        counts={},
        warmup_runs=5,
        warmup_stable=True,
        compile_s=None,
        whole=times(1000.0),
        in_place=[],
        in_place_whole=None,
        alone=[],
        cost=[],
    )
    return Subject(**{**base, **changes})


def detector(name: str, parts: dict[str, Any] = TWO_STAGE, *, scale: float = 1.0, **changes: Any) -> Subject:
    """A detector that spends on its parts what the table says times ``scale``, and 2 percent on none of them."""
    timed = {part: scale * ms for part, (ms, _) in parts.items()}
    total = sum(timed.values()) / 0.98
    timed[UNATTRIBUTED] = 0.02 * total
    counts = {'detections': [100]} if 'head' in parts else {'proposals': [1000], 'detections': [100]}
    fields = dict(
        source=f'configs/{name}.py',
        config_sha256='0123456789abcdef' * 4,
        prepared=['BN folded'],
        parameters=37_200_000,
        counts=counts,
        whole=times(total / 1.01),
        in_place=[PartTime(name=part, phase='forward', time=times(ms)) for part, ms in timed.items()],
        in_place_whole=times(total),
        alone=[
            PartTime(name=part, phase='forward', time=times(0.9 * ms))
            for part, ms in timed.items()
            if part in ('backbone', 'neck', 'RPN conv', 'head', 'box head', 'mask head')
        ],
        cost=[cost(part, figures) for part, (_, figures) in parts.items() if figures],
    )
    return subject(name, 'detector', **{**fields, **changes})


def trained(name: str, parts: dict[str, Any] = TWO_STAGE) -> Subject:
    """A detector in training: backward takes twice as long as forward, where anything is learnt."""
    result = detector(name, parts, prepared=[], alone=[], counts={'proposals': [1000, 990], 'ground truth': [7, 12]})
    result['input_shape'] = [2, 3, 800, 1344]
    result['in_place'] = [
        PartTime(name=part['name'], phase=phase, time=times(factor * part['time']['median_ms']))
        for phase, factor in (('forward', 1.0), ('backward', 2.0))
        for part in result['in_place']
        if phase == 'forward' or part['name'] in {part['name'] for part in result['cost']}
    ]
    total = sum(part['time']['median_ms'] for part in result['in_place'])
    result['in_place_whole'], result['whole'] = times(total), times(total / 1.01)
    return result


def backbone(source: str, ms: float, *, batch: int = 1, figures: Any = (16, 7.9, 900, 100), **changes: Any) -> Subject:
    fields = dict(
        prepared=['BN folded'],
        parameters=int(figures[0] * 1e6) if figures else 16_000_000,
        input_shape=[batch, 3, 512, 512],
        whole=times(ms * batch),
        cost=[cost('backbone', (figures[0], *(batch * figure for figure in figures[1:])))] if figures else [],
    )
    return subject(source, 'backbone', **{**fields, **changes})


def ratio(of: str, base: str, value: float, figure: str = 'whole') -> Ratio:
    return Ratio(figure=figure, subject=of, base=base, ratio=value, low=0.97 * value, high=1.04 * value, coverage=0.957)


def record(subjects: list[Subject], *, ceilings: Any = CEILINGS, ratios=(), warnings=(), **settings: Any) -> Record:
    batch, _, *shape = subjects[0]['input_shape']
    defaults = dict(
        mode='predict',
        shape=shape,
        batch=batch,
        device='cpu',
        dtype='float32',
        channels_last=True,
        compile=False,
        threads=1,
        detections=None,
        protocol=None,
        images='synthetic',
        only=None,
    )
    return Record(
        format=FORMAT,
        command='python tools/benchmark.py configs/mask_rcnn_shvit_s4_coco.py',
        date='2025-11-22',
        environment=dict(
            cpu=dict(model='AMD EPYC 9R14', usable_cores=2),
            gpu=None,
            versions=dict(torch='2.11.0', mmdet='3.3.0', mmcv='2.1.0', timm='1.0.31', numpy='2.4.0'),
            source=dict(commit='0a1b2c3d4e5f60718293', changed=False),
        ),
        settings={**defaults, **settings},
        ceilings=ceilings,
        subjects=subjects,
        ratios=list(ratios),
        warnings=list(warnings),
    )


def two_stage_record(**changes: Any) -> Record:
    """One Mask R-CNN, with costs and ceilings, an uncounted operation and a warning."""
    own = detector('mask_rcnn_shvit_s4_coco')
    own['cost'][3]['uncounted'] = {'aten.topk': 5, 'aten.sort': 12, 'torchvision.nms': 5}
    own['cost'][4]['uncounted'] = {'torchvision.roi_align': 4, 'aten.sort': 3, 'aten.index': 2}
    return record([own], **{'warnings': ['the machine is busy: load 3.1 on 2 cores'], **changes})


def detectors_record() -> Record:
    """Two Mask R-CNNs and a RetinaNet."""
    names = ('mask_rcnn_shvit_s4_coco', 'mask-rcnn_r50_fpn_1x_coco', 'retinanet_shvit_s4_coco')
    subjects = [detector(names[0]), detector(names[1], scale=1.6), detector(names[2], ONE_STAGE)]
    return record(subjects, ratios=[ratio(names[1], names[0], 1.6), ratio(names[1], names[0], 4.7, 'backbone alone')])


def trained_record() -> Record:
    """Two detectors in training, batch 2."""
    return record([trained('mask_rcnn_shvit_s4_coco'), trained('retinanet_shvit_s4_coco', ONE_STAGE)], mode='train')


def backbones_record(batch: int = 1, **settings: Any) -> Record:
    """SHViT-S4 and its peers as backbones alone."""
    prepared = ['BN folded', 're-parameterised']
    subjects = [
        backbone('shvit:s4', 93, batch=batch),
        backbone('shvit:s1', 30, batch=batch, figures=(6, 1.9, 300, 60)),
        backbone('timm:fastvit_sa12', 300, batch=batch, prepared=prepared, figures=(10.5, 9.8, 2000, 150)),
        backbone('timm:mobilevitv2_100', 392, batch=batch, figures=(4.4, 7.3, 1900, 140)),
        backbone('timm:resnet50.a1_in1k', 526, batch=batch, figures=(23.5, 21.4, 1500, 130)),
        backbone('timm:poolformer_s12', 336, batch=batch, figures=(11.4, 9.5, 1800, 150)),
        backbone('timm:efficientvit_m4', 56, batch=batch, figures=(8.4, 1.6, 250, 50)),
        backbone('timm:repvit_m1_1', 201, batch=batch, prepared=prepared, figures=(7.8, 6.9, 1300, 110)),
        backbone('timm:iformer_m', 310, batch=batch, figures=(8.4, 8.1, 1700, 120)),
    ]
    ratios = [ratio(other['name'], 'shvit:s4', other['whole']['median_ms'] / batch / 93) for other in subjects[1:]]
    return record(subjects, ratios=ratios, **settings)
