"""Time a detector by part, or backbones: python tools/benchmark.py CONFIG [CHECKPOINT] [--against OTHER ...]"""

import argparse
from collections.abc import Iterator, Sequence
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Time a detector by part, in place and alone, or backbones; nothing is downloaded.',
        epilog='A source is a config, mmdet::FOLDER/CONFIG.py of the installed mmdet, or a backbone alone: '
        'timm:NAME or shvit:s1 ... shvit:s4. Prefixes change one source, several in any order: deployed: and plain: '
        '(with a SHViT; plain means norms and neck computed as written), compiled:, channels_last:, float32:, '
        'bfloat16:, float16:, and for a backbone alone onnxruntime:, openvino: or executorch:, with its BatchNorms '
        'folded; for example compiled:bfloat16:deployed:shvit:s4.',
    )
    parser.add_argument('config', metavar='CONFIG', help='the source that is timed')
    parser.add_argument('checkpoint', metavar='CHECKPOINT', nargs='?', help='its weights [random ones]')
    parser.add_argument('--against', metavar='OTHER', nargs='+', default=[], help='sources to compare with, in turn')
    parser.add_argument('--only', metavar='PART', help='measure one part alone: backbone, neck, "RPN conv", ...')
    parser.add_argument('--train', action='store_true', help='time a training step instead of a prediction')
    parser.add_argument(
        '--protocol', choices=('paper',), help='512x512, BN folded, CPU batch 16, 1 thread, GPU batch 32'
    )
    inputs = parser.add_argument_group('input')
    inputs.add_argument(
        '--shape', type=int, nargs=2, metavar=('H', 'W'), help="[as the config's test pipeline resizes]"
    )
    inputs.add_argument('--batch', type=int, metavar='N', help='images per run [1]')
    inputs.add_argument('--images', metavar='DIR', help="photographs, through the config's test pipeline")
    inputs.add_argument(
        '--detections', type=int, metavar='N', help='per image [100 with random weights, else what is found]'
    )
    how = parser.add_argument_group('execution')
    how.add_argument('--device', default='cpu', help='cpu, cuda or cuda:N [cpu]')
    how.add_argument('--threads', type=int, metavar='N', help="threads of the CPU's kernels [torch's default]")
    how.add_argument('--dtype', choices=DTYPES, default='float32', help='detectors by autocast, backbones converted')
    how.add_argument('--tf32', choices=('on', 'off'), help="a GPU's TensorFloat-32 [torch's: in convolutions]")
    how.add_argument('--channels-last', action='store_true', help='weights and images as NHWC')
    how.add_argument('--compile', nargs='?', const='default', choices=COMPILE_MODES, help='torch.compile, its mode')
    how.add_argument('--fold-bn', action='store_true', help='fold the BatchNorms of the backbone')
    how.add_argument('--deploy', action='store_true', help='time SHViT in its deployed form')
    add_cfg_options(how, 'changes of CONFIG')
    length = parser.add_argument_group('length')
    length.add_argument('--seconds', type=float, default=DEFAULT_SECONDS, help=f'per source [{DEFAULT_SECONDS:g}]')
    length.add_argument(
        '--runs', type=int, metavar='N', help='rounds, instead of seconds; ratios have intervals from 5 on'
    )
    length.add_argument('--flush-l2', action='store_true', help="overwrite a GPU's L2 cache before each run")
    results = parser.add_argument_group('results')
    results.add_argument('--json', metavar='FILE', help='everything that was measured')
    results.add_argument('--markdown', metavar='FILE', help='the tables')
    results.add_argument('--plot', metavar='FILE', help='a picture, .png')
    arguments = parser.parse_args()

    device = find_device(arguments.device)
    asked = dict(shape=arguments.shape and tuple(arguments.shape), batch=arguments.batch, threads=arguments.threads)
    conditions = dict(batch=1, threads=torch.get_num_threads(), fold=arguments.fold_bn, only=arguments.only)
    if arguments.protocol == 'paper':
        conditions.update(paper_conditions(device))
    conditions.update({name: value for name, value in asked.items() if value is not None})
    settings = Settings(
        device=device,
        dtype=DTYPES[arguments.dtype],
        channels_last=arguments.channels_last,
        compile=arguments.compile,
        deploy=arguments.deploy,
        detections=arguments.detections,
        train=arguments.train,
        images=arguments.images,
        protocol=arguments.protocol,
        runs=arguments.runs,
        seconds=arguments.seconds,
        flush=arguments.flush_l2,
        tf32=arguments.tf32 and arguments.tf32 == 'on',
        **conditions,
    )
    sources = [arguments.config, *arguments.against, arguments.checkpoint]
    _check_outputs(arguments.json, arguments.markdown, arguments.plot, sources)

    def save(record: Record) -> None:
        cli.show_progress('')
        written: list[str] = []
        print(terminal_report(record))
        with keeping(lambda: written):
            for path in _write_outputs(record, arguments.json, arguments.markdown, arguments.plot):
                print(f'Written: {path}')
                written.append(path)

    benchmark(
        [arguments.config, *arguments.against],
        settings,
        arguments.checkpoint,
        arguments.cfg_options,
        command=command_line(),
        progress=cli.show_progress,
        save=save,
    )


def _check_outputs(json: str | None, markdown: str | None, plot: str | None, inputs: Sequence[str | None]) -> None:
    """See that the results can be written, before anything is measured.

    Raises:
        UsageError: If a folder does not exist, a file is a folder or an input, or the picture is no ``.png``.
    """
    for path, option in ((json, '--json'), (markdown, '--markdown'), (plot, '--plot')):
        if path is not None:
            check_output_file(path, option, inputs)
    if plot is not None and Path(plot).suffix.lower() != '.png':
        raise UsageError(f'--plot takes a file that ends in .png, but got {plot}')


def _write_outputs(record: Record, json: str | None, markdown: str | None, plot: str | None) -> Iterator[str]:
    """Write the files that were asked for and yield their paths."""
    if json is not None:
        save_record(record, json)
        yield json
    if markdown is not None:
        with saving(markdown) as part:
            part.write_text(markdown_report(record), encoding='utf-8')
        yield markdown
    if plot is not None:
        save_picture(record, plot)
        yield plot
