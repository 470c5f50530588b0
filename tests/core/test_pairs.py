"""Pairs from files in the forms that people have them, and how well probabilities fit what was preferred."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cai_core.calibration import accuracy, brier, calibration_error, length_slope
from cai_core.errors import UserError
from cai_core.text.pairs import labelled_pairs, read_pairs
from cai_core.types.records import Message

USER = Message("user", "How?")
TALK = (USER, Message("assistant", "Slowly."), Message("user", "And then?"))
TRANSCRIPT = "\n\nHuman: How?\n\nAssistant: Slowly.\n\nHuman: And then?"
PAPER = (
    "\n\nConsider the following conversation between a human and an assistant:" + TRANSCRIPT + "\n\n\nPlease choose. "
    "Options:\n (A) [[[Yes.]]]\n (B) [[[No.\n (B) no!]]]\n\nThe answer is:"
)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "How?", "a": "Yes.", "b": "No."}, ((USER,), "Yes.", "No.", None)),
        ({"prompt": "How?", "a": "Yes.", "b": "No.", "p_a": 0.25}, ((USER,), "Yes.", "No.", 0.25)),
        ({"prompt": "How?", "chosen": "Yes.", "rejected": "No."}, ((USER,), "Yes.", "No.", 1.0)),
        ({"prompt": "How?", "chosen": "Yes.", "rejected": "No.", "p_chosen": 0.55}, ((USER,), "Yes.", "No.", 0.55)),
        ({"prompt": "How?", "chosen": "Yes.", "rejected": "No.", "p_a": 0.0}, ((USER,), "Yes.", "No.", 0.0)),
        ({"prompt": TRANSCRIPT, "better": "Yes.", "worse": "No."}, (TALK, "Yes.", "No.", 1.0)),
        ({"prompt": TRANSCRIPT + "\n\nAssistant:", "a": "Yes.", "b": ""}, (TALK, "Yes.", "", None)),
        (
            {"chosen": f"{TRANSCRIPT}\n\nAssistant: Yes.", "rejected": f"{TRANSCRIPT}\n\nAssistant: No."},
            (TALK, "Yes.", "No.", 1.0),
        ),
        (
            {
                "prompt": [m.as_dict() for m in TALK],
                "chosen": [{"role": "assistant", "content": "Yes."}],
                "rejected": [*(m.as_dict() for m in TALK), {"role": "assistant", "content": "No."}],
            },
            (TALK, "Yes.", "No.", 1.0),
        ),
        ({"prompt": PAPER, "corrects": [" (A)"], "incorrects": [" (B)"]}, (TALK, "Yes.", "No.\n (B) no!", 1.0)),
        ({"prompt": PAPER, "corrects": "(B)", "incorrects": "(A)"}, (TALK, "Yes.", "No.\n (B) no!", 0.0)),
        (
            {"prompt": PAPER.replace("[[[", "").replace("]]]", ""), "corrects": ["(B)"], "incorrects": ["(A)"]},
            (TALK, "Yes.", "No.\n (B) no!", 0.0),
        ),
    ],
)
def test_the_forms_of_a_pair(tmp_path: Path, row: dict[str, Any], expected: tuple[Any, ...]) -> None:
    (pair,) = read_pairs(write(tmp_path / "p.jsonl", row))
    assert (pair.prompt, pair.a, pair.b, pair.p_a) == expected


def test_ids_come_from_the_content_and_equal_pairs_get_different_ones(tmp_path: Path) -> None:
    row = {"prompt": "How?", "a": "Yes.", "b": "No."}
    first, second, other = read_pairs(write(tmp_path / "p.jsonl", row, row, {**row, "b": "Never."}))
    assert second.id == f"{first.id}-2"
    assert other.id not in (first.id, second.id)
    (again,) = read_pairs(write(tmp_path / "q.jsonl", {"prompt": "How?", "b": "No.", "a": "Yes."}))
    assert again.id == first.id


def test_zipped_files_marks_blank_lines_and_limits(tmp_path: Path) -> None:
    lines = [
        "\ufeff" + json.dumps({"prompt": "How?", "a": "Yes.", "b": "1"}),
        "",
        json.dumps({"prompt": "x", "a": "y"}),
    ]
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert [pair.line for pair in read_pairs(path, 1)] == [1]
    with pytest.raises(UserError) as caught:
        read_pairs(path)
    assert "p.jsonl.gz line 3" in caught.value.where


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "x", "rejected": "y", "p_chosen": 1.5}, "`p_chosen` is 1.5; it must be a probability"),
        ({"chosen": "x", "rejected": "y", "p_chosen": "0.5"}, "`p_chosen` is '0.5'; it must be a probability"),
        ({"chosen": "x", "rejected": "y", "p_a": True}, "`p_a` is True; it must be a probability"),
        ({"chosen": "x", "rejected": "y", "p_a": 0.3, "p_chosen": 0.7}, "`p_a` is 0.3 and `p_chosen` 0.7"),
        ({"a": "x", "b": "y", "p_chosen": 0.7}, "nothing says which of them was chosen"),
    ],
)
def test_probabilities_that_cannot_be_are_refused(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_pairs(write(tmp_path / "p.jsonl", {"prompt": "How?", **row}))
    assert words in str(caught.value)
    assert "line 1" in str(caught.value.where)


def test_pairs_without_a_label_are_refused_and_split_conversations_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = "\n\nHuman: How?\n\nAssistant:"
    split = {"chosen": f"{start} Yes?\n\nHuman: Bread?\n\nAssistant: Bake.", "rejected": f"{start} No."}
    good = {"prompt": "How?", "a": "Yes.", "b": "", "p_a": 0.25}
    assert [pair.p_a for pair in labelled_pairs(write(tmp_path / "p.jsonl", good, split, good))] == [0.25, 0.25]
    assert "p.jsonl: 1 of 3 pairs left out: `chosen` and `rejected` are not one conversation" in caplog.text
    with pytest.raises(UserError, match="this pair has no label") as caught:
        labelled_pairs(write(tmp_path / "p.jsonl", split, {**good, "p_a": None}))
    assert "line 2" in str(caught.value.where)


def test_files_that_are_cut_short_or_damaged_are_told_as_such(tmp_path: Path) -> None:
    packed = gzip.compress("\n".join(json.dumps({"prompt": str(n), "a": "x", "b": "y"}) for n in range(999)).encode())
    path = tmp_path / "p.jsonl.gz"
    broken = {"cut": packed[:-20], "damaged": packed[:50] + bytes(200) + packed[250:], "not gzip": b"{}"}
    for name, data in broken.items():
        path.write_bytes(data)
        with pytest.raises(UserError, match="the file cannot be read: ") as caught:
            read_pairs(path)
        assert caught.value.where == str(path), name


@pytest.mark.parametrize("weight", ["1" + "0" * 400, "1e999", "NaN", "-1" + "0" * 400, "true", '"2"', "[]"])
def test_weights_that_are_no_numbers_above_0_are_refused(tmp_path: Path, weight: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "p", "a": "x", "b": "y", "weight": {weight}}}')
    with pytest.raises(UserError, match=r"`weight` is .* it must be a number above 0") as caught:
        read_pairs(path)
    assert "line 1" in str(caught.value.where)


@pytest.mark.parametrize("key", ["id", "category", "source", "prompt", "a", "b"])
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(tmp_path: Path, key: str) -> None:
    row = {"id": "1", "category": "c", "source": "s", "prompt": "p", "a": "x", "b": "y"}
    with pytest.raises(UserError, match="lone surrogate") as caught:
        read_pairs(write(tmp_path / "p.jsonl", row, {**row, "id": "2", key: "half \ud800 of one"}))
    assert "line 2" in str(caught.value.where)


P = st.lists(st.tuples(st.floats(0, 1) | st.just(0.5), st.sampled_from([0.0, 0.3, 0.5, 1.0])), min_size=1, max_size=30)


@given(P, st.data())
def test_which_answer_is_called_a_makes_no_difference(rows: list[tuple[float, float]], data: st.DataObject) -> None:
    """Swapping the names of any of the pairs leaves every measure as it is, ties included."""
    # Multiples of 1/1024, so that 1 - p is exact and falls into the same bin.
    rows = [(round(q * 1024) / 1024, t) for q, t in rows]
    swapped = [(1 - q, 1 - t) if data.draw(st.booleans()) else (q, t) for q, t in rows]
    for measure in (accuracy, brier, calibration_error):
        found, back = (measure(*zip(*some, strict=True)) for some in (rows, swapped))
        assert back == (None if found is None else pytest.approx(found))


def test_calibration_error_by_hand() -> None:
    """Two bins of width 0.05: [0.7, 0.75) holds confidences 0.72 and 0.72 with one right; [0.9, 0.95) one, right."""
    p, target = [0.72, 0.28, 0.93], [1.0, 1.0, 1.0]
    assert calibration_error(p, target) == pytest.approx((abs(1.44 - 1.0) + abs(0.93 - 1.0)) / 3)
    assert calibration_error([0.5, 0.5], [1.0, 1.0]) == 0.0, "no preference is not confidence in A"
    assert calibration_error([1.0, 0.0], [1.0, 0.0]) == 0.0
    assert calibration_error([], []) is None
    assert brier([0.8, 0.3], [1.0, 0.5]) == pytest.approx((0.04 + 0.04) / 2)
    assert accuracy([0.8, 0.5, 0.2, 0.9], [1.0, 1.0, 1.0, 0.5]) == pytest.approx(0.5)
    assert accuracy([0.8], [0.5]) is None


@given(st.floats(-0.1, 0.1), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=20))
def test_the_slope_of_length_is_found_again(slope: float, lengths: list[tuple[int, int]]) -> None:
    assume(any(one != other for one, other in lengths))
    a, b = [one for one, _ in lengths], [other for _, other in lengths]
    p = [0.5 + slope * math.log2((one + 1) / (other + 1)) for one, other in lengths]
    assert length_slope(p, a, b) == pytest.approx(slope, abs=1e-9)
    assert length_slope([0.9], [4], [4]) is None
