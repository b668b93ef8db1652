"""Pages that open from disk: one file with its style, pictures and script in it; charts are SVG."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..common.atomic_files import write_text
from ..common.errors import RunError
from ..prediction.drawing import Picture

Values = Sequence[float] | NDArray[Any]

STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1f24; --soft: #59636e; --line: #d1d9e0; --panel: #f6f8fa;
  --accent: #0969da; --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --heat: 9, 105, 218; }
@media (prefers-color-scheme: dark) { :root { --ground: #0d1117; --ink: #e6edf3; --soft: #9aa4af; --line: #3d444d;
  --panel: #161b22; --accent: #58a6ff; --c0: #58a6ff; --c1: #f0883e; --c2: #3fb950; --c3: #bc8cff;
  --heat: 88, 166, 255; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
nav a { padding: .35rem 0; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--ground); max-width: 11rem;
  overflow: hidden; text-overflow: ellipsis; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 3px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " \\2191"; } th[aria-sort=descending] button::after {
  content: " \\2193"; }
.matrix td { text-align: center; background: rgba(var(--heat), calc(var(--share) * .6)); }
.matrix th { max-width: 8rem; overflow: hidden; text-overflow: ellipsis; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figure svg { display: block; width: 100%; height: auto; max-width: 34rem; }
svg text { font: 11px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .curve { fill: none; stroke-width: 2; }
svg .mark { stroke: var(--soft); stroke-dasharray: 2 3; }
.keys { display: flex; flex-wrap: wrap; gap: 0 1rem; list-style: none; margin: .25rem 0; padding: 0; font-size: .9rem; }
.keys svg { display: inline; width: 1.8rem; height: .7rem; margin-right: .3rem; }
.bars { display: grid; grid-template-columns: max-content minmax(3rem, 1fr) max-content; gap: .35rem .6rem;
  align-items: center; max-width: 46rem; margin: .5rem 0; }
.bars i { display: block; height: .9rem; border-radius: 2px; background: var(--c0); min-width: 1px; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin: .5rem 0; }
.controls button, select { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: .4rem; padding: .35rem .7rem; min-height: 2.5rem; max-width: 100%; }
.controls button { cursor: pointer; }
.controls button[aria-pressed=true] { background: var(--accent); color: var(--ground); border-color: var(--accent); }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-right: .35rem;
  border: 1px solid var(--ground); vertical-align: baseline; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16rem), 1fr)); gap: 1rem; }
.cards img, .picture img { display: block; width: 100%; height: auto; border-radius: .25rem; }
.picture { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem; margin: 1rem 0; scroll-margin-top: 1rem;
  background: var(--panel); }
.picture h4 { margin: 0 0 .4rem; font-size: 1rem; overflow-wrap: anywhere; }
.picture .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: .6rem; }
.picture ul { margin: .5rem 0 0; padding: 0; list-style: none; font-size: .9rem; max-height: 12rem; overflow-y: auto; }
.meanings { list-style: none; padding: 0; margin: .5rem 0; max-width: 46rem; }
[hidden] { display: none !important; }
@media print { .controls { display: none; } .picture { break-inside: avoid; } }
"""
SORTING = """
for (const table of document.querySelectorAll('table.sorted')) {
  table.querySelectorAll('thead th').forEach((head, column) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const down = head.getAttribute('aria-sort') === 'ascending' ? -1 : 1;
      table.querySelectorAll('th').forEach((other) => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', down === 1 ? 'ascending' : 'descending');
      const value = (row) => row.cells[column].textContent;
      const compare = (a, b) => {
        const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
        if (column === 0) return down * value(a).localeCompare(value(b));
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : down * (x - y);
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>{script}</script>
</body>
</html>
"""
DASHES = ('', '6 3', '2 2', '8 2 2 2')
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 220, 34, 10, 8, 34  # of a chart, in its own units
MOST_POINTS = 300  # of a curve: no screen shows more
JPEG_QUALITY = 82


