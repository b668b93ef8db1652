"""What went wrong while a config was read: a phrase with the file and the line, since a config may have many bases."""

import os
import shlex
import traceback
from json import JSONDecodeError
from pathlib import Path

is_file = os.path.isfile  # unlike Path, False of a text that is too long for a path
READERS = ('fromfile', '_is_lazy_import', '_file2dict', '_parse_lazy_import')  # mmengine's, with the path as `filename`


def reading_error(error: BaseException, path: str) -> str:
    """Return why a config, which is Python and may raise anything, could not be read, and where.

    ``path`` is the config that the user named; the error may come from a base of it.
    """
    if isinstance(error, SyntaxError) and error.lineno is None and error.__context__ is not None:
        error = error.__context__  # mmengine raises another one, which has the line in its text only
    file, line = place_of(error, path)
    text = f'{type(error).__name__}: {error}'
    match error:
        case SyntaxError(msg=message, lineno=line, filename=name):
            text, file = f'SyntaxError: {message}', name if name and is_file(name) else file
        case UnicodeDecodeError():
            text, line = 'it is not text in UTF-8', error.object.count(b'\n', 0, error.start) + 1
        case RecursionError() if line is None:
            text = 'one of its bases leads back to it'
        case ImportError():
            text = f'{error}{where_module_is(error, Path(file).parent)}'
        case RuntimeError() if 'inheritance chain' in str(error):
            text = 'a config with _base_ and one with read_base() or imports cannot inherit each other'
        case AttributeError() if line is None and not file.endswith('.py'):
            text = 'it does not consist of names with values'
    if mark := getattr(error, 'problem_mark', None):  # of YAML
        text, line = str(getattr(error, 'problem', text)), mark.line + 1
    elif isinstance(error, JSONDecodeError):
        text, line = error.msg, error.lineno
    return f'{" ".join(text.split())} ({file}{f", line {line}" if line else ""})'


def place_of(error: BaseException, path: str) -> tuple[str, int | None]:
    """Return the file that was being read when an error was raised, and its line if it was being run."""
    file, line = path, None
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = frame.f_locals.get('filename')
        if frame.f_globals.get('__name__') == 'mmengine.config.config' and frame.f_code.co_name in READERS:
            if isinstance(name, str) and is_file(name):  # and not a base that is missing
                file, line = name, None
        elif frame.f_code.co_filename == file:
            line = number
    return path if is_file(path) and Path(file).samefile(path) else file, line


def import_error(error: Exception, folder: Path) -> str:
    """Return why a module that a config in ``folder`` names could not be imported."""
    reason = first_cause(error)
    if isinstance(reason, ImportError):
        return f'{reason}{where_module_is(reason, folder)}'
    frame, line = list(traceback.walk_tb(reason.__traceback__))[-1]
    return f'{type(reason).__name__}: {" ".join(str(reason).split())} ({frame.f_code.co_filename}, line {line})'


def where_module_is(error: BaseException, folder: Path) -> str:
    """Return what to do if a module that was not found is in the present folder or in ``folder``, or nothing."""
    module = str(getattr(first_cause(error), 'name', None)).partition('.')[0]
    for place in (Path(), folder):
        if (place / module).is_dir() or (place / f'{module}.py').is_file():
            return f': it is in {place.absolute()}, so put PYTHONPATH={shlex.quote(str(place))} before the command'
    return ''


def first_cause(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error
