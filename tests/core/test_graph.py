"""Recipes: shape, errors with lines, overrides; the graph: digests, branches, iteration."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai_core.constitution import load_constitution
from cai_core.errors import PluginError, UserError, UserErrors
from cai_core.pipeline.components import Resolver
from cai_core.pipeline.graph import Graph, Stage, build_graph, identity_digest
from cai_core.plugins import Plugins, load_plugins
from cai_core.recipe import load_recipe
from cai_core.registry import Registry
from cai_core.text.parts import held_back, opening
from cai_core.types.records import Message

REGISTRY = Registry(load_plugins())

FULL = """
schema: 1
name: full
seed: 5
constitution: hhh
models: {base: org/model}
prompts: builtin
revise: {rounds: 1}
sft: sft
pairs: {}
label: logprob
reward: preference
rl: grpo
evaluate: [refusal, preference_model]
"""


def graph_of(tmp_path: Path, text: str, *overrides: str, registry: Registry = REGISTRY) -> Graph:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    file = load_recipe(str(path), overrides)
    return build_graph(file, Resolver(registry), load_constitution(file.recipe.constitution, file.folder))


def digests(graph: Graph) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in graph.stages:
        found[stage.id] = identity_digest(
            graph.identity(stage, found, {name: f"digest of {name}" for name in graph.external_models()})
        )
    return found


def changed(tmp_path: Path, *overrides: str) -> set[str]:
    before = digests(graph_of(tmp_path, FULL))
    after = digests(graph_of(tmp_path, FULL, *overrides))
    return {stage for stage in before if before[stage] != after.get(stage)}


def test_stages_come_after_what_they_need(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, FULL)
    ids = [stage.id for stage in graph.stages]
    assert ids == [
        *("prompts", "revise", "sft", "audit", "pairs", "label", "reward", "rl"),
        *("answers[base]", "answers[sft]", "answers[rl]", "evaluate", "report"),
    ]
    for stage in graph.stages:
        assert all(ids.index(parent) < ids.index(stage.id) for parent in stage.parents())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rl=best_of_n", {"rl", "answers[rl]", "evaluate", "report"}),
        ("pairs.sampling.temperature=0.7", {"pairs", "label", "reward", "rl", "answers[rl]", "evaluate", "report"}),
        ("report=[json]", {"report"}),
        ("evaluate.evaluators=[refusal]", {"evaluate", "report"}),
        ("device=cpu", set()),
        ("backend={name: transformers, max_batch: 3}", set()),
        ("plugins.disable=[other]", set()),
    ],
)
def test_one_change_recomputes_only_what_depends_on_it(tmp_path: Path, override: str, expected: set[str]) -> None:
    assert changed(tmp_path, override) == expected


def test_seed_and_model_change_everything_that_uses_them(tmp_path: Path) -> None:
    every = set(digests(graph_of(tmp_path, FULL)))
    assert changed(tmp_path, "seed=6") == every
    assert changed(tmp_path, "models.judge=org/judge") == {
        *("audit", "label", "reward", "rl", "answers[rl]", "evaluate", "report")
    }


def test_constitution_changes_only_the_stages_that_read_it(tmp_path: Path) -> None:
    assert {"prompts", "answers[base]"}.isdisjoint(changed(tmp_path, "constitution=harmless"))
    assert {"revise", "audit", "label"} <= changed(tmp_path, "constitution=harmless")


def test_what_a_component_asks_for_comes_with_its_models(tmp_path: Path) -> None:
    """A reward model that asks the judge, and an RL algorithm that needs the labeler: nothing of it is a built-in's
    privilege."""
    grpo, preference = REGISTRY.find("rl_algorithm", "grpo"), REGISTRY.find("reward_model", "preference")
    online = replace(grpo.component, name="online", needs=("labeler", "principle_sampler"))
    judged = replace(preference.component, name="judged", roles=("judge",))
    more = (
        replace(grpo, component=online, id="x/online"),
        replace(preference, component=judged, id="x/judged"),
    )
    registry = Registry(Plugins((*REGISTRY.offers(), *more)))
    text = FULL.replace("base: org/model", "base: org/model, judge: org/judge")
    found = {stage.id: stage for stage in graph_of(tmp_path, text, registry=registry).stages}
    assert set(found["rl"].models) == {"policy"}
    assert set(found["reward"].models) == {"reward_base"}
    changed = text.replace("rl: grpo", "rl: online").replace("reward: preference", "reward: judged")
    found = {stage.id: stage for stage in graph_of(tmp_path, changed, registry=registry).stages}
    assert found["rl"].models["judge"].name == found["reward"].models["judge"].name == "org/judge"
    assert {use.kind for use in found["rl"].components} >= {"labeler", "principle_sampler", "reward_model"}
    assert found["evaluate"].models["judge"].name == "org/judge", "preference_model scores with it"
    assert found["evaluate"].settings["models"] == ["base", "sft", "rl"], "it is asked and not evaluated"


def test_an_algorithm_gets_the_stages_that_it_learns_from(tmp_path: Path) -> None:
    """`dpo` learns from labels: it needs no reward model and no prompts, and depends on neither."""
    found = {stage.id: stage for stage in graph_of(tmp_path, FULL, "rl=dpo").stages}
    assert found["rl"].inputs == {"label": "label"}
    assert {use.kind for use in found["rl"].components} == {"rl_algorithm", "backend"}
    before = digests(graph_of(tmp_path, FULL, "rl=dpo"))
    assert before["rl"] == digests(graph_of(tmp_path, FULL, "rl=dpo", "reward=rules"))["rl"]
    assert before["rl"] != digests(graph_of(tmp_path, FULL, "rl=dpo", "label.labeler.shots=1"))["rl"]
    alone = FULL.replace("reward: preference\n", "").replace("rl: grpo", "rl: dpo")
    alone = alone.replace("preference_model, ", "").replace(", preference_model", "")
    stages = {stage.id: stage for stage in graph_of(tmp_path, alone).stages}
    assert "reward" not in stages
    assert stages["rl"].inputs == {"label": "label"}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"prompt": "How?", "a": "So.", "b": "No."}\n')
    text = "name: t\nmodels: {base: org/model}\npairs: {path: pairs.jsonl}\nlabel: logprob\nrl: dpo\n"
    assert [s.id for s in graph_of(tmp_path, text).stages] == ["audit", "pairs", "label", "rl", "report"]
    with pytest.raises(UserErrors, match=r"`rl: dpo` needs the stage `label`, which the recipe does not have"):
        graph_of(tmp_path, "name: t\nmodels: {base: org/model}\nprompts: builtin\nrl: dpo\n")
    with pytest.raises(UserErrors, match=r"`rl: grpo` needs the stage `reward`"):
        graph_of(tmp_path, "name: t\nmodels: {base: org/model}\nprompts: builtin\nrl: grpo\n")


def test_iterated_labels_are_those_of_the_current_policy(tmp_path: Path) -> None:
    stages = {stage.id: stage for stage in graph_of(tmp_path, FULL + "iterate: 2\n", "rl=dpo").stages}
    assert stages["rl[2]"].inputs == {"label": "label[2]"}
    assert stages["rl[2]"].models["policy"].stage == "rl[1]"
    assert stages["pairs[2]"].models["policy"].stage == "rl[1]"


def test_a_judge_is_asked_for_only_where_the_options_say_so_and_by_its_own_backend(tmp_path: Path) -> None:
    """`rules` needs a judge for statements alone; a judge on a server stays there when another stage asks it."""
    models = "{base: org/model, judge: 'server:judge', reward_base: org/model}"
    server = "\nbackends: {judge: {name: openai, base_url: 'http://127.0.0.1:1/v1'}}"
    text = FULL.replace("{base: org/model}", models) + server
    asking = "reward={name: rules, propositions: [{statement: It is kind., weight: 1}]}"
    plain = {stage.id: stage for stage in graph_of(tmp_path, text, "reward=rules").stages}
    for stage in ("reward", "rl", "evaluate"):
        assert "judge" not in plain[stage].models
        assert [use.id for use in plain[stage].components if use.kind == "backend"] == ["cai-core/transformers"]
    for override in (asking, "reward=judge"):
        asked = {stage.id: stage for stage in graph_of(tmp_path, text, override).stages}
        for stage in ("reward", "rl", "evaluate"):
            assert asked[stage].models["judge"].name == "server:judge"
            backends = [(use.id, use.role) for use in asked[stage].components if use.kind == "backend"]
            assert backends == [("cai-core/transformers", ""), ("cai-core/openai", "judge")]
        assert [use.role for use in asked["label"].components if use.kind == "backend"] == [""]
    before = digests(graph_of(tmp_path, text, "reward=judge"))
    after = digests(graph_of(tmp_path, text, "reward=judge", "backends.judge.base_url=http://127.0.0.1:2/v1"))
    assert before["answers[base]"] == after["answers[base]"]


def test_a_role_asked_besides_the_stages_own_does_not_take_its_backend(tmp_path: Path) -> None:
    models = "{base: org/model, judge: 'server:judge', judge_cot: org/cot}"
    server = "\nbackends: {judge: {name: openai, base_url: 'http://127.0.0.1:1/v1'}}"
    members = "[{labeler: logprob}, {labeler: cot, role: judge_cot}]"
    text = FULL.replace("{base: org/model}", models).replace(
        "label: logprob", f"label: {{labeler: {{name: ensemble, members: {members}}}}}"
    )

    def backends(text: str) -> dict[str, list[tuple[str, str]]]:
        return {
            stage.id: [(use.id, use.role) for use in stage.components if use.kind == "backend"]
            for stage in graph_of(tmp_path, text).stages
            if stage.id in ("label", "audit")
        }

    found = backends(text + server)
    assert found["label"] == found["audit"] == [("cai-core/openai", ""), ("cai-core/transformers", "judge_cot")]
    assert backends(text)["label"] == [("cai-core/transformers", "")]
    local = "\nbackend: {name: openai, base_url: 'http://127.0.0.1:1/v1'}\nbackends: {judge_cot: transformers}"
    assert backends(text + local)["label"] == [("cai-core/openai", ""), ("cai-core/transformers", "judge_cot")]


def test_a_label_stage_has_the_models_that_its_labeler_asks_and_no_others(tmp_path: Path) -> None:
    models = "{base: org/model, judge: org/judge, judge_cot: org/cot}"
    (tmp_path / "people.jsonl").write_text('{"prompt": "p", "a": "x", "b": "y", "p_a": 1.0}')

    def label(labeler: str) -> tuple[dict[str, str], list[str]]:
        text = FULL.replace("{base: org/model}", models).replace("label: logprob", f"label: {{labeler: {labeler}}}")
        stages = {stage.id: stage for stage in graph_of(tmp_path, text).stages}
        uses = stages["label"].models.items()
        return {role: use.name for role, use in uses}, [use.kind for use in stages["label"].components]

    judge, cot = {"judge": "org/judge"}, {"judge_cot": "org/cot"}
    asking = ["labeler", "principle_sampler", "backend"]
    assert label("logprob") == (judge, asking)
    assert label("{name: human, path: people.jsonl}") == ({}, ["labeler", "principle_sampler"])
    one, other = "{labeler: logprob}", "{labeler: cot, role: judge_cot}"
    assert label(f"{{name: ensemble, members: [{one}, {one}]}}") == (judge, asking)
    assert label(f"{{name: ensemble, members: [{other}, {one}]}}") == (judge | cot, asking)
    assert label(f"{{name: ensemble, members: [{other}, {other}]}}") == (cot, asking)


def test_peoples_labels_have_no_audit_unless_it_has_comparisons_of_its_own(tmp_path: Path) -> None:
    for name in ("people", "others"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "p", "a": "x", "b": "y", "p_a": 1.0}')
    people, judge = "{labeler: {name: human, path: people.jsonl}", "{labeler: logprob"

    def audit(section: str, more: str = "") -> tuple[list[str], tuple[str, ...]]:
        graph = graph_of(tmp_path, FULL.replace("label: logprob", f"label: {section}") + more)
        return [stage.id for stage in graph.stages if stage.kind == "audit"], graph.notes

    note = ("label: these are people's labels, so there is no judge to audit",)
    assert audit(f"{people}}}") == ([], note)
    assert audit(f"{people}, audit: {{name: judge_audit, limit: 9}}}}") == ([], note)
    assert audit(f"{people}, audit: null}}") == ([], ())
    assert audit(f"{people}, audit: {{name: judge_audit, data: others.jsonl}}}}") == (["audit"], ())
    assert audit(f"{judge}}}") == (["audit"], ())
    assert audit(f"{judge}, audit: null}}") == ([], ())
    assert audit(f"{people}}}", "branches: {a: {}, b: {label: logprob}}") == (["audit[b]"], note)


def test_more_members_than_there_are_is_told_before_anything_runs(tmp_path: Path) -> None:
    members = "[{labeler: logprob}, {labeler: verdict}]"
    for least in (1, 2, 3):
        labeler = f"{{name: ensemble, least: {least}, members: {members}}}"
        text = FULL.replace("label: logprob", f"label: {{labeler: {labeler}}}")
        if least < 3:
            graph_of(tmp_path, text)
            continue
        with pytest.raises(UserErrors, match="`least` is 3, and there are 2 members"):
            graph_of(tmp_path, text)


def test_pairs_from_a_file_count_by_content_wherever_it_lies(tmp_path: Path) -> None:
    found = []
    for folder, answer in (("one", "So."), ("two", "So."), ("three", "Other.")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pairs.jsonl").write_text(json.dumps({"prompt": "How?", "a": answer, "b": "No."}))
        text = "name: t\nmodels: {base: org/model}\npairs: {path: pairs.jsonl}\nlabel: logprob\nrl: dpo\n"
        found.append(digests(graph_of(tmp_path / folder, text)))
    assert found[0] == found[1]
    assert {stage for stage in found[0] if found[0][stage] != found[2][stage]} == {"pairs", "label", "rl", "report"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file: pairs.jsonl"),
        ("", "the file has no pair: pairs.jsonl"),
        ("\n \n", "the file has no pair: pairs.jsonl"),
    ],
)
def test_a_pairs_file_that_is_not_there_or_empty_is_one_mistake_before_anything_runs(
    tmp_path: Path, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "pairs.jsonl").write_text(content)
    with pytest.raises(UserErrors) as caught:
        graph_of(tmp_path, "name: t\nmodels: {base: org/model}\npairs: {path: pairs.jsonl}\nlabel: logprob\nrl: dpo\n")
    assert [(p.message, p.where) for p in caught.value.problems] == [
        (says, f"{tmp_path / 'recipe.yaml'}:3: pairs.path")
    ]


def test_files_deep_in_options_are_the_recipes_and_count_by_content(tmp_path: Path) -> None:
    members = "[{reward_model: rules}, {reward_model: preference, helpful: help.jsonl}]"
    text = FULL.replace("reward: preference", f"reward:\n  name: ensemble\n  members: {members}")
    with pytest.raises(UserErrors) as caught:
        graph_of(tmp_path, text)
    missing = {(p.message, p.where) for p in caught.value.problems}
    line = text.splitlines().index(f"  members: {members}") + 1
    where = f"{tmp_path / 'recipe.yaml'}:{line}: reward.members.1.helpful"
    assert missing == {("no such file: help.jsonl", where)}
    (tmp_path / "help.jsonl").write_text("one")
    before = graph_of(tmp_path, text)
    (use,) = next(stage.components for stage in before.stages if stage.id == "reward")[:1]
    assert use.options["members"][1]["helpful"] == str(tmp_path / "help.jsonl"), "a worker may have another folder"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "help.jsonl").write_text("one")
    assert digests(graph_of(tmp_path / "elsewhere", text)) == digests(before)
    (tmp_path / "help.jsonl").write_text("two")
    after = digests(graph_of(tmp_path, text))
    assert {stage for stage, old in digests(before).items() if old != after[stage]} == {
        *("reward", "rl", "answers[rl]", "evaluate", "report")
    }


def test_a_folder_in_options_counts_by_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "critic").mkdir()
    (tmp_path / "critic" / "model.safetensors").write_bytes(b"one")
    text = re.sub(r"^rl: .*$", "rl: {name: ppo, critic: separate, critic_model: critic}", FULL, flags=re.MULTILINE)
    assert "ppo" in text
    before = digests(graph_of(tmp_path, text))
    assert digests(graph_of(tmp_path, text)) == before
    (tmp_path / "critic" / "model.safetensors").write_bytes(b"two")
    after = digests(graph_of(tmp_path, text))
    changed = {stage for stage, old in before.items() if old != after[stage]}
    assert changed == {"rl", "answers[rl]", "evaluate", "report"}


@pytest.mark.parametrize(
    ("roles_of", "message"), [(lambda options: ("judge_cot",), "judge_cot"), (lambda options: 1 / 0, "division")]
)
def test_a_component_that_asks_for_what_it_did_not_declare_is_named(
    tmp_path: Path, roles_of: Callable[[Any], tuple[str, ...]], message: str
) -> None:
    rules = REGISTRY.find("reward_model", "rules")
    odd = replace(rules, component=replace(rules.component, name="odd", roles_of=roles_of), id="x/odd")
    registry = Registry(Plugins((*REGISTRY.offers(), odd)))
    with pytest.raises(PluginError, match=message) as caught:
        graph_of(tmp_path, FULL, "reward=odd", registry=registry)
    assert caught.value.where == "x/odd"


def test_branches_share_what_is_equal(tmp_path: Path) -> None:
    text = FULL.replace("rl: grpo", "rl: grpo\nbranches: {a: {rl: grpo}, b: {rl: best_of_n}}")
    graph = graph_of(tmp_path, text)
    ids = [stage.id for stage in graph.stages]
    assert "reward" in ids
    assert {"rl[a]", "rl[b]", "answers[rl[a]]", "answers[rl[b]]"} <= set(ids)
    assert "rl" not in ids
    both = digests(graph)
    assert both["rl[a]"] == digests(graph_of(tmp_path, FULL))["rl"], "a branch is the same stage as without branches"


def test_iteration_feeds_each_policy_into_the_next_round(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, FULL + "iterate: 2\n")
    stages = {stage.id: stage for stage in graph.stages}
    assert stages["pairs[1]"].models["policy"].stage == "sft"
    assert stages["pairs[2]"].models["policy"].stage == "rl[1]"
    assert stages["rl[2]"].models["policy"].stage == "rl[1]"
    assert stages["rl[2]"].inputs["reward"] == "reward[2]"


def test_a_held_out_reward_takes_labels_of_its_own(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, FULL, "heldout_reward=rules")
    stages = {stage.id: stage for stage in graph.stages}
    assert [stage.id for stage in graph.stages][5:9] == ["label", "reward", "heldout_reward", "rl"]
    assert stages["heldout_reward"].kind == "reward"
    assert stages["reward"].settings == {"part": {"share": 0.5, "heldout": False}}
    assert stages["heldout_reward"].settings == {"part": {"share": 0.5, "heldout": True}}
    assert stages["rl"].inputs["heldout_reward"] == "heldout_reward"
    held = [use.id for use in stages["rl"].components if use.role == "heldout"]
    assert held == ["cai-core/rules"]
    assert [use.id for use in stages["heldout_reward"].components if use.kind == "reward_model"] == held
    assert stages["evaluate"].inputs["reward"] == "reward"
    assert digests(graph).keys() == digests(graph_of(tmp_path, FULL)).keys() | {"heldout_reward"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("heldout_reward={}", {"reward", "rl", "answers[rl]", "evaluate", "report"}),
        ("heldout_reward.share=0.3", {"reward", "rl", "answers[rl]", "evaluate", "report"}),
        ("sft={name: sft, epochs: 2}", {"sft", "pairs", "label", "reward", "rl", "answers[sft]", "answers[rl]",
                                        "evaluate", "report"}),
    ],
)  # fmt: skip
def test_what_a_held_out_reward_changes(tmp_path: Path, override: str, expected: set[str]) -> None:
    assert changed(tmp_path, override) == expected


def test_another_held_out_model_leaves_the_reward_as_it_is(tmp_path: Path) -> None:
    first = digests(graph_of(tmp_path, FULL, "heldout_reward=preference"))
    other = digests(graph_of(tmp_path, FULL, "heldout_reward={reward_model: {name: preference, epochs: 2}}"))
    assert {s for s in first if first[s] != other[s]} == {"heldout_reward", "rl", "answers[rl]", "evaluate", "report"}
    same = digests(graph_of(tmp_path, FULL, "heldout_reward={}"))
    assert same == first, "null is the model of `reward`"


def test_a_held_out_reward_is_launched_as_the_reward_is(tmp_path: Path) -> None:
    """Else a model that is sharded for one of them would have to fit into one process for the other."""

    def launched(*overrides: str) -> dict[str, int]:
        stages = graph_of(tmp_path, FULL, *overrides).stages
        return {stage.id: stage.launch["processes"] for stage in stages if stage.launch}

    all_four = dict.fromkeys(("sft", "reward", "heldout_reward", "rl"), 2)
    assert launched("heldout_reward=preference", "launch=2") == all_four
    assert launched("heldout_reward=preference", "launch={reward: 4}") == {"reward": 4, "heldout_reward": 4}
    # What is said of `reward` by name is no error of another model that cannot.
    assert launched("heldout_reward=rules", "launch={reward: 4}") == {"reward": 4}


def test_dpo_is_watched_by_a_judge_and_learns_from_its_part(tmp_path: Path) -> None:
    text = FULL.replace("reward: preference\n", "heldout_reward: judge\n").replace("rl: grpo", "rl: dpo")
    stages = {stage.id: stage for stage in graph_of(tmp_path, text, "evaluate=[refusal]").stages}
    assert stages["rl"].inputs == {"label": "label", "heldout_reward": "heldout_reward"}
    assert stages["rl"].settings == {"part": {"share": 0.5, "heldout": False}}
    assert stages["rl"].models["judge"].name == "org/model"


def test_held_out_rewards_by_branch_and_round(tmp_path: Path) -> None:
    text = FULL + "branches: {a: {heldout_reward: preference}, b: {}}\niterate: 2\n"
    stages = {stage.id: stage for stage in graph_of(tmp_path, text).stages}
    assert stages["rl[a,2]"].inputs["heldout_reward"] == "heldout_reward[a,2]"
    assert "heldout_reward" not in stages["rl[b,2]"].inputs


@given(st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=30), st.floats(0.05, 0.95))
def test_what_opens_alike_is_held_back_together(texts: list[str], share: float) -> None:
    for text in texts:
        one = (Message("user", text), Message("assistant", "Yes?"), Message("user", "Go on."))
        other = (Message("system", "Be brief."), Message("user", f"  {text.upper().casefold()} "))
        assert opening(one) == opening((Message("user", text),))
        if opening(one) == opening(other):
            assert held_back(one, share) == held_back(other, share)
    assert not held_back(one, 0)
    assert held_back(one, 1)


def test_about_the_share_is_held_back() -> None:
    many = [(Message("user", f"question {i}"),) for i in range(2000)]
    assert 0.25 < sum(held_back(one, 0.3) for one in many) / len(many) < 0.35


def test_the_reward_picks_the_best_of_several_answers(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, FULL + "iterate: 2\n", "evaluate.best_of=4")
    stages = {stage.id: stage for stage in graph.stages}
    stage = stages["answers[best_of_4[sft]]"]
    assert stage.models["policy"].stage == "sft", "the policy that RL starts from"
    assert stage.inputs == {"prompts": "prompts", "reward": "reward[2]"}
    assert stages["evaluate"].inputs["answers:best_of_4[sft]"] == stage.id
    assert "best_of_4[sft]" not in stages["evaluate"].models


def test_feedback_online_has_a_judge_and_a_constitution_and_no_reward(tmp_path: Path) -> None:
    text = FULL.replace("pairs: {}\nlabel: logprob\nreward: preference\nrl: grpo", "rl: oaif")
    graph = graph_of(tmp_path, text, "evaluate=[refusal]")
    stage = next(stage for stage in graph.stages if stage.id == "rl")
    assert stage.inputs == {"prompts": "prompts"}
    assert set(stage.models) == {"policy", "judge"}
    assert {use.kind for use in stage.components} == {"rl_algorithm", "labeler", "principle_sampler", "backend"}
    before = digests(graph)
    other = digests(graph_of(tmp_path, text, "evaluate=[refusal]", "constitution=harmless"))
    assert before["rl"] != other["rl"], "the judge reads its principles"
    assert before["prompts"] == other["prompts"]


def test_policies_of_steps_on_the_way_are_models_in_the_order_of_training(tmp_path: Path) -> None:
    text = FULL.replace("rl: grpo", "branches: {a: {rl: {name: ppo, snapshots: [10, 20]}}, b: {rl: dpo}}")
    graph = graph_of(tmp_path, text)
    (evaluate,) = [stage for stage in graph.stages if stage.id == "evaluate"]
    assert evaluate.settings["models"] == ["base", "sft", "rl[a]@10", "rl[a]@20", "rl[a]", "rl[b]"]
    (answers,) = [stage for stage in graph.stages if stage.id == "answers[rl[a]@20]"]
    assert (answers.models["policy"].stage, answers.models["policy"].snapshot) == ("rl[a]", 20)
    known = digests(graph)
    assert len({known[f"answers[rl[a]{step}]"] for step in ("@10", "@20", "")}) == 3
    chosen = graph_of(tmp_path, text, "evaluate={models: [sft, 'rl[a]@20'], evaluators: [refusal]}")
    assert [s.id for s in chosen.stages if s.kind == "answers"] == ["answers[sft]", "answers[rl[a]@20]"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("rl@15", "rl keeps no policy of step 15 it keeps rl@10, rl@20; give its algorithm the option"),
        ("sft@10", "sft keeps no policy of step 10 it keeps none"),
    ],
)
def test_a_step_that_nobody_keeps_is_told(tmp_path: Path, model: str, words: str) -> None:
    text = FULL.replace("rl: grpo", "rl: {name: ppo, snapshots: [10, 20]}")
    with pytest.raises(UserErrors) as error:
        graph_of(tmp_path, text, f"evaluate={{models: [sft, '{model}'], evaluators: [refusal]}}")
    assert words in " ".join(str(error.value).split())


def test_steps_out_of_order_are_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as error:
        graph_of(tmp_path, FULL.replace("rl: grpo", "rl: {name: ppo, snapshots: [20, 10]}"))
    assert "rl.snapshots: give steps from 1 on, in rising order, each once" in str(error.value)


def test_branches_and_iteration_together(tmp_path: Path) -> None:
    text = FULL.replace("rl: grpo", "rl: grpo\nbranches: {a: {rl: grpo}, b: {rl: best_of_n}}\niterate: 2")
    stages = {stage.id: stage for stage in graph_of(tmp_path, text).stages}
    assert stages["pairs[1]"].models["policy"].stage == "sft"
    assert stages["pairs[b,2]"].models["policy"].stage == "rl[b,1]"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (FULL.replace("rounds", "roundz"), 8, "Did you mean 'rounds'"),
        (FULL.replace("rl: grpo", "rl: grppo"), 13, "grpo"),
        (FULL.replace("seed: 5", "seed: minus one"), 4, "seed"),
        (FULL.replace("rl: grpo", "rl: {name: grpo, stepz: 2}"), 13, "steps"),
        (FULL.replace("models: {base: org/model}", "models: {bsae: org/model}"), 6, "Did you mean 'base'"),
        (FULL.replace("sft: sft\n", "").replace("revise: {rounds: 1}", "sft: sft"), 8, "needs the stage `revise`"),
        (FULL + "options: {rl_algorithm: {grpo: {stepz: 2}}}\n", 15, "steps"),
        (FULL + "iterate: 0\n", 15, "greater than or equal"),
        (FULL + "heldout_reward: {share: 1}\n", 15, "less than 1"),
        (
            FULL.replace("evaluate: [refusal, preference_model]", "evaluate: {sampling: {temperature: 0}, best_of: 2}"),
            14,
            "samples are the same",
        ),
        (
            FULL.replace("reward: preference\n", "")
            .replace("evaluate: [refusal, preference_model]", "evaluate: {evaluators: [refusal], best_of: 2}")
            .replace("grpo", "dpo"),
            13,
            "has no `reward`",
        ),
        (FULL + "heldout_reward: {reward: rules}\n", 15, "unknown key 'reward'"),
        (FULL + "heldout_reward: preferense\n", 15, "Did you mean"),
        (FULL.replace("rl: grpo", "heldout_reward: {}"), 13, "no RL to watch"),
        (FULL + "branches: {x: {seed: 3}}\n", 15, "cannot change 'seed'"),
        (FULL.replace("reward: preference\nrl: grpo\n", ""), 12, "reward"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, text: str, line: int, words: str) -> None:
    from cai_core.pipeline.plan import make_plan

    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        make_plan(load_recipe(str(path)), REGISTRY, tmp_path / "store", tmp_path / "runs")
    message = str(caught.value)
    assert f"recipe.yaml:{line}" in message, message
    assert words in message
    assert caught.value.exit_code == 2


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    from cai_core.pipeline.plan import make_plan

    text = FULL.replace("rl: grpo", "rl: grppo").replace("sft: sft", "sft: {name: sft, epoch: 1}")
    text = text.replace("constitution: hhh", "constitution: nowhere.yaml").replace("org/model", "./no-folder")
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserErrors) as caught:
        make_plan(load_recipe(str(path)), REGISTRY, tmp_path / "store", tmp_path / "runs")
    message = str(caught.value)
    for part in ("grppo", "epoch", "nowhere.yaml", "no-folder"):
        assert part in message
    assert not (tmp_path / "store").exists(), "planning writes nothing"


def test_paths_given_to_a_built_in_recipe_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = load_recipe("quickstart", ["prompts={name: jsonl, path: mine.jsonl}"])
    assert (file.folder / "mine.jsonl").resolve() == tmp_path / "mine.jsonl"
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/r.yaml").write_text("name: r\nmodels: {base: m}\n")
    assert load_recipe("sub/r.yaml", []).folder == Path("sub"), "those of a file stay beside it"


def test_overrides_reach_into_shorthands(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(FULL, encoding="utf-8")
    recipe = load_recipe(str(path), ["rl.steps=3", "label.labeler.shots=1", "revise.rounds=2"]).recipe
    assert recipe.rl is not None
    assert (recipe.rl.name, recipe.rl.options) == ("grpo", {"steps": 3})
    assert recipe.label is not None
    assert (recipe.label.labeler.name, recipe.label.labeler.options) == ("logprob", {"shots": 1})
    for bad in ("rounds", "=3", "name.x=1"):
        with pytest.raises(UserError):
            load_recipe(str(path), [bad])


ALONE = """
schema: 1
name: alone
models: {base: org/model, judge: org/judge}
evaluate: [hhh]
report: null
"""


def evaluate_stage(tmp_path: Path, *overrides: str) -> Stage:
    return graph_of(tmp_path, ALONE, *overrides).stages[-1]


def test_evaluators_with_items_of_their_own_need_no_prompts(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, ALONE)
    (stage,) = graph.stages
    assert (stage.id, dict(stage.inputs), [*stage.models]) == ("evaluate", {}, ["base"])
    with pytest.raises(UserErrors, match="`evaluate` needs the stage `prompts`"):
        graph_of(tmp_path, ALONE, "evaluate=[hhh, refusal]")
    stage = evaluate_stage(tmp_path, "evaluate=[hhh, refusal]", "prompts=builtin")
    assert dict(stage.inputs) == {"answers:base": "answers[base]"}


def test_evaluators_get_what_their_options_ask_for_and_no_more(tmp_path: Path) -> None:
    def parts(*overrides: str) -> tuple[set[str], set[str]]:
        stage = evaluate_stage(tmp_path, "prompts=builtin", *overrides)
        kinds = {use.kind for use in stage.components} - {"evaluator", "backend"}
        return kinds, set(stage.models)

    folder = tmp_path / "saved"
    folder.mkdir()
    assert parts("evaluate=[pairwise]") == ({"labeler", "principle_sampler"}, {"base", "judge"})
    saved = "{name: pairwise, judge: reward_model, reward_model: saved}"
    assert parts(f"evaluate=[{saved}]") == ({"reward_model"}, {"base"})
    assert parts("evaluate=[{name: refusal, grader: judge}]") == (set(), {"base", "judge"})
    assert parts("evaluate=[refusal]") == (set(), {"base"})
    for evaluator in (
        "preference_model",
        "{name: pairwise, judge: reward_model}",
        "{name: calibration, judge: reward_model}",
    ):
        with pytest.raises(UserErrors, match="needs a preference model"):
            parts(f"evaluate=[{evaluator}]")
    with pytest.raises(UserErrors, match="an evaluator` needs the stage `revise`"):
        parts("evaluate=[{name: revisions, heldout: saved}]")


def test_the_evaluation_may_have_a_labeler_of_its_own(tmp_path: Path) -> None:
    pairwise = "evaluate={evaluators: [pairwise], labeler: {name: cot, samples: 2}}"
    before, after = graph_of(tmp_path, FULL, "evaluate=[pairwise]"), graph_of(tmp_path, FULL, pairwise)
    (labeler,) = [use for use in after.stages[-2].components if use.kind == "labeler"]
    assert (labeler.id, labeler.options["samples"]) == ("cai-core/cot", 2)
    one, other = digests(before), digests(after)
    assert {stage for stage in one if one[stage] != other[stage]} == {"evaluate", "report"}
    with pytest.raises(UserErrors, match="samplez") as caught:
        graph_of(tmp_path, FULL, "evaluate={evaluators: [pairwise], labeler: {name: cot, samplez: 2}}")
    assert "evaluate.labeler.samplez" in str(caught.value)


def test_a_labeler_in_the_evaluation_reads_the_constitution(tmp_path: Path) -> None:
    def of(text: str, constitution: str) -> str:
        return digests(graph_of(tmp_path, text, f"constitution={constitution}"))["evaluate"]

    assert of(ALONE, "hhh") == of(ALONE, "harmless")
    pairwise = ALONE.replace("evaluate: [hhh]", "evaluate: [pairwise]\nprompts: builtin")
    assert of(pairwise, "hhh") != of(pairwise, "harmless")


def test_chains_of_all_branches_and_training_prompts_are_inputs(tmp_path: Path) -> None:
    text = FULL.replace("rl: grpo", "branches: {a: {}, b: {revise: {rounds: 2}}}").replace("report: null", "")
    stage = graph_of(tmp_path, text, "evaluate=[revisions, multiple_choice]").stages[-2]
    wanted = {"revise[a]", "revise[b]", "prompts"}
    assert wanted <= stage.inputs.keys()
    plain = graph_of(tmp_path, text, "evaluate=[hhh]").stages[-2]
    assert not wanted & plain.inputs.keys()
