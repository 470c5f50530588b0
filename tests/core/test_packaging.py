"""What is shipped: the wheel from a checkout, and the wheel from the source distribution, hold all that a run needs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from wheels import NOT_SHIPPED, ROOT, build


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, folder / "checkout", ignore=NOT_SHIPPED)
    direct = build("wheel", folder / "checkout", folder / "direct")
    with tarfile.open(build("sdist", folder / "checkout", folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    return [direct, build("wheel", source, folder / "from-sdist")]


def test_both_ways_ship_the_same_and_all_of_it(wheels: list[Path]) -> None:
    names = [set(zipfile.ZipFile(wheel).namelist()) for wheel in wheels]
    assert names[0] == names[1]
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cai_core").rglob("*") if path.is_file()}
    there |= {
        path.relative_to(ROOT / "plugins").as_posix()
        for path in (ROOT / "plugins/cai_plugins").rglob("*")
        if path.is_file()
    }
    wanted = {name for name in there if "__pycache__" not in name}
    wanted |= {f"cai_core/_constitutions/{path.name}" for path in (ROOT / "constitutions").glob("*.yaml")}
    assert wanted <= names[0], wanted - names[0]
    assert not [name for name in names[0] if name.startswith(("tests", "plugins/", "docs"))]


def test_an_unpacked_wheel_finds_its_constitutions_from_another_folder(wheels: list[Path], tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheels[0]).extractall(site)
    code = (
        "import cai_core; from cai_core.constitution import list_constitutions\n"
        "print(cai_core.__file__, *[c.id for c in list_constitutions()])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert printed[0].startswith(str(site))
    assert set(printed[1:]) == {"harmless", "hhh", "single", "template"}
