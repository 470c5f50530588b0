"""What in a store no run refers to any more."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cai_core.errors import EnvironmentProblem, UserError
from cai_core.store.artifacts import Artifacts


@dataclass(frozen=True, slots=True)
class Garbage:
    """A folder of the store and its size."""

    path: Path
    bytes: int


def referred(runs: Iterable[Path]) -> tuple[set[str], int]:
    """Names of the artifacts that the runs in these folders refer to, and the number of runs.

    A folder is a run's own, or holds folders of runs. Raises ``UserError`` where a ``run.json`` cannot be read: it
    might refer to anything.
    """
    names: set[str] = set()
    count = 0
    for folder in runs:
        for file in [folder / "run.json"] if (folder / "run.json").exists() else sorted(folder.glob("*/run.json")):
            try:
                stages = json.loads(file.read_text(encoding="utf-8"))["stages"]
                names.update(Artifacts(Path()).path(stage["kind"], stage["digest"]).name for stage in stages)
            except (OSError, ValueError, KeyError, TypeError) as error:
                hint = "mend it, or move that folder away if its artifacts may go"
                raise UserError("this run does not say what it refers to", where=str(file), hint=hint) from error
            count += 1
    return names, count


def garbage(store: Path, keep: set[str]) -> list[Garbage]:
    """Artifacts that are not to be kept, damaged ones that were moved aside, and what interrupted stages left: their
    unfinished folders, and checkpoints of stages that are finished or not to be kept. Largest first.

    Ledgers are not looked at: their rows are small, and any later run may ask for the same text.
    """
    artifacts, work = store / "artifacts", store / "work"
    found = [path for path in _folders(artifacts) if path.name not in keep]
    found += [path for path in _folders(work) if path.name not in keep or (artifacts / path.name).exists()]
    return sorted((Garbage(path, _size(path)) for path in found), key=lambda item: (-item.bytes, item.path))


def remove(items: Iterable[Garbage]) -> None:
    """Delete the folders; only under the store's lock. An artifact goes under another name first: never half there."""
    for item in items:
        doomed = item.path.with_name(f".tmp-gc-{item.path.name}")
        try:
            item.path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise EnvironmentProblem(f"cannot delete: {error.strerror}", where=str(item.path)) from error


def _folders(parent: Path) -> list[Path]:
    return [path for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []


def _size(folder: Path) -> int:
    return sum(os.lstat(Path(place, name)).st_size for place, _, names in os.walk(folder) for name in names)
