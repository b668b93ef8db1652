"""The results as text: their figures, what they leave out, and that both renderings say the same."""

import json
import re

import pytest
import timing_records as cases
from hypothesis import given
from hypothesis import strategies as st

from shvit_det import UsageError
from shvit_det.common.measurement_records import save_record
from shvit_det.timing.record import read_record
from shvit_det.timing.results import markdown_report, terminal_report
from shvit_det.timing.text_tables import significant

RECORDS = {
    'two stages': cases.two_stage_record(),
    'detectors': cases.detectors_record(),
    'training': cases.trained_record(),
    'backbones': cases.backbones_record(),
    'backbones in batches': cases.backbones_record(16),
    'protocol of the paper': cases.backbones_record(16, protocol='paper'),
    'one of each': cases.record([cases.detector('mask_rcnn_shvit_s4_coco'), cases.backbone('shvit:s4', 93)]),
}


def tables(markdown: str) -> list[list[dict[str, str]]]:
    """Return the tables of Markdown as rows by header."""
    found = []
    for block in re.findall(r'(?:^\|.*\n?)+', markdown, re.MULTILINE):
        header, rule, *rows = [[cell.strip() for cell in line[1:-1].split('|')] for line in block.strip().splitlines()]
        assert all(re.fullmatch('-+:?', cell) for cell in rule)
        found.append([dict(zip(header, row, strict=True)) for row in rows])
    return found


