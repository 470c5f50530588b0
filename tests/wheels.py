"""Wheels and virtual environments for tests that install what users install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_SHIPPED = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist")


def build(kind: str, source: Path, out: Path) -> Path:
    """Build the ``wheel`` or ``sdist`` of a source folder with what is installed here."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


class CleanVenv:
    """A virtual environment of its own in which cai-core is installed from its wheel.

    Its dependencies are those of this environment, by their path: tests have no network. The editable cai-core of this
    environment is not importable there, since files that make it so are not read from such a path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.python = folder / "bin" / "python"
        site = self.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        shutil.copytree(ROOT, folder / "checkout", ignore=NOT_SHIPPED)
        self.install(build("wheel", folder / "checkout", folder / "wheels"))
        where = self.run("-c", "import cai_core; print(cai_core.__file__)")
        assert where.startswith(str(folder)), f"cai_core is imported from {where}"

    def install(self, *what: str | Path, cwd: Path | None = None) -> None:
        """``pip install`` without network, dependencies or build isolation."""
        options = ["--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-build-isolation"]
        self.run("-m", "pip", "install", *options, *map(str, what), cwd=cwd)

    def uninstall(self, name: str) -> None:
        """``pip uninstall``."""
        self.run("-m", "pip", "uninstall", "--quiet", "--disable-pip-version-check", "--yes", name)

    def run(self, *arguments: str, cwd: Path | None = None, check: int = 0, **variables: str) -> str:
        """Run this environment's Python; return standard output."""
        return self.call([str(self.python), *arguments], cwd=cwd, check=check, **variables)

    def cai(self, *arguments: str, cwd: Path, check: int = 0, **variables: str) -> str:
        """Run this environment's ``cai``; return standard output."""
        return self.call([str(self.folder / "bin" / "cai"), *arguments], cwd=cwd, check=check, **variables)

    def call(self, command: Sequence[str], *, cwd: Path | None, check: int, **variables: str) -> str:
        """Run a command in this environment, from a folder that is not the checkout."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            list(command),
            cwd=cwd or self.folder,
            env={**environment, "NO_COLOR": "1", **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == check, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout
