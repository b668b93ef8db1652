"""What a file of any kind often holds in place of what its name says."""


def wrong_content(head: bytes) -> str | None:
    """Return what a file is that begins with these bytes, in a sentence without its subject; None if that is not known.

    The two are what a download leaves: the web page of an error or a login, and the stand-in of Git LFS.
    """
    start = head.lstrip()[:60].lower()
    if start.startswith((b'<!doctype', b'<html', b'<?xml')) and b'<svg' not in head.lower():
        return 'is a web page, so that the download went wrong'
    if start.startswith(b'version https://git-lfs'):
        return 'is a pointer of Git LFS and not the file itself: run `git lfs pull` where it came from'
    return None
