"""Time a detector by part, or backbones: python tools/benchmark.py CONFIG [CHECKPOINT] [--against OTHER ...]"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from ..common.atomic_files import saving
from ..common.devices import find_device
from ..common.errors import UsageError, keeping
from ..common.measurement_records import save_record
from ..common.output_paths import check_output_file
from ..configuration.cfg_options import add_cfg_options
from ..timing.benchmark import benchmark
from ..timing.picture import save_picture
from ..timing.record import Record
from ..timing.results import markdown_report, terminal_report
from ..timing.settings import COMPILE_MODES, DEFAULT_SECONDS, DTYPES, Settings, paper_conditions
from . import cli, command_line


def save_page(record: Record, path: str) -> None:
    with saving(path) as part:
        part.write_text(markdown_report(record), encoding='utf-8')


WRITERS: dict[str, Callable[[Record, str], None]] = {'json': save_record, 'markdown': save_page, 'plot': save_picture}


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Time a detector by part, in place and alone, or backbones; nothing is downloaded.',
        epilog='A source is a config, mmdet::FOLDER/CONFIG.py of the installed mmdet, or a backbone alone: '
        'timm:NAME or shvit:s1 ... shvit:s4. Prefixes change one source, several in any order: deployed: and plain: '
        '(with a SHViT; plain means norms and neck computed as written), compiled:, channels_last:, float32:, '
        'bfloat16:, float16:, and for a backbone alone onnxruntime:, openvino: or executorch:, with its BatchNorms '
        'folded; for example compiled:bfloat16:deployed:shvit:s4.',
    )
    add = parser.add_argument
    add('config', metavar='CONFIG', help='the source that is timed')
    add('checkpoint', metavar='CHECKPOINT', nargs='?', help='its weights [random ones]')
    add('--against', metavar='OTHER', nargs='+', default=[], help='sources to compare with, in turn')
    add('--only', metavar='PART', help='measure one part alone: backbone, neck, "RPN conv", ...')
    add('--train', action='store_true', help='time a training step instead of a prediction')
    add('--protocol', choices=('paper',), help='512x512, BN folded, CPU batch 16, 1 thread, GPU batch 32')
    add_input = parser.add_argument_group('input').add_argument
    add_input('--shape', type=int, nargs=2, metavar=('H', 'W'), help="[as the config's test pipeline resizes]")
    add_input('--batch', type=int, metavar='N', help='images per run [1]')
    add_input('--images', metavar='DIR', help="photographs, through the config's test pipeline")
    add_input('--detections', type=int, metavar='N', help='per image [100 with random weights, else what is found]')
    execution = parser.add_argument_group('execution')
    add_execution = execution.add_argument
    add_execution('--device', default='cpu', help='cpu, cuda or cuda:N [cpu]')
    add_execution('--threads', type=int, metavar='N', help="threads of the CPU's kernels [torch's default]")
    add_execution('--dtype', choices=DTYPES, default='float32', help='detectors by autocast, backbones converted')
    add_execution('--tf32', choices=('on', 'off'), help="a GPU's TensorFloat-32 [torch's: in convolutions]")
    add_execution('--channels-last', action='store_true', help='weights and images as NHWC')
    add_execution('--compile', nargs='?', const='default', choices=COMPILE_MODES, help='torch.compile, its mode')
    add_execution('--fold-bn', dest='fold', action='store_true', help='fold the BatchNorms of the backbone')
    add_execution('--deploy', action='store_true', help='time SHViT in its deployed form')
    add_cfg_options(execution, 'changes of CONFIG')
    add_length = parser.add_argument_group('length').add_argument
    add_length('--seconds', type=float, default=DEFAULT_SECONDS, help=f'per source [{DEFAULT_SECONDS:g}]')
    add_length('--runs', type=int, metavar='N', help='rounds, instead of seconds; ratios have intervals from 5 on')
    add_length('--flush-l2', dest='flush', action='store_true', help="overwrite a GPU's L2 cache before each run")
    add_result = parser.add_argument_group('results').add_argument
    add_result('--json', metavar='FILE', help='everything that was measured')
    add_result('--markdown', metavar='FILE', help='the tables')
    add_result('--plot', metavar='FILE', help='a picture, .png')
    options = vars(parser.parse_args())
    sources = [options.pop('config'), *options.pop('against')]
    checkpoint, cfg_options = options.pop('checkpoint'), options.pop('cfg_options')
    outputs = {name: path for name in WRITERS if (path := options.pop(name)) is not None}

    options['device'] = find_device(options['device'])
    options['dtype'] = DTYPES[options['dtype']]
    options['tf32'] = options['tf32'] and options['tf32'] == 'on'
    options['shape'] = options['shape'] and tuple(options['shape'])
    sizes = {name: options.pop(name) for name in ('shape', 'batch', 'threads')}
    protocol = paper_conditions(options['device']) if options['protocol'] == 'paper' else {}
    asked = {name: value for name, value in sizes.items() if value is not None}
    settings = Settings(**{**options, 'threads': torch.get_num_threads(), **protocol, **asked})
    for name, path in outputs.items():
        check_output_file(path, f'--{name}', inputs=[*sources, checkpoint])
    if (plot := outputs.get('plot')) is not None and Path(plot).suffix.lower() != '.png':
        raise UsageError(f'--plot takes a file that ends in .png, but got {plot}')

    def save(record: Record) -> None:
        cli.show_progress('')
        written: list[str] = []
        print(terminal_report(record))
        with keeping(lambda: written):
            for name, path in outputs.items():
                WRITERS[name](record, path)
                print(f'Written: {path}')
                written.append(path)

    benchmark(sources, settings, checkpoint, cfg_options, command=command_line(), progress=cli.show_progress, save=save)
