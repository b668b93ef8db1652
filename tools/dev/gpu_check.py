"""Everything that a first GPU is to show, part by part: gpu_check.py --out FOLDER [--seconds 480]

Each part runs in a process of its own, the most important first, and leaves FOLDER/PART.json and FOLDER/PART.log;
FOLDER/summary.json says how each ended. Whatever ends the run early, the parts before are on disk. ``--device cpu
--tiny`` goes through all of them on a CPU with small models: a rehearsal, whose figures mean nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]
CONFIGS = {
    False: {'mask_rcnn': 'configs/mask_rcnn_shvit_s4_coco.py', 'retinanet': 'configs/retinanet_shvit_s4_coco.py'},
    True: {'mask_rcnn': 'tests/data/tiny_mask_rcnn.py', 'retinanet': 'tests/data/tiny_retinanet.py'},
}
PEERS = ['timm:fastvit_sa12', 'timm:mobilevitv2_100', 'timm:resnet50']
MOST = 120  # seconds of one part


class Check:
    """What all parts share: the device, the size of models and images.

    Args:
        device: ``'cuda'``, or ``'cpu'`` in a rehearsal.
        tiny: Small models and images.
    """

    def __init__(self, device: str, tiny: bool) -> None:
        import torch
        from mmdet.utils import register_all_modules

        import shvit_det  # noqa: F401  prepares the stack for mmdet

        register_all_modules()
        self.torch, self.device, self.tiny = torch, torch.device(device), tiny
        self.shape = (96, 128) if tiny else (800, 1344)
        self.warmup, self.steps = (1, 1) if tiny else (3, 50)
        self.compiling: dict[str, Any] = dict(backend='eager') if tiny else {}  # a rehearsal only traces the graphs
        torch.set_num_threads(2 if tiny else os.cpu_count() or 1)

    def detector(self, name: str) -> Any:
        """Return the detector of a config with random weights, the same at each call, whose biases are not 0."""
        from mmengine.config import Config

        from shvit_det.configuration.random_detector import build_random_detector

        model = build_random_detector(Config.fromfile(str(ROOT / CONFIGS[self.tiny][name])), name)
        self.torch.manual_seed(0)
        for key, parameter in model.named_parameters():
            if key.endswith('bias'):
                self.torch.nn.init.normal_(parameter, std=0.05)
        return model

    def batch(self, size: int, training: bool = False, classes: int = 3) -> Any:
        from shvit_det.configuration.batches import synthetic_batch

        return synthetic_batch(self.shape, size, training, classes)

    def length(self, seconds: float) -> list[object]:
        """Return the options of the timing tool for its length."""
        return ['--runs', 1] if self.tiny else ['--seconds', seconds]

    def timed(self, call: Callable[[], Any], repeats: int) -> list[float]:
        """Return the milliseconds of each call, without those of the first ones, which warm up."""
        from shvit_det.timing.clocks import clock_for

        clock = clock_for(self.device)
        return [1e3 * clock.time(call) for _ in range(self.warmup + repeats)][self.warmup :]

    def peak_gib(self) -> float | None:
        """Return the most memory that tensors took since the last call; None on a CPU."""
        if self.device.type != 'cuda':
            return None
        peak = self.torch.cuda.max_memory_allocated() / 2**30
        self.torch.cuda.reset_peak_memory_stats()
        return round(peak, 3)

    @contextmanager
    def random_orders_of_the_cpu(self) -> Iterator[None]:
        """Draw the samples of regions as on the CPU, so that losses of a GPU can be compared with those of a CPU."""
        drawn = self.torch.randperm

        def randperm(number: int, **options: Any) -> Any:
            return drawn(number).to(options.get('device') or 'cpu')

        self.torch.randperm = randperm
        try:
            yield
        finally:
            self.torch.randperm = drawn


# The parts. Each yields the entries of its JSON file, which is written again after each.

Entries = Iterator[tuple[str, Any]]


def environment(check: Check) -> Entries:
    from importlib.metadata import distributions

    from shvit_det.common.environment import describe_environment

    yield 'environment', describe_environment(check.device)
    yield 'packages', sorted(f'{each.metadata["Name"]} {each.version}' for each in distributions())
    yield 'doctor', output_of('-m', 'shvit_det', 'doctor')


def losses(check: Check) -> Entries:
    """Losses and the gradients' norm of one step on the device and on the CPU, from equal weights, seed and batch."""
    for name in CONFIGS[check.tiny]:
        terms: dict[str, Any] = {}
        for device in ('cpu', str(check.device)):
            model = check.detector(name).to(device).train()
            batch = model.data_preprocessor(check.batch(1, training=True), True)
            check.torch.manual_seed(0)
            with check.random_orders_of_the_cpu():
                total, each = model.parse_losses(model(**batch, mode='loss'))
            total.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            values = {key: float(value) for key, value in each.items()}
            terms[device] = dict(values, gradients=float(check.torch.nn.utils.get_total_norm(gradients)))
        cpu, there = terms['cpu'], terms[str(check.device)]
        yield name, dict(terms, largest_relative_difference=max(abs(there[k] - cpu[k]) / abs(cpu[k]) for k in cpu))


