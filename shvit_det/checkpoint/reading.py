"""Reading a checkpoint file safely: no code from it runs, and no size that it declares is believed."""

import argparse
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # private, but what pickle itself goes by
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..common.errors import UsageError
from ..common.wrong_contents import wrong_content
from ..compat.torch_load import classes_allowed

TENSOR_KINDS = (Tensor, nn.Parameter, nn.Buffer)
ARCHIVE = b'PK\x03\x04'
LARGEST_BEGINNING = 64 << 20
NUM_PICKLES = 4  # of a file in torch's older format: magic number, version, system, content
LONGEST_NAME = 200
DANGER = 'which could run code when it is opened, and only weights and plain data are read'


def read_content(path: Path) -> Any:
    """Return what a checkpoint file holds: plain data and tensors on the CPU.

    ``.safetensors`` and torch's files are told apart by their first bytes. Those of torch are read with
    ``weights_only=True``; archives are looked through before, their checksums included.

    Raises:
        UsageError: If the file is damaged, is something else, or needs a class that could run code.
    """
    head = head_of(path)
    if wrong := wrong_kind(head):
        raise unreadable(path, wrong)
    if head[8:9] == b'{' and not head.startswith(b'PK'):  # the opening of a JSON header, after its length
        return read_safetensors(path, head)
    if head.startswith(ARCHIVE):
        check_archive(path)
    with classes_allowed(argparse.Namespace), open_file(path) as file:  # the authors' files carry their arguments
        try:
            content = torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # anything can come out of an unpickler that is fed arbitrary bytes
            reason = f'it needs {needed}, {DANGER}' if (needed := refused_global(path)) else reason_of(error)
            raise unreadable(path, reason) from error
    check_tensors(path, content)
    return content


def unreadable(path: Path, reason: str) -> UsageError:
    return UsageError(f'{path} cannot be read as a checkpoint: {reason}')


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, or raise ``UsageError``."""
    try:
        return path.open('rb')
    except OSError as error:
        raise UsageError(f'cannot read {path}: {error.strerror}') from error


def head_of(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(512)


def wrong_kind(head: bytes) -> str | None:
    """Return why a file is no checkpoint, from its first bytes, for what often has a checkpoint's name; else None."""
    if not head:
        return 'it is empty'
    if (content := wrong_content(head)) is not None:
        return f'it {content}'
    if head[257:262] == b'ustar':
        return "it is a tar archive, a form that torch gave up: save it again with today's torch"
    return None


def read_safetensors(path: Path, head: bytes) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file; the format itself holds nothing that could run."""
    declared, size = int.from_bytes(head[:8], 'little'), path.stat().st_size
    if declared > size - 8:
        sizes = f'its header declares {declared} bytes and the file has {size}'
        raise unreadable(path, f'it is cut off or damaged, {sizes}')
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise unreadable(path, reason_of(error)) from error


def check_archive(path: Path) -> None:
    """Refuse a zip archive that is damaged, a program, or declares more than it holds, which torch would believe."""
    wrong = None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            declared = sum(entry.file_size for entry in entries)
            if any(entry.filename.endswith('/constants.pkl') or '/code/' in entry.filename for entry in entries):
                wrong = 'it is a TorchScript program: save the state dict of the model instead'
            elif not any(entry.filename.endswith('/data.pkl') for entry in entries):
                wrong = 'it is a zip archive, but not one of torch.save'
            elif declared > path.stat().st_size or any(entry.compress_type for entry in entries):
                wrong = f'its entries declare {declared} bytes, and the file has {path.stat().st_size}'
            elif damaged := archive.testzip():
                wrong = f'it is damaged, the checksum of {damaged!r} is wrong'
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        wrong = f'it is cut off or damaged ({error})'
    if wrong:
        raise unreadable(path, wrong)


def check_tensors(path: Path, content: Any) -> None:
    """Refuse tensors that are not plain numbers in memory, or that declare more of them than the file holds."""
    storages: dict[int, int] = {}
    for name, tensor in tensors_in(content):
        wrong = None
        if type(tensor) not in TENSOR_KINDS or tensor.layout is not torch.strided or tensor.is_quantized:
            wrong = f'is a {tensor.layout} tensor of {tensor.dtype}, and only plain ones are loaded'
        elif tensor.is_meta:
            wrong = 'has a shape but no values'
        else:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            if max(tensor.numel() * tensor.element_size(), sum(storages.values())) > path.stat().st_size:
                wrong = f'declares the shape {tuple(tensor.shape)}, more than the file holds'
        if wrong:
            raise unreadable(path, f'its tensor {name!r} {wrong}')


def tensors_in(content: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested mappings and sequences, however deep, with their names within the innermost one."""
    pending, seen = [('', content)], set()
    while pending:
        name, value = pending.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))  # a pickle can hold itself
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            pending.extend((str(key), inner) for key, inner in items)


def refused_global(path: Path) -> str | None:
    """Return the first class or function that a file of torch's refers to and that torch refuses, or None.

    torch is asked for each on its own, because the text of its error for the file differs between releases.
    """
    for module, name in dict.fromkeys(globals_in(path)):
        try:
            torch.load(file_with_reference(module, name), weights_only=True)
        except Exception:  # as above
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            return ascii(f'{module}.{name}'[:LONGEST_NAME])[1:-1]
    return None


def globals_in(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of every class and function that a file refers to, as far as it can be read."""
    if head_of(path).startswith(ARCHIVE):
        with zipfile.ZipFile(path) as archive:
            contents = [archive.read(name) for name in archive.namelist() if name.endswith('/data.pkl')]
    else:
        with open_file(path) as file:
            contents = [file.read(LARGEST_BEGINNING)]
    for pickles in map(BytesIO, contents):
        with suppress(ValueError):  # at the end, or cut off or damaged from here on
            for _ in range(NUM_PICKLES):
                for operation, argument, _position in pickletools.genops(pickles):
                    if operation.name == 'GLOBAL':
                        module, _, name = str(argument).partition(' ')
                        yield module, name


def file_with_reference(module: str, name: str) -> BytesIO:
    """Return a file in torch's older format that refers to one class or function, and neither calls nor builds it."""
    beginning: tuple[Any, ...] = (torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {})
    content = pickle.PROTO + b'\x02' + pickle.GLOBAL + f'{module}\n{name}\n'.encode() + pickle.STOP
    return BytesIO(b''.join(pickle.dumps(each, 2) for each in beginning) + content + pickle.dumps([], 2))


def reason_of(error: Exception) -> str:
    """Return the first sentence of an error; torch's own text is a page."""
    text = str(error)
    if re.search(r'getattr of \S+ is not allowed', text):  # as compat.torch_load says it
        return f'it needs builtins.getattr, {DANGER}'
    if match := re.search(r'WeightsUnpickler error: ([^\n]+)', text):
        text = match[1]
    first = text.strip().split('\n')[0].split('. ')[0]
    return f'{type(error).__name__}: {first}' if first else 'it is cut off or damaged'
