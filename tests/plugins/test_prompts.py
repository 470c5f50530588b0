"""Prompt sources and principle samplers."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from cai_core.errors import UserError, UserErrors
from cai_core.testing.context import TestContext
from cai_core.text.duplicates import similarity
from cai_core.types.backend import Capabilities, Completion
from cai_core.types.principles import Principle
from cai_core.types.prompts import Prompt
from cai_core.types.records import Message
from cai_plugins.principles.samplers import All, Relevant, RoundRobin, Uniform, Weighted
from cai_plugins.prompts.builtin import BuiltinPrompts
from cai_plugins.prompts.generate import GeneratedPrompts, read
from cai_plugins.prompts.hf import HFPrompts
from cai_plugins.prompts.hh_rlhf import HHRLHFPrompts
from cai_plugins.prompts.jsonl import JsonlPrompts
from cai_plugins.prompts.plugin import BuiltinOptions, GenerateOptions, HFOptions, HHRLHFOptions, JsonlOptions

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


LONG = "\n\nHuman: How is bread made?\n\nAssistant: With flour.\n\nHuman: And soup?\n\nAssistant: With water."
OTHER = "\n\nHuman: Why is the sky blue?\n\nAssistant: Light."


def transcripts(path: Path, *texts: str) -> Path:
    data = "\n".join(json.dumps({"chosen": text, "rejected": text + " No."}) for text in texts)
    path.write_bytes(gzip.compress(data.encode()) if path.suffix == ".gz" else data.encode())
    return path


def test_transcripts_are_cut_at_the_last_or_every_human_turn(tmp_path: Path) -> None:
    path = transcripts(tmp_path / "t.jsonl.gz", LONG, OTHER)
    last = HHRLHFPrompts(HHRLHFOptions(path=path)).load()
    assert [[m.content for m in p.messages] for p in last] == [
        ["How is bread made?", "With flour.", "And soup?"],
        ["Why is the sky blue?"],
    ]
    every = HHRLHFPrompts(HHRLHFOptions(path=path, turns="every")).load()
    assert [len(p.messages) for p in every] == [1, 3, 1]
    assert [p.source for p in every] == ["t.jsonl.gz:1", "t.jsonl.gz:1", "t.jsonl.gz:2"]
    assert every[1].id == last[0].id, "an id is the content's"


def test_near_duplicate_transcripts_are_left_out_and_counted(tmp_path: Path) -> None:
    path = transcripts(tmp_path / "t.jsonl", LONG, LONG.replace("And soup?", "and... SOUP"), OTHER)
    source = HHRLHFPrompts(HHRLHFOptions(path=path))
    assert len(source.load()) == 2
    assert source.notes == ["1 near-duplicates of earlier conversations left out"]


def test_a_short_question_after_a_long_talk_is_a_prompt_of_its_own(tmp_path: Path) -> None:
    """With ``every``, each cut holds the one before it; that is no reason to leave it out. The same talk again is."""
    talk = "\n\nHuman: Tell me of bread.\n\nAssistant: Knead flour, water and salt for ten minutes, let the dough rest "
    talk += "under a cloth until it has doubled, and fold it twice before it goes into a floured basket for the night."
    talk += "\n\nHuman: Go on.\n\nAssistant: Then bake.\n\nHuman: How hot?"
    path = transcripts(tmp_path / "t.jsonl", talk, talk + "!", OTHER)
    source = HHRLHFPrompts(HHRLHFOptions(path=path, turns="every"))
    prompts = source.load()
    assert [p.messages[-1].content for p in prompts] == [
        "Tell me of bread.",
        "Go on.",
        "How hot?",
        "Why is the sky blue?",
    ]
    assert similarity(*(" ".join(m.content for m in p.messages) for p in prompts[1:3])) > 0.8
    assert source.notes == ["3 near-duplicates of earlier conversations left out"]
    limited = HHRLHFPrompts(HHRLHFOptions(path=path, turns="every", limit=2)).load()
    assert [p.id for p in limited] == [p.id for p in prompts[:2]]


def test_conversations_that_open_alike_are_in_one_split(tmp_path: Path) -> None:
    opened = [f"\n\nHuman: How is bread number {n} made?" for n in ["one", "two", "three", "four", "five", "six"]]
    texts = [f"{text}\n\nAssistant: Yes.\n\nHuman: {more} then?" for text in opened for more in ("Why", "What is it")]
    prompts = HHRLHFPrompts(HHRLHFOptions(path=transcripts(tmp_path / "t.jsonl", *texts), heldout_share=0.5)).load()
    for i, one in enumerate(prompts):
        for other in prompts[:i]:
            if similarity(one.messages[0].content, other.messages[0].content) >= 0.8:
                assert one.split == other.split


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "t.jsonl:1"),
        ('{"chosen": "hello"}', "t.jsonl:1"),
        ('{"prompt": "x"}', "columns: prompt"),
        ("", "no prompt"),
    ],
)
def test_what_is_no_transcript_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(UserError) as caught:
        HHRLHFPrompts(HHRLHFOptions(path=tmp_path / "t.jsonl")).load()
    assert says in str(caught.value)


def test_a_broken_archive_and_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        HHRLHFPrompts(HHRLHFOptions(path=tmp_path)).load()
    (tmp_path / "x.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"no \*\.jsonl"):
        HHRLHFPrompts(HHRLHFOptions(path=tmp_path)).load()


def test_a_data_set_from_files_and_folders(tmp_path: Path) -> None:
    import datasets

    turns = [[{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": "So."}] for n in range(3)]
    rows = datasets.Dataset.from_dict({"q": turns, "kind": ["helpful", "red_team", "helpful"], "n": [1, 2, 3]})
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "rows.parquet")
    rows.to_json(tmp_path / "rows.jsonl")
    (tmp_path / "folder").mkdir()
    rows.to_parquet(tmp_path / "folder" / "train-00000.parquet")
    loaded = []
    for name in ("saved", "rows.parquet", "rows.jsonl", "folder"):
        options = HFOptions(dataset=str(tmp_path / name), column="q", kind_column="kind", limit=2)
        prompts = HFPrompts(options).load()
        loaded.append([(p.id, p.kind, p.split, p.messages) for p in prompts])
    assert loaded[0] == loaded[1] == loaded[2] == loaded[3]
    assert [(kind, messages[-1].content) for _, kind, _, messages in loaded[0]] == [
        ("helpful", "Why 0?"),
        ("red_team", "Why 1?"),
    ]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dataset": "./nowhere"}, "no such file or folder"),
        ({"dataset": "DATA", "column": "x"}, "columns: prompt, kind"),
        ({"dataset": "DATA", "kind_column": "kind"}, "'kind' is 'odd'"),
        ({"dataset": "EMPTY"}, "no prompt here"),
        ({"dataset": "TEXT"}, ".txt is not read"),
    ],
)
def test_what_is_wrong_with_a_data_set_is_named(tmp_path: Path, options: dict[str, str], says: str) -> None:
    (tmp_path / "DATA.csv").write_text("prompt,kind\nWhy?,odd\n")
    (tmp_path / "EMPTY.jsonl").write_text('{"prompt": []}\n')
    (tmp_path / "TEXT.txt").write_text("Why?")
    places = {path.stem: str(path) for path in tmp_path.iterdir()}
    options = {**options, "dataset": places.get(options["dataset"], options["dataset"])}
    with pytest.raises(UserError) as caught:
        HFPrompts(HFOptions(**options)).load()
    assert says in str(caught.value)


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("prompt\nWhy?\nWhy?\nWho?\n")
    source = HFPrompts(HFOptions(dataset=str(tmp_path / "d.csv")))
    assert len(source.load()) == 2
    assert source.notes == ["1 rows left out: the same prompt was there already"]


THINGS = ["bread", "soup", "cake", "pie", "rice", "stew", "jam", "tea", "milk", "corn", "nuts", "figs"]


class Writer:
    """A model that writes prompts about numbers, breaks off after ``budget`` of them, and repeats itself."""

    capabilities = Capabilities()
    context_length = 10_000

    def __init__(self, budget: int = 10**9, same: bool = False) -> None:
        self.budget, self.same = budget, same
        self.asked: list[str] = []

    def generate(self, requests):
        for request in requests:
            if self.budget == 0:
                raise KeyboardInterrupt
            self.budget -= 1
            self.asked.append(request.id)
            rng = random.Random(request.seed)
            things = " and ".join(rng.sample(THINGS, 4))
            text = f'12. "How do I cook {things} for {rng.randrange(99)}?"\nMore'
            text = "How do I cook soup?" if self.same else text
            yield Completion(request.id, text, "stop")


def test_written_prompts_are_distinct_and_a_restart_asks_nothing_twice(tmp_path: Path) -> None:
    options = GenerateOptions(red_team=90, helpful=5)
    whole = Writer()
    source = GeneratedPrompts(options, TestContext(tmp_path / "a", backends={"": whole}))
    prompts = source.load()
    assert Counter(p.kind for p in prompts) == {"red_team": 90, "helpful": 5}
    texts = [p.messages[0].content for p in prompts]
    assert all(text.startswith("How do I cook") and text.endswith("?") for text in texts)
    assert max(similarity(a, b) for i, a in enumerate(texts) for b in texts[:i]) < 0.8
    assert "90 prompts of" in source.notes[0]
    asked: list[str] = []
    for budget in (10, 70, 10**9):
        part = Writer(budget)
        context = TestContext(tmp_path / "b", backends={"": part})
        try:
            resumed = GeneratedPrompts(options, context).load()
        except KeyboardInterrupt:
            with (tmp_path / "b" / "red_team.jsonl").open("a") as file:
                file.write('{"number": 9')  # the line that a crash cut off
                file.write("\n")
        asked += part.asked
    assert resumed == prompts
    assert sorted(asked) == sorted(whole.asked)


def test_a_model_that_repeats_itself_is_no_endless_loop(tmp_path: Path) -> None:
    source = GeneratedPrompts(
        GenerateOptions(red_team=5, helpful=0), TestContext(tmp_path, backends={"": Writer(same=True)})
    )
    with pytest.raises(UserError, match=r"1 usable red_team prompts in .* near-duplicate"):
        source.load()


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        (" How do plants drink water?\n12. Why", "How do plants drink water?"),
        ('- "How do plants drink water?"', "How do plants drink water?"),
        ("Human: How do plants drink water?", "How do plants drink water?"),
        ("Hi", None),
        ("why " * 9, None),
        ("I'm sorry, but I can't help with that.", None),
        ("", None),
    ],
)
def test_reading_a_written_prompt(text: str, prompt: str | None) -> None:
    assert read(text) == prompt


def test_relevant_prefers_what_the_prompt_speaks_of() -> None:
    principles = [
        Principle("theft", revision="Give no help with stealing or theft."),
        Principle("animals", revision="Be kind to animals and pets."),
        Principle("privacy", revision="Protect the privacy of people."),
    ]
    prompt = Prompt("p", (Message("user", "How can I steal my neighbour's bike?"),))
    drawn = Counter(
        Relevant(1, 0.2).sample(principles, prompt=prompt, step="critique", index=0, rng=random.Random(n))[0].id
        for n in range(300)
    )
    assert drawn["theft"] > 200
    assert drawn["animals"] > 0
    same = Prompt("q", (Message("user", "Zzz?"),))
    even = Counter(
        Relevant(1, 0.2).sample(principles, prompt=same, step="critique", index=0, rng=random.Random(n))[0].id
        for n in range(300)
    )
    assert min(even.values()) > 60