def training(check: Check) -> Entries:
    """Fifty steps of Mask R-CNN in each form: milliseconds, memory, the first and the last loss."""
    forms = ['float32', 'fused forms', 'bfloat16', 'float16', 'fast', 'DDP', 'compiled backbone']
    if check.device.type == 'cpu':
        forms.remove('float16')  # scaled losses are for GPUs
    for form in forms:
        yield form, tried(steps, check, form)


def steps(check: Check, form: str) -> dict[str, Any]:
    from mmengine.optim import OptimWrapper

    from shvit_det.configuration.batches import copy_containers
    from shvit_det.models import training_forms
    from shvit_det.training.mixed_precision import BFloat16OptimWrapper, LossScaleOptimWrapper

    torch, device = check.torch, check.device
    training_forms.setting = '1' if form == 'fused forms' else '0'
    model = check.detector('mask_rcnn').to(device).train()
    size, trained = (2 if check.tiny else 8), model
    if form == 'fast':
        model.to(memory_format=torch.channels_last)
    if form == 'compiled backbone':
        model.backbone.forward = torch.compile(model.backbone.forward, **check.compiling)
    if form == 'DDP':
        trained = _distributed(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=form == 'fast')
    if form == 'float16':
        wrapper: OptimWrapper = LossScaleOptimWrapper(loss_scale='dynamic', dtype='float16', optimizer=optimizer)
    else:
        wrapper = (BFloat16OptimWrapper if form in ('bfloat16', 'fast') else OptimWrapper)(optimizer=optimizer)
    check.peak_gib()
    values: list[float] = []
    batch = check.batch(size, training=True)

    def step() -> None:
        values.append(trained.train_step(copy_containers(batch), wrapper)['loss'].item())

    times = check.timed(step, check.steps)
    result = dict(batch=size, ms=round(median(times), 2), first_loss=values[0], last_loss=values[-1])
    if form == 'DDP':
        torch.distributed.destroy_process_group()
    return dict(result, ms_of_steps=[round(each, 2) for each in times], peak_gib=check.peak_gib())


def _distributed(model: Any, device: Any) -> Any:
    import tempfile

    from mmengine.model import MMDistributedDataParallel
    from torch import distributed

    store = Path(tempfile.mkdtemp()) / 'store'
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    distributed.init_process_group(backend, init_method=f'file://{store}', rank=0, world_size=1)
    return MMDistributedDataParallel(model, device_ids=[0] if device.type == 'cuda' else None)


