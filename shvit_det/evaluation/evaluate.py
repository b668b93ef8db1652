"""The evaluation behind ``tools/test.py``."""

import glob
import pickle
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults, Evaluator
from mmengine.logging import print_log

from ..checkpoint import check_checkpoint, load_content
from ..checkpoint.loading import without_wrapper
from ..common.atomic_files import PART, saving
from ..common.errors import UsageError
from ..common.log import warn
from ..common.output_paths import check_output_folder, may_write, nearest_folder
from ..configuration.reading import dataset_places, path_within
from ..configuration.test_time_augmentation import set_tta_pipeline, with_tta
from ..deployment import check_deployable, deploy
from ..prediction.overlap import Finishing, spare_threads
from ..prediction.predict import DEFAULT_SCORE
from ..runtimes.onnx_runtimes import is_exported
from ..training.build_runner import built_runner, config_of_run
from ..training.first_batch import try_first_batch
from ..training.trial_build import check_parts
from .pictures import PictureHook


class DumpingEvaluator(Evaluator):
    """Writes all predictions of a test, as ``kind`` collects them, into a pickle file before ``scorer`` scores them.

    An older file stays until this one is complete.
    """

    def __init__(self, kind: type[DumpResults], out: str, scorer: Evaluator) -> None:
        self.dump, self.out, self.scorer = kind(out_file_path=out), out, scorer
        self.dump.compute_metrics = self._save
        super().__init__(self.dump)

    def process(self, data_samples: Sequence[Any], data_batch: Any = None) -> None:
        super().process(data_samples, data_batch)
        self.scorer.process(data_samples, data_batch)

    def evaluate(self, size: int) -> dict[str, Any]:
        super().evaluate(size)
        scores: dict[str, Any] = self.scorer.evaluate(size)
        return scores

    def _save(self, results: list) -> dict:
        save_predictions(results, Path(self.out))
        print_log(f'Results has been saved to {self.out}.', 'current')
        return {}

    def save_partial(self) -> None:
        """Write the predictions of a test that ended early, if there are any, into ``NAME.partial.pkl``."""
        results, path = self.dump.results, Path(self.out)
        if results and is_main_process():
            partial = path.with_name(f'{path.stem}.partial{path.suffix}')
            save_predictions(results, partial)
            print_log(f'The test ended early; the {len(results)} predictions until then: {partial}', 'current')


def save_predictions(results: Any, path: Path) -> None:
    """Write predictions as mmengine does, or raise ``UsageError``."""
    with saving(path) as part:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open('wb') as file:
            pickle.dump(results, file, protocol=2)


