"""Configs to run the tools with, and the check of how they end."""

from paths import ROOT
from processes import Result

RETINANET = ROOT / 'tests' / 'data' / 'tiny_retinanet.py'


def succeeded(result: Result) -> str:
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout
