"""A machine with other processors than this one."""

from pathlib import Path

from shvit_det.common import processors


def machine_of(root: Path, monkeypatch, files: dict[str, str], count: int = 64) -> None:
    """Make this a machine with so many processors and these files of the system."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f'{text}\n')
    monkeypatch.setattr(processors, 'ROOT', root)
    monkeypatch.setattr('os.process_cpu_count', lambda: count, raising=False)
