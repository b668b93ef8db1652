"""``--cfg-options KEY=VALUE``: parsed from the command line, and formatted so that it can be pasted into one."""

import argparse
import re
import shlex
from collections.abc import Mapping
from typing import Any

from mmengine.config import DictAction

PAIRS = {'[': ']', '(': ')'}
QUOTES = ('"', "'")
SPECIAL = {*PAIRS, *PAIRS.values(), *QUOTES, ','}


class OptionsAction(argparse.Action):
    """Collect ``KEY=VALUE`` pairs in a dict, with values from :func:`.parse_value`. Nothing is evaluated."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for option in values:
            key, equals, text = option.partition('=')
            try:
                if not equals:
                    raise ValueError('it has no =')
                options[key] = parse_value(text)
            except (ValueError, RecursionError) as error:
                parser.error(
                    f'{option_string} takes KEY=VALUE with closed brackets, but got {option!r}: {error}; a text with '
                    f'commas or brackets goes into quotes of its own: "KEY=\'a, b\'"'
                )
        setattr(namespace, self.dest, options)


def add_cfg_options(parser: Any, help: str = 'changes of the config: a.b.c=value') -> None:
    """Add ``--cfg-options`` to a parser or to a group of its arguments."""
    parser.add_argument('--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE', help=help)


def parse_value(text: str) -> Any:
    """Return the Python value of ``VALUE`` in ``KEY=VALUE``.

    Numbers, ``True``, ``False`` and ``None`` are parsed; ``[a, b]`` and ``a, b`` are lists and ``(a, b)`` is a tuple,
    of such values again. Everything else is a string, spaces included. A text in quotes is a string with all its
    characters; a quote inside it is doubled. Double quotes around a whole list are dropped, as in mmengine, for command
    lines that no shell has read.

    Raises:
        ValueError: If it is a dict, brackets of a list are not closed, or it has commas in other brackets, ``f(a, b)``.
    """
    text = text.strip()
    inner = unquoted(text)
    if inner is not None and text[0] == '"' and is_list(inner.strip()):
        return parse_element(inner)
    commas, _, _ = scan(text)
    return parse_elements(text, commas) if commas and text[0] != '{' else parse_element(text)


def parse_elements(text: str, commas: list[int]) -> list[Any]:
    parts = [text[start + 1 : end] for start, end in zip([-1, *commas], [*commas, len(text)], strict=True)]
    if not parts[-1].strip():
        parts.pop()  # nothing follows the last comma, or the list is empty
    return [parse_element(part) for part in parts]


def parse_element(text: str) -> Any:
    text = text.strip()
    inner = unquoted(text)
    if inner is not None:
        return inner
    if is_list(text):
        values = parse_elements(text[1:-1], scan(text[1:-1])[0])
        return tuple(values) if text[0] == '(' else values
    if re.fullmatch(r'\{[^{].*:.*\}', text, re.DOTALL):
        raise ValueError(f'{text!r} is a dict, which is given value by value: KEY.NAME=VALUE')
    if ',' in text:
        raise ValueError(f'the brackets around the commas of {text!r} are not those of a list')
    return DictAction._parse_int_float_bool(text)


def unquoted(text: str) -> str | None:
    """Return a text without its quotes, or None if it is not in quotes from its first to its last character."""
    if text[:1] not in QUOTES or end_of_quoted(text, 0) != len(text):
        return None
    return text[1:-1].replace(text[0] * 2, text[0])


def end_of_quoted(text: str, start: int) -> int:
    """Return the index after the quotes that open at ``start``, or ``start`` if they are not closed."""
    quote, place = text[start], start + 1
    while (place := text.find(quote, place)) >= 0:
        if text[place + 1 : place + 2] != quote:
            return place + 1
        place += 2
    return start


def is_list(text: str) -> bool:
    """Return whether a text is in the brackets of a list or tuple.

    Raises:
        ValueError: If it is, but brackets inside it are not closed.
    """
    if not text or PAIRS.get(text[0]) != text[-1]:
        return False
    _, closed_at, is_balanced = scan(text)
    if not is_balanced:
        raise ValueError(f'the brackets of {text!r} are not closed')
    return closed_at == len(text) - 1


def scan(text: str) -> tuple[list[int], int | None, bool]:
    """Return the indices of commas outside of brackets, where the first bracket closes, and whether all are closed.

    Quotes count only around a whole element, unlike that of ``it's``.

    Raises:
        ValueError: If there are commas, and brackets that are not closed.
    """
    commas: list[int] = []
    expected: list[str] = []
    closed_at, is_balanced = None, True
    place, begins = 0, True
    while place < len(text):
        char = text[place]
        end = end_of_quoted(text, place) if begins and char in QUOTES else place
        if end > place and text[end:].lstrip()[:1] in ('', ',', *PAIRS.values()):
            place, begins = end, False
            continue
        if char in PAIRS:
            expected.append(PAIRS[char])
        elif expected and char == expected[-1]:
            expected.pop()
            if not expected and closed_at is None:
                closed_at = place
        elif char in PAIRS.values():
            is_balanced = False
        elif char == ',' and not expected:
            commas.append(place)
        begins = char in PAIRS or char == ',' or (begins and char.isspace())
        place += 1
    is_balanced = is_balanced and not expected
    if not is_balanced and ',' in text:
        raise ValueError(f'the brackets of {text!r} are not closed')
    return commas, closed_at, is_balanced


def format_value(value: Any) -> str:
    """Return a text that :func:`.parse_value` parses as ``value``."""
    if not isinstance(value, str):
        return format_element(value)
    # in single quotes if parse_value would drop double ones, as around '[a, b]'
    return next(text for text in (value, format_element(value), quoted(value, "'")) if parses_as(text, value))


def parses_as(text: str, value: str) -> bool:
    try:
        return bool(parse_value(text) == value)
    except ValueError:
        return False


def format_element(value: Any) -> str:
    """Return a text that is parsed as ``value`` as an element of a list."""
    if isinstance(value, list | tuple):
        left, right = '[]' if isinstance(value, list) else '()'
        return left + ', '.join(map(format_element, value)) + right
    if isinstance(value, str):
        is_plain = value and not SPECIAL & set(value) and parse_element(value) == value
        return value if is_plain else quoted(value, '"')
    assert value is None or isinstance(value, int | float), value  # the only other kinds that parse_value returns
    return str(value)


def quoted(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote


def pasteable(options: Mapping[str, Any]) -> str:
    """Return options as part of a shell command: ``--cfg-options a.b=1 'c=d e'``."""
    return '--cfg-options ' + shlex.join(f'{key}={format_value(value)}' for key, value in options.items())
