"""Names to offers, mappings to options, options to what a digest covers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from cai_core.errors import PluginError, UserError, UserErrors
from cai_core.plugins import Offer, PluginFailure, Plugins
from cai_core.registry import KINDS, Registry, dumped_options, identity_options
from cai_core.types.component import EXECUTION, Component


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Inner(Strict):
    depth: int = Field(1, ge=1)
    threads: int = Field(1, json_schema_extra=EXECUTION)


class Options(Strict):
    temperature: float = Field(1.0, ge=0)
    samples: int = 4
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    by_name: dict[str, Inner] = Field(default_factory=dict)
    words: frozenset[str] = frozenset()
    budget: int = Field(100, json_schema_extra=EXECUTION)


class Required(Strict):
    path: str


def offer(
    name: str,
    distribution: str = "cai-core",
    kind: str = "labeler",
    options: type[BaseModel] = Options,
    version: str = "1.0",
) -> Offer:
    component: Component[Any] = Component(name, options, lambda o, c: None, "summary")
    return Offer(kind, component, f"{distribution}/{name}", f"{distribution}:p", distribution, version, "module")


def registry(*offers: Offer, failures: tuple[PluginFailure, ...] = ()) -> Registry:
    return Registry(Plugins(offers, failures))


def test_a_bare_name_and_a_full_id_find_the_same() -> None:
    found = registry(offer("vote"), offer("vote", kind="evaluator"), offer("logprob"))
    assert found.find("labeler", "vote") is found.find("labeler", "cai-core/vote")
    assert found.find("labeler", "vote").kind == "labeler"
    assert found.find("labeler", "CAI_Core/vote").id == "cai-core/vote"
    assert [o.component.name for o in found.offers("labeler")] == ["vote", "logprob"]
    assert len(found.offers()) == 3


def test_an_unknown_name_lists_near_names_all_names_and_failed_plugins() -> None:
    failure = PluginFailure("x:judges", "x", "2.0", "ModuleNotFoundError: No module named 'foo'", "Install it.")
    found = registry(offer("logprob"), offer("vote"), offer("vote", "y"), failures=(failure,))
    with pytest.raises(UserError) as caught:
        found.find("labeler", "logprb")
    text = str(caught.value)
    assert "unknown labeler 'logprb'" in text
    assert "Did you mean 'logprob'?" in text
    assert "Available: cai-core/vote, logprob, y/vote." in text
    assert "x:judges (2.0)" in text
    assert "No module named 'foo'" in text
    assert caught.value.exit_code == 2


def test_a_name_of_another_kind_is_unknown() -> None:
    with pytest.raises(UserError, match="unknown trainer 'vote'"):
        registry(offer("vote")).find("trainer", "vote")
    with pytest.raises(UserError, match=r"(?s)unknown kind 'labler'.*Did you mean 'labeler'"):
        registry().find("labler", "vote")


def test_an_ambiguous_name_lists_every_provider_and_a_full_id_resolves_it() -> None:
    found = registry(offer("vote", version="0.1"), offer("vote", "x-extras", version="2.0"))
    with pytest.raises(UserError) as caught:
        found.find("labeler", "vote")
    text = str(caught.value)
    assert "cai-core/vote (cai-core 0.1, plugin cai-core:p)" in text
    assert "x-extras/vote (x-extras 2.0, plugin x-extras:p)" in text
    assert found.find("labeler", "x-extras/vote").version == "2.0"


def test_options_are_checked_and_defaults_filled_in() -> None:
    options = registry().options(offer("vote"), {"temperature": 0, "inner": {"depth": 3}})
    assert isinstance(options, Options)
    assert (options.temperature, options.samples, options.inner.depth) == (0.0, 4, 3)


def test_every_wrong_option_is_reported_at_its_own_path() -> None:
    given = {"temprature": 1, "samples": "many", "inner": {"dept": 2, "depth": 0}, "many": [{"thread": 1}]}
    with pytest.raises(UserErrors) as caught:
        registry().options(offer("vote"), given, where="stages.label.labeler")
    problems = {problem.where: problem for problem in caught.value.problems}
    assert set(problems) == {
        "stages.label.labeler.temprature",
        "stages.label.labeler.samples",
        "stages.label.labeler.inner.dept",
        "stages.label.labeler.inner.depth",
        "stages.label.labeler.many.0.thread",
    }
    assert "labeler 'vote' has no option 'temprature'" in problems["stages.label.labeler.temprature"].message
    assert "Did you mean 'temperature'?" in problems["stages.label.labeler.temprature"].hint
    assert "Did you mean 'depth'?" in problems["stages.label.labeler.inner.dept"].hint
    assert "Did you mean 'threads'?" in problems["stages.label.labeler.many.0.thread"].hint
    assert caught.value.exit_code == 2


def test_a_missing_option_says_so_and_where_may_be_a_function() -> None:
    with pytest.raises(UserErrors) as caught:
        registry().options(offer("jsonl", options=Required), {}, where=lambda path: f"recipe.yaml:7: {path[0]}")
    (problem,) = caught.value.problems
    assert problem.message == "labeler 'vote' needs the option 'path'".replace("vote", "jsonl")
    assert problem.where == "recipe.yaml:7: path"


def test_a_validator_that_crashes_is_the_plugins_fault() -> None:
    from pydantic import field_validator

    class Crashing(Strict):
        size: int = 1

        @field_validator("size")
        @classmethod
        def _check(cls, value: int) -> int:
            raise RuntimeError("no such thing")

    with pytest.raises(PluginError, match="cai-core:p") as caught:
        registry().options(offer("vote", options=Crashing), {"size": 2})
    assert caught.value.exit_code == 1


def test_identity_leaves_out_execution_options_at_any_depth() -> None:
    options = Options(
        budget=7,
        inner=Inner(threads=8),
        many=(Inner(depth=2, threads=3),),
        by_name={"a": Inner(threads=5)},
    )
    assert identity_options(options) == {
        "temperature": 1.0,
        "samples": 4,
        "inner": {"depth": 1},
        "many": [{"depth": 2}],
        "by_name": {"a": {"depth": 1}},
        "words": [],
    }
    assert identity_options(options) == identity_options(options.model_copy(update={"budget": 8}))
    assert identity_options(options) != identity_options(options.model_copy(update={"samples": 5}))


def test_identity_of_a_set_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "import json\nfrom test_registry import Options\nfrom cai_core.registry import identity_options\n"
        "print(json.dumps(identity_options(Options(words=frozenset('quick brown fox jumps over'.split())))))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parent,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1
    assert json.loads(printed.pop())["words"] == ["brown", "fox", "jumps", "over", "quick"]


def test_every_path_is_seen_wherever_it_stands() -> None:
    class Item(Strict):
        path: Path
        cache: Path = Field(Path("c"), json_schema_extra=EXECUTION)

    class Paths(Strict):
        one: Path
        many: tuple[Item, ...]
        by_name: dict[str, Path | int]
        some: frozenset[Path]

    options = Paths(
        one=Path("a"),
        many=(Item(path=Path("b")),),
        by_name={"x": Path("d"), "y": 7},
        some=frozenset(map(Path, ("e", "f", "g"))),
    )
    seen: dict[tuple[str | int, ...], str] = {}

    def upper(path: Path, at: tuple[str | int, ...]) -> str:
        seen[at] = str(path)
        return str(path).upper()

    identity = {
        "one": "A",
        "many": [{"path": "B"}],
        "by_name": {"x": "D", "y": 7},
        "some": ["E", "F", "G"],
    }
    assert identity_options(options, upper) == identity
    assert dumped_options(options, upper) == {**identity, "many": [{"path": "B", "cache": "C"}]}
    assert seen.items() >= {("one",): "a", ("many", 0, "path"): "b", ("by_name", "x"): "d"}.items()
    assert Paths.model_validate(dumped_options(options, lambda path, at: str(path))) == options


def test_identity_refuses_what_is_not_json() -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        identity_options(Options(temperature=float("inf")))


def test_there_are_ten_kinds() -> None:
    assert list(KINDS) == [
        "backend",
        "prompts",
        "principle_sampler",
        "critique_template",
        "labeler",
        "trainer",
        "reward_model",
        "rl_algorithm",
        "evaluator",
        "reporter",
    ]
