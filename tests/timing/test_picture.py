"""The pictures: bars, colours and labels, looked up in the figure that is drawn."""

import pytest
import timing_records as cases
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.text import Text

from shvit_det.timing.picture import GREY, HATCH, draw_picture, part_colors, save_picture

CROWD = [
    'shvit:s4', 'shvit:s3', 'timm:fastvit_sa12', 'timm:resnet50', 'timm:poolformer_s12', 'timm:repvit_m1_1',
    'timm:efficientvim_m4', 'timm:iformer_m', 'timm:efficientformer_l1', 'timm:efficientvit_m4',
]  # fmt: skip


def shown(axes) -> list[Text]:
    return [text for text in axes.texts if text.get_text()]


def test_a_detector_is_a_bar_of_its_parts():
    record = cases.detectors_record()
    (axes,) = draw_picture(record).axes
    colors = part_colors(record['subjects'])
    for row, subject in enumerate(record['subjects']):
        bars = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == row]
        parts = subject['in_place']
        assert [bar.get_width() for bar in bars] == pytest.approx([part['time']['median_ms'] for part in parts])
        assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == [colors[part['name']] for part in parts]
        assert bars[-1].get_x() + bars[-1].get_width() == pytest.approx(subject['in_place_whole']['median_ms'])
    assert colors['unattributed'] == GREY and len(set(colors.values())) == len(colors)
    assert [label.get_text() for label in axes.get_yticklabels()] == [subject['name'] for subject in record['subjects']]


def test_labels_stay_within_their_segments():
    figure = draw_picture(cases.detectors_record())
    figure.draw_without_rendering()
    (axes,) = figure.axes
    labels = [text for text in shown(axes) if text.get_ha() == 'center']
    assert {'400', '640', '500'} <= {text.get_text() for text in labels}
    assert not {'4.00', '6.40'} & {text.get_text() for text in labels}  # too narrow for it
    bars = [bar.get_window_extent() for bar in axes.patches]
    for label in labels:
        left, right = label.get_window_extent().intervalx
        assert any(bar.x0 <= left and right <= bar.x1 for bar in bars)


def test_backward_is_hatched_beside_forward():
    (axes,) = figure_axes = draw_picture(cases.trained_record()).axes
    assert len(figure_axes) == 1
    first = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == 0]
    assert [bar.get_hatch() for bar in first[:5]] == [None, None, HATCH, None, HATCH]
    assert first[1].get_facecolor() == first[2].get_facecolor() != first[3].get_facecolor()
    assert first[-1].get_hatch() is None and to_hex(first[-1].get_facecolor()).upper() == GREY
    (legend,) = axes.figure.legends
    assert 'backward' in {text.get_text() for text in legend.get_texts()}


@pytest.mark.parametrize('batch', [1, 16])
def test_backbones_are_bars_and_points_of_published_accuracy(batch):
    figure = draw_picture(cases.backbones_record(batch))
    bars, points = figure.axes
    assert [bar.get_width() for bar in bars.patches][:3] == pytest.approx([93, 30, 300])
    bar = next(container for container in bars.containers if isinstance(container, BarContainer))
    (segment,) = bar.errorbar[2][0].get_segments()
    assert segment[:, 0] == pytest.approx([0.97 * 93, 1.05 * 93])
    dots = [collection.get_offsets()[0].tolist() for collection in points.collections]
    assert dots[0] == pytest.approx([93, 39.0])
    assert len(dots) == 7  # of nine, SHViT-S1 and MobileViTv2 have no published AP
    assert 'ms per image' in bars.get_xlabel() and 'ms per image' in points.get_xlabel()
    assert 'published' in points.get_ylabel() and ('latency' in bars.get_title()) == (batch == 1)
    title = figure.get_suptitle()
    assert all(words in title for words in ('CPU', '1 thread', f'batch {batch}', '512x512', 'float32'))


def test_the_legend_names_every_point_outside_of_the_panel():
    figure = draw_picture(cases.record([cases.backbone(name, 300 + i) for i, name in enumerate(CROWD)]))
    figure.draw_without_rendering()
    axes = figure.axes[1]
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == CROWD
    looks = {(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in axes.collections}
    assert len(looks) == len(CROWD)
    box = legend.get_window_extent()
    assert axes.get_window_extent().x1 <= box.x0 and box.x1 <= figure.bbox.x1


def test_without_published_accuracy_there_is_no_second_panel():
    single = cases.record([cases.backbone('shvit:s4', 93), cases.backbone('timm:resnet18', 50)])
    assert len(draw_picture(single).axes) == 1
    both = cases.record([cases.detector('a'), cases.backbone('shvit:s4', 93), cases.backbone('timm:resnet50', 500)])
    assert len(draw_picture(both).axes) == 3


def test_a_png_is_written(tmp_path):
    save_picture(cases.two_stage_record(), tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
