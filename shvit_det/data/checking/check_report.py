"""What a check of a data set has to say: for people, for programs, and in one sentence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cleaning import Cleaned
from .findings import KINDS, Finding, counts_of, errors_among, in_words
from .trained_objects import passed_over


@dataclass
class Report:
    """What was found in one annotation file and its images.

    Attributes:
        name: The splits that use it.
        annotations: The file.
        images: The folder, or None if it is on remote storage.
        content: What the file holds, or None where it cannot be read.
        classes: The classes of the config, or None where it states none.
        findings: What is wrong.
        scope: How far the check went, for people.
    """

    name: str
    annotations: Path
    images: Path | None
    content: Mapping[str, Any] | None
    classes: Sequence[str] | None
    findings: list[Finding]
    scope: str

    @property
    def has_errors(self) -> bool:
        return bool(errors_among(self.findings))

    def totals(self) -> dict[str, int]:
        """Return how many entries the lists of the file have."""
        return {section: len(entries) for section, entries in self._lists().items()}

    def _lists(self) -> dict[str, Any]:
        if self.content is None:
            return {}
        return {section: self.content[section] for section in ('images', 'annotations', 'categories')}

    def untrained(self) -> dict[str, int]:
        """Return how many objects mmdet passes over, by reason; known only where nothing ends the run before."""
        if self.content is None or self.has_errors or self.classes is None:
            return {}
        return passed_over(self.content, self.classes)


def as_text(report: Report, num_examples: int) -> str:
    """Return a report as lines: totals, then each kind with its count and the first examples."""
    lines = [f'{report.name}: {report.annotations}']
    if report.content is not None:
        totals = ', '.join(f'{count} {section}' for section, count in report.totals().items())
        lines.append(f'  {totals}; checked: {report.scope}')
    if untrained := report.untrained():
        reasons = ', '.join(f'{count} {reason}' for reason, count in untrained.items())
        lines.append(f'  mmdet passes over {sum(untrained.values())} of the objects: {reasons}')
    for kind, count in counts_of(report.findings).items():
        lines.append(f'  {KINDS[kind].severity:<7}  {kind:<23} {count:>7}  {KINDS[kind].meaning}')
        examples = [finding.message for finding in report.findings if finding.kind == kind][:num_examples]
        lines += [f'{"":11}{message}' for message in examples]
        if count > num_examples > 0:
            lines.append(f'{"":11}...')
    if not report.findings:
        lines.append('  nothing wrong')
    return '\n'.join(lines)


def as_record(report: Report, num_examples: int) -> dict[str, Any]:
    """Return a report as what JSON can hold."""
    counts = counts_of(report.findings)
    findings = {
        kind: {
            'severity': KINDS[kind].severity,
            'count': count,
            'examples': [
                {'message': each.message, 'image_id': each.image_id, 'annotation_id': each.annotation_id}
                for each in [finding for finding in report.findings if finding.kind == kind][:num_examples]
            ],
        }
        for kind, count in counts.items()
    }
    return {
        'splits': report.name,
        'annotations': str(report.annotations),
        'images': report.images and str(report.images),
        'checked': report.scope,
        'totals': report.totals(),
        'passed_over_by_mmdet': report.untrained(),
        'findings': findings,
    }


def refusal(findings: Sequence[Finding], path: Path, command: str) -> str:
    """Return the one sentence for errors that end a run before it starts."""
    errors = errors_among(findings)
    if errors[0].kind in ('file', 'classes'):
        return errors[0].message
    return (
        f'{path} has {len(errors)} {"error" if len(errors) == 1 else "errors"} ({in_words(counts_of(errors))}), '
        f'the first: {errors[0].message}; {command} lists them and writes a cleaned copy with --fix DIR'
    )


def what_was_done(cleaned: Cleaned) -> str:
    """Return what cleaning did as part of a sentence."""
    parts = []
    for name, counts in (
        ('objects removed', cleaned.removed_objects),
        ('images removed', cleaned.removed_images),
        ('categories removed', cleaned.removed_categories),
        ('objects or images changed', cleaned.changed),
    ):
        if counts:
            parts.append(f'{sum(counts.values())} {name} ({in_words(counts)})')
    return ', '.join(parts) or 'nothing to repair'
