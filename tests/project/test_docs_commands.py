"""What the documents say is true of the code: commands, paths, names, links, messages and examples."""

import ast
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from docs_commands import (
    ROOT,
    Command,
    NamedPath,
    Parsed,
    commands_of,
    names_in,
    package_folders,
    pages,
    parse_only,
    paths_of,
    without_launcher,
)
from mmengine.config import Config
from mmengine.utils import get_installed_path

import shvit_det
from shvit_det.configuration.data_check import check_data
from shvit_det.configuration.detector_or_classifier import task_of
from shvit_det.configuration.reading import load_config
from shvit_det.training.trial_build import check_parts

COMMANDS = [command for page in pages() for command in commands_of(page) if 'NAME' not in command.text]
TOOLS = [
    command
    for command in COMMANDS
    if re.match(r'((?!.*pytest ).*\b(tools/|python tests/)\w+\.py\b|shvit-det (?!doctor)\w)', command.text)
]
PATHS = [path for page in pages() for path in paths_of(page)]
PYTEST = [command for command in COMMANDS if re.match(r'(python -m )?pytest ', command.text)]

# The first pattern that a command begins with says what becomes of it: a test that runs the tool with these options on
# small models and data, or what the command needs that a test has not.
TESTED = {
    r'python -m shvit_det\.doctor': 'doctor/test_doctor.py::test_the_real_installation_is_fine',
    r'python tools/check_data\.py CONFIG$': 'tools/test_check_data.py::test_good_data_is_said_to_be_good',
    r'python tools/check_data\.py CONFIG --fix': (
        'tools/test_check_data.py::test_faults_are_listed_and_a_cleaned_copy_trains'
    ),
    r'python tools/browse\.py CONFIG --out page': 'evaluation/test_data_page.py::test_the_tool_writes_the_page',
    r'python tools/browse\.py DIR --out page': (
        'evaluation/test_data_page.py::test_a_folder_is_shown_as_the_config_that_init_writes_sees_it'
    ),
    r'python tools/train\.py CONFIG( --resume.*)?$': 'tools/test_tools.py::test_training_resumes_where_it_ended',
    r'python tools/train\.py CONFIG --save-best': (
        'tools/test_tools.py::test_averages_best_score_and_losses_of_the_validation'
    ),
    r'python tools/train\.py CONFIG --cfg-options train_cfg\.max_epochs=3': (
        'tools/test_tools.py::test_interrupting_leaves_the_last_checkpoint_and_says_how_to_go_on'
    ),
    r'python tools/train\.py configs/mask_rcnn_shvit_s1_sample\.py --seed': (
        'tools/test_tools.py::test_training_draws_the_sample_set_and_leaves_checkpoints_table_and_curves'
    ),
    r'python tools/test\.py CONFIG CHECKPOINT( --eval bbox segm)?$': (
        'tools/test_tools.py::test_testing_evaluates_dumps_and_draws'
    ),
    r'python tools/test\.py CONFIG CHECKPOINT --eval bbox segm --deploy( --dtype bfloat16)?$': (
        'tools/test_tools.py::test_the_deployed_form_predicts_the_same'
    ),
    r'python tools/test\.py CONFIG CHECKPOINT( --eval bbox segm)? --report report': (
        'evaluation/test_report.py::test_the_tool_writes_a_page_with_the_scores_that_it_prints'
    ),
    r'python tools/predict\.py image\.jpg --weights CHECKPOINT --config CONFIG --out': (
        'prediction/test_predict.py::test_names_come_from_the_config_where_the_checkpoint_has_none'
    ),
    r'python tools/predict\.py slide\.tif --weights CHECKPOINT --tile': (
        'prediction/test_predict.py::test_a_large_picture_is_predicted_in_tiles'
    ),
    r'python tools/test\.py CONFIG CHECKPOINT --eval bbox segm --tta': (
        'prediction/test_predict.py::test_test_time_augmentation_is_that_of_the_test_tool'
    ),
    r'python tools/predict\.py (INPUT|photographs/ clip|data/sample)': (
        'prediction/test_predict.py::test_the_tool_writes_pictures_and_a_coco_file'
    ),
    r'python tools/benchmark\.py CONFIG$': 'timing/test_benchmark.py::test_the_tool_prints_and_writes',
    r'python tools/benchmark\.py plain:CONFIG': 'timing/test_forms.py::test_the_tool_lists_and_takes_the_forms',
    r'python tools/convert_checkpoint\.py': 'checkpoint/test_convert.py::test_the_tool_converts_and_says_what_it_did',
    r'python tools/export\.py CONFIG CHECKPOINT --to (onnx|openvino)': (
        'tools/test_export.py::test_an_exported_file_scores_as_its_checkpoint'
    ),
    r'python tools/test\.py CONFIG mask_rcnn\.onnx': (
        'tools/test_export.py::test_an_exported_file_scores_as_its_checkpoint'
    ),
    r'python tools/compare_export\.py CONFIG': 'tools/test_export.py::test_an_exported_file_scores_as_its_checkpoint',
    r'python tools/export\.py \S+ (CHECKPOINT|random) --to coreml': (
        'export/test_phone_coreml.py::test_the_tool_says_what_it_checked'
    ),
    r'python tools/export\.py \S+ CHECKPOINT --to executorch': (
        'export/test_phone_executorch.py::test_the_tool_says_what_it_wrote'
    ),
    r'shvit-det (--help|doctor)': 'project/test_packaging.py::test_the_list_of_commands_and_the_doctor_need_nothing',
    r'shvit-det (train|test) ': 'project/test_packaging.py::test_an_installed_wheel_trains_and_mim_finds_what_it_needs',
    r'shvit-det (make-sample|benchmark)': (
        'configuration/test_names_for_mmengine.py::test_every_command_is_a_module_and_a_tool'
    ),
    r'python tools/train\.py (\w+_coco --data|WORK_DIR)': (
        'tools/test_own_data.py::test_training_on_a_folder_in_one_command_and_again_by_its_config'
    ),
    r'python tools/init\.py': 'tools/test_own_data.py::test_the_init_tool_writes_a_config_that_trains',
    r'python tools/convert_data\.py': 'tools/test_convert_data.py::test_the_tool_converts_and_counts',
    r'python tools/make_sample\.py': 'data/test_sample.py::test_tool_as_process',
    r'python tools/dev/render_benchmarks\.py': 'timing/test_page.py::test_the_tool_checks_and_writes',
    r'python tests/support/kill_and_resume\.py': (
        'training/test_resuming.py::test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not'
    ),
}
NEEDS = {
    r'(torchrun|srun|mpirun) ': 'several devices; tests/training/test_launching.py has what fits one machine',
    r'python tools/(train|test)\.py configs/\w+_coco\.py': 'COCO, and for training a GPU',
    r'python tools/(train|test)\.py configs/\w+_imagenet\.py': 'ImageNet, and for training a GPU',
    r'python tools/\w+\.py (configs/\w+_nuclei\.py|data/nuclei)': 'the nuclei, and for training up to an hour',
    r'python tools/predict\.py photographs/ --out': "the authors' weights, which are downloaded",
    r'python tools/benchmark\.py .*(shvit:s4|_coco\.py)': 'minutes of a machine that does nothing else',
    r'python tests/support/soak\.py': 'two hours',
    r'python tools/dev/time_(choices|overlap)\.py': 'minutes of a machine that does nothing else',
    r'python tools/compare_export\.py (?!CONFIG)': 'the photographs or trained weights, and minutes of an idle machine',
    r'mim ': 'openmim, which clashes with newer setuptools; tests/project/test_packaging.py has what mim looks for',
    r'(python -m )?pip ': 'a network; it changes the environment',
    r'make (setup|demo|test|check|lint|docs)': 'a network the first time, and minutes',
    r'(python -m )?pytest tests/': 'nothing: these are tests',
    r'pytest -m gpu': 'a GPU',
    r'python speed_test\.py': "the authors' code",
}


