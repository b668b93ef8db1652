"""Names at the top of a config that nothing reads: those of mmdet 2.x, and typing errors."""

import logging
from collections import defaultdict
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..common.errors import UsageError
from .cfg_options import FORMER, READ, is_read, may_be_read, places_in

ALIKE = 0.9  # two long names that differ in one letter or two
KNOWN = sorted(READ | {'tta_model', 'tta_pipeline', 'custom_imports'})

# What shows that a dict of such a name is one of mmdet 2.x, and no variable.
KEYS_OF_MMDET_2: defaultdict[str, set[str]] = defaultdict(
    set,
    data={'samples_per_gpu', 'workers_per_gpu'},
    lr_config={'policy'},
    optimizer_config={'grad_clip'},
    evaluation={'interval', 'metric'},
    checkpoint_config={'interval'},
    log_config={'hooks'},
    runner={'max_epochs', 'max_iters'},
)


def check_names_at_top(config: Config) -> None:
    """Check the names at the top of a config, as it was read.

    Variables that a file uses for its settings may have any name, and so may what the user's own modules read. A name
    of mmdet 2.x that may be such a variable, whose value was replaced later, is a line in the log.

    Raises:
        UsageError: If one of them does nothing, and it is clear what was meant.
    """
    former = {old.partition('.')[0] for old in FORMER}
    for name, value in config.items():
        if name in KNOWN or value is None or is_read(config, name) or may_be_read(config, name):
            continue
        if name in former and not is_used(config, value):
            now = dict.fromkeys(new for old, new in FORMER.items() if old.partition('.')[0] == name)
            sentence = f'{name} is a setting of mmdet 2.x, and nothing reads it: mmdet 3.x has {", ".join(now)}'
            if isinstance(value, Mapping) and not KEYS_OF_MMDET_2[name].isdisjoint(value):
                raise UsageError(sentence)
            print_log(sentence, 'current', logging.WARNING)
        elif isinstance(value, Mapping | list | tuple):
            near = get_close_matches(name, KNOWN, 1, ALIKE)
            if near and not is_used(config, value):
                raise UsageError(f'nothing reads {name} of the config: did you mean {near[0]!r}?')


def is_used(config: Config, variable: Any) -> bool:
    """Tell whether a variable of a file went into a setting, which may have got other values and more keys since."""
    settings = {name: value for name, value in config.items() if name in KNOWN}
    if not isinstance(variable, Mapping):
        return any(value == variable for _, value in places_in(settings))
    return any(
        variable.keys() <= node.keys() and variable.get('type') == node.get('type')
        for _, node in places_in(settings)
        if isinstance(node, Mapping)
    )