def prediction(check: Check) -> Entries:
    """Both detectors in every form: milliseconds an image, memory, and detections against those of the CPU."""
    for name in CONFIGS[check.tiny]:
        expected = detections(check.detector(name).eval(), check)
        for form in ('plain', 'deployed', 'deployed float16', 'deployed bfloat16', 'deployed compiled'):
            yield f'{name}, {form}', tried(predict, check, name, form, expected)


def predict(check: Check, name: str, form: str, expected: Any) -> dict[str, Any]:
    from shvit_det import deploy

    torch = check.torch
    model = check.detector(name).eval().to(check.device)
    if form != 'plain':
        dtype = getattr(torch, form.split()[1], None) if 'float16' in form else None
        model = deploy(model, dtype=dtype, compile=form.endswith('compiled') and (check.compiling or True))
    check.peak_gib()
    found = detections(model, check)
    with torch.no_grad():
        times = check.timed(lambda: model.test_step(check.batch(1)), check.steps)
    near = (expected.bboxes[:, None] - found.bboxes[None]).abs().amax(-1) < 1.0
    same = (near & (expected.labels[:, None] == found.labels[None])).any(1).float().mean()
    scores = [each.scores.sort(descending=True).values[:100] for each in (expected, found)]
    length = min(map(len, scores))
    return dict(
        ms=round(median(times), 3),
        ms_of_runs=[round(each, 3) for each in times],
        peak_gib=check.peak_gib(),
        detections=len(found),
        detections_of_the_cpu=len(expected),
        share_found_again=round(float(same), 4),
        largest_difference_of_scores=float((scores[0][:length] - scores[1][:length]).abs().max()),
    )


def detections(model: Any, check: Check) -> Any:
    for config in (model.test_cfg.get('rcnn'), model.test_cfg):
        if config and 'score_thr' in config:
            config.score_thr = 0.0
    with check.torch.no_grad():
        return model.test_step(check.batch(1))[0].cpu().pred_instances


def tests(check: Check) -> Entries:
    """The tests that need a GPU; in a rehearsal they are collected only."""
    which = ['--collect-only', 'tests/gpu'] if check.device.type == 'cpu' else ['tests']
    yield 'output', output_of('-m', 'pytest', '-m', 'gpu', '-q', '-p', 'no:cacheprovider', *which)


def resuming(check: Check) -> Entries:
    """A run that is killed and resumed, against one that nobody disturbed."""
    yield 'output', output_of('tests/support/kill_and_resume.py', '--kills', 0 if check.tiny else 1)


def backbones(check: Check) -> Entries:
    """S4 against its peers: single images with CUDA graphs, and batches, in three data types, with and without TF32."""
    cases: list[tuple[str, list[object]]] = []
    for batch in (1, 32, 256):
        for dtype, tf32 in (('float32', 'off'), ('float32', 'on'), ('bfloat16', None), ('float16', None)):
            name = f'batch {batch}, {dtype}' + (f', TF32 {tf32}' if tf32 else '')
            cases.append((name, ['--batch', batch, '--dtype', dtype, *(['--tf32', tf32] if tf32 else [])]))
    graphs: list[object] = ['--compile', 'reduce-overhead']
    if check.device.type == 'cpu':
        cases, graphs = [('batch 1, float32', ['--batch', 1])], []
    shape = (64, 64) if check.tiny else (512, 512)
    for name, options in cases:
        peers = PEERS[:1] if check.tiny else ['compiled:timm:' + each.partition(':')[2] for each in PEERS]
        sources = ['shvit:s4', '--against', 'deployed:shvit:s4', *peers]
        options += graphs if options[1] == 1 else []
        yield name, tried(benchmark, check, *sources, '--shape', *shape, *check.length(1), *options)


def detectors(check: Check) -> Entries:
    """Whole detectors, plain against deployed, in float32 and bfloat16."""
    for name, config in list(CONFIGS[check.tiny].items())[: 1 if check.tiny else None]:
        sources = [config, '--against', f'deployed:{config}', f'bfloat16:deployed:{config}']
        sources += [f'compiled:deployed:{config}'] if check.device.type == 'cuda' else []
        yield name, tried(benchmark, check, *sources, '--shape', *check.shape, *check.length(5))


