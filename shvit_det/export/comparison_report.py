"""Comparisons of exported files with PyTorch, as files and as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..common.measurement_records import conditions, origin, save_record
from ..configuration.cfg_options import format_value

FORMAT = 'export comparison 1'


def write_comparison(record: Mapping[str, Any], path: str) -> None:
    """Write a record as JSON."""
    save_record(record, path)


def comparison_table(record: Mapping[str, Any]) -> str:
    """Return a record as a Markdown table, a row for each form."""
    plain = record['forms'][0]
    kinds = [kind for kind in ('bbox', 'segm') if f'coco/{kind}_mAP' in plain['scores']]
    names = dict(bbox='box', segm='mask')
    header = ['form', 'detections', 'missing, further', 'box, px', 'score']
    header += ['mask pixels', 'of objects', 'worst mask'] if 'segm' in kinds else []
    header += [f'{names[kind]} AP, AP50' for kind in kinds] + ['ms', 'times faster']
    lines = [header, ['---'] + ['---:'] * (len(header) - 1)]
    for form in record['forms']:
        lines.append(_row(form, plain, kinds))
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _row(form: Mapping[str, Any], plain: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    agreement = form['agreement']
    if agreement is None:
        cells = ['', '', '', ''] + (['', '', ''] if 'segm' in kinds else [])
    else:
        cells = [
            str(agreement['detections']),
            f'{agreement["missing"]}, {agreement["further"]}',
            f'{agreement["box_px"]:.1g}',
            f'{agreement["score"]:.1g}',
        ]
        if 'segm' in kinds:
            cells += [
                _percent(1 - agreement['mask_px'] / max(agreement['image_px'], 1)),
                _percent(1 - agreement['mask_px'] / max(agreement['object_px'], 1)),
                _percent(agreement['worst_mask']),
            ]
    for kind in kinds:
        cells.append(', '.join(f'{form["scores"][f"coco/{kind}_{name}"]:.3f}' for name in ('mAP', 'mAP_50')))
    return [form['name'], *cells, f'{form["median_ms"]:.0f}', f'{plain["median_ms"] / form["median_ms"]:.2f}']


def _percent(share: float) -> str:
    return f'{100 * share:.4f} %'


def comparison_block(record: Any) -> str:
    """Return what a page says of a record: its command, where it was made, its table."""
    settings = record['settings']
    options = ''.join(f', {key}={format_value(value)}' for key, value in settings['options'].items())
    made = f'{settings["config"]}, {settings["weights"]}{options}; {conditions(record)}; {origin(record)}.'
    return f'```sh\n{record["command"]}\n```\n\n{made}\n\n{comparison_table(record)}'
