"""Artifacts: write-once folders named by kind and digest.

A stage writes into a temporary folder beside its final place; ``commit`` hashes and fsyncs every file, writes
``manifest.json`` last and renames. So an artifact is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_core.store.canonical import canonical, file_sha256, fsync_folder, write_atomic

SCHEMA_VERSION = 1
_TEMPORARY = ".tmp-"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished artifact. ``identity`` is what the digest covers; ``info`` is what was seen while making it."""

    kind: str
    digest: str
    path: Path
    identity: Mapping[str, Any]
    info: Mapping[str, Any]


class Artifacts:
    """The artifacts of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, digest: str) -> Path:
        """Where the artifact is or will be."""
        return self.root / f"{kind}-{digest[:20]}"

    def find(self, kind: str, digest: str) -> Artifact | None:
        """The artifact if it is whole: right digest, every file there with its size.

        Contents are not read; ``torn`` does that where an artifact is put to use. A damaged one is renamed to
        ``*.corrupt`` by ``quarantine``; ``find`` itself changes nothing.
        """
        path = self.path(kind, digest)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
            whole = manifest["schema"] == SCHEMA_VERSION and manifest["digest"] == digest
            for name, entry in manifest["files"].items():
                whole = whole and (path / name).stat().st_size == entry["bytes"]
            identity, info = dict(manifest["identity"]), dict(manifest["info"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
        return Artifact(kind, digest, path, identity, info) if whole else None

    def torn(self, artifact: Artifact) -> str:
        """The first file that is not what was written, by its sha256; "" if all are."""
        manifest = json.loads((artifact.path / "manifest.json").read_text(encoding="utf-8"))
        for name, entry in manifest["files"].items():
            if file_sha256(artifact.path / name) != entry["sha256"]:
                return str(name)
        return ""

    def damaged(self, kind: str, digest: str) -> bool:
        """There is a folder of that name which ``find`` does not accept."""
        return self.path(kind, digest).exists() and self.find(kind, digest) is None

    def quarantine(self, kind: str, digest: str) -> Path:
        """Move a damaged artifact aside and return its new place; nothing is deleted."""
        source = self.path(kind, digest)
        number = 0
        while (target := source.with_name(f"{source.name}.corrupt{number or ''}")).exists():
            number += 1
        source.rename(target)
        return target

    def begin(self, kind: str, digest: str) -> Path:
        """A new empty folder to write the artifact into."""
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / f"{_TEMPORARY}{kind}-{digest[:20]}-{os.getpid()}"
        if path.exists():
            shutil.rmtree(path)
        path.mkdir()
        return path

    def commit(
        self, folder: Path, kind: str, digest: str, identity: Mapping[str, Any], info: Mapping[str, Any]
    ) -> Artifact:
        """Make ``folder`` (from ``begin``) the artifact."""
        files = {}
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            files[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        manifest = {
            "schema": SCHEMA_VERSION,
            "kind": kind,
            "digest": digest,
            "identity": identity,
            "info": info,
            "files": files,
        }
        canonical(manifest)  # NaN would make a manifest that nobody can read
        write_atomic(folder / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False))
        target = self.path(kind, digest)
        folder.rename(target)
        fsync_folder(self.root)
        return Artifact(kind, digest, target, identity, info)

    def sweep(self) -> None:
        """Remove what interrupted stages left behind. Only under the store's lock."""
        if self.root.is_dir():
            for leftover in self.root.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True)
