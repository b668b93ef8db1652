"""The shell commands that the documents show, and the parser of a tool without the tool's work."""

import argparse
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
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
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


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
