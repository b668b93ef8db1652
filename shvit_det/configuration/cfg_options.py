"""``--cfg-options KEY=VALUE``: parsed from the command line, merged into a config, and formatted to be pasted again.

Values are those of mmengine's ``DictAction``, which takes out all spaces and quotes of a list, and ours does not.
"""

import argparse
import ast
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..common.errors import UsageError

# The settings at the top of a config that are read after the file: by mmengine's runner, and by us.
READ = {
    *(inspect.signature(Runner.__init__).parameters.keys() - {'self', 'cfg'}),
    *('runner_type', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'compile', 'strategy'),
    *('activation_checkpointing', 'efficient_conv_bn_eval'),
    *('bad_data', 'channels_last', 'sample_set'),
}
# What mmdet 2 called them; the longest match counts.
FORMER = {
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger',
    'evaluation.interval': 'train_cfg.val_interval',
    'evaluation.metric': 'val_evaluator.metric',
    'evaluation.save_best': 'default_hooks.checkpoint.save_best',
    'data.samples_per_gpu': 'train_dataloader.batch_size',
    'data.workers_per_gpu': 'train_dataloader.num_workers',
    'data.train': 'train_dataloader.dataset',
    'data.val': 'val_dataloader.dataset',
    'data.test': 'test_dataloader.dataset',
    'optimizer': 'optim_wrapper.optimizer',
    'optimizer_config.grad_clip': 'optim_wrapper.clip_grad',
    'lr_config': 'param_scheduler.1',
    'runner.max_epochs': 'train_cfg.max_epochs',
    'runner.max_iters': 'train_cfg.max_iters',
    'total_epochs': 'train_cfg.max_epochs',
    'seed': 'randomness.seed',
}
OURS = ('shvit_det', 'mmdet', 'mmpretrain', 'mmcv', 'mmengine')
MOST_OTHERS = 3  # keys that are named only because they have the same value: with more, it means nothing
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
    """Return the list or tuple that a text in brackets stands for; Python reads brackets and commas.

    Raises:
        ValueError: If its brackets are not those of lists.
    """
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


def merge_options(config: Config, options: Mapping[str, Any] | None) -> None:
    """Merge ``--cfg-options`` into a config.

    Raises:
        UsageError: If nothing would read one of them, or it does not fit what the config has there.
    """
    for key, value in (options or {}).items():
        if not is_read(config, key.partition('.')[0]):
            why, meant = why_unread(config, key, value)
            if meant or not may_be_read(config, key):
                raise UsageError(f'--cfg-options {key} changes nothing: {why}')
            print_log(f'--cfg-options {key}: only code of your own can read it', 'current', 30)
        warn_if_new(config, key)
        try:
            config.merge_from_dict({key: value})
        except (KeyError, TypeError, AttributeError) as error:
            place = key.rpartition('.')[0]
            raise UsageError(
                f'--cfg-options {key} does not fit what the config has there ({error}): set {place} as a whole'
            ) from error


def is_read(config: Config, top: str) -> bool:
    """Tell whether a setting at the top of a config is read after the file."""
    has_loader = any(config.get(f'{split}_dataloader') for split in ('val', 'test'))
    return top in READ or (top == 'test_pipeline' and not has_loader)  # then it says how new images are read


def may_be_read(config: Config, key: str) -> bool:
    """Tell whether a setting at the top of a config may be for code that the config imports."""
    imports = (config.get('custom_imports') or {}).get('imports') or ()
    modules = [imports] if isinstance(imports, str) else imports
    return key.partition('.')[0] in config and any(each.partition('.')[0] not in OURS for each in modules)


def warn_if_new(config: Config, key: str) -> None:
    """Log a warning if ``key``, with dots, names nothing that the config has, which mostly is a typing error.

    Raises:
        UsageError: If it stands in a dict without a type, which nothing checks later, and is nearly the name of another
            key there.
    """
    node: Any = config
    for part in key.split('.'):
        if isinstance(node, Mapping | Config):
            found = part in node
        elif isinstance(node, Sequence) and not isinstance(node, str):
            found = part.isdigit() and int(part) < len(node)
        else:
            found = False
        if not found:
            untyped = isinstance(node, Mapping) and 'type' not in node
            if untyped and (near := get_close_matches(part, list(map(str, node)), 1, 0.7)):
                raise UsageError(
                    f'--cfg-options {key}: the config has no {part!r} there: did you mean {near[0]!r}? A key that is '
                    f'really new goes into a config file'
                )
            names = [str(name) for name in node if name not in ('type', '_scope_')] if isinstance(node, Mapping) else []
            known = f' beside {", ".join(names)}' if names else ''
            print_log(f'--cfg-options {key}: the config has no {part!r} there, it is added{known}', 'current', 30)
            return
        node = node[int(part)] if part.isdigit() and not isinstance(node, Mapping | Config) else node[part]


def why_unread(config: Config, key: str, value: Any) -> tuple[str, list[str]]:
    """Return why a key at the top of a config is read by nothing, with the keys that are meant instead."""
    top, dot, rest = key.partition('.')
    known = top in config
    why = f'{top} is a variable that the file has used already' if known else f'nothing reads {top}'
    if key == 'data_root':
        root = f'--data-root {shlex.quote(str(value))}'
        return f'{why}; {root} names the folder of all data sets and evaluators', [root]
    places = dict(places_in({name: config.get(name) for name in sorted(READ)}))
    last = key.rpartition('.')[2]
    names = [name for name in (place.rpartition('.')[2] for place in places) if not name.startswith('_')]
    near = last if last in names or known else next(iter(get_close_matches(last, names, 1, 0.7)), None)
    named = [place for place in places if place.rpartition('.')[2] == near and not (known and rest)]
    same = [f'{place}{dot}{rest}' for place, there in places.items() if known and is_used_for(config[top], there)]
    meant = named if isinstance(config.get(top), int | float) else same or named
    former = max((old for old in FORMER if not known and f'{key}.'.startswith(f'{old}.')), key=len, default=None)
    if former:
        meant = [FORMER[former] + key.removeprefix(former)]
    if meant:
        why += f'; the keys that are read are {pasteable(dict.fromkeys(meant, value))}'
    others = [place for place in same if place not in meant]
    return why + (f' (of the same value now: {", ".join(others)})' if 0 < len(others) <= MOST_OTHERS else ''), meant


def is_used_for(variable: Any, value: Any) -> bool:
    """Tell whether a value in a config looks as if a variable of the file had gone into it."""
    return bool(variable) and variable is not True and without_scopes(variable) == without_scopes(value)


def without_scopes(node: Any) -> Any:
    """Return nested dicts and lists without the entries that mmengine adds to what comes from another project."""
    if isinstance(node, Mapping):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [without_scopes(value) for value in node] if isinstance(node, list | tuple) else node


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
