"""Time the forms that a deployed backbone could have, against oneDNN's kernels: python tools/dev/time_choices.py

It prints the table in docs/dev/deployment_notes.md. Another machine may give another table: run it there.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from shvit_det import SHViT, deploy
from shvit_det.deployment.backends.convolutions import FusedConv, FusedPointwiseConv
from shvit_det.deployment.layers import FusedAttention
from shvit_det.timing.clocks import CPUClock
from shvit_det.timing.measurement import Meter
from shvit_det.timing.statistics import MIN_INTERVAL_ROUNDS, Interval, median_interval, ratio_by_round

Form = Callable[[Tensor], object]
ARCH = 's4'
SHAPES = ((512, 512), (800, 1344), (544, 1344))


class WithSDPA(FusedAttention):
    """Attention by torch's fused function instead of two matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        attending, passing = x.split(self.split, dim=1)
        normed = functional.group_norm(attending, 1, self.norm_weight, self.norm_bias, self.eps)
        tokens = self.qkv(normed).permute(0, 2, 3, 1).reshape(batch, 1, height * width, -1)
        query, key, value = tokens.split(self.query_key_value, dim=-1)
        attended = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended = attended.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return self.proj.add_to(x, torch.cat((attended, passing), dim=1).relu_())


class WithFoldedNorm(FusedAttention):
    """The group norm's weights within the convolution: only mean and deviation of the image remain."""

    def fold(self) -> 'WithFoldedNorm':
        weight, bias = self.qkv.weight, self.qkv.bias
        scaled = weight * self.norm_weight[:, None, None]
        self.shift = bias + (weight * self.norm_bias[:, None, None]).sum((1, 2, 3))
        self.sums = scaled.sum((1, 2, 3))
        self.qkv = FusedPointwiseConv(scaled, None)
        return self

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        attending, passing = x.split(self.split, dim=1)
        variance, mean = torch.var_mean(attending, dim=(1, 2, 3), correction=0, keepdim=True)
        deviation = (variance + self.eps).rsqrt()
        convolved = self.qkv(attending.contiguous(memory_format=torch.channels_last))
        shift = self.shift[:, None, None] - mean * deviation * self.sums[:, None, None]
        normed = convolved * deviation + shift
        tokens = normed.permute(0, 2, 3, 1).reshape(batch, height * width, -1)
        query, key, value = tokens.split(self.query_key_value, dim=-1)
        attended = (query @ key.transpose(1, 2)).softmax(dim=-1) @ value
        attended = attended.view(batch, height, width, -1).permute(0, 3, 1, 2)
        return self.proj.add_to(x, torch.cat((attended, passing), dim=1).relu_())


def with_attention(kind: type[FusedAttention]) -> torch.nn.Module:
    """Return a deployed backbone whose attention has another form."""
    model = deployed()
    for module in model.modules():
        if type(module) is FusedAttention:
            module.__class__ = kind
            if isinstance(module, WithFoldedNorm):
                module.fold()
    return model


def with_packed_convolutions(height: int, width: int) -> torch.nn.Module:
    """Return a deployed backbone whose 1x1 convolutions are convolutions, laid out for images of one size."""
    model = deployed()

    def add_to(self: FusedConv, residual: Tensor, x: Tensor) -> Tensor:
        return residual + FusedConv.forward(self, x)

    for module in model.modules():
        if isinstance(module, FusedPointwiseConv):
            module.__class__ = type('Convolution', (FusedConv,), dict(add_to=add_to))
    model(torch.zeros(1, 3, height, width))
    return model


def deployed(native: bool = False, **arguments: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    model: torch.nn.Module = deploy(SHViT(ARCH).eval(), native=native, **arguments)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', type=int, default=21, help='rounds of all forms in turn [21]')
    parser.add_argument('--threads', type=int, default=1)
    arguments = parser.parse_args()
    interval = median_interval(range(arguments.runs))
    if interval is None:
        parser.error(f'--runs must be at least {MIN_INTERVAL_ROUNDS}, but got {arguments.runs}')
    torch.set_num_threads(arguments.threads)
    meter = Meter(CPUClock(), torch.device('cpu'))
    print(f'| form | image | of the time with oneDNN | {100 * interval.coverage:.0f} % interval |')
    print('| --- | --- | ---: | ---: |')
    with torch.no_grad():
        chosen = deployed()
        forms: dict[str, torch.nn.Module] = {
            'scaled_dot_product_attention': with_attention(WithSDPA),
            'group norm folded into qkv': with_attention(WithFoldedNorm),
            'images in NCHW': deployed(channels_last=False),
            '1x1 as convolutions, laid out for 512x512': with_packed_convolutions(*SHAPES[0]),
            'torch.compile, weights frozen': deployed(compile=True),
            'our own kernels': deployed(native=True),
        }
        for height, width in SHAPES:
            image = torch.randn(1, 3, height, width)
            for name, ratio, (low, high, _) in compare(meter, {'oneDNN': chosen, **forms}, image, arguments.runs):
                print(f'| {name} | {height}x{width} | {ratio:.3f} | {low:.3f} .. {high:.3f} |', flush=True)


def compare(
    meter: Meter, forms: dict[str, torch.nn.Module], image: Tensor, runs: int
) -> Iterator[tuple[str, float, Interval]]:
    """Yield for each form but the first its ratio to that one, measured in turn, with the interval."""
    first, *others = forms
    expected = forms[first](image)
    for name in others:
        for one, other in zip(expected, forms[name](image), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4, msg=f'{name} computes something else')
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(runs):
        for name, form in forms.items():
            times[name].append(meter.time(lambda form=form: form(image)))  # type: ignore[misc]
    for name in others:
        ratio, interval = ratio_by_round(times[name], times[first])
        assert interval is not None  # main() asks for enough rounds
        yield name, ratio, interval


if __name__ == '__main__':
    main()