NOT_HERE = {  # paths in the documents that are not in this repository
    'configs/mine.py': "the reader's",
    'configs/mask_rcnn_shvit_s4_fpn_1x_coco.py': "the authors'",
    'configs/retinanet_shvit_s4_fpn_1x_coco.py': "the authors'",
    'tools/analysis_tools/benchmark.py': "mmdet's",
}
SPLITS = ('train', 'val')
NUMBERS = ('N', 'S', 'SEED')  # what stands for one in the documents


def verdict_of(command: Command) -> str | None:
    return next((pattern for pattern in (*TESTED, *NEEDS) if re.match(pattern, command.text)), None)


def test_every_command_is_run_by_a_test_or_marked():
    unmarked = [str(command) for command in COMMANDS if verdict_of(command) is None]
    assert not unmarked, 'add a line to TESTED or NEEDS for:\n' + '\n'.join(unmarked)
    unused = {*TESTED, *NEEDS} - {verdict_of(command) for command in COMMANDS}
    assert not unused, 'no command in the documents is like this'


@pytest.mark.parametrize('test', sorted(set(TESTED.values())))
def test_the_tests_that_run_them_are_there(test):
    file, name = test.split('::')
    assert f'\ndef {name}(' in (ROOT / 'tests' / file).read_text()


