"""Early stopping that a resumed run goes on with."""

from mmengine.hooks import EarlyStoppingHook
from mmengine.runner import Runner

from ...registry import HOOKS, register
from ..scores import earlier_evaluations


@register(HOOKS)
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's ``EarlyStoppingHook``, which in a resumed run also counts the validations before it.

    ``--early-stop`` of the train tool adds it. Arguments are those of mmengine's.
    """

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        for each in earlier_evaluations(runner):
            if self.monitor in each['scores']:
                stop, reason = self._check_stop_condition(each['scores'][self.monitor])
                if stop:
                    runner.train_loop.stop_training = True
                    runner.logger.info(
                        f'This run has stopped early, and goes on with a larger patience or without this hook: {reason}'
                    )
                    return
