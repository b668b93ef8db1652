"""The pictures of a test with the most errors, ground truth and prediction side by side, and what is wrong in each."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ..data.layouts.labels import counted
from ..prediction.drawing import Color, Picture, draw, shown_names
from ..prediction.image_reader import to_picture
from ..prediction.predict import DEFAULT_SCORE
from . import html_page as html
from .detection_errors import KINDS, MISSED, RIGHT, Errors, Matches, ScoreCurve, errors, matches, score_curve
from .pictures import load, places_in

COLORS: dict[str, Color] = {
    RIGHT: (46, 160, 67),
    'class': (219, 57, 158),
    'localisation': (214, 148, 0),
    'both': (137, 87, 229),
    'duplicate': (17, 153, 170),
    'background': (125, 133, 144),
    'missed': (229, 57, 53),
}
NUM_WORST, NUM_OF_KIND, NUM_OF_CLASS, MOST_PICTURES = 24, 6, 2, 48
LONGEST_SIDE = 560  # pixels of a picture in the page
MOST_LABELS = 40  # in a picture; else what is right has none, or nothing has
Item = tuple[str, tuple[int, ...], str]  # of an error: its kind, the classes that it is about, and what is said of it

FILTERING = """
for (const part of document.querySelectorAll('.gallery')) {
  const cards = [...part.querySelectorAll('.picture')];
  const controls = part.querySelector('.controls');
  const [select, status] = [controls.querySelector('select'), controls.querySelector('[role=status]')];
  const buttons = [...controls.querySelectorAll('button')];
  let kind = '';
  const show = () => {
    let shown = 0;
    for (const card of cards) {
      let any = false;
      for (const item of card.querySelectorAll('li')) {
        const of = item.dataset.classes.split(' ');
        item.hidden = (kind && item.dataset.kind !== kind) || (select.value && !of.includes(select.value));
        any = any || !item.hidden;
      }
      card.hidden = !any;
      shown += any;
    }
    status.textContent = `${shown} of ${cards.length} pictures`;
  };
  for (const button of buttons) {
    button.addEventListener('click', () => {
      kind = button.dataset.kind;
      buttons.forEach((other) => other.setAttribute('aria-pressed', other === button));
      show();
    });
  }
  select.addEventListener('change', show);
  controls.hidden = false;
  show();
}
document.addEventListener('keydown', (event) => {
  const step = { j: 1, k: -1 }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === 'SELECT') return;
  const cards = [...document.querySelectorAll('.picture:not([hidden])')];
  const now = cards.indexOf(document.activeElement.closest('.picture'));
  const next = cards[Math.min(Math.max(now + step, 0), cards.length - 1)];
  if (next) { next.focus({ preventScroll: true }); next.scrollIntoView(); }
});
"""


@dataclass(frozen=True)
class Analysis:
    """What the parts of a section are made of."""

    evaluator: COCOeval
    names: list[str]  # of the classes
    found: Matches
    curve: ScoreCurve  # of all classes
    score: float  # the lowest of the detections that are counted and drawn: the best of the curve if it has one
    errors: Errors  # of detections with at least this score

    @classmethod
    def of(cls, evaluator: COCOeval, names: list[str]) -> 'Analysis':
        found = matches(evaluator)
        curve = score_curve(found)
        score = DEFAULT_SCORE if curve.best is None else float(curve.score[curve.best])
        return cls(evaluator, names, found, curve, score, errors(found, score))


def color_of(kind: str) -> str:
    """Return the colour of a kind of error as CSS has it."""
    return '#{:02x}{:02x}{:02x}'.format(*COLORS[kind])


def dot(kind: str) -> str:
    """Return a dot in the colour of a kind of error."""
    return f'<span class="dot" style="background:{color_of(kind)}"></span>'


def gallery(dataset: Any, analysis: Analysis, results: list[dict[str, Any]]) -> str:
    """Return the pictures with the most errors, with the controls that choose among them."""
    items = _items(analysis)
    chosen = choose_pictures(items, len(analysis.names))
    if not chosen:
        return html.paragraph(f'There is no error at a score of {analysis.score:.2f}.')
    places: dict[Any, tuple[Any, int]] = {}
    for inner, index in places_in(dataset):
        places.setdefault(inner.get_data_info(index)['img_id'], (inner, index))
    ids = analysis.evaluator.params.imgIds
    cards = [
        _card(analysis, results, number, items[number], *places[ids[number]])
        for number in chosen
        if ids[number] in places
    ]
    present = {kind for number in chosen for kind, _, _ in items[number]}
    classes = {label for number in chosen for _, labels, _ in items[number] for label in labels}
    buttons = '<button type="button" data-kind="" aria-pressed="true">all kinds</button>' + ''.join(
        f'<button type="button" data-kind="{kind}" aria-pressed="false">{dot(kind)}{kind}</button>'
        for kind in KINDS
        if kind in present
    )
    options = ''.join(f'<option value="{label}">{escape(analysis.names[label])}</option>' for label in sorted(classes))
    intro = (
        f'The ground truth and the predictions with a score of {analysis.score:.2f} or more, in the colour of the kind '
        f'of error; green is right. The keys j and k go to the next picture and the one before.'
    )
    controls = (
        f'<div class="controls" hidden><div class="controls" role="group" aria-label="Kind of error">{buttons}</div>'
        f'<label>Class <select><option value="">all</option>{options}</select></label>'
        f'<span role="status" class="soft"></span></div>'
    )
    return f'{html.paragraph(intro)}<div class="gallery">{controls}{"".join(cards)}</div>'


def _items(analysis: Analysis) -> dict[int, list[Item]]:
    """Return the errors of each image that has any, those with the highest scores first."""
    found, names = analysis.found, analysis.names
    items: dict[int, list[Item]] = {}
    for place in np.flatnonzero(~np.isin(analysis.errors.kind, ['', RIGHT])):
        kind, label = str(analysis.errors.kind[place]), int(found.label[place])
        text, labels = f'{names[label]} {found.score[place]:.2f}', {label}
        if kind in ('class', 'both'):
            other = int(found.truth_label[found.other_truth[place]])
            labels.add(other)
            text += f' {"at" if kind == "class" else "near"} {names[other]}, IoU {found.other_iou[place]:.2f}'
        elif kind in ('localisation', 'duplicate'):
            text += f', IoU {found.same_iou[place]:.2f}'
        items.setdefault(int(found.image[place]), []).append((kind, tuple(sorted(labels)), text))
    for place in np.flatnonzero(analysis.errors.truth_kind == MISSED):
        label = int(found.truth_label[place])
        items.setdefault(int(found.truth_image[place]), []).append((MISSED, (label,), names[label]))
    return items


def choose_pictures(items: dict[int, list[Item]], num_classes: int) -> list[int]:
    """Return the images with the most errors, in all and of each kind and class, the worst first."""

    def most(count: int, number: dict[int, int]) -> list[int]:
        ordered = sorted(number, key=lambda image: (-number[image], image))
        return [image for image in ordered if number[image]][:count]

    chosen = most(NUM_WORST, {image: len(own) for image, own in items.items()})
    for kind in KINDS:
        chosen += most(NUM_OF_KIND, {image: sum(each[0] == kind for each in own) for image, own in items.items()})
    for label in range(num_classes):
        chosen += most(NUM_OF_CLASS, {image: sum(label in each[1] for each in own) for image, own in items.items()})
    kept = list(dict.fromkeys(chosen))[:MOST_PICTURES]
    return sorted(kept, key=lambda image: (-len(items[image]), image))


def _card(
    analysis: Analysis, results: list[dict[str, Any]], number: int, items: list[Item], dataset: Any, index: int
) -> str:
    found, coco, names = analysis.found, analysis.evaluator.cocoGt, shown_names(tuple(analysis.names))
    truths = np.flatnonzero(found.truth_image == number)
    detections = np.flatnonzero((found.image == number) & (analysis.errors.kind != ''))
    sides = {
        'truth': (
            [coco.anns[id] for id in found.truth_id[truths]],
            analysis.errors.truth_kind[truths],
            [names[label] for label in found.truth_label[truths]],
        ),
        'prediction': (
            [results[place] for place in found.source[detections]],
            analysis.errors.kind[detections],
            [f'{names[found.label[place]]} {found.score[place]:.2f}' for place in detections],
        ),
    }
    name = Path(dataset.get_data_info(index)['img_path']).name
    picture = to_picture(load(dataset, index)['img'])
    pair = ''.join(
        html.image(_drawn(picture, coco, *objects), what, f'{what} of {name}') for what, objects in sides.items()
    )
    lines = ''.join(
        f'<li data-kind="{kind}" data-classes="{" ".join(map(str, labels))}">{dot(kind)}{kind}: {escape(text)}</li>'
        for kind, labels, text in items
    )
    return (
        f'<article class="picture" tabindex="-1"><h4>{escape(name)}, {counted(len(items), "error")}</h4>'
        f'<div class="pair">{pair}</div><ul>{lines}</ul></article>\n'
    )


def _drawn(
    picture: Picture, coco: COCO, objects: list[dict[str, Any]], kinds: NDArray[Any], texts: list[str]
) -> Picture:
    """Return a picture, not larger than the page needs, with objects in COCO's form in the colours of their kinds."""
    masks: Iterable[Any] | None = None
    if any(each.get('segmentation') for each in objects):
        none = np.zeros(picture.shape[:2])
        masks = (coco.annToMask(each) if each.get('segmentation') else none for each in objects)
    small, masks, factor = html.fitting(picture, masks, LONGEST_SIDE)
    boxes = np.array([each['bbox'] for each in objects], float).reshape(-1, 4) * factor
    boxes[:, 2:] += boxes[:, :2]
    if len(texts) > MOST_LABELS:
        is_shown = (kinds != RIGHT) & ((kinds != RIGHT).sum() <= MOST_LABELS)
        texts = [text if shown else '' for text, shown in zip(texts, is_shown, strict=True)]
    colors = [COLORS[str(kind)] for kind in kinds] or [COLORS[RIGHT]]
    return draw(small, boxes, np.arange(len(objects)), None, masks, texts, colors)
