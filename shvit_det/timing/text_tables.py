"""Text with tables, written once and rendered for the terminal and as Markdown."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 118  # of text in the terminal
GAP = '  '


def significant(value: float) -> str:
    """Return a number with three significant digits; from 1000 on, without decimals."""
    if not value:
        return '0'
    return f'{value:.0f}' if abs(value) >= 999.5 else f'{value:#.3g}'.rstrip('.')


def percent(share: float) -> str:
    """Return a share of 1 in percent, without the sign."""
    return f'{100 * share:.1f}'


@dataclass(frozen=True)
class Table:
    """Rows of cells by the header of their column; columns without any text are left out."""

    cells: Sequence[Mapping[str, str]]  # all rows have the same headers
    text: Sequence[str] = ()  # headers of the columns that are aligned to the left: numbers are to the right

    def rows(self) -> list[list[str]]:
        """Return the header and the rows of the columns that are not empty; without such columns, nothing."""
        headers = [header for header in self.cells[0] if any(row[header] for row in self.cells)] if self.cells else []
        return [headers, *([row[header] for header in headers] for row in self.cells)] if headers else []


Block = Table | str  # a string is a line of Markdown: a heading, a list item or a paragraph


def as_markdown(blocks: Sequence[Block]) -> str:
    """Return the blocks as Markdown."""
    pieces = (_markdown_table(block) if isinstance(block, Table) else block for block in blocks)
    return re.sub(r'^(- .*)\n\n(?=- )', r'\1\n', '\n\n'.join(filter(None, pieces)), flags=re.MULTILINE)


def as_text(blocks: Sequence[Block]) -> str:
    """Return the blocks for a terminal of 120 columns."""
    pieces = (_text_table(block) if isinstance(block, Table) else _text_line(block) for block in blocks)
    return re.sub(r'\n{3,}', '\n\n', '\n'.join(filter(None, pieces))).strip('\n')


def _markdown_table(table: Table) -> str:
    if not (rows := table.rows()):
        return ''
    rules = ['---' if header in table.text else '---:' for header in rows[0]]
    lines = [rows[0], rules, *rows[1:]]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |' for row in lines)


def _text_line(line: str) -> str:
    if line.startswith('#'):
        title = line.lstrip('# ')
        return f'\n{title}\n{"-" * len(title)}'
    line = line.removeprefix('- ').replace('**', '')
    return textwrap.fill(line, WIDTH, subsequent_indent=GAP, break_long_words=False, break_on_hyphens=False)


def _text_table(table: Table) -> str:
    if not (rows := table.rows()):
        return ''
    header = rows[0]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    total = sum(widths) + len(GAP) * (len(widths) - 1)
    if total > WIDTH and table.text:  # the widest text is wrapped
        widest = max((index for index, name in enumerate(header) if name in table.text), key=widths.__getitem__)
        widths[widest] -= total - WIDTH
        total = WIDTH
    lines = []
    for row in rows:
        cells = [textwrap.wrap(cell, width) or [''] for cell, width in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = (parts[number] if number < len(parts) else '' for parts in cells)
            aligned = (
                part.ljust(width) if name in table.text else part.rjust(width)
                for part, name, width in zip(parts, header, widths, strict=True)
            )
            lines.append(GAP.join(aligned).rstrip())
    return '\n'.join(['', lines[0], '-' * total, *lines[1:], ''])
