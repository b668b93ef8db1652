"""How the tools end: with status 2 nothing has been written, with status 1 the sentence says what is kept."""

import pytest

from shvit_det import UsageError
from shvit_det.commands import cli
from shvit_det.common.errors import RunError, keeping


@pytest.mark.parametrize('written, error, sentence', [
    ([], UsageError, 'no room'),
    (['a.json', 'b.md'], RunError, 'no room; written before: a.json, b.md'),
])  # fmt: skip
def test_a_mistake_that_comes_late_is_no_mistake_of_use(written, error, sentence):
    with pytest.raises(error) as caught, keeping(lambda: written):
        raise UsageError('no room')
    assert type(caught.value) is error and str(caught.value) == sentence


@pytest.mark.parametrize('error, status', [(UsageError('a'), 2), (RunError('b'), 1)])
def test_the_status_of_an_error(error, status, capsys):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        cli.run(main)
    assert ended.value.code == status and capsys.readouterr().err == f'error: {error}\n'
