"""Kills what writes a repository, at every point that a reader can see."""

import itertools
from contextlib import suppress
from pathlib import Path


class Killed(BaseException):
    pass


def kill_before_each_rename(monkeypatch, write, check):
    """Calls `write` until it ends, killed before its first rename, then before its second and so
    on, and `check` after every death. Each step that a reader can see is a rename.

    Returns:
        How often it died.
    """
    rename = Path.rename
    for deaths in itertools.count():
        left = deaths

        def counted(path, target):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return rename(path, target)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Path, "rename", counted)
            write()
            return deaths
        check()