def benchmark(check: Check, *arguments: object) -> dict[str, Any]:
    """Return a record of tools/benchmark.py."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / 'record.json'
        output_of('tools/benchmark.py', *arguments, '--device', check.device, '--json', record)
        found: dict[str, Any] = json.loads(record.read_text())
        return found


def output_of(*arguments: object) -> list[str]:
    """Run Python with arguments in the checkout and return the last lines of what it printed.

    Raises:
        RuntimeError: If it fails.
    """
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        raise RuntimeError(f'status {done.returncode}: {done.stdout[-800:]}')
    return done.stdout.splitlines()[-60:]


def tried(call: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a call returns, or its error, so that the other forms are still measured."""
    try:
        return call(*arguments)
    except Exception as error:
        return dict(error=f'{type(error).__name__}: {error}'[:1000])


PARTS: dict[str, Callable[[Check], Entries]] = {
    each.__name__: each for each in (environment, losses, prediction, training, detectors, backbones, tests, resuming)
}


def errors_in(value: Any) -> list[str]:
    """Return the errors in what a part returned."""
    if not isinstance(value, dict):
        return []
    own = [value['error']] if 'error' in value else []
    return own + [error for each in value.values() for error in errors_in(each)]


def run_part(name: str, arguments: argparse.Namespace) -> None:
    found = {}
    for key, value in PARTS[name](Check(arguments.device, arguments.tiny)):
        found[key] = value
        print(f'{key}: {json.dumps(value, default=str)[:300]}', flush=True)
        (arguments.out / f'{name}.json').write_text(json.dumps(found, indent=1, default=str))


def ended(command: Sequence[str], log: TextIO, limit: float) -> str:
    """Run a part and say how it ended; after so many seconds, it and all that it started are killed."""
    with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process:
        try:
            status = process.wait(limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                return 'stopped: it took too long'
            raise
    return f'status {status}' if status else 'done'


def run_all(arguments: argparse.Namespace) -> int:
    """Run the parts in processes of their own as long as there is time; return 1 if one failed."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    end, summary = time.monotonic() + arguments.seconds, {}
    for name in PARTS:
        left = end - time.monotonic()
        command = [sys.executable, __file__, '--part', name, '--out', arguments.out, '--device', arguments.device]
        command += ['--tiny'] if arguments.tiny else []
        start = time.monotonic()
        how = 'no time left'
        if left > 5:
            with (arguments.out / f'{name}.log').open('w') as log:
                how = ended(list(map(str, command)), log, left if arguments.tiny else min(left, MOST))
        result = arguments.out / f'{name}.json'
        errors = errors_in(json.loads(result.read_text())) if result.is_file() else []
        summary[name] = dict(how=how, seconds=round(time.monotonic() - start, 1), errors=errors)
        print(f'{name}: {how}, {summary[name]["seconds"]} s{"".join(f"; {each[:120]}" for each in errors)}', flush=True)
        (arguments.out / 'summary.json').write_text(json.dumps(summary, indent=1))
    return int(any(each['how'] != 'done' or each['errors'] for each in summary.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description='Check and measure everything on a GPU, the most important first.')
    parser.add_argument('--out', type=Path, required=True, metavar='FOLDER', help='gets a file for each part')
    parser.add_argument('--seconds', type=float, default=480, help='for all parts [480]')
    parser.add_argument('--device', default='cuda', choices=('cuda', 'cpu'), help='cpu is for a rehearsal [cuda]')
    parser.add_argument('--tiny', action='store_true', help='small models: for a rehearsal')
    parser.add_argument('--part', choices=PARTS, help='this one only, in this process')
    arguments = parser.parse_args()
    if arguments.part:
        run_part(arguments.part, arguments)
        return
    sys.exit(run_all(arguments))


if __name__ == '__main__':
    main()
