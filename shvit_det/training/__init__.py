"""Training: the runner and its loop, the optimizer wrappers, and the run behind tools/train.py; hooks have a folder."""

from ..registry import HOOKS, LOOPS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, RUNNERS, real_class

# The values in a config are checked against the arguments of those classes that have been imported.
for registry in (HOOKS, LOOPS, OPTIM_WRAPPERS, OPTIM_WRAPPER_CONSTRUCTORS, RUNNERS):
    for registered in list(registry.module_dict.values()):
        real_class(registered)
