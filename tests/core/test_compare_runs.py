"""``cai compare``: what it finds, what it refuses, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cai_core.cli.main import main
from cai_core.pipeline.compare_runs import _with_options
from cai_core.plugins import load_plugins
from cai_core.registry import Registry
from runs import evaluated_run

ITEMS = [f"item-{i:02d}" for i in range(30)]
NEVER = dict.fromkeys(ITEMS, 0.0)
OFTEN = {item: float(i < 12) for i, item in enumerate(ITEMS)}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(place: Path, name: str, values: dict[str, float], **more: Any) -> str:
    return str(evaluated_run(place / "runs", place / ".cai/store", name, {"base": NEVER, "rl": values}, **more))


def compared(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert main(["compare", *arguments, "--json"]) == code
    said = capsys.readouterr()
    return json.loads(said.out) if code == 0 else said.err


def test_a_difference_is_found_with_what_flipped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(place, "a", OFTEN), run(place, "b", NEVER, answer="another answer", recipe={"rl": {"name": "ppo"}})
    found = compared(capsys, a, b)
    (row,) = found["rows"]
    assert (row["difference"], row["n"], row["test"]) == (-0.4, 30, "exact McNemar")
    assert row["p"] == pytest.approx(2 * 0.5**12)
    assert row["conclusive"]
    assert (row["raised"], row["lowered"]) == (0, 12)
    assert row["effect_name"] == "Cohen's h"
    assert row["effect"] == pytest.approx(-1.3694, abs=1e-4)  # 2 asin(sqrt(0)) - 2 asin(sqrt(0.4))
    assert [change["id"] for change in found["changes"]] == ITEMS[:12]
    first = found["changes"][0]
    assert (first["a"], first["b"], first["verdict"]) == (1.0, 0.0, "better")
    assert first["prompt"] == [{"role": "user", "content": "prompt item-00"}]
    assert (first["answer_a"], first["answer_b"]) == ("an answer of rl", "another answer of rl")
    assert found["settings"] == [{"key": "rl.name", "a": None, "b": "ppo"}]
    assert "b is better" in found["findings"][0]["title"]


def test_the_terminal_names_both_sides_and_the_items(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(place, "a", OFTEN), run(place, "b", NEVER, answer="\x1b[31mred\u202e")
    assert main(["compare", a, b, "--changes", "1"]) == 0
    said = capsys.readouterr().out
    assert "A: a, RL-CAI (RL) (rl), seed 1" in said
    assert "12 of 30 items changed" in said
    assert "item-00: 1 -> 0, better" in said
    assert "item-01" not in said
    assert "\\x1b[31mred\\u202e" in said
    assert "\x1b" not in said


def test_equal_runs_conclude_nothing_and_say_what_would_have_shown(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = run(place, "a", NEVER), run(place, "b", NEVER)
    found = compared(capsys, a, b)
    (row,) = found["rows"]
    assert row["low"] < 0 < row["high"], "no difference seen is not no difference"
    assert row["minimum_detectable"] > 0
    assert found["findings"][0]["level"] == "warning"
    assert found["changes"] == []


def test_runs_with_other_prompts_are_refused_and_never_pair_two_texts(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {item: f"prompt {item}" for item in ITEMS}
    a = run(place, "a", OFTEN)
    b = run(place, "b", NEVER, prompts={**texts, "item-00": "another prompt", "more": "one more"})
    said = compared(capsys, a, b, code=2)
    assert "29 are the same, 0 only in the first, 1 only in the second, 1 have the same id and another text" in said
    found = compared(capsys, a, b, "--force")
    assert found["forced"]
    assert found["warnings"][0].startswith("Forced: held-out prompts")
    assert found["rows"][0]["n"] == 29
    assert "item-00" not in {change["id"] for change in found["changes"]}


def test_runs_whose_evaluators_are_set_differently_are_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(place, "a", OFTEN, options={"limit": 1}), run(place, "b", NEVER, options={"limit": 2})
    assert "evaluator refusal: options limit: 1 and 2" in compared(capsys, a, b, code=2)


def test_scores_of_two_preference_models_are_not_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(place, "a", OFTEN, reward="1"), run(place, "b", NEVER, reward="2")
    found = compared(capsys, a, b)
    assert found["rows"] == []
    assert found["left_out"][0]["reason"] == "it asks the reward model, and the two runs have different ones"
    assert found["findings"][0]["title"] == "Nothing can be compared"
    forced = compared(capsys, a, b, "--force")
    assert forced["forced"]
    assert len(forced["rows"]) == 1
    c = run(place, "c", NEVER, reward="1")
    assert len(compared(capsys, a, c)["rows"]) == 1


def test_answers_against_the_same_opponent_are_paired_and_against_another_not(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = {f"p{n}/sft": float(n % 2) for n in range(8)}
    more: dict[str, Any] = {"prompts": {"p": "prompt"}}
    same = {"opponent": "sft", "other": "what sft said"}
    a = run(place, "a", items, payload=same, answer="one", **more)
    b = run(place, "b", dict.fromkeys(items, 1.0), payload=same, answer="two", **more)
    (row,) = compared(capsys, a, b)["rows"]
    assert (row["n"], row["raised"]) == (8, 4)
    c = run(place, "c", items, payload={**same, "other": "what another sft said"}, **more)
    assert compared(capsys, a, c)["rows"] == []


def test_two_models_of_one_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = run(place, "a", OFTEN)
    found = compared(capsys, a, a, "--model-a", "base", "--model-b", "rl")
    assert found["rows"][0]["difference"] == 0.4
    assert (found["a"]["model"], found["b"]["model"]) == ("base", "rl")
    assert "models: base, rl" in compared(capsys, a, a, "--model-a", "sft", code=2)


def test_items_that_belong_together_are_one_observation(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clusters = {item: f"conversation {i // 6}" for i, item in enumerate(ITEMS)}  # 5 conversations of 6 turns
    a, b = run(place, "a", OFTEN, clusters=clusters), run(place, "b", NEVER, clusters=clusters)
    (row,) = compared(capsys, a, b)["rows"]
    assert (row["n"], row["clusters"]) == (30, 5)
    assert row["test"] == "sign-flip permutation by cluster"
    assert row["p"] == 0.5, "2 of 5 conversations changed, each as a whole: 2 of 4 sign patterns are as extreme"
    assert not row["conclusive"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "b"), "not a run folder: it has no run.json"),
        (("a", "stopped"), "the stage evaluate has not run to its end (cancelled)"),
        (("a", "b", "--store-b", "elsewhere"), "is not in the store elsewhere"),
        (("a", "b", "-o", "x.pdf"), "the name must end in .html, .md or .json"),
        (("a", "b", "-o", "nowhere/x.md"), "there is no folder nowhere"),
        (("a", "damaged"), "run.json is damaged"),
    ],
)
def test_bad_input_is_said(
    arguments: tuple[str, ...], says: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(place, "a", OFTEN)
    run(place, "b", NEVER)
    run(place, "stopped", NEVER, status="cancelled")
    (place / "runs/damaged").mkdir()
    (place / "runs/damaged/run.json").write_text("{]")
    given = [f"runs/{argument}" if i < 2 else argument for i, argument in enumerate(arguments)]
    assert says in compared(capsys, *given, code=2)


def test_files_are_written_whole_and_with_the_same_bytes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(place, "a", OFTEN), run(place, "b", NEVER, answer="<script>alert(1)</script> | `x` \x1b[0m \ud800")
    files = [f"x.{end}" for end in ("html", "md", "json")]
    assert main(["compare", a, b, *(part for name in files for part in ("-o", name))]) == 0
    first = {name: Path(name).read_bytes() for name in files}
    assert main(["compare", a, b, *(part for name in files for part in ("-o", name))]) == 0
    assert first == {name: Path(name).read_bytes() for name in files}
    assert sorted(path.name for path in place.iterdir()) == [".cai", "runs", "x.html", "x.json", "x.md"]
    page = first["x.html"].decode()
    assert "<script>alert" not in page
    assert "default-src &#39;none&#39;" in page
    assert "an answer" not in first["x.md"].decode(), "no model text in what is pasted elsewhere"
    found = json.loads(first["x.json"])
    assert found == compared(capsys, a, b)
    schema = json.loads((Path(__file__).parents[2] / "docs/reference/comparison.schema.json").read_text())
    jsonschema.validate(found, schema, cls=jsonschema.Draft202012Validator)


def test_a_reward_model_that_no_evaluator_asks_makes_no_difference() -> None:
    component = Registry(load_plugins()).find("evaluator", "pairwise").component
    assert _with_options(component, {"judge": "labeler"}, "needs") == ("labeler", "principle_sampler")
    assert _with_options(component, {"judge": "reward_model"}, "needs") == ("reward_model",)
    assert _with_options(component, {"an option": "of another version"}, "needs") == component.needs
