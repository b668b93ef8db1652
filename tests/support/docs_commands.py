"""What the documents name: shell commands, files and folders, names in the code; and the parser of a tool alone."""

import argparse
import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
FOLDERS = ('shvit_det', 'configs', 'tools', 'tests', 'docs')
PLACEHOLDERS = ('NAME', 'CONFIG')  # in a path, for any file
PROGRAMS = ('python', 'torchrun', 'srun', 'mpirun', 'pip', 'make', 'pytest', 'mim', 'shvit-det')
LAUNCHERS = ('torchrun', 'srun', 'mpirun')
NO_SHELL = ('python', 'bibtex')  # languages of fenced blocks; those without one may be output, or commands
COMMAND = re.compile(rf'(?:\$ )?((?:{"|".join(PROGRAMS)}) \S.*)')


@dataclass(frozen=True)
class Command:
    """One command: the page, its line there, and what a shell would be given."""

    page: str
    line: int
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f'{self.page}:{self.line}: {self.text}'


def pages() -> list[Path]:
    """Return the pages that people write; those below docs/dev/results are made from records."""
    docs = ROOT / 'docs'
    return [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(docs.glob('*.md')), *sorted(docs.glob('dev/*.md'))]


def commands_of(path: Path) -> Iterator[Command]:
    """Yield the commands in blocks, indented or fenced, and in code spans, as those in tables are."""
    page = path.relative_to(ROOT).as_posix()
    language, start, text = None, 0, ''
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith('```'):
            language = line.strip('`') if language is None else None
        elif language in NO_SHELL:
            continue
        elif language is not None or line.startswith('    '):
            start = start if text else number
            text += line.strip()
            if text.endswith('\\'):
                text = text[:-1]
                continue
            if match := COMMAND.fullmatch(text):
                yield Command(page, start, match[1])
            text = ''
        else:
            for span in re.findall(r'(?<!`)`([^`]+)`(?!`)', line):
                if match := COMMAND.fullmatch(span):
                    yield Command(page, number, match[1])


@dataclass(frozen=True)
class NamedPath:
    """A file or folder that a page names, maybe with a name in it: ``models/neck.py:SHViTFPN``."""

    page: str
    line: int
    path: str
    name: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}: {self.path}' + (f':{self.name}' if self.name else '')

    def found(self) -> Path | None:
        """Return the file or folder, from the root of the repository or from that of the package; None without one."""
        return next((base / self.path for base in (ROOT, ROOT / 'shvit_det') if (base / self.path).exists()), None)


def paths_of(path: Path) -> Iterator[NamedPath]:
    """Yield the files and folders that a page names in code spans and in blocks that are no code.

    On the pages for users these are paths that begin with a folder of the repository. On the pages for developers a
    path may also begin in the package, as ``models/neck.py`` does.
    """
    page = path.relative_to(ROOT).as_posix()
    roots = FOLDERS if path.parent.name != 'dev' else (*FOLDERS, *package_folders())
    pattern = re.compile(rf'(?:^|(?<=[\s`(]))((?:{"|".join(roots)})/[\w./-]*)(?::([A-Za-z_]\w*))?')
    language = None
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.startswith('```'):
            language = line.strip('`') if language is None else None
        elif language in (*NO_SHELL, 'sh'):
            continue
        else:
            texts = [line] if language is not None else re.findall(r'(?<!`)`([^`]+)`(?!`)', line)
            for named in (match for text in texts for match in pattern.finditer(text)):
                if not any(placeholder in named[1] for placeholder in PLACEHOLDERS):
                    yield NamedPath(page, number, named[1].rstrip('.'), named[2] or '')


def package_folders() -> list[str]:
    """Return the folders of the package."""
    return sorted(path.parent.name for path in (ROOT / 'shvit_det').glob('*/__init__.py'))


def names_in(path: Path) -> set[str]:
    """Return the functions, classes, methods and constants that a module has."""
    tree = ast.parse(path.read_text())
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    targets = (
        target
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    )
    return defined | {target.id for target in targets if isinstance(target, ast.Name)}


class Parsed(Exception):  # noqa: N818  (no error)
    """The arguments were understood, and the tool goes no further."""


def parse_only(script: Path, arguments: list[str]) -> None:
    """Run a script until its parser has read the arguments.

    Raises:
        Parsed: If they are right.
        SystemExit: If they are not; the parser has printed why.
    """
    read = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: object, **named: object) -> None:
        read(self, *given, **named)
        raise Parsed

    with (
        mock.patch.object(argparse.ArgumentParser, 'parse_args', stop),
        mock.patch.object(sys, 'argv', [str(script), *arguments]),
    ):
        runpy.run_path(str(script), run_name='__main__')


def without_launcher(words: list[str]) -> list[str]:
    """Return what a launcher would start, from ``python`` or the script on; torchrun starts Python by itself.

    ``shvit-det NAME`` is taken for the tool of that name.
    """
    if words[0] == 'shvit-det':
        return ['python', f'tools/{words[1].replace("-", "_")}.py', *words[2:]]
    if words[0] not in LAUNCHERS:
        return words
    first = next(number for number, word in enumerate(words) if word == 'python' or word.endswith('.py'))
    return words[first:] if words[first] == 'python' else ['python', *words[first:]]
