"""Devices by the names that users give them."""

import pytest
import torch

from shvit_det import UsageError
from shvit_det.common.devices import find_device


@pytest.mark.parametrize(
    'name, words',
    [
        ('tpu', "unknown device 'tpu': use cpu, cuda or cuda:N"),
        ('meta', 'meta is not supported: use cpu, cuda or cuda:N'),
        ('cuda:99', 'there is no device cuda:99 here: torch sees'),
    ],
)
def test_other_devices_are_named(name, words):
    with pytest.raises(UsageError, match=words):
        find_device(name)


def test_without_a_name_it_is_a_gpu_if_there_is_one():
    assert find_device('cpu') == torch.device('cpu')
    assert find_device().type == ('cuda' if torch.cuda.is_available() else 'cpu')
