"""Whether a config is for a detector or for a classifier."""

from mmengine.config import Config

from .task import Task


def task_of(config: Config) -> Task:
    """Return the task of a config, by the project that it is for; the other project need not be installed.

    A config without ``default_scope`` names its classes in full, so that the model's name tells.
    """
    scope = config.get('default_scope') or str((config.get('model') or {}).get('type')).partition('.')[0]
    if scope == 'mmpretrain':
        from .classification import Classification

        return Classification()
    from .detection import Detection

    return Detection()