def write_page(folder: Path, title: str, parts: Iterable[str], script: str = '') -> Path:
    """Write ``index.html`` and return its path. The page may load nothing: its policy allows the file alone.

    Raises:
        RunError: If it cannot be written.
    """
    path, body = folder / 'index.html', '\n'.join(filter(None, parts))
    try:
        write_text(path, PAGE.format(title=escape(title), body=body, style=STYLE, script=SORTING + script))
    except OSError as error:
        raise RunError(f'cannot write {path}: {error.strerror}') from error
    return path


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as it is shown; a dash stands for none."""
    return '\N{EN DASH}' if value is None else f'{value:.{digits}f}'


def share(part: float, whole: float) -> str:
    """Return a share of a number as it is shown, a dash for that of 0."""
    return number(part / whole if whole else None, 2)


def paragraph(text: str, soft: bool = False) -> str:
    return f'<p{" class=soft" if soft else ""}>{escape(text)}</p>'


def links(targets: Mapping[str, str], label: str) -> str:
    """Return links to parts of the page: their titles by their ids."""
    inner = ''.join(f'<a href="#{id}">{escape(title)}</a>' for id, title in targets.items())
    return f'<nav aria-label="{escape(label)}">{inner}</nav>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], label: str, is_sorted: bool = False) -> str:
    """Return a table; the first cell names the row."""
    cells = [(first, ''.join(f'<td>{escape(cell)}</td>' for cell in rest)) for first, *rest in rows]
    return _scrolling_table(head, cells, label, 'sorted' if is_sorted else '')


def matrix(names: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[int]], label: str) -> str:
    """Return a table of counts, in which a cell is the darker the larger its share of the row is."""
    rows = []
    for name, row in zip(names, values, strict=True):
        cells = (
            f'<td style="--share:{value / max(sum(row), 1):.2f}" title="{escape(name)} as {escape(column)}: {value}">'
            f'{value or ""}</td>'
            for column, value in zip(columns, row, strict=True)
        )
        rows.append((name, ''.join(cells)))
    return _scrolling_table(['', *columns], rows, label, 'matrix')


def _scrolling_table(head: Sequence[str], rows: Iterable[tuple[str, str]], label: str, kind: str) -> str:
    """Return a table that scrolls sideways by itself, also with the keyboard; ``rows`` are names and further cells."""
    titles = ''.join(f'<th scope="col" title="{escape(title)}">{escape(title)}</th>' for title in head)
    lines = '\n'.join(
        f'<tr><th scope="row" title="{escape(name)}">{escape(name)}</th>{cells}</tr>' for name, cells in rows
    )
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table class="{kind}">\n'
        f'<thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>'
    )


def heat_map(values: NDArray[Any], title: str) -> str:
    """Return counts on a grid as a figure, the darker the more; an image lies upright in it."""
    most, (height, width) = values.max(initial=1), values.shape
    cells = ''.join(
        f'<rect x="{column}" y="{row}" width="1" height="1" style="fill:rgba(var(--heat), {value / most:.2f})"/>'
        for (row, column), value in np.ndenumerate(values)
        if value
    )
    frame = f'<rect width="{width}" height="{height}" style="fill:none;stroke:var(--line);stroke-width:.1"/>'
    drawing = f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">{cells}{frame}</svg>'
    return f'<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>'


def bars(rows: Sequence[tuple[str, float, str]], colors: Sequence[str] = ()) -> str:
    """Return horizontal bars: name, value, and the value as text; a colour of CSS for each, or one for all."""
    largest = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for place, (name, value, text) in enumerate(rows):
        color = f';background:{colors[place]}' if colors else ''
        width = 100 * max(value, 0) / largest
        parts.append(f'<span>{escape(name)}</span><i style="width:{width:.1f}%{color}"></i><span>{escape(text)}</span>')
    return f'<div class="bars">{"".join(parts)}</div>'


def chart(
    lines: Mapping[str, tuple[Values, Values]],
    title: str,
    across: str,
    up: str,
    mark: float | None = None,
    points: bool = False,
) -> str:
    """Return curves as a figure with axes from 0 to 1, whose names are ``across`` and ``up``.

    Args:
        lines: The values across and up, by the name of the curve.
        title: What is shown, for those who hear the page too.
        mark: Where a vertical line stands.
        points: Draw a dot at each value too.
    """
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + wide * x, TOP + high * (1 - y)

    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        (left, level), (column, bottom) = place(0, tick), place(tick, 0)
        parts.append(f'<path class="grid" d="M{left} {level:.1f}h{wide}M{column:.1f} {TOP}v{high}"/>')
        parts.append(f'<text x="{left - 4}" y="{level + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{column:.1f}" y="{bottom + 14:.1f}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{LEFT + wide / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(across)}</text>')
    if mark is not None:
        parts.append(f'<path class="mark" d="M{place(mark, 0)[0]:.1f} {TOP}v{high}"/>')
    keys = []
    for index, (name, (xs, ys)) in enumerate(lines.items()):
        color, dash = f'stroke:var(--c{index % 4})', f'stroke-dasharray="{DASHES[index % 4]}"'
        places = [place(x, y) for x, y in thinned(xs, ys)]
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in places)
        parts.append(f'<polyline class="curve" style="{color}" {dash} points="{path}"/>')
        if points:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--c{index % 4})"/>' for x, y in places]
        line = f'<path class="curve" style="{color};stroke-width:3" {dash} d="M0 6h28"/>'
        keys.append(f'<li><svg viewBox="0 0 28 12" aria-hidden="true">{line}</svg>{escape(name)}</li>')
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
    legend = f'<ul class="keys">{"".join(keys)}</ul>'
    return f'<figure>{drawing}{legend}<figcaption>{escape(title)}; upwards: {escape(up)}</figcaption></figure>'


def thinned(xs: Values, ys: Values) -> list[tuple[float, float]]:
    """Return the points of a curve, not more than a screen shows."""
    return [(float(xs[place]), float(ys[place])) for place in spread(len(xs), MOST_POINTS)]


def spread(length: int, most: int) -> list[int]:
    """Return indices at equal distances, from the first to the last."""
    return np.linspace(0, length - 1, min(length, most)).round().astype(int).tolist()


def fitting(picture: Picture, masks: Iterable[Any] | None, longest: int) -> tuple[Picture, Any, float]:
    """Return a picture and masks in it, their longer side at most some pixels, and by which factor they are smaller."""
    factor = min(1, longest / max(picture.shape[:2]))
    size = tuple(max(1, round(side * factor)) for side in picture.shape[1::-1])
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    if masks is None:
        return small, None, factor
    resized = [cv2.resize(np.asarray(mask, np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0 for mask in masks]
    return small, np.array(resized, bool).reshape(-1, size[1], size[0]), factor


def image(picture: Picture, caption: str, alt: str) -> str:
    """Return a picture (blue, green, red) as a figure; ``alt`` is for those who hear the page."""
    content = cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    height, width = picture.shape[:2]
    data = base64.b64encode(content).decode()
    drawing = f'<img src="data:image/jpeg;base64,{data}" width="{width}" height="{height}" alt="{escape(alt)}">'
    return f'<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>'
