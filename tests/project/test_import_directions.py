"""Imports between the folders of the package go one way, as the picture in docs/dev/map.md shows them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / 'shvit_det'
# A folder imports from the layers before its own; within a layer only as IN_A_LAYER says.
LAYERS = (
    ('common', 'compat'),
    ('models',),
    ('checkpoint', 'kernels', 'deployment', 'data', 'runtimes'),
    ('configuration',),
    ('training', 'prediction', 'export', 'timing', 'doctor'),
    ('evaluation',),
    ('commands',),
)
IN_A_LAYER = {('deployment', 'kernels')}
FOLDERS = sorted(path.parent.name for path in PACKAGE.glob('*/__init__.py'))


def imported_folders(path: Path) -> Iterator[str]:
    """Yield the folders of the package that a module imports from, also within functions."""
    parents = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            start = parents[: len(parents) - node.level + 1]
            module = (*start, *(node.module or '').split('.')) if node.module else start
            names = [alias.name for alias in node.names] if not module else [module[0]]
        elif isinstance(node, ast.ImportFrom):
            first, *rest = (node.module or '').split('.')
            names = [rest[0] if rest else alias.name for alias in node.names] if first == PACKAGE.name else []
        elif isinstance(node, ast.Import):
            names = [alias.name.split('.')[1] for alias in node.names if alias.name.startswith(f'{PACKAGE.name}.')]
        else:
            continue
        yield from (name for name in names if name in FOLDERS)


def test_every_folder_is_in_a_layer():
    assert sorted(folder for layer in LAYERS for folder in layer) == FOLDERS


@pytest.mark.parametrize('folder', FOLDERS)
def test_a_folder_imports_only_from_those_below_it(folder):
    layer = next(number for number, folders in enumerate(LAYERS) if folder in folders)
    allowed = {folder, *(other for folders in LAYERS[:layer] for other in folders)}
    allowed |= {other for one, other in IN_A_LAYER if one == folder}
    for path in sorted((PACKAGE / folder).rglob('*.py')):
        assert set(imported_folders(path)) <= allowed, path.relative_to(ROOT)
