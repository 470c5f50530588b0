"""YAML of strangers: plain data with line numbers, or an error that names the line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_core.errors import UserError
from cai_core.yamlio import load_yaml, near_name, read_yaml

LETTERS = list(zip("abcdefgh", "bcdefghi", strict=True))
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in LETTERS
)
DEEP = "a: &a [[[[[[[[[[x]]]]]]]]]]\n" + "".join(
    f"{after}: &{after} [[[[[[[[[[*{before}]]]]]]]]]]\n" for before, after in LETTERS
)


def test_scalars_follow_yaml_1_2() -> None:
    text = """
lr: 1e-5
on: off
no: yes
date: 2024-01-01
time: 12:30
version: "1.0"
hex: 0x1F
octal: 0o17
zero: 017
flag: true
none: ~
empty:
text: !!str 12
block: |
  two
  lines
"""
    data, _ = load_yaml(text, "t")
    assert data == {
        "lr": 1e-5,
        "on": "off",
        "no": "yes",
        "date": "2024-01-01",
        "time": "12:30",
        "version": "1.0",
        "hex": 31,
        "octal": 15,
        "zero": 17,
        "flag": True,
        "none": None,
        "empty": None,
        "text": "12",
        "block": "two\nlines\n",
    }


def test_every_path_has_its_line() -> None:
    data, lines = load_yaml("a: &x\n  - b: 1\n  - {c: 2,\n     d: 3}\nz: *x\n", "f.yaml")
    assert data == {"a": [{"b": 1}, {"c": 2, "d": 3}], "z": [{"b": 1}, {"c": 2, "d": 3}]}
    expected = {("a",): 1, ("a", 0): 2, ("a", 0, "b"): 2, ("a", 1, "d"): 4, ("z",): 5, ("z", 1, "d"): 4, (): 1}
    assert {path: lines.line(path) for path in expected} == expected
    assert lines.line(("a", 2)) is None
    assert lines.where(("z", 0, "nothing", "below")) == "f.yaml:2"


def test_aliases_are_copies() -> None:
    data, _ = load_yaml("a: &x [1]\nb: *x\n", "t")
    data["b"].append(2)
    assert data == {"a": [1], "b": [1, 2]}


def test_an_empty_document_is_none() -> None:
    assert load_yaml("# nothing\n", "t")[0] is None
    assert load_yaml("", "t")[0] is None


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is given twice (first on line 1)"),
        ("a:\n  - {x: 1, x: 2}\n", 2, "'x' is given twice"),
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", 2, "tag"),
        ("a: !env HOME\n", 1, "tag '!env'"),
        ("a: 1\nb: &b [*b]\n", 2, "contains itself"),
        ("a: *nowhere\n", 1, "no anchor"),
        ("a: 1\n<<: {b: 2}\n", 2, "merge keys"),
        ("a: 1\n2: b\n", 2, "not text"),
        ("? [a, b]\n: 1\n", 1, "not text"),
        ("a: 1\nb: .nan\n", 2, "finite"),
        ("a: 1e999\n", 1, "finite"),
        ("a: " + "9" * 5000 + "\n", 1, "digits"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a: 1\nb: \x1b[31m\n", 2, "not valid YAML"),
        ('a: "\\ud800"\n', 1, "surrogate"),
        ("a: !!int hello\n", 1, "not of type int"),
        ("a: 'open\n", 2, "not valid YAML"),
    ],
)
def test_what_is_refused_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_yaml(text, "f.yaml")
    assert caught.value.where == f"f.yaml:{line}"
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases followed"),
        ("[" * 100_000, "nested deeper"),
        ("- " * 100_000, "nested deeper"),
        ("{a: " * 100_000, "nested deeper"),
        (DEEP, "nested deeper"),
        ("x" * 1_000_001, "larger than"),
    ],
    ids=["billion laughs", "flow depth", "block depth", "mapping depth", "depth by aliases", "size"],
)
def test_bombs_do_not_go_off(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_yaml(text, "f.yaml")


def test_files_are_read_as_utf8_with_or_without_bom(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffa: é\n".encode())
    assert read_yaml(path)[0] == {"a": "é"}
    path.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(UserError, match="UTF-8") as caught:
        read_yaml(path)
    assert caught.value.where == f"{path}:2"
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(UserError, match="larger"):
        read_yaml(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_the_result_is_json() -> None:
    data, _ = load_yaml("a: [1, 2.5, x, true, null, {b: c}]\n", "t")
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_near_names() -> None:
    assert near_name("logprb", ["vote", "logprob"]) == "Did you mean 'logprob'?"
    assert near_name("LogProb", ["vote", "logprob"]) == "Did you mean 'logprob'?"
    assert near_name("zzz", ["vote", "logprob"]) == ""
