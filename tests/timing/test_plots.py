"""The pictures: bars, colours and labels, looked up in the figure that is drawn."""

from itertools import combinations

import pytest
import timing_records as made
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.text import Text

from shvit_det.timing.labels import POINT, box_around, common_area, outside, place_labels
from shvit_det.timing.plots import GREY, HATCH, draw_plot, part_colors, save_plot

CROWD = [
    'shvit:s4', 'shvit:s3', 'timm:fastvit_sa12', 'timm:resnet50', 'timm:poolformer_s12', 'timm:repvit_m1_1',
    'timm:efficientvim_m4', 'timm:iformer_m', 'timm:efficientformer_l1', 'timm:efficientvit_m4',
]  # fmt: skip


def shown(axes) -> list[Text]:
    return [text for text in axes.texts if text.get_text()]


def boxes(texts: list[Text]) -> list[tuple[float, float, float, float]]:
    return [tuple(Text.get_window_extent(text).extents) for text in texts]


def test_a_detector_is_a_bar_of_its_parts():
    record = made.detectors_record()
    (axes,) = draw_plot(record).axes
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
    (axes,) = draw_plot(made.detectors_record()).axes
    labels = [text for text in shown(axes) if text.get_ha() == 'center']
    assert {'400', '640', '500'} <= {text.get_text() for text in labels}
    assert not {'4.00', '6.40'} & {text.get_text() for text in labels}  # too narrow for it
    bars = [tuple(bar.get_window_extent().extents) for bar in axes.patches]
    for box in boxes(labels):
        assert sum(outside(box, bar) == 0 for bar in bars) == 1


def test_backward_is_hatched_beside_forward():
    (axes,) = figure_axes = draw_plot(made.trained_record()).axes
    assert len(figure_axes) == 1
    first = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == 0]
    assert [bar.get_hatch() for bar in first[:5]] == [None, None, HATCH, None, HATCH]
    assert first[1].get_facecolor() == first[2].get_facecolor() != first[3].get_facecolor()
    assert first[-1].get_hatch() is None and to_hex(first[-1].get_facecolor()).upper() == GREY
    (legend,) = axes.figure.legends
    assert 'backward' in {text.get_text() for text in legend.get_texts()}


@pytest.mark.parametrize('batch', [1, 16])
def test_backbones_are_bars_and_points_of_published_accuracy(batch):
    figure = draw_plot(made.backbones_record(batch))
    bars, points = figure.axes
    assert [bar.get_width() for bar in bars.patches][:3] == pytest.approx([93, 30, 300])
    whiskers = [container for container in bars.containers if container[0].__class__.__name__ == 'Line2D']
    (segment,) = whiskers[0][2][0].get_segments()
    assert segment[:, 0] == pytest.approx([0.97 * 93, 1.05 * 93])
    (dots,) = points.collections
    assert dots.get_offsets()[0].tolist() == pytest.approx([93, 39.0])
    assert len(dots.get_offsets()) == 7  # of nine, SHViT-S1 and MobileViTv2 have no published AP
    assert 'ms per image' in bars.get_xlabel() and 'ms per image' in points.get_xlabel()
    assert 'published' in points.get_ylabel() and ('latency' in bars.get_title()) == (batch == 1)
    title = figure.get_suptitle()
    assert all(words in title for words in ('CPU', '1 thread', f'batch {batch}', '512x512', 'float32'))


def test_names_of_crowded_points_cover_neither_each_other_nor_points():
    figure = draw_plot(made.record([made.backbone(name, 300 + i) for i, name in enumerate(CROWD)]))
    figure.draw_without_rendering()
    axes = figure.axes[1]
    names = boxes(shown(axes))
    assert len(names) == len(CROWD)
    dots = [box_around(point, (POINT, POINT)) for point in axes.transData.transform(axes.collections[0].get_offsets())]
    assert all(common_area(*pair) == 0 for pair in combinations(names, 2))
    assert all(common_area(name, dot) == 0 for name in names for dot in dots)
    assert all(outside(name, tuple(axes.get_window_extent().extents)) < 1 for name in names)


def test_two_forms_of_one_backbone_are_told_apart():
    subjects = [made.backbone('shvit:s4', 93), made.backbone('shvit:s4', 47)]
    subjects[1]['name'] = 'shvit:s4 compiled'
    points = draw_plot(made.record(subjects)).axes[1]
    assert [text.get_text() for text in shown(points)] == ['SHViT-S4', 'shvit:s4 compiled']


def test_without_published_accuracy_there_is_no_second_panel():
    single = made.record([made.backbone('shvit:s4', 93), made.backbone('timm:resnet18', 50)])
    assert len(draw_plot(single).axes) == 1
    both = made.record([made.detector('a'), made.backbone('shvit:s4', 93), made.backbone('timm:resnet50', 500)])
    assert len(draw_plot(both).axes) == 3


def test_a_png_is_written(tmp_path):
    save_plot(made.two_stage_record(), tmp_path / 'a.png')
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), unique=True, min_size=1))
def test_labels_of_points_with_room_are_free(cells):
    points = [(100 + 200 * x, 100 + 100 * y) for x, y in cells]
    middles = place_labels(points, [(80, 14)] * len(points), (0, 0, 1000, 600))
    found = [box_around(middle, (80, 14)) for middle in middles]
    assert all(common_area(*pair) == 0 for pair in combinations(found, 2))
    assert all(outside(box, (0, 0, 1000, 600)) == 0 for box in found)
