"""The record of a benchmark, as it stands in its JSON file: what is measured, printed, drawn and put into the docs.

Times are in milliseconds per run, a run being one batch; MACs are multiply-adds per run; bytes are per run.
"""

import json
from pathlib import Path
from typing import Any, TypedDict

from ..common.atomic_files import save_json
from ..common.errors import UsageError

FORMAT = 2
UNATTRIBUTED = 'unattributed'


class Times(TypedDict):
    """Distribution of one measured time over the runs."""

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
    """What a part has to do: the forward pass, or forward and backward in training."""

    name: str
    parameters: int
    macs: int
    moved_bytes: int  # what its operations read and write, each counted alone
    peak_memory_bytes: int  # of tensors alive at once, beyond parameters and inputs
    uncounted: dict[str, int]  # operations without a MAC formula, and how often they ran


class Ratio(TypedDict):
    """``subject`` over ``base``, the median of one interleaved run; above 1 the subject is slower."""

    figure: str  # 'whole' or 'backbone alone'
    subject: str
    base: str
    ratio: float
    low: float | None  # no interval for fewer than five rounds
    high: float | None
    coverage: float | None  # the share of such intervals that hold what they are of


class Ceilings(TypedDict):
    """What this machine was measured to reach, in the dtype and with the threads of the run."""

    matmul_gflop_s: float  # 2 per multiply-add
    matmul_by: str
    copy_gb_s: float  # read plus written


class SubjectType(TypedDict, total=False):
    """The data type of a subject, where it is another one than the record's."""

    dtype: str
    ceilings: Ceilings  # in this data type


class Subject(SubjectType):
    """One detector or backbone that was measured."""

    name: str
    source: str  # what the user named: a config, mmdet::a/config.py, timm:NAME or shvit:ARCH, with its prefixes
    kind: str  # 'detector', 'backbone', or 'part': another part of a detector, measured alone
    weights: str  # 'random' or a checkpoint's file name
    config_sha256: str | None
    prepared: list[str]  # what was done to the model first: 'BN folded', 're-parameterised', 'compiled', ...
    parameters: int
    input_shape: list[int]  # B, C, H, W, as the backbone saw it
    counts: dict[str, list[int]]  # per image: 'proposals', 'detections', 'ground truth'
    warmup_runs: int
    warmup_stable: bool
    compile_s: float | None
    whole: Times  # one run, with nothing hooked into it
    in_place: list[PartTime]  # with the row UNATTRIBUTED it adds up to in_place_whole; empty for a backbone
    in_place_whole: Times | None
    alone: list[PartTime]
    cost: list[PartCost]  # as PyTorch does it uncompiled, whatever then ran it


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


def write_record(record: Record, path: str | Path) -> None:
    """Write a record as JSON; floats keep six significant digits, which is more than they mean."""
    save_json(path, rounded(record), indent=1)


def read_record(path: str | Path) -> Record:
    """Read a record that :func:`write_record` wrote, of this format or of the first, which had no sure intervals.

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
            ratio['low'] = ratio['high'] = ratio['coverage'] = None  # they held fewer true values than they said
    if not isinstance(record, dict) or record.get('format') != FORMAT:
        raise UsageError(f'{path} is not a benchmark record of format {FORMAT}')
    return record


def rounded(value: Any) -> Any:
    """Return a value ready for JSON with all floats in it rounded to six significant digits."""
    if isinstance(value, float):
        return float(f'{value:.6g}')
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
