"""Prompt sources and principle samplers."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from cai_core.errors import UserError, UserErrors
from cai_core.types.principles import Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message
from cai_plugins.principles.samplers import All, RoundRobin, Uniform, Weighted
from cai_plugins.prompts.builtin import BuiltinPrompts
from cai_plugins.prompts.jsonl import JsonlPrompts
from cai_plugins.prompts.plugin import BuiltinOptions, JsonlOptions

EVERYTHING = BuiltinOptions(
    red_team=80, helpful=80, heldout_red_team=32, heldout_helpful=24, heldout_borderline=8
)


def test_the_built_in_set_is_what_the_docs_say() -> None:
    prompts = BuiltinPrompts(EVERYTHING).load()
    counts = Counter((p.kind, p.split) for p in prompts)
    assert counts["red_team", "train"] + counts["red_team", "heldout"] >= 96
    assert counts["helpful", "train"] + counts["helpful", "heldout"] >= 96
    assert counts["borderline", "train"] == 0
    assert len({p.id for p in prompts}) == len(prompts)
    texts = [" ".join(p.messages[-1].content.lower().split()) for p in prompts]
    assert len(set(texts)) == len(texts), "no prompt is in both splits or there twice"


def test_a_larger_draw_keeps_a_smaller_one() -> None:
    def ids(n: int) -> list[str]:
        return [p.id for p in BuiltinPrompts(BuiltinOptions(red_team=n, helpful=2)).load() if p.kind == "red_team"]

    assert set(ids(4)) < set(ids(9))


def test_more_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match="80"):
        BuiltinPrompts(BuiltinOptions(red_team=81)).load()


def jsonl(folder: Path, *rows: object, **options: object) -> list[Prompt]:
    path = folder / "p.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return list(JsonlPrompts(JsonlOptions(path=path, **options)).load())  # type: ignore[arg-type]


def test_rows_of_every_form(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    first, second, third = jsonl(
        tmp_path,
        {"prompt": "Hello?", "id": 7, "split": "train"},
        "",
        {"messages": turns, "kind": "helpful", "split": "heldout", "tags": ["x"]},
        {"prompt": "No id", "kind": "borderline"},
    )
    assert (first.id, first.kind, first.split, first.source) == ("7", "red_team", "train", "p.jsonl:1")
    assert [m.content for m in second.messages] == ["a", "b", "c"]
    assert third.split == "heldout"


def test_the_split_by_hash_depends_on_the_row_alone(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}"} for n in range(200)]
    there = {p.id: p.split for p in jsonl(tmp_path, *rows)}
    back = {p.id: p.split for p in jsonl(tmp_path, *reversed(rows))}
    assert there == back
    assert 20 < sum(split == "heldout" for split in there.values()) < 60


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "not a JSON object"),
        ([1], "not a JSON object"),
        ({"promt": "x"}, "unknown key 'promt'"),
        ({"prompt": "  "}, "not empty"),
        ({"prompt": "x", "messages": []}, "either"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last turn"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role"),
        ({"prompt": "x", "split": "test"}, "train, heldout"),
        ({"prompt": "x", "kind": "borderline", "split": "train"}, "held out"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": "x", "id": ""}, "`id`"),
    ],
)
def test_bad_rows_are_told_with_file_and_line(tmp_path: Path, row: object, words: str) -> None:
    with pytest.raises((UserError, UserErrors)) as caught:
        jsonl(tmp_path, {"prompt": "fine"}, row)
    assert words in str(caught.value)
    problems = caught.value.errors if isinstance(caught.value, UserErrors) else [caught.value]
    assert str(problems[0].where).endswith("p.jsonl:2")


PRINCIPLES = [Principle(str(n), "c", "r", "p", weight=w) for n, w in enumerate((1.0, 3.0, 0.0, 1.0))]


def draw(sampler: object, number: int, index: int = 0) -> tuple[str, ...]:
    prompt = Prompt(f"p{number}", (Message("user", "q"),))
    found = sampler.sample(PRINCIPLES, prompt=prompt, step="critique", index=index, rng=random.Random(number))  # type: ignore[attr-defined]
    return tuple(p.id for p in found)


def test_uniform_is_uniform_and_weighted_goes_by_weight() -> None:
    uniform = Counter(draw(Uniform(1), n)[0] for n in range(4000))
    assert all(abs(count / 4000 - 0.25) < 0.03 for count in uniform.values())
    weighted = Counter(draw(Weighted(1), n)[0] for n in range(4000))
    assert weighted["2"] == 0
    assert abs(weighted["1"] / 4000 - 0.6) < 0.03
    assert len(set(draw(Uniform(3), 1))) == 3
    with pytest.raises(UserError, match="weight 0"):
        Weighted(1).sample([PRINCIPLES[2]], prompt=Prompt("p", ()), step="critique", index=0, rng=random.Random(0))


def test_round_robin_repeats_none_before_all_were_used() -> None:
    for number in range(5):
        assert len({draw(RoundRobin(), number, index)[0] for index in range(4)}) == 4


def test_all_gives_all_and_starts_elsewhere_in_every_round() -> None:
    assert draw(All(), 0) == ("0", "1", "2", "3")
    assert draw(All(), 0, 1) == ("1", "2", "3", "0")
