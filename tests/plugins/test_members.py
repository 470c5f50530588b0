"""Ensembles of components that nobody here knows: their members are checked, asked and part of every identity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from cai_core.constitution import load_constitution
from cai_core.errors import UserErrors
from cai_core.pipeline.components import ComponentUse, Resolver, build_component
from cai_core.pipeline.graph import Graph, build_graph
from cai_core.plugins import Offer, Plugins, load_plugins
from cai_core.recipe import load_recipe
from cai_core.registry import Registry
from cai_core.testing import TestContext
from cai_core.types.component import EXECUTION, Component
from cai_core.types.labeler import Comparison, Label
from cai_core.types.principles import Principle
from cai_core.types.records import Message
from cai_core.types.reward import Exchange, Preference
from cai_core.types.trainer import TrainResult
from servers import FaultServer

PROMPT = (Message("user", "How do I bake bread?"),)


class TasteOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    word: str = Field("flour", description="what is liked")
    threads: int = Field(1, description="changes nothing", json_schema_extra=EXECUTION)


class Taste:
    """A labeler and a reward model: one word decides."""

    def __init__(self, options: TasteOptions, context: Any) -> None:
        self.word = options.word
        self.context = context

    def label(self, comparisons: Sequence[Comparison]) -> Iterator[Label]:
        for c in comparisons:
            likes = (self.word in c.response_a) - (self.word in c.response_b)
            yield Label(c.id, 0.5 + 0.4 * likes, {"role": str(self.context.backend("judge"))})

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        out.mkdir(parents=True)
        (out / "word").write_text(self.word)
        return TrainResult(metrics={})

    def load(self, path: Path) -> None:
        self.word = (path / "word").read_text()

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [float(self.word in exchange.response) for exchange in exchanges]


def registry(**changed: Any) -> Registry:
    """All plugins and ``x-taste/taste``; changed: fields of its component."""
    component = replace(Component("taste", TasteOptions, Taste, "one word", roles=("judge",), trains=False), **changed)
    kinds = ("labeler", "reward_model")
    foreign = [Offer(k, component, "x-taste/taste", "x-taste:t", "x-taste", "2.7", __name__) for k in kinds]
    return Registry(Plugins((*load_plugins().offers, *foreign), (), ()))


RECIPE = """
name: t
models: {base: org/model, judge: org/judge, judge_cot: org/cot}
pairs: {path: pairs.jsonl}
label:
  labeler:
    name: ensemble
    members: MEMBERS
