"""Small models whose parts are exported for phones."""

from pathlib import Path

import torch
from norms import randomise_norms
from paths import ROOT

from shvit_det.configuration.detector_or_classifier import task_of
from shvit_det.configuration.reading import load_config

DATA = ROOT / 'tests' / 'data'

CLASSIFIER = str(DATA / 'tiny_imagenet.py')

SHAPE = (96, 128)


def trained(config: str, folder: Path, **meta: object) -> tuple[torch.nn.Module, str]:
    """Return the model of a config with statistics as of training, and a checkpoint of it."""
    settings = load_config(config)
    model = task_of(settings).build(settings).eval()
    randomise_norms(model)
    path = folder / 'weights.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return model, str(path)
