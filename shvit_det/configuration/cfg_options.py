"""``--cfg-options KEY=VALUE``: parsed from the command line, formatted to be pasted again, and places as KEY has them.

Values are those of mmengine's ``DictAction``, which takes out all spaces and quotes of a list, and ours does not.
"""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from mmengine.config import Config, DictAction

PAIRS = {'[': ']', '(': ')'}
QUOTED = r"""'(?:''|[^'])*'|"(?:""|[^"])*\""""
PLAIN = r'[^\s,()\[\]](?:[^,()\[\]]|\([^,()\[\]]*\)|\[[^,()\[\]]*\])*'  # brackets without a comma belong to it
ELEMENT = re.compile(rf'(?P<quoted>{QUOTED})(?=\s*[,)\]])|(?P<plain>{PLAIN})|\s*(?P<end>[)\]])')


class OptionsAction(argparse.Action):
    """Collect ``KEY=VALUE`` pairs in a dict, with values from :func:`.parse_value`. Nothing is evaluated."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        options = dict(getattr(namespace, self.dest) or {})
        for option in values:
            key, equals, text = option.partition('=')
            try:
                if not equals or not all(key.split('.')):
                    raise ValueError('it has no =' if not equals else 'KEY is names with dots between them')
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
    if re.fullmatch(QUOTED, text):
        inner = without_quotes(text)
        return parse_value(inner) if text[0] == '"' and is_list(inner.strip()) else inner
    if re.fullmatch(r'\{[^{].*:.*\}', text, re.DOTALL):
        raise ValueError(f'{text!r} is a dict, which is given value by value: KEY.NAME=VALUE')
    if not is_list(text) and ',' not in text:
        return DictAction._parse_int_float_bool(text)
    elements = parse_list(f'[{text}]')
    return elements[0] if is_list(text) and len(elements) == 1 else elements


def is_list(text: str) -> bool:
    return bool(text) and PAIRS.get(text[0]) == text[-1]


def without_quotes(text: str) -> str:
    return text[1:-1].replace(text[0] * 2, text[0])


def parse_list(text: str) -> Any:
    """Return the list or tuple that a text in brackets stands for; Python reads brackets and commas."""
    elements: list[Any] = []

    def index(match: re.Match[str]) -> str:
        if match['end']:
            is_closed = text[: match.start()][-1:] in (',', *PAIRS)
            return match['end'] if is_closed else f',{match["end"]}'  # (a) is a tuple, as in mmengine
        quoted, plain = match['quoted'], match['plain']
        elements.append(DictAction._parse_int_float_bool(plain.rstrip()) if plain else without_quotes(quoted))
        return str(len(elements) - 1)

    def fill(node: Any) -> Any:
        return elements[node] if isinstance(node, int) else type(node)(map(fill, node))

    try:
        return fill(ast.literal_eval(ELEMENT.sub(index, text)))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f'the brackets in {text[1:-1]!r} are not those of lists') from error


def format_value(value: Any) -> str:
    """Return a text that :func:`.parse_value` parses as ``value``."""
    if not isinstance(value, str):
        return format_element(value)
    # in single quotes if parse_value would drop double ones, as around '[a, b]'
    return next(text for text in (value, in_quotes(value, '"'), in_quotes(value, "'")) if is_parsed_as(text, value))


def format_element(value: Any) -> str:
    """Return a text that is parsed as ``value`` as an element of a list."""
    if isinstance(value, list | tuple):
        left, right = '[]' if isinstance(value, list) else '()'
        return left + ', '.join(map(format_element, value)) + right
    if isinstance(value, str):
        opens = value.startswith(("'", '"'))  # quotes, which the next element might close
        return value if not opens and is_parsed_as(f'[{value}]', [value]) else in_quotes(value, '"')
    assert value is None or isinstance(value, int | float), value  # the only other kinds that parse_value returns
    return str(value)


def in_quotes(text: str, quote: str) -> str:
    return quote + text.replace(quote, quote * 2) + quote


def is_parsed_as(text: str, value: Any) -> bool:
    try:
        return bool(parse_value(text) == value)
    except ValueError:
        return False


def pasteable(options: Mapping[str, Any]) -> str:
    """Return options as part of a shell command: ``--cfg-options a.b=1 'c=d e'``."""
    return '--cfg-options ' + shlex.join(f'{key}={format_value(value)}' for key, value in options.items())


def places_in(node: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    """Yield every value in nested dicts and lists with its place, as ``--cfg-options`` spells it."""
    if place:
        yield place, node
    items: Any = ()
    if isinstance(node, Mapping | Config):
        items = node.items()
    elif isinstance(node, list | tuple):
        items = enumerate(node)
    for key, value in items:
        yield from places_in(value, f'{place}.{key}' if place else str(key))


def dicts_in(node: Any, place: str) -> Iterator[tuple[str, MutableMapping]]:
    """Yield the dicts among these values."""
    return ((inner, value) for inner, value in places_in(node, place) if isinstance(value, MutableMapping))