reward: {name: ensemble, members: [{reward_model: taste}, {reward_model: rules, weight: 2}]}
"""
TWO = "[{labeler: taste, role: judge_cot, word: yeast}, {labeler: human, path: people.jsonl}]"


def graph_of(folder: Path, members: str = TWO, known: Registry | None = None, recipe: str = RECIPE) -> Graph:
    (folder / "pairs.jsonl").write_text(json.dumps({"prompt": "How?", "a": "So.", "b": "No."}))
    if not (folder / "people.jsonl").exists():
        (folder / "people.jsonl").write_text(json.dumps({"prompt": "How?", "a": "So.", "b": "No.", "p_a": 1.0}))
    (folder / "r.yaml").write_text(recipe.replace("MEMBERS", members))
    file = load_recipe(str(folder / "r.yaml"), ())
    constitution = load_constitution(file.recipe.constitution, file.folder)
    return build_graph(file, Resolver(known or registry()), constitution)


def use_of(graph: Graph, kind: str = "labeler") -> ComponentUse:
    return next(use for stage in graph.stages for use in stage.components if use.kind == kind)


def test_a_member_is_any_registered_component_and_part_of_the_identity(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    use = use_of(graph)
    assert [(m.id, m.version) for m in use.members] == [("x-taste/taste", "2.7"), ("cai-core/human", use.version)]
    first = use.identity()["options"]["members"][0]
    assert first == {
        "role": "judge_cot",
        "labeler": {"kind": "labeler", "id": "x-taste/taste", "revision": 1, "options": {"word": "yeast"}},
    }
    label = next(stage for stage in graph.stages if stage.id == "label")
    assert {role: model.name for role, model in label.models.items()} == {"judge_cot": "org/cot"}, "people ask nobody"
    same = [TWO.replace("yeast", "yeast, threads: 9"), TWO.replace("taste", "x-taste/taste")]
    other = [TWO.replace("yeast", "salt"), TWO.replace("role: judge_cot, ", "")]
    identity = use.identity()
    assert all(use_of(graph_of(tmp_path, members)).identity() == identity for members in same)
    assert all(use_of(graph_of(tmp_path, members)).identity() != identity for members in other)
    assert use_of(graph_of(tmp_path, known=registry(revision=2))).identity() != identity
    (tmp_path / "people.jsonl").write_text(json.dumps({"prompt": "How?", "a": "So.", "b": "No.", "p_a": 0.0}))
    assert use_of(graph_of(tmp_path)).identity() != identity, "a member's file counts by its content"


def test_what_is_wrong_with_a_member_is_told_with_its_place(tmp_path: Path) -> None:
    for members, message, where in (
        ("[{labeler: taste, wort: x}, {labeler: taste}]", "has no option 'wort'", "label.labeler.members.0.wort"),
        ("[{labeler: taste}, {labeler: tast}]", "unknown labeler 'tast'", "label.labeler.members.1"),
        ("[{labeler: taste}, {labeler: human, path: no.jsonl}]", "no such file: no.jsonl", "members.1.path"),
        ("[{labeler: taste}, {word: x}]", "needs the option 'labeler'", "members.1.labeler"),
        ("[{labeler: taste}]", "at least 2 items", "label.labeler.members"),
    ):
        with pytest.raises(UserErrors) as caught:
            graph_of(tmp_path, members)
        (problem,) = caught.value.problems
        assert message in problem.message
        assert where in problem.where


def test_everything_that_is_wrong_with_members_is_told_at_once_and_where_it_stands(tmp_path: Path) -> None:
    nested = "{labeler: ensemble, members: [{labeler: taste}, {labeler: tast}]}"
    wrong = f"[{{labeler: taste, wort: x}}, {{labeler: taste}}, {nested}]"
    elsewhere = RECIPE.replace("name: ensemble\n    members: MEMBERS", "ensemble")
    elsewhere += "options: {labeler: {ensemble: {members: MEMBERS}}}\n"
    for recipe, place in ((RECIPE, "label.labeler"), (elsewhere, "options.labeler.ensemble")):
        with pytest.raises(UserErrors) as caught:
            graph_of(tmp_path, wrong, recipe=recipe)
        found = [problem.where.split(": ")[-1] for problem in caught.value.problems]
        assert found == [f"{place}.members.0.wort", f"{place}.members.2.members.1"]


def test_members_are_built_with_their_options_and_the_model_of_their_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry()
    monkeypatch.setattr("cai_core.testing.context.registry", lambda: known)
    context = TestContext(tmp_path / "w", backends={"judge": "the judge", "judge_cot": "the other"})  # type: ignore[dict-item]
    members = "[{labeler: taste}, {labeler: ensemble, members: [{labeler: taste, word: salt, role: judge_cot}, "
    members += "{labeler: taste, word: salt}]}]"
    labeler = build_component(known, use_of(graph_of(tmp_path, members)).as_dict(), context)
    pair = Comparison("x", PROMPT, "flour", "salt", (Principle("p", comparison="Which?"),))
    (found,) = labeler.label([pair])
    assert found.p_a == pytest.approx((0.9 + 0.1) / 2)
    assert found.evidence["members"] == {"x-taste/taste@judge": 0.9, "ensemble@judge": pytest.approx(0.1)}
    inner = list(labeler.members["ensemble@judge"].members.values())
    assert [next(m.label([pair])).evidence["role"] for m in inner] == ["the other", "the judge"]


def test_a_reward_ensemble_takes_foreign_members_and_loads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry()
    monkeypatch.setattr("cai_core.testing.context.registry", lambda: known)
    graph = graph_of(tmp_path)
    use = use_of(graph, "reward_model")
    (stage,) = (s for s in graph.stages if s.id == "reward")
    assert set(stage.models) == {"judge"}, "nothing in it trains a model"
    context = TestContext(tmp_path / "w")
    spec = use.as_dict()
    spec["options"]["members"][1]["patterns"] = ({"regex": "salt", "weight": 1},)
    model = build_component(known, spec, context)
    answers = ("flour", "salt", "flour and salt", "no")
    pairs = [Preference(f"p{i}", PROMPT, a, b, 0.9) for i, (a, b) in enumerate(pairwise(answers))]
    metrics = model.fit(tmp_path, pairs, tmp_path / "out").metrics
    assert {"x-taste/taste-1.agreement_measured", "rules-1.agreement_measured"} <= metrics.keys()
    loaded = build_component(known, use.as_dict(), TestContext(tmp_path / "v"))
    loaded.load(tmp_path / "out")
    given = [Exchange(text, PROMPT, text) for text in answers]
    assert loaded.score(given) == model.score(given)


def test_a_reward_that_trains_nothing_needs_no_weights(tmp_path: Path) -> None:
    served = RECIPE.replace("org/model", "'server:m'")
    members = "{name: ensemble, members: [{reward_model: rules}, {reward_model: WHICH}]}"
    for reward, trains in (
        ("judge", False),
        ("rules", False),
        (members.replace("WHICH", "judge"), False),
        (members.replace("WHICH", "preference"), True),
    ):
        recipe = "\n".join(line for line in served.splitlines() if not line.startswith("reward"))
        graph = graph_of(tmp_path, recipe=f"{recipe}\nreward: {reward}\n")
        (stage,) = (s for s in graph.stages if s.id == "reward")
        assert ("reward_base" in stage.models) == trains


def test_a_judge_and_its_base_may_both_be_on_a_server(tmp_path: Path) -> None:
    pair = {"prompt": "How?", "a": "Mix and bake.", "b": "No.", "p_a": 0.9}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))

    def run(server: FaultServer) -> subprocess.CompletedProcess[str]:
        (tmp_path / "r.yaml").write_text(
            "name: t\nmodels: {base: 'server:m'}\npairs: {path: pairs.jsonl}\nreport: null\n"
            f"backend: {{name: openai, base_url: '{server.url}'}}\n"
            "label: {labeler: {name: human, path: pairs.jsonl}, audit: null}\n"
            "reward: {name: judge, format: text}\n"
        )
        command = [sys.executable, "-m", "cai_core.cli.main", "run", "r.yaml"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    with FaultServer() as server:
        server.reply = lambda body: {"choices": [{"text": "x", "finish_reason": "stop"}]}
        refused = run(server)
    assert refused.returncode == 1
    assert "gives no log-probabilities of the prompt" in refused.stderr
    assert "`echo` with `logprobs`" in refused.stderr
    with FaultServer() as server:
        done = run(server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.bodies[-1]["prompt"].endswith("Rating: 10/10")


PLUGIN = """
import os
from pydantic import BaseModel, ConfigDict, Field
from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.labeler import Label

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    word: str = Field("flour", description="what is liked")

