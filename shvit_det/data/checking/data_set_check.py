"""The check of a data set, annotation file and images: its report for people and programs, and its cleaned copy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...common.atomic_files import save_json
from ...common.errors import UsageError
from ...common.output_paths import may_write, nearest_folder
from .annotation_file import SECTIONS, NotCocoError, Use, read_annotations
from .cleaning import Cleaned, clean
from .content_checks import cast_and_check, check_content, check_file
from .findings import KINDS, Finding, Repair, as_phrase, by_kind, errors_among
from .image_checks import DecodeSettings, check_images
from .image_presence import check_presence
from .object_counts import ObjectCounts, count_objects

Images = Literal['decode', 'headers', 'presence']
SCOPES: dict[Images, str] = {
    'decode': 'annotations, and all images decoded',
    'headers': 'annotations, and the headers of all images',
    'presence': 'annotations, and that the images exist',
}


@dataclass
class CocoSet:
    """An annotation file with its folder of images, and what a config does with them.

    Attributes:
        images: The folder, or None if it is on remote storage.
        classes: The classes of the config, or None where it states none.
        is_standard: The class of the dataset reads the file as ``CocoDataset`` does, and not in its own way.
        splits: The splits that use it.
        keys: The keys of the config that name the file, as ``--cfg-options`` spells them.
        scored_only: It is an evaluator's file, and no data set has it.
    """

    annotations: Path
    images: Path | None
    classes: tuple[str, ...] | None
    bad_data: str
    decode_settings: DecodeSettings
    is_standard: bool = True
    use: Use = field(default_factory=Use)
    splits: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    scored_only: bool = False

    @property
    def purpose(self) -> str:
        """What is done with the objects, for a sentence."""
        if 'train' not in self.splits:
            return 'scored'
        return 'trained on' if self.splits == ['train'] else 'trained on and scored'

    @property
    def images_only(self) -> bool:
        """Whether the file may list images alone: nothing is trained on or scored by it."""
        return not self.use.evaluated and 'train' not in self.splits

    def check_content(self, content: Mapping[str, Any]) -> list[Finding]:
        """Return what is wrong with the content of the file, as far as its class reads it as COCO's."""
        if self.is_standard:
            return check_content(content, self.use, self.annotations, self.classes)
        return list(check_file(content, self.annotations, self.classes))


@dataclass
class CheckedSet:
    """A data set with what was found in it.

    Attributes:
        scope: How far the check went, for people.
        content: What the annotation file holds, or None where it cannot be read.
        file_sizes: Width and height of the image files, in pixels, by their place in the list.
        target: Where a cleaned copy of the annotation file is to go, if one was asked for.
    """

    data: CocoSet
    scope: str
    content: Mapping[str, Any] | None = None
    findings: list[Finding] = field(default_factory=list)
    file_sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    target: Path | None = None

    @property
    def has_errors(self) -> bool:
        return bool(errors_among(self.findings))

    def totals(self) -> dict[str, int]:
        """Return how many entries each list of the file has."""
        return {} if self.content is None else {section: len(self.content[section]) for section in SECTIONS}

    def objects(self) -> ObjectCounts | None:
        """Return how many objects are used; None where an error would end the run before."""
        if self.content is None or self.has_errors or not self.data.is_standard:
            return None
        return count_objects(self.content, self.data.classes, self.data.use.min_size)

    def as_text(self, num_examples: int) -> str:
        """Return lines for people: totals, then each kind with its count and the first examples."""
        role = ' of the evaluator' if self.data.scored_only else ''
        lines = [f'{", ".join(self.data.splits)}{role}: {self.data.annotations}']
        if self.content is not None:
            totals = ', '.join(f'{count} {section}' for section, count in self.totals().items())
            lines.append(f'  {totals}; checked: {self.scope}')
        if objects := self.objects():
            lines.append(f'  {objects.as_phrase(self.data.purpose)}')
        for kind, found in by_kind(self.findings).items():
            lines.append(f'  {KINDS[kind].severity:<7}  {kind:<23} {len(found):>7}  {KINDS[kind].meaning}')
            lines += [f'{"":11}{finding.message}' for finding in found[:num_examples]]
            if len(found) > num_examples > 0:
                lines.append(f'{"":11}...')
        if not self.findings:
            lines.append('  nothing wrong')
        return '\n'.join(lines)

    def as_record(self, num_examples: int) -> dict[str, Any]:
        """Return what was found as JSON can hold it."""
        objects = self.objects()
        findings = {}
        for kind, found in by_kind(self.findings).items():
            examples = [
                dict(message=each.message, image_id=each.image_id, annotation_id=each.annotation_id)
                for each in found[:num_examples]
            ]
            findings[kind] = dict(severity=KINDS[kind].severity, count=len(found), examples=examples)
        return {
            'splits': ', '.join(self.data.splits),
            'annotations': str(self.data.annotations),
            'images': self.data.images and str(self.data.images),
            'checked': self.scope,
            'totals': self.totals(),
            'objects': objects and {'used': objects.used, 'crowd': objects.crowd, 'passed_over': objects.ignored},
            'findings': findings,
        }


