"""Models from outside: catalog names, local folders, hub ids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cai_core.errors import UserError
from cai_core.models.catalog import CATALOG, is_cached, model_path, pull
from cai_core.store.canonical import digest, file_sha256, write_json
from cai_core.yamlio import near_name

SERVED = "server:"
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w.-]+)?$")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class ExternalModel:
    """``digest`` names the content: of a folder its files, of a catalog model the pinned source, of a hub id the id
    and revision (what the hub serves under a moving revision is not covered), of a server's model its name."""

    name: str
    source: str  # "catalog", "folder", "hub" or "server"
    digest: str
    location: str  # folder, hub id or server:NAME; of a catalog model where it will be


def locate(name: str, folder: Path, where: str, digests: Path) -> ExternalModel:
    """Find a model without fetching anything. Raises ``UserError`` saying what is missing in a folder.

    folder: relative paths start here. digests: a file that remembers hashes of large files.
    """
    if name.startswith(SERVED):
        if name == SERVED or len(name) > 200:
            raise UserError(f"{name!r} names no model", where=where, hint="write server:NAME, as the server calls it")
        return ExternalModel(name, "server", digest({"server": name.removeprefix(SERVED)}), name)
    if name in CATALOG:
        entry = CATALOG[name]
        identity = {"catalog": name, "sha256": entry.joined_sha256, "revision": entry.revision}
        return ExternalModel(name, "catalog", digest(identity), str(model_path(name)))
    path = Path(name).expanduser()
    path = path if path.is_absolute() else folder / path
    if path.exists() or name.startswith((".", "/", "~")):
        check_folder(path, where)
        return ExternalModel(name, "folder", _folder_digest(path, digests), str(path.resolve()))
    if _HUB_ID.match(name):
        return ExternalModel(name, "hub", digest({"hub": name}), name)
    others = "or a folder, a hub id like owner/name, or server:NAME"
    hint = f"{near_name(name, CATALOG)} Catalog: {', '.join(CATALOG)}; {others}"
    raise UserError(f"unknown model {name!r}", where=where, hint=hint.strip())


def check_folder(path: Path, where: str) -> None:
    """A model folder has a configuration, weights and a tokenizer."""
    if not path.is_dir():
        raise UserError(f"no such model folder: {path}", where=where)
    if not (path / "config.json").is_file():
        raise UserError(f"the model folder {path} has no config.json", where=where, hint="is it a model folder?")
    if not any(path.glob("*.safetensors")):
        hint = "only safetensors are loaded: pickled weights can run code"
        raise UserError(f"the model folder {path} has no *.safetensors", where=where, hint=hint)
    if not any((path / name).is_file() for name in _TOKENIZER_FILES[:-1]):
        raise UserError(
            f"the model folder {path} has no tokenizer",
            where=where,
            hint=f"save one there with tokenizer.save_pretrained(...): one of {', '.join(_TOKENIZER_FILES[:-1])}",
        )


def fetch(model: ExternalModel, say: Callable[[str], None]) -> None:
    """Have a catalog model on disk; others are there or are the hub's business."""
    if model.source == "catalog" and not is_cached(model.name):
        pull(model.name, say=say)


def _folder_digest(path: Path, digests: Path) -> str:
    try:
        known = json.loads(digests.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    files, changed = {}, False
    for file in sorted(path.iterdir()):
        if not file.is_file() or file.suffix not in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            continue
        stat = file.stat()
        key = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if key not in known:
            known[key] = file_sha256(file)
            changed = True
        files[file.name] = known[key]
    if changed and digests.parent.is_dir():
        write_json(digests, known)
    return digest(files)