class Taste:
    def __init__(self, options, context):
        self.word = options.word

    def label(self, comparisons):
        for c in comparisons:
            with open(os.environ["CALLS"], "a") as file:
                file.write(c.id + "\\n")
            yield Label(c.id, 0.9 if self.word in c.response_a else 0.1)

@hookimpl
def cai_register_labelers():
    yield Component("taste", Options, Taste, "one word", revision=REVISION)
"""


def test_a_changed_member_makes_new_labels_and_an_unchanged_one_none(tmp_path: Path) -> None:
    """As real processes, with a package that is installed beside cai-core."""
    site, calls = tmp_path / "site", tmp_path / "calls"
    information = site / "x_taste-2.7.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: x-taste\nVersion: 2.7\n")
    (information / "entry_points.txt").write_text("[cai_core]\nlabelers = x_taste\n")
    rows = [{"prompt": f"How {n}?", "a": "Mix flour.", "b": "No.", "p_a": 1.0} for n in range(3)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    calls.touch()

    def label(revision: int) -> int:
        (site / "x_taste.py").write_text(PLUGIN.replace("REVISION", str(revision)))
        members = "members=[{labeler: taste}, {labeler: human, path: pairs.jsonl}]"
        arguments = ("label", "pairs.jsonl", "-o", "out.jsonl", "--labeler", "ensemble", "-l", members, "--no-audit")
        path = os.pathsep.join([str(site), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        done = subprocess.run(
            [sys.executable, "-m", "cai_core.cli.main", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path, "CALLS": str(calls), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return len(calls.read_text().splitlines())

    assert label(1) == 3
    assert [json.loads(line)["p_a"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [0.95] * 3
    assert label(1) == 3
    assert label(2) == 6
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/run.json")]
    members = [part for record in records for part in record["components"] if part["id"] == "x-taste/taste"]
    assert sorted((part["version"], part["revision"]) for part in members) == [("2.7", 1), ("2.7", 2)]
