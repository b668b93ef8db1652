"""Durations and counts as readers like them."""


def duration(seconds: float) -> str:
    """Return a duration for readers: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 90 * 60 else f'{seconds / 3600:.1f} h'


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 core`` or ``2 classes``."""
    plural = 'es' if noun.endswith('s') else 's'
    return f'{number} {noun}{"" if number == 1 else plural}'