def evaluate(
    config_path: str,
    checkpoint: str,
    metrics: Sequence[str] | None = None,
    out: str | None = None,
    show_dir: str | None = None,
    report: str | None = None,
    classwise: bool = False,
    format_only: bool = False,
    deployed: bool = False,
    dtype: str | None = None,
    tta: bool = False,
    data_root: str | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
    cfg_options: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Test a checkpoint on the test split of a config and return the metrics by mmdet's or mmpretrain's names.

    Args:
        config_path: The config file.
        checkpoint: A checkpoint of the same model, or a file of ``tools/export.py``, which its runtime runs.
        metrics: ``'bbox'`` and ``'segm'`` for instance, or ``'accuracy'``; by default those of the config.
        out: A ``.pkl`` file for the predictions.
        show_dir: A folder for pictures, the ground truth left, the predictions right.
        report: A folder for ``index.html``, a page with scores, curves, kinds of error and the worst pictures.
        classwise: Print AP for every class.
        format_only: Write COCO result files into the work dir and compute no metric.
        deployed: Test the deployed form of the model.
        dtype: In which type the deployed form computes: ``'bfloat16'`` or ``'float16'``; None for float32.
        tta: Predict several views of each image and merge the results, as ``tta_pipeline`` and ``tta_model`` of the
            config say; without these, each image and the same flipped.
        data_root: Another folder of the layout that the config expects.
        work_dir: Where the log goes; by default ``work_dir`` of the config, else ``work_dirs/NAME``.
        launcher: How several processes were started: ``'none'``, ``'pytorch'`` (torchrun), ``'slurm'`` or ``'mpi'``.
        cfg_options: Changes of single values, dotted names.

    Raises:
        UsageError: If the run cannot start; nothing has been written then.
    """
    config, task, log = config_of_run(config_path, cfg_options, 'test', data_root, work_dir, launcher)
    config.load_from, config.resume = None, False
    if config.get('optim_wrapper') is None:
        config.param_scheduler = None  # mmengine refuses schedules without an optimizer, in a test too
    if out is not None and not out.endswith(('.pkl', '.pickle')):
        raise UsageError(f'--out takes a file that ends in .pkl or .pickle, but got {out}')
    if out is not None and (Path(out).is_dir() or not may_write(nearest_folder(Path(out).parent))):
        raise UsageError(f'cannot write {out}: name another file with --out')

    if dtype is not None and not deployed:
        raise UsageError(f'--dtype {dtype} is for the deployed form: add --deploy')
    if tta:
        if task.scope != 'mmdet':
            raise UsageError(f'--tta is for detectors, and this is a {task.noun}')
        if is_exported(checkpoint):
            raise UsageError(f'--tta is for checkpoints, and {checkpoint} is exported')
        set_tta_pipeline(config)
    exported = None
    if is_exported(checkpoint):
        if deployed:
            raise UsageError(f'--deploy is for checkpoints, and {checkpoint} is exported from a deployed form already')
        from ..export.running import open_exported  # which needs mmdet

        exported = open_exported(checkpoint, config)

    checked = task.build(config)
    if metrics is not None:
        task.select_metrics(config, checked, metrics)
    if classwise:
        task.set_classwise(config)
    if report is not None:
        if format_only:
            raise UsageError('--report needs scores, and --format-only computes none: leave out one of them')
        task.check_report(config)
    result_files = task.set_format_only(config, Path(config.work_dir)) if format_only else []
    if deployed:
        check_deployable(checked)
    content = None
    if exported is None:
        content = check_checkpoint(checked, checkpoint)
        task.check_checkpoint_classes(config, content, checkpoint, ('test',))
    check_parts(config, checked, ('test',))
    task.check_model(config, checked, ('test',))
    first_images = task.check_data(config, checked, ('test',))
    try_first_batch(task, config, with_tta(config, checked) if tta else checked, ('test',), first_images)

    check_pictures_elsewhere(config, show_dir)
    for folder, what, option in ((show_dir, 'pictures', '--show-dir'), (report, 'the report', '--report')):
        if folder is not None:
            check_output_folder(Path(folder), f'the folder of {what}', option)
    with built_runner(config, log=log) as runner, ExitStack() as stack:
        if exported is not None:
            runner.model = exported
        else:
            load_content(runner.model, content, checkpoint)
            content = None  # the weights have been copied
        model = without_wrapper(runner.model)
        if deployed:
            runner.model = model = deploy(model, dtype=getattr(torch, dtype) if dtype else None)
        if tta:
            runner.model = with_tta(config, model)
        if show_dir is not None:
            hooks = config.get('default_hooks') or {}
            score = (hooks.get('visualization') or {}).get('score_thr', DEFAULT_SCORE)
            drawing = stack.enter_context(Finishing(spare_threads()))
            runner.register_hook(PictureHook(Path(show_dir), score, drawing))
        recorded = []
        if report is not None:
            from .report import record_results, write_report  # which need mmdet

            recorded = record_results(runner.test_evaluator, runner.test_dataloader.dataset)
        dump = None
        if out is not None:
            runner.test_loop.evaluator = dump = DumpingEvaluator(task.dump_type, out, runner.test_evaluator)
        try:
            results: dict[str, float] = runner.test()
            stack.close()  # all pictures are there
        except BaseException:
            if dump is not None:
                try:
                    dump.save_partial()
                except UsageError as error:
                    warn(str(error))  # beside what ended the test
            raise
    if is_main_process():
        if report is not None:
            page = write_report(recorded, Path(report), config_path, checkpoint)
        for name in result_files:
            for part in name.parent.glob(f'{glob.escape(name.name + PART)}.*.json'):
                part.replace(part.with_name(part.name.replace(PART, '', 1)))
        if not format_only:
            print_log(f'Test of {checkpoint}\n' + task.table(results), 'current')
        for what, where in (('Predictions', out), ('Pictures', show_dir), ('Report', report and page)):
            if where is not None:
                print_log(f'{what}: {where}', 'current')
        for name in result_files:
            print_log(f'Result files: {name}.*.json', 'current')
    return results


def check_pictures_elsewhere(config: Config, show_dir: str | None) -> None:
    """Raise ``UsageError`` if pictures of the test would replace the images of the test, which have their names."""
    for _, dataset in dataset_places(config, 'test') if show_dir is not None else ():
        prefix = dataset.get('data_prefix') or {}
        inner = prefix.get('img', prefix.get('img_path', '')) if isinstance(prefix, Mapping) else prefix
        folder = path_within(dataset, inner or '')
        if Path(folder).resolve() == Path(str(show_dir)).resolve():
            raise UsageError(f'--show-dir is {show_dir}, where the images of the test are: name another folder')
