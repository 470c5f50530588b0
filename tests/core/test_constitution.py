"""Constitutions: found, checked, named by a digest."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import cai_core
from cai_core.constitution import constitution_digest, list_constitutions, load_constitution
from cai_core.errors import UserError, UserErrors

GOOD = """schema: 1
id: firm
version: "1.0"
title: Ours
principles:
  - id: one
    critique: Look for it.
    revision: Mend it.
    comparison: Choose the better.
  - id: two
    comparison: Choose the kinder.
    weight: 2.5
    tags: [kind, short]
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(text)`` makes a file; ``write(old=new)`` replaces in the good text."""

    def write(text: str = GOOD, old: str = "", new: str = "") -> Path:
        assert old in text
        path = tmp_path / "firm.yaml"
        path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        return path

    return write


def problems(path: Path) -> list[str]:
    """Every problem as ``line: message``."""
    with pytest.raises(UserErrors) as caught:
        load_constitution(str(path))
    assert caught.value.exit_code == 2
    return [str(problem).replace(f"{path}:", "") for problem in caught.value.problems]


def test_a_file_is_read_whole(write: Write) -> None:
    constitution = load_constitution(str(write()))
    assert (constitution.id, constitution.version, constitution.title) == ("firm", "1.0", "Ours")
    one, two = constitution.principles
    assert (one.critique, one.revision, one.comparison) == ("Look for it.", "Mend it.", "Choose the better.")
    assert (one.weight, one.tags) == (1.0, ())
    assert (two.critique, two.weight, two.tags) == ("", 2.5, ("kind", "short"))


def test_a_path_is_relative_to_the_base(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "sub").mkdir()
    shutil.move(path, tmp_path / "sub" / "firm.yml")
    assert load_constitution("sub/firm.yml", tmp_path).id == "firm"
    assert load_constitution("firm.yml", tmp_path / "sub").id == "firm"
    with pytest.raises(UserError, match="no constitution at"):
        load_constitution("firm.yml", tmp_path)
    with pytest.raises(UserError, match="no constitution at"):
        load_constitution("sub/", tmp_path)


def test_the_digest_covers_what_models_read_and_nothing_else(write: Write) -> None:
    first = load_constitution(str(write()))
    assert first.digest == constitution_digest(first)
    assert len(first.digest) == 64
    same = [
        GOOD.replace("title: Ours", "title: Theirs\nlicence: MIT\nsource: us"),
        "# a comment\n" + GOOD.replace("critique: Look for it.\n", "critique: >\n      Look for\n      it.\n"),
        GOOD.replace("Choose the better.\n", "Choose the better.\n    weight: 1\n    tags: []\n"),
    ]
    for text in same:
        assert load_constitution(str(write(text))).digest == first.digest
    other = [
        GOOD.replace("Mend it.", "Mend it!"),
        GOOD.replace("id: firm", "id: firm-2"),
        GOOD.replace('"1.0"', '"1.1"'),
        GOOD.replace("weight: 2.5", "weight: 2"),
        GOOD.replace("[kind, short]", "[short, kind]"),
    ]
    digests = {load_constitution(str(write(text))).digest for text in other}
    assert len(digests) == len(other)
    assert first.digest not in digests


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("revision:", "revison:", "8: principles[0].revison: unknown key 'revison'\n  Did you mean 'revision'?"),
        ("title: Ours", "title: Ours\nlicense: MIT", "5: license: unknown key 'license'\n  Did you mean 'licence'?"),
        ("schema: 1", "schema: 2", "1: schema: schema 2 is not known"),
        ("schema: 1", "schema: true", "1: schema: schema True is not known"),
        ('"1.0"', "1.0", "3: version: 'version' is not text\n  Put it in quotes."),
        ("id: firm", "id: Firm One", "2: id: bad id 'Firm One'"),
        ("id: two", "id: one", "10: principles[1].id: the id 'one' is given twice (first on line 6)"),
        ("weight: 2.5", "weight: 0", "12: principles[1].weight: weight 0 is not a number above 0"),
        ("weight: 2.5", "weight: -1", "12: principles[1].weight: weight -1"),
        ("weight: 2.5", "weight: true", "12: principles[1].weight: weight True"),
        ("weight: 2.5", "weight: much", "12: principles[1].weight: weight 'much'"),
        ("[kind, short]", "kind", "13: principles[1].tags: 'tags' is not a list"),
        ("Mend it.", "[Mend it.]", "8: principles[0].revision: 'revision' is not text"),
        ("Mend it.", '"Mend \\e[31m it."', "8: principles[0].revision: holds the control character"),
        ("Mend it.", "M" * 10_001, "8: principles[0].revision: 10,001 characters"),
        ("    comparison: Choose the kinder.\n", "", "10: principles[1]: a principle without critique"),
        ("    comparison: Choose the kinder.\n", "    comparison: ' '\n", "10: principles[1]: a principle without"),
    ],
)
def test_a_problem_is_told_with_its_line(old: str, new: str, expected: str, write: Write) -> None:
    (problem,) = problems(write(old=old, new=new))
    assert problem.startswith(expected)


def test_all_problems_are_told_at_once(write: Write) -> None:
    found = problems(write("id: X\nprinciples:\n  - {id: a, critque: x}\n  - 7\n"))
    assert len(found) == 7, found
    assert any("'schema' is missing" in problem for problem in found)
    assert any("'version' is missing" in problem for problem in found)
    assert any("4: principles[1]: a principle is a mapping" in problem for problem in found)


@pytest.mark.parametrize("principles", ["", " []", " ~", " none", " {a: b}"])
def test_no_principles_is_an_error(principles: str, write: Write) -> None:
    (problem,) = problems(write(GOOD.partition("principles:")[0] + f"principles:{principles}\n"))
    assert "principles" in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("title: Ours", "title: Ours\ntitle: Mine"), "'title' is given twice"),
        (GOOD.replace("revision: Mend it.", "revision: Mend it.\n    revision: x"), "'revision' is given twice"),
        ("a: &a [1,1,1,1,1,1,1,1]\n" + "".join(
            f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
        ), "aliases followed"),
        ("principles: " + "[" * 5000, "nested deeper"),
        ("principles: &p [*p]", "contains itself"),
        ("x" * 1_000_001, "larger than"),
        ("principles: !!python/name:os.system", "tag"),
        ("just text", "a constitution is a mapping"),
        ("", "a constitution is a mapping"),
        ("- a\n- b\n", "a constitution is a mapping"),
    ],
)
def test_bad_yaml_is_a_user_error(text: str, message: str, write: Write) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_constitution(str(write(text)))
    assert caught.value.exit_code == 2


def test_an_unknown_name_is_told_with_near_names() -> None:
    with pytest.raises(UserError) as caught:
        load_constitution("harmles")
    assert "Did you mean 'harmless'?" in str(caught.value)
    assert "hhh" in str(caught.value)


def test_every_built_in_constitution_is_sound() -> None:
    found = list_constitutions()
    assert {"harmless", "hhh", "single", "template"} <= {c.id for c in found}
    for constitution in found:
        assert load_constitution(constitution.id) == constitution, "file name and id agree"
        assert constitution.licence == "Apache-2.0"
        assert constitution.source
        for principle in constitution.principles:
            assert principle.critique
            assert principle.revision
            assert principle.comparison
            for text in (principle.critique, principle.revision, principle.comparison):
                # Templates add such labels.
                assert not text.rstrip().lower().endswith(("critique:", "revision:", "options:"))


def test_the_default_constitution_has_sixteen_principles_as_the_paper() -> None:
    assert len(load_constitution("harmless").principles) == 16


@pytest.mark.parametrize("layout", ["wheel", "checkout"])
def test_built_ins_are_found_in_a_wheel_and_in_a_checkout_from_anywhere(layout: str, tmp_path: Path) -> None:
    source = Path(cai_core.__file__).parent
    root = tmp_path / "site"
    shutil.copytree(source, root / "cai_core", ignore=shutil.ignore_patterns("__pycache__", "_constitutions"))
    inside = {"wheel": root / "cai_core" / "_constitutions", "checkout": root / "constitutions"}[layout]
    inside.mkdir()
    (inside / "only.yaml").write_text(GOOD.replace("id: firm", "id: only"))
    if layout == "checkout":
        (root / "pyproject.toml").write_text("")
    else:
        # What another package leaves beside ours in site-packages is none of our business.
        (root / "constitutions").mkdir()
        (root / "constitutions" / "foreign.yaml").write_text(GOOD)
    printed = subprocess.run(
        [sys.executable, "-c", "from cai_core.constitution import *; print([c.id for c in list_constitutions()])"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == "['only']"