def check_set(data: CocoSet, images: Images, workers: int, progress: Callable[[str], None]) -> CheckedSet:
    """Check one annotation file and its images.

    Raises:
        UsageError: If the file cannot be read.
    """
    name = ', '.join(data.splits)
    remote = 'annotations' if data.scored_only else 'annotations, and not the images, which are on remote storage'
    scope = SCOPES[images] if data.images else remote
    checked = CheckedSet(data, scope)
    progress(f'{name}: reading {data.annotations}')
    try:
        checked.content = content = read_annotations(data.annotations, data.images_only)
    except NotCocoError as error:
        checked.findings = [Finding('file', str(error))]
        return checked
    progress(f'{name}: checking annotations')
    checked.findings = data.check_content(content)
    if data.images is None:
        return checked
    # the files may have the sizes that were meant
    if any(finding.repair == Repair.CAST for finding in checked.findings):
        content = dict(cast_and_check(content, data.use, data.annotations, data.classes)[0])
    if images == 'presence':
        checked.findings += check_presence(content, data.images)
    else:
        found, checked.file_sizes = check_images(
            content,
            data.images,
            data.decode_settings,
            headers_only=images == 'headers',
            workers=workers,
            progress=lambda done, total: progress(f'{name}: image {done} of {total}'),
        )
        checked.findings += found
    return checked


def name_copies(sets: Sequence[CocoSet], folder: Path) -> list[Path]:
    """Return the paths of the cleaned copies, one for each data set.

    Raises:
        UsageError: If one of them exists, or the folder is a file or cannot be written to.
    """
    existing = nearest_folder(folder)
    if not existing.is_dir():
        raise UsageError(f'--fix takes a folder, and {existing} is a file')
    if not may_write(existing):
        raise UsageError(f'--fix {folder}: nothing can be written into {existing}')
    targets: list[Path] = []
    for data in sets:
        target, number = folder / data.annotations.name, 2
        while target in targets:  # two splits may have files of one name in different folders
            target, number = folder / f'{data.annotations.stem}_{number}{data.annotations.suffix}', number + 1
        if target.exists():
            raise UsageError(f'{target} exists, and --fix overwrites nothing: name another folder')
        targets.append(target)
    return targets


def clean_set(checked: CheckedSet, allow_loss: bool) -> Cleaned | None:
    """Return the cleaned content of an annotation file, or None where it cannot be read or is read in a way of its own.

    Raises:
        UsageError: If no image would be left, or, without ``allow_loss``, less than half of the images or the objects.
    """
    data = checked.data
    if checked.content is None or not data.is_standard:
        return None
    cleaned = clean(
        checked.content, checked.findings, data.use, data.annotations, data.classes, file_sizes=checked.file_sizes
    )
    for section, noun in (('images', 'images'), ('annotations', 'objects')):
        total, left = len(checked.content[section]), len(cleaned.content[section])
        none_left = section == 'images' and not left
        if total and (none_left or (left < total / 2 and not allow_loss)):
            raise UsageError(
                f'--fix would leave {left} of {total} {noun} of {data.annotations} ({cleaned.summary()}), and wrote '
                f'nothing: look for the cause first'
                + ('' if none_left else ', or write it all the same with --allow-loss')
            )
    return cleaned


def write_copy(checked: CheckedSet, cleaned: Cleaned | None, target: Path) -> tuple[str, bool]:
    """Write the cleaned copy of one annotation file; return what was done and whether there was anything to clean.

    Raises:
        UsageError: If it cannot be written.
    """
    annotations = checked.data.annotations
    if cleaned is None:
        why = 'it cannot be read' if checked.content is None else 'its dataset reads it in a way of its own'
        return f'{annotations}: cannot be cleaned, because {why}', False
    errors = errors_among(cleaned.left)
    still_wrong = f'; to be repaired by hand: {as_phrase(each.kind for each in errors)}' if errors else ''
    if not cleaned.is_changed:
        return f'{annotations}: nothing to repair{still_wrong}', False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'cannot write {target}: {error.strerror}') from error
    save_json(target, cleaned.content, separators=(',', ':'))
    sizes = ', '.join(
        f'{len(cleaned.content[section])} of {total} {section}' for section, total in checked.totals().items()
    )
    return f'{target}: {sizes}; {cleaned.summary()}{still_wrong}', True
