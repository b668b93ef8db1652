"""Pascal VOC's layout, and others with one XML file for each picture, as Roboflow and LabelImg write them."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ...common.errors import UsageError, first_line
from .labels import PICTURES, SPLITS, Labels, Losses, SplitBuilder, labels_of, pictures_in, split_folders, split_of_list

LISTS = Path('ImageSets', 'Main')
ANNOTATIONS, IMAGES = 'Annotations', 'JPEGImages'


def is_layout(folder: Path) -> bool:
    folders = [folder, folder / ANNOTATIONS, *split_folders(folder).values()]
    return any(next(each.glob('*.xml'), None) is not None for each in folders)


def read(folder: Path) -> Labels:
    """Read a data set of VOC, or one of XML files beside the pictures."""
    losses = Losses()
    annotations = folder / ANNOTATIONS
    if annotations.is_dir():
        split_files = listed(folder, sorted(annotations.rglob('*.xml')), losses)
    else:
        own = {name: sorted(each.rglob('*.xml')) for name, each in split_folders(folder).items()}
        split_files = {name: files for name, files in own.items() if files} or {'train': sorted(folder.rglob('*.xml'))}
    if not any(split_files.values()):
        raise UsageError(f'{folder} has no XML files of Pascal VOC')
    stems = {path.stem for path in folder.rglob('*.xml')}
    for picture in pictures_in(folder):
        if picture.stem not in stems:
            losses.add('pictures left out, which have no XML file', picture.relative_to(folder).as_posix())
    builders = [SplitBuilder(name, folder, losses) for name in SPLITS if name in split_files]
    ignored = sum(read_file(builder, folder, path) for builder in builders for path in split_files[builder.name])
    notes = [f'difficult objects, neither trained on nor scored (iscrowd): {ignored}'] if ignored else []
    return labels_of(builders, 'voc', notes=notes)


def listed(folder: Path, files: list[Path], losses: Losses) -> dict[str, list[Path]]:
    """Return the XML files by split, as the lists in ``ImageSets/Main`` say; without lists all are for training."""
    named = [(split_of_list(path.stem), path) for path in sorted((folder / LISTS).glob('*.txt'), reverse=True)]
    lists = {name: path for name, path in named if name is not None}  # of two, that with the shorter name
    both = folder / LISTS / 'trainval.txt'
    if 'train' not in lists and both.is_file():
        lists = {'train': both, **{name: path for name, path in lists.items() if name == 'test'}}
    if 'train' not in lists:
        return {'train': files}
    by_name = {path.relative_to(folder / ANNOTATIONS).with_suffix('').as_posix(): path for path in files}
    splits: dict[str, list[Path]] = {}
    for split, path in lists.items():
        names = [line.split()[0] for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]
        for name in names:
            if name not in by_name:
                losses.add(f'pictures left out, which {path.name} lists and which have no XML file', name)
        splits[split] = [by_name[name] for name in dict.fromkeys(names) if name in by_name]
    rest = set(files) - {path for paths in splits.values() for path in paths}
    for path in sorted(rest):
        losses.add(f'XML files left out, which no list in {LISTS.as_posix()} names', path.name)
    return splits


def read_file(builder: SplitBuilder, folder: Path, path: Path) -> int:
    """Add the picture and the objects of an XML file; return how many are difficult."""
    place = builder.relative(path)
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        builder.num_images += 1
        builder.losses.add('XML files left out, which are broken', f'{place}: {first_line(error)}')
        return 0
    builder.add_image(picture_of(root, folder, path))
    # the first pixel of VOC's own files is 1, that of what tools write 0
    first = 1 if (root.findtext('folder') or '').startswith('VOC') else 0
    num_difficult = 0
    for number, element in enumerate(root.iter('object'), start=1):
        where = f'{place} object {number}'
        name = (element.findtext('name') or '').strip()
        corners = element.find('bndbox')
        try:
            if corners is None:
                raise ValueError
            box = [float(corners.findtext(key) or '') for key in ('xmin', 'ymin', 'xmax', 'ymax')]
            polygon = [float(each.text or '') for each in element.findall('polygon/*')]
        except ValueError:
            name = ''
        if not name:
            builder.num_objects += 1
            builder.losses.add('objects left out, without a name or a box of four numbers', where)
            continue
        box[:2] = box[0] - first, box[1] - first
        difficult = (element.findtext('difficult') or '').strip() == '1'
        outlines = [polygon] if len(polygon) >= 6 and len(polygon) % 2 == 0 else []
        builder.add_object(name, box, outlines, place=where, crowd=difficult)
        num_difficult += difficult
    return num_difficult


def picture_of(root: ElementTree.Element, folder: Path, path: Path) -> Path:
    """Return the picture of an XML file: of the name in it or else of its own, beside it or in the usual folders."""
    below = path.parent.relative_to(folder / ANNOTATIONS) if path.is_relative_to(folder / ANNOTATIONS) else Path()
    folders = [path.parent, folder / IMAGES / below, folder / 'images' / below, folder]
    if split_of_list(path.parent.name) is not None:
        folders.append(folder / 'images' / path.parent.name)
    written = (root.findtext('filename') or '').strip().replace('\\', '/').rpartition('/')[2]
    names = [written] if written else []
    names += [path.with_suffix(suffix).name for suffix in (*PICTURES, *map(str.upper, PICTURES))]
    found = (each / name for each in folders for name in names if (each / name).is_file())
    return next(found, folders[1] / (written or path.with_suffix('.jpg').name))
