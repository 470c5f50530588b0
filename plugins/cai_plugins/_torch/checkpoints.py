"""Checkpoints that are whole or do not exist.

Trainer writes a checkpoint's files in place, so a crash leaves a folder that looks finished. Here a folder counts only
once it is sealed: a list of its files and sizes, written last.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path

SEAL = "whole.json"


def seal(folder: Path) -> None:
    """Declare ``folder`` whole: its files reach the disk first, then the list of them appears."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        sync(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    temporary = folder / f".{SEAL}.tmp"
    temporary.write_text(json.dumps({"files": sizes}), encoding="utf-8")
    sync(temporary)
    temporary.replace(folder / SEAL)
    sync(folder)


def is_whole(folder: Path) -> bool:
    """Whether ``folder`` is sealed and holds every file at its full size."""
    try:
        sizes = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def last_whole(root: Path, at_most: int | None = None) -> Path | None:
    """The checkpoint of the highest step in ``root``, no higher than ``at_most``, that is whole. Broken ones are
    removed: a new checkpoint of the same step must not mix with their files."""
    best: Path | None = None
    for folder in _checkpoints(root):
        if is_whole(folder):
            if at_most is None or int(folder.name.rpartition("-")[2]) <= at_most:
                best = folder
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return best


def keep_last(root: Path, count: int, spared: Collection[int] = ()) -> None:
    """Remove all but the last ``count`` whole checkpoints and those of the steps ``spared``."""
    whole = [folder for folder in _checkpoints(root) if is_whole(folder)]
    for folder in whole[: max(0, len(whole) - count)]:
        if int(folder.name.rpartition("-")[2]) not in spared:
            shutil.rmtree(folder, ignore_errors=True)


def _checkpoints(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    found = [(int(m[1]), p) for p in root.iterdir() if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [path for _, path in sorted(found)]


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
