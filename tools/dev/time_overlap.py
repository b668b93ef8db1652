"""Time what reading and drawing beside the model save in a prediction: python tools/dev/time_overlap.py

A stub stands for the model: it waits as long as a device would compute, and finds the same objects in every picture.
With --model the detector itself predicts, on the processors that also read and draw.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.structures import InstanceData

from shvit_det import Predictor
from shvit_det.configuration.random_detector import build_random_detector
from shvit_det.configuration.reading import load_config
from shvit_det.data.sample import draw_sample
from shvit_det.prediction import overlap
from shvit_det.prediction import predict as prediction
from shvit_det.timing.statistics import MIN_INTERVAL_ROUNDS, ratio_by_round

CONFIG = str(Path(__file__).parents[2] / 'configs' / 'mask_rcnn_shvit_s1_sample.py')
IMAGE_SIZE, NUM_OBJECTS = 640, 10


class Waiting(torch.nn.Module):
    """Waits some seconds for each picture, and finds objects of random places."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        corners = torch.rand(NUM_OBJECTS, 2) * IMAGE_SIZE / 2
        boxes = torch.cat([corners, corners + IMAGE_SIZE / 3], dim=1)
        steps = torch.arange(IMAGE_SIZE)
        rows = (steps >= boxes[:, 1, None]) & (steps < boxes[:, 3, None])
        columns = (steps >= boxes[:, 0, None]) & (steps < boxes[:, 2, None])
        masks = rows[:, :, None] & columns[:, None, :]
        labels, scores = torch.arange(NUM_OBJECTS) % 5, torch.linspace(0.9, 0.5, NUM_OBJECTS)
        self.found = InstanceData(bboxes=boxes, labels=labels, scores=scores, masks=masks)

    def test_step(self, batch: dict[str, Any]) -> Any:
        for sample in batch['data_samples']:
            time.sleep(self.seconds)
            sample.pred_instances = self.found.clone()
        return batch['data_samples']


def seconds_of_a_run(predictor: Predictor, folder: Path, most_threads: int) -> float:
    with (
        mock.patch.object(prediction, 'Predictor', lambda *arguments: predictor),
        mock.patch.object(overlap, 'MOST_THREADS', most_threads),
    ):
        begin = time.perf_counter()
        prediction.predict([str(folder / 'sample' / 'val2017')], 'stub', str(folder / 'out'))
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', action='store_true', help='Mask R-CNN SHViT-S1 with random weights, and no stub')
    parser.add_argument('--ms', type=float, default=5.0, help='how long the stub waits for a picture [%(default)s]')
    parser.add_argument('--pictures', type=int, default=40)
    parser.add_argument('--rounds', type=int, default=9, help='of a run in turn and one with threads [%(default)s]')
    arguments = parser.parse_args()
    if arguments.rounds < MIN_INTERVAL_ROUNDS:
        parser.error(f'--rounds must be at least {MIN_INTERVAL_ROUNDS}, but got {arguments.rounds}')
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        draw_sample(folder / 'sample', num_train=1, num_val=arguments.pictures, image_size=IMAGE_SIZE)
        weights = folder / 'weights.pth'
        torch.save(build_random_detector(load_config(CONFIG), CONFIG).state_dict(), weights)
        predictor = Predictor(weights, CONFIG, 'cpu')
        if not arguments.model:
            predictor.model = Waiting(arguments.ms / 1000)
        seconds: dict[int, list[float]] = {0: [], overlap.MOST_THREADS: []}
        for number in range(arguments.rounds + 1):
            for threads, times in seconds.items():
                taken = seconds_of_a_run(predictor, folder, threads)
                times += [taken] if number else []  # the first round warms up
    ratio, interval = ratio_by_round(seconds[overlap.MOST_THREADS], seconds[0])
    assert interval is not None
    print(
        f'{arguments.pictures} pictures, reading and drawing beside the model: {ratio:.2f} of the time in turn '
        f'({100 * interval.coverage:.0f} % interval {interval.low:.2f} to {interval.high:.2f}, '
        f'{arguments.rounds} rounds, {overlap.usable_processors()} processors)'
    )


if __name__ == '__main__':
    main()