@pytest.mark.parametrize('command', TOOLS, ids=str)
def test_the_tool_understands_the_command(command, capsys, monkeypatch):
    python, script, *arguments = without_launcher(command.words)
    assert python == 'python' and (ROOT / script).is_file()
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK'):
        monkeypatch.delenv(name, raising=False)
    try:
        parse_only(ROOT / script, ['0' if argument in NUMBERS else argument for argument in arguments])
    except Parsed:
        return
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    pytest.fail(f'{script} reads no arguments')


@pytest.mark.parametrize('command', COMMANDS, ids=str)
def test_what_a_command_names_is_there(command):
    for word in command.words:
        word = word.rpartition('::')[2] if word.startswith('shvit_det::') else word
        if '::' in word and 'mmdet::' in word:
            assert (Path(get_installed_path('mmdet')) / '.mim' / 'configs' / word.partition('mmdet::')[2]).is_file()
        elif match := re.search(r'(?:^|:)((?:configs|tests|tools|docs/results)/\S+)', word):
            assert (ROOT / match[1]).exists()
        elif word.endswith('constraints.txt'):
            assert (ROOT / word).is_file()
        elif extras := re.fullmatch(r'(?:\.|shvit_det)\[([\w,]+)\]', word):
            known = (ROOT / 'setup.cfg').read_text()
            assert all(f'\n{extra} =\n' in known for extra in extras[1].split(','))
    if command.words[0] == 'make':
        targets = re.findall(r'^(\w+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert command.words[1] in targets


@pytest.mark.parametrize('named', PATHS, ids=str)
def test_what_a_page_names_is_there(named: NamedPath):
    found = named.found()
    assert found is not None or named.path in NOT_HERE
    assert not named.name or named.name in names_in(found)


def test_the_map_has_every_folder_of_the_package():
    text = (ROOT / 'docs' / 'dev' / 'map.md').read_text()
    assert [folder for folder in package_folders() if f'\n**`{folder}/`**' not in text] == []


def test_the_first_page_is_short_and_begins_with_a_picture():
    lines = (ROOT / 'README.md').read_text().splitlines()
    assert len(lines) <= 200
    assert any(line.startswith('![') for line in lines[:12])


def test_the_reference_names_what_exists():
    names = re.findall(r'auto(?:class|function|exception):: ([\w.]+)', (ROOT / 'docs' / 'api.md').read_text())
    assert len(names) > 20
    for name in names:
        assert pkgutil.resolve_name(name)


@pytest.mark.parametrize('command', [command for command in PYTEST if ' -k ' in command.text], ids=str)
def test_tests_that_are_named_exist(command):
    *_, file, option, words = command.words
    text = (ROOT / file).read_text()
    assert option == '-k' and all(word in text for word in words.split(' and '))


def slug(heading: str) -> str:
    """Return the anchor that GitHub and Sphinx give a heading."""
    text = re.sub(r'\[([^]]*)\]\([^)]*\)', r'\1', heading)
    return re.sub(r'[^\w\- ]', '', text.lower()).replace(' ', '-')


@pytest.mark.parametrize('page', [*pages(), ROOT / 'CHANGELOG.md'], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if target.startswith(('http://', 'https://')):
            continue
        name, _, anchor = target.partition('#')
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r'^#+ (.*)$', there.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def own_texts() -> str:
    """Return every string in the package, those in pieces joined, with ``...`` for what is put in."""
    texts = []
    for path in sorted((ROOT / 'shvit_det').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else '...' for part in node.values)
                texts.append(''.join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return '\n'.join(texts)


def test_the_messages_under_troubleshooting_are_those_of_the_tools():
    section = (ROOT / 'docs' / 'troubleshooting.md').read_text().split('## Messages of our tools')[1].split('\n## ')[0]
    cells = re.findall(r'^\| (`.*?) \| ', section, re.MULTILINE)
    messages = [message for cell in cells for message in re.findall(r'`([^`]+)`', cell)]
    assert len(messages) > 20
    texts = own_texts()
    assert [message for message in messages if message.removeprefix('...').removesuffix('...') not in texts] == []


@pytest.fixture(scope='module')
def training_blocks():
    """The Python blocks of the page on training, by the name in their first line."""
    blocks = re.findall(r'```python\n# (\w+\.py).*?\n(.*?)```', (ROOT / 'docs' / 'training.md').read_text(), re.DOTALL)
    return dict(blocks)


def test_the_config_for_data_of_your_own_builds(training_blocks, tmp_path):
    lines = training_blocks['mine.py']
    assert len(lines.splitlines()) <= 12
    (tmp_path / 'mine.py').write_text(lines.replace("'./", f"'{ROOT}/configs/"))
    config = Config.fromfile(tmp_path / 'mine.py')
    task = task_of(config)
    task.check_model(config, task.build(config), ('train', 'val', 'test'))
    for split in ('train', 'val', 'test'):
        dataset = config[f'{split}_dataloader'].dataset
        assert dataset.data_root == 'data/mine/' and dataset.data_prefix.img == 'images/'
    assert config.test_evaluator.ann_file == config.val_evaluator.ann_file == 'data/mine/annotations/val.json'


def test_the_config_that_counts_steps_passes_the_checks_before_a_run(training_blocks, tmp_path):
    lines = training_blocks['nuclei_20_minutes.py'].replace("'./", f"'{ROOT}/configs/")
    (tmp_path / 'steps.py').write_text(lines)
    config = load_config(str(tmp_path / 'steps.py'))
    check_parts(config, task_of(config).build(config), ('train', 'val'))
    assert config.train_cfg == dict(type='IterBasedTrainLoop', max_iters=380, val_interval=380)
    assert [schedule.get('end') for schedule in config.param_scheduler] == [76, None]


def test_the_lines_that_make_coco_files_of_masks_run(training_blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawn = np.random.default_rng(0)
    for number in range(6):
        folder = Path('stage1_train', f'{number}' * 64)
        (folder / 'images').mkdir(parents=True)
        (folder / 'masks').mkdir()
        cv2.imwrite(str(folder / 'images' / 'a.png'), drawn.integers(0, 255, (40, 50, 4), dtype=np.uint8))
        for place in range(number + 1):
            mask = np.zeros((40, 50), np.uint8)
            mask[5:15, 3 * place : 3 * place + 2] = 255
            cv2.imwrite(str(folder / 'masks' / f'{place}.png'), mask)
    monkeypatch.setattr(sys, 'argv', ['nuclei_to_coco.py', 'stage1_train', 'data/nuclei'])
    exec(training_blocks['nuclei_to_coco.py'], {})
    config = str(ROOT / 'configs' / 'mask_rcnn_shvit_s1_nuclei.py')
    assert not any(each.has_errors for each in check_data(config))
    annotations = Path('data', 'nuclei', 'annotations')
    contents = {split: json.loads((annotations / f'instances_{split}.json').read_text()) for split in SPLITS}
    assert [len(contents[split]['images']) for split in SPLITS] == [4, 2]
    assert [len(contents[split]['annotations']) for split in SPLITS] == [2 + 3 + 4 + 5, 1 + 6]
    first = contents['train']['annotations'][0]
    assert (first['bbox'], first['area']) == ([0, 5, 2, 10], 20)


def test_the_site_is_built_without_a_warning(tmp_path):
    for module in ('sphinx', 'myst_parser', 'furo'):
        pytest.importorskip(module, reason='needs the extra docs, which make docs installs')
    command = [sys.executable, '-m', 'sphinx', '--fail-on-warning', '--keep-going', '--quiet', '-c', 'docs', '.']
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    result = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    reference = (tmp_path / 'docs' / 'api.html').read_text()
    for name in (*shvit_det.__all__, 'SHViTHead', 'SHViTRPNHead', 'CheckedCocoDataset', 'train', 'evaluate'):
        assert name == '__version__' or re.search(rf'id="shvit_det\.([\w.]+\.)?{name}"', reference), name