def by_name(table: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    return {next(iter(row.values())): row for row in table}


def test_a_part_has_its_times_costs_and_rates():
    overview, table = tables(markdown_report(RECORDS['two stages']))
    assert [row['part'] for row in table] == [*cases.TWO_STAGE, 'unattributed', 'whole']
    rows = by_name(table)
    assert rows['backbone'] == {
        'part': 'backbone',
        'in place ms': '200',
        'share %': '14.7',  # of 1334 / 0.98
        'alone ms': '180',
        'params M': '16.0',
        'GMACs': '16.0',
        'peak MiB': '120',
        'GFLOP/s': '178',  # 32 in 180 ms, alone
        '% matmul': '29.6',  # of 600
        '% copy': '15.6',  # 900 MB in 180 ms, of 32 GB/s
    }
    assert rows['RoI features']['% copy'] == '15.6'  # 300 MB in 60 ms, in place
    assert rows['RoI features']['GFLOP/s'] == rows['RoI features']['alone ms'] == ''
    assert rows['unattributed']['in place ms'] == '27.2' and rows['unattributed']['share %'] == '2.0'
    whole = rows['whole']
    assert (whole['in place ms'], whole['share %'], whole['alone ms']) == ('1361', '100.0', '')
    assert (whole['params M'], whole['GMACs'], whole['GFLOP/s']) == ('37.2', '189', '278')
    assert (overview[0]['params M'], overview[0]['GMACs'], overview[0]['GFLOP/s']) == ('37.2', '189', '280')


def test_a_detector_says_what_it_is_and_what_the_hooks_cost():
    own = cases.detector('mask_rcnn_shvit_s4_coco', warmup_stable=False, compile_s=12.34)
    text = ' '.join(terminal_report(cases.record([own])).split())
    for words in (
        'mask_rcnn_shvit_s4_coco: config sha256 01234567, weights random, input 1x3x800x1344', 'proposals/image 1000',
        'detections/image 100', 'prepared BN folded', 'min ms/run 1280, runs 30',
        'a difference of 1.0 %', 'warm-up runs 5, NOT stable', 'compile s 12.3',
        '600 GFLOP/s matrix product (oneDNN), 32.0 GB/s copy', 'AMD EPYC 9R14, 1 thread, batch 1, 800x1344, float32',
        'torch 2.11.0', 'commit 0a1b2c3', '2025-11-22',
    ):  # fmt: skip
        assert words in text


def test_what_all_subjects_have_in_common_is_said_once():
    report = markdown_report(RECORDS['detectors'])
    assert '- all: config sha256 01234567, weights random, input 1x3x800x1344, ' in report
    facts = by_name(tables(report)[1])
    assert facts['mask-rcnn_r50_fpn_1x_coco']['proposals/image'] == '1000'
    assert facts['retinanet_shvit_s4_coco']['proposals/image'] == '' and 'runs' not in facts['retinanet_shvit_s4_coco']


def test_the_settings_that_narrow_a_run_are_said():
    text = terminal_report(
        cases.record([cases.detector('a')], only=['neck', 'RPN conv'], detections=20, images='4 photographs')
    )
    assert 'images: 4 photographs; at most 20 detections' in text and 'only neck, RPN conv' in text
    assert 'at most' not in terminal_report(RECORDS['two stages'])


def test_what_was_not_measured_has_no_column():
    bare = cases.detector('a', prepared=[], alone=[], cost=[], source='a', config_sha256=None)
    overview, table = tables(markdown_report(cases.record([bare], ceilings=None)))
    assert list(overview[0]) == ['model', 'latency ms', 'p10 .. p90', 'params M']
    assert list(table[0]) == ['part', 'in place ms', 'share %', 'params M']  # of the whole
    text = terminal_report(cases.record([bare], ceilings=None))
    for words in ('ceilings of this machine', 'perations without', 'prepared', 'sha256', 'NOT stable', 'compiled'):
        assert words not in text


def test_latency_and_throughput_are_separate_figures():
    single, batch = cases.detector('single'), cases.detector('batch', input_shape=[4, 3, 800, 1344])
    (row,) = tables(markdown_report(cases.record([single])))[0]
    assert (row['latency ms'], row['p10 .. p90'], row['GMACs']) == ('1348', '1307 .. 1415', '189')
    assert 'images/s' not in row
    (row,) = tables(markdown_report(cases.record([batch])))[0]
    assert (row['ms/image'], row['images/s'], row['GMACs']) == ('337', '2.97', '47.2') and 'latency ms' not in row
    headers = [list(tables(markdown_report(cases.backbones_record(size)))[0][0])[1:4] for size in (1, 16)]
    assert headers == [['latency ms', 'p10 .. p90', 'params M'], ['ms/image', 'p10 .. p90', 'images/s']]


def test_training_has_forward_and_backward():
    text = markdown_report(RECORDS['training'])
    overview, _, first, second = tables(text)
    neck = by_name(first)['neck']
    assert (neck['forward ms'], neck['backward ms'], neck['in place ms']) == ('400', '800', '1200')
    assert neck['GFLOP/s'] == '96.7'  # 116 in 1200 ms
    assert by_name(second)['preprocess']['backward ms'] == '' and 'alone ms' not in neck
    assert overview[0]['ms/image'] == significant(cases.trained_record()['subjects'][0]['whole']['median_ms'] / 2)
    assert 'proposals/image 990 .. 1000' in text and 'ground truth/image 7 .. 12' in text


def test_backbones_have_figures_per_image_whatever_the_batch():
    for batch in (1, 16):
        table = by_name(tables(markdown_report(cases.backbones_record(batch)))[0])
        row = table['timm:fastvit_sa12']
        assert row['latency ms' if batch == 1 else 'ms/image'] == '300' and row['p10 .. p90'] == '291 .. 315'
        assert (row['params M'], row['GMACs'], row['GFLOP/s'], row['% matmul']) == ('10.5', '9.80', '65.3', '10.9')
        facts = by_name(tables(markdown_report(cases.backbones_record(batch)))[1])
        assert facts['timm:fastvit_sa12']['prepared'] == 'BN folded, re-parameterised'
    assert row['images/s'] == '3.33'


def test_backbones_name_those_that_did_not_warm_up_and_the_seconds_of_compilation():
    subjects = [cases.backbone('shvit:s4', 93, warmup_runs=9, compile_s=40.0), cases.backbone('shvit:s1', 30)]
    subjects[1]['warmup_stable'] = False
    facts = by_name(tables(markdown_report(cases.record(subjects, compile=True)))[1])
    assert [facts[name]['warm-up runs'] for name in ('shvit:s4', 'shvit:s1')] == ['9', '5, NOT stable']
    assert [facts[name]['compile s'] for name in ('shvit:s4', 'shvit:s1')] == ['40.0', '']


def test_ratios_have_their_interval():
    rows = tables(markdown_report(RECORDS['detectors']))[-1]
    assert rows[1] == {
        'model': 'mask-rcnn_r50_fpn_1x_coco',
        'over base': 'mask_rcnn_shvit_s4_coco',
        'figure': 'backbone alone',
        'ratio': '4.70',
        '96 % interval': '4.56 .. 4.89',
    }
    assert 'About 96 % of such intervals hold the true ratio' in markdown_report(RECORDS['detectors'])


def test_ratios_of_a_few_rounds_have_no_interval_and_say_why():
    record = cases.detectors_record()
    for ratio in record['ratios']:
        ratio.update(low=None, high=None, coverage=None)
    rows = tables(markdown_report(record))[-1]
    assert list(rows[1]) == ['model', 'over base', 'figure', 'ratio']
    text = markdown_report(record)
    assert 'fewer than 5 rounds say too little' in text and '% interval' not in text and 'of such' not in text


def test_uncounted_operations_are_few_in_the_terminal_and_all_in_markdown():
    record = RECORDS['two stages']
    text = ' '.join(terminal_report(record).split())
    assert 'aten.sort 15x, aten.topk 5x, torchvision.nms 5x, torchvision.roi_align 4x, and 1 more' in text
    assert 'aten.index 2x' in markdown_report(record) and 'more' not in markdown_report(record)


def test_warnings_stand_out():
    record = cases.two_stage_record(warnings=['the machine is busy: ' + 'very ' * 40 + 'busy', 'the clock is coarse'])
    lines = terminal_report(record).splitlines()
    start = lines.index('WARNING the clock is coarse')
    assert lines[start - 2].startswith('WARNING the machine is busy: very')
    assert max(map(len, lines[start - 2 : start])) <= 118
    assert '**WARNING the clock is coarse**' in markdown_report(record)


def test_the_papers_protocol_has_published_figures_of_the_fitting_device():
    *_, table, _ = tables(markdown_report(RECORDS['protocol of the paper']))
    rows = by_name(table)
    assert list(rows) == ['shvit:s4', *(f'timm:{name}' for name in
                          ('fastvit_sa12', 'resnet50.a1_in1k', 'poolformer_s12', 'efficientvit_m4'))]  # fmt: skip
    assert list(rows['timm:fastvit_sa12'].values())[1:] == ['300', '39.4', '3.23', '7.88']
    text = terminal_report(RECORDS['protocol of the paper'])
    assert 'published, other hardware' in text and 'Xeon Gold 5218R' in text
    assert 'MobileViTv2 x1.0 is published as an ImageNet classifier at 256x256 only' in text
    assert '14283 to 4345' in text and '509 to 63' in text

    on_gpu = cases.backbones_record(32, protocol='paper', device='cuda:0')
    on_gpu['environment']['gpu'] = dict(model='NVIDIA A100')
    rows = by_name(tables(markdown_report(on_gpu))[2])
    assert rows['timm:fastvit_sa12']['published, other hardware'] == '1.06'
    assert 'GPU NVIDIA A100, batch 32' in terminal_report(on_gpu)
    assert 'published' not in terminal_report(cases.backbones_record(16))


def test_without_shvit_s4_there_are_no_ratios_to_it():
    record = cases.record(
        [cases.backbone('timm:resnet50', 500), cases.backbone('timm:resnet18', 200)], protocol='paper'
    )
    table = tables(markdown_report(record))[-1]
    assert table == [{'backbone': 'timm:resnet50', 'ms/image here': '500', 'published, other hardware': '19.0'}]
    record['subjects'] = record['subjects'][1:]
    assert 'ublished' not in markdown_report(record)


@pytest.mark.parametrize('name', RECORDS)
def test_the_terminal_has_the_cells_of_markdown_in_aligned_columns_of_a_bearable_width(name):
    text = terminal_report(RECORDS[name])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    assert '\n\n\n' not in text
    rules = [index for index, line in enumerate(lines) if set(line) == {'-'} and '  ' in lines[index - 1]]
    found = tables(markdown_report(RECORDS[name]))
    assert len(rules) == len(found)
    for rule, table in zip(rules, found, strict=True):
        header = list(table[0])
        ends = [match.end() for match in re.finditer('|'.join(map(re.escape, header)), lines[rule - 1])]
        body = [line for line in lines[rule + 1 : rule + 1 + 2 * len(table)] if line and not line.startswith(' ')]
        for row, line in zip(table, body, strict=False):
            assert line.startswith(next(iter(row.values())))
            for column, end in zip(header[1:], ends[1:], strict=True):
                if column not in ('prepared', 'config sha256', 'input', 'weights', 'over base', 'figure'):
                    assert line.ljust(end)[:end].endswith(f' {row[column]}')


def test_a_name_that_is_too_long_for_the_terminal_is_wrapped():
    name = 'channels_last:bfloat16:' + 'mask_rcnn_shvit_s4_coco_' * 3
    batch = cases.detector(name, whole=cases.times(123456), input_shape=[2, 3, 800, 1344])
    text = terminal_report(cases.record([batch, cases.detector('short')]))
    assert max(map(len, text.splitlines())) <= 118
    table = text.split('model ')[1].split('\n\n')[0]
    assert name in ''.join(line.split()[0] for line in table.splitlines()[2:])


@given(st.floats(1e-4, 1e5) | st.floats(-1e5, -1e-4))
def test_numbers_have_three_significant_digits(value):
    text = significant(value)
    assert abs(float(text) - value) <= 0.00501 * abs(value)
    digits = text.strip('-').replace('.', '').lstrip('0')
    assert len(digits) == 3 if abs(float(text)) < 1000 else text == f'{value:.0f}'


@pytest.mark.parametrize(
    'value, text', [(0, '0'), (9.996, '10.0'), (99.96, '100'), (999.7, '1000'), (0.09996, '0.100')]
)
def test_numbers_round_up_without_a_fourth_digit(value, text):
    assert significant(value) == text


def test_a_record_of_the_first_format_is_read_without_its_intervals(tmp_path):
    record = cases.backbones_record()
    save_record(record, tmp_path / 'new.json')
    old = json.loads((tmp_path / 'new.json').read_text())
    old['format'] = 1
    for ratio in old['ratios']:
        del ratio['coverage']
        ratio.update(low=0.9, high=1.1)
    (tmp_path / 'old.json').write_text(json.dumps(old))
    read, expected = read_record(tmp_path / 'old.json'), read_record(tmp_path / 'new.json')
    assert read['ratios'] and markdown_report(read) != markdown_report(expected)
    for ratio in expected['ratios']:
        ratio.update(low=None, high=None, coverage=None)
    assert read == expected
    (tmp_path / 'other.json').write_text(json.dumps({**old, 'format': 3}))
    with pytest.raises(UsageError, match='not a benchmark record'):
        read_record(tmp_path / 'other.json')
