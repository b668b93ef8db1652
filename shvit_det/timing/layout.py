"""Headings, lines and tables, once for the terminal and once for Markdown."""

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 118  # of text in the terminal
GAP = '  '


def significant(value: float) -> str:
    """Return a number with three significant digits; above 1000 to the unit."""
    rounded = float(f'{value:.3g}')
    if rounded == 0 or abs(rounded) >= 1000:
        return f'{value:.0f}'
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f'{rounded:.{decimals}f}'


def percent(share: float) -> str:
    """Return a share of 1 in percent, without the sign."""
    return f'{100 * share:.1f}'


@dataclass(frozen=True)
class Column:
    """A column of a table; an empty cell is one with nothing to say."""

    header: str
    cells: Sequence[str]
    text: bool = False  # aligned to the left; numbers to the right


@dataclass(frozen=True)
class Table:
    """Columns of equal length; the empty ones are left out."""

    columns: Sequence[Column]

    def filled(self) -> list[Column]:
        """Return the columns that have something in them."""
        return [column for column in self.columns if any(column.cells)]


@dataclass(frozen=True)
class Heading:
    """The title of what follows."""

    text: str


@dataclass(frozen=True)
class Lines:
    """Sentences, each on a line of its own."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Warnings:
    """Sentences that nobody may overlook."""

    lines: Sequence[str]


Block = Table | Heading | Lines | Warnings


def as_text(blocks: Sequence[Block]) -> str:
    """Return the blocks for a terminal of 120 columns."""
    text = '\n'.join(_text_block(block) for block in blocks if _says_something(block))
    return re.sub('\n{3,}', '\n\n', text).strip('\n')


def as_markdown(blocks: Sequence[Block]) -> str:
    """Return the blocks as Markdown."""
    return '\n\n'.join(_markdown_block(block) for block in blocks if _says_something(block))


def _says_something(block: Block) -> bool:
    match block:
        case Lines(lines) | Warnings(lines):
            return bool(lines)
        case Table():
            return bool(block.filled())
    return True


def _text_block(block: Block) -> str:
    match block:
        case Table():
            return f'\n{_text_table(block.filled())}\n'
        case Heading(text):
            return f'\n{text}\n{"-" * len(text)}'
        case Warnings(lines):
            return '\n'.join(f'WARNING {line}' for line in lines)
        case Lines(lines):
            return '\n'.join(
                textwrap.fill(line, WIDTH, subsequent_indent=GAP, break_long_words=False) for line in lines
            )


def _markdown_block(block: Block) -> str:
    match block:
        case Table():
            return _markdown_table(block.filled())
        case Heading(text):
            return f'## {text}'
        case Warnings(lines):
            return '\n'.join(f'- **WARNING {line}**' for line in lines)
        case Lines(lines):
            return '\n'.join(f'- {line}' for line in lines)


def _text_table(columns: list[Column]) -> str:
    *_, last = columns
    widths = [max(map(len, (column.header, *column.cells))) for column in columns]
    if last.text:  # it gets what is left of the width, in several lines if need be
        longest_word = max(map(len, ' '.join((last.header, *last.cells)).split()))
        widths[-1] = max(longest_word, min(widths[-1], WIDTH - sum(widths[:-1]) - len(GAP) * (len(widths) - 1)))
    lines = [_text_row([column.header for column in columns], columns, widths)]
    lines.append('-' * (sum(widths) + len(GAP) * (len(widths) - 1)))
    for cells in zip(*(column.cells for column in columns), strict=True):
        *others, cell = cells
        first, *rest = textwrap.wrap(cell, widths[-1], break_on_hyphens=False) or [''] if last.text else [cell]
        lines.append(_text_row([*others, first], columns, widths))
        lines.extend(_text_row([*('' for _ in others), part], columns, widths) for part in rest)
    return '\n'.join(lines)


def _text_row(cells: Sequence[str], columns: list[Column], widths: list[int]) -> str:
    aligned = (
        cell.ljust(width) if column.text else cell.rjust(width)
        for cell, column, width in zip(cells, columns, widths, strict=True)
    )
    return GAP.join(aligned).rstrip()


def _markdown_table(columns: list[Column]) -> str:
    rows = [
        [column.header for column in columns],
        ['---' if column.text else '---:' for column in columns],
        *zip(*(column.cells for column in columns), strict=True),
    ]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in rows)
