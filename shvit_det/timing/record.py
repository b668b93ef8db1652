"""The record of a benchmark: the content of its JSON file, from which tables, picture and pages are made.

Times are in milliseconds per run. A run is one batch; MACs (multiply-adds) and bytes are per run too.
"""

import json
from pathlib import Path
from typing import Any, TypedDict

from ..common.errors import UsageError

FORMAT = 2
UNATTRIBUTED = 'unattributed'


class Times(TypedDict):
    """The distribution of one time over the runs."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    min_ms: float
    runs: int


class PartTime(TypedDict):
    """One part of the run; ``phase`` is ``'forward'``, or ``'backward'`` in training."""

    name: str
    phase: str
    time: Times


class PartCost(TypedDict):
    """What a part computes in the forward pass, or in forward and backward pass of training."""

    name: str
    parameters: int
    macs: int
    moved_bytes: int  # the sum of what each operation reads and writes
    peak_memory_bytes: int  # of the tensors alive at one time, without parameters and inputs
    uncounted: dict[str, int]  # operations without a MAC formula, and how often they ran


def no_cost(name: str, parameters: int = 0) -> PartCost:
    """Return the cost of a part that has computed nothing so far."""
    return PartCost(name=name, parameters=parameters, macs=0, moved_bytes=0, peak_memory_bytes=0, uncounted={})


class Ratio(TypedDict):
    """``subject`` over ``base``, the median of one interleaved run; above 1 the subject is slower."""

    figure: str  # 'whole' or 'backbone alone'
    subject: str
    base: str
    ratio: float
    low: float | None  # no interval for fewer than five rounds
    high: float | None
    coverage: float | None  # the share of such intervals that contain the true ratio


class Ceilings(TypedDict):
    """The highest rates that were measured on this machine, with the data type and the threads of the run."""

    matmul_gflop_s: float  # 2 per multiply-add
    matmul_by: str
    copy_gb_s: float  # read plus written


class SubjectType(TypedDict, total=False):
    """The data type of a subject, if it is not that of the record."""

    dtype: str
    ceilings: Ceilings  # in this data type


class Subject(SubjectType):
    """One detector or backbone that was measured."""

    name: str
    source: str  # as the user named it: a config, mmdet::a/config.py, timm:NAME or shvit:ARCH, with prefixes
    kind: str  # 'detector', 'backbone', or 'part': the one part of a detector that --only names
    weights: str  # 'random' or a checkpoint's file name
    config_sha256: str | None
    prepared: list[str]  # how the model was changed: '99 BN folded', 're-parameterised', 'compiled', ...
    parameters: int
    input_shape: list[int]  # B, C, H, W of the backbone's input
    counts: dict[str, list[int]]  # per image: 'proposals', 'detections', 'ground truth'
    warmup_runs: int
    warmup_stable: bool
    compile_s: float | None
    whole: Times  # one run without hooks
    in_place: list[PartTime]  # adds up to in_place_whole, with the row UNATTRIBUTED; empty for a backbone
    in_place_whole: Times | None
    alone: list[PartTime]
    cost: list[PartCost]  # counted in PyTorch, uncompiled, also if something else ran the model


class Record(TypedDict):
    """A whole benchmark."""

    format: int
    command: str
    date: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    ceilings: Ceilings | None
    subjects: list[Subject]
    ratios: list[Ratio]
    warnings: list[str]


def read_record(path: str | Path) -> Record:
    """Read a record of this format, or of format 1, whose intervals are dropped because they were too narrow.

    Raises:
        UsageError: If the file does not exist, or is not such a record.
    """
    try:
        record: Record = json.loads(Path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UsageError(f'cannot read the benchmark record {path}: {error}') from error
    if isinstance(record, dict) and record.get('format') == 1:
        record['format'] = FORMAT
        for ratio in record['ratios']:
            ratio['low'] = ratio['high'] = ratio['coverage'] = None
    if not isinstance(record, dict) or record.get('format') != FORMAT:
        raise UsageError(f'{path} is not a benchmark record of format {FORMAT}')
    return record
