"""Results of a run, from artifacts as stages leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t as student

from cai_core.errors import CAIError
from cai_core.pipeline.results import _cut_answers, _looked_frontier, _models, _samples, _truncation, model_label
from cai_core.pipeline.tables import ANSWERS, CHAINS, PAIRS
from cai_core.store.artifacts import Artifact
from cai_core.store.tables import write_table


def made(kind: str, digest: str, path: Path = Path(), **models: str) -> Artifact:
    return Artifact(kind, digest, path, {"models": models}, {})


def parents(artifacts: Mapping[str, Artifact], names: list[str]) -> dict[str, Any]:
    sources = {name: {"digest": artifact.identity["models"]["policy"]} for name, artifact in answered(artifacts, names)}
    return {model["name"]: model["parent"] for model in _models(artifacts, names, sources)}


def answered(artifacts: Mapping[str, Artifact], names: list[str]) -> list[tuple[str, Artifact]]:
    return [(name, artifacts[f"answers[{name}]"]) for name in names]


class TestParents:
    def test_iterations_follow_each_other_and_branches_fork(self) -> None:
        artifacts = {
            "sft": made("sft", "S", sft_base="B"),
            "rl[ppo,1]": made("rl", "P1", policy="S"),
            "rl[dpo,1]": made("rl", "D1", policy="S"),
            "rl[ppo,2]": made("rl", "P2", policy="P1", reward_base="B"),
            "rl[dpo,2]": made("rl", "D2", policy="D1"),
        }
        names = ["base", *artifacts]
        artifacts |= {
            f"answers[{name}]": made("answers", f"A{i}", policy=artifacts[name].digest if name != "base" else "B")
            for i, name in enumerate(names)
        }
        assert parents(artifacts, names) == {
            "base": None, "sft": "base", "rl[ppo,1]": "sft", "rl[dpo,1]": "sft", "rl[ppo,2]": "rl[ppo,1]",
            "rl[dpo,2]": "rl[dpo,1]",
        }  # fmt: skip
        assert parents(artifacts, ["base", "rl[ppo,2]"]) == {"base": None, "rl[ppo,2]": None}, "not in this report"

    def test_another_base_is_no_parent_and_the_best_of_n_has_one(self) -> None:
        artifacts = {
            "sft": made("sft", "S", sft_base="another"),
            "answers[base]": made("answers", "A0", policy="B"),
            "answers[sft]": made("answers", "A1", policy="S"),
            "answers[best_of_4[sft]]": made("answers", "A2", policy="S"),
        }
        found = parents(artifacts, ["base", "sft", "best_of_4[sft]"])
        assert found == {"base": None, "sft": None, "best_of_4[sft]": "sft"}

    @pytest.mark.parametrize(
        ("metrics", "before"),
        [({"steps": 40.0}, "rl@30"), ({"steps": 40.0, "validation_best": 20.0}, "rl@20"), ({"steps": 9.0}, "sft")],
    )
    def test_snapshots_come_in_the_order_of_training(
        self, metrics: dict[str, float], before: str, tmp_path: Path
    ) -> None:
        """What was kept after the step that is the result did not lead to it."""
        (tmp_path / "training.json").write_text(json.dumps({"metrics": metrics}))
        artifacts = {"sft": made("sft", "S", sft_base="B"), "rl": made("rl", "P", tmp_path, policy="S")}
        names = ["base", "sft", "rl@10", "rl@20", "rl@30", "rl"]
        digests = ["B", "S", "P@10", "P@20", "P@30", "P"]
        artifacts |= {
            f"answers[{name}]": made("answers", name, policy=policy)
            for name, policy in zip(names, digests, strict=True)
        }
        found = parents(artifacts, names)
        assert found["rl"] == before
        assert (found["rl@10"], found["rl@20"], found["rl@30"]) == ("sft", "rl@10", "rl@20")


def test_labels_of_models() -> None:
    names = ("base", "sft", "rl", "rl@20", "rl[grpo]@20", "rl[grpo]", "rl[2]", "rl[grpo,2]", "org/model[x]")
    assert [model_label(name) for name in names] == [
        "base model", "SL-CAI (SFT)", "RL-CAI (RL)", "RL-CAI (RL), step 20", "RL-CAI (RL) grpo, step 20",
        "RL-CAI (RL) grpo", "RL-CAI (RL) iteration 2",
        "RL-CAI (RL) grpo, iteration 2", "org/model[x]",
    ]  # fmt: skip


class TestTheFrontierOfLooks:
    def row(self, step: float, scores: Mapping[str, list[float]], name: str = "heldout_reward") -> dict[str, float]:
        found = {"step": step, "reward": 0.0, "reward_red_team": 0.0, "reward_red_team_std": 0.0, name: 1.0}
        for kind, some in scores.items():
            found |= {f"{name}_{kind}": float(np.mean(some)), f"{name}_{kind}_std": float(np.std(some))}
        return found

    def test_intervals_are_students(self) -> None:
        red, helpful = [0.3, -1.0, 2.5, 0.1, 0.9, 1.1, -0.4], [0.0, 0.5, 0.2, 0.7, 0.1]
        found = _looked_frontier([self.row(5.0, {"red_team": red, "helpful": helpful})], {"red_team": 7, "helpful": 5})
        assert found is not None
        assert found["score"] == "heldout_reward"
        (point,) = found["points"]
        expected = student.interval(0.95, 6, np.mean(red), np.std(red, ddof=1) / 7**0.5)
        assert (point["harmless"]["low"], point["harmless"]["high"]) == pytest.approx(expected, abs=2e-3)
        assert point["helpful"] == {
            "value": pytest.approx(0.3), "low": None, "high": None, "n": 5, "interval": "Student's t 95 %",
        }  # fmt: skip
        assert point["step"] == 5.0

    def test_one_kind_of_prompts_is_no_frontier(self) -> None:
        assert _looked_frontier([self.row(0.0, {"red_team": [1.0]})], {"red_team": 1}) is None

    def test_a_look_without_the_held_out_score(self) -> None:
        both = {"red_team": [1.0], "helpful": [1.0]}
        assert _looked_frontier([self.row(0.0, both), {"step": 1.0}], {"red_team": 1, "helpful": 1}) is None
        found = _looked_frontier([self.row(0.0, both, "reward")], {"red_team": 1, "helpful": 1})
        assert found is not None
        assert found["score"] == "reward"


def test_answers_to_other_prompts_are_never_taken_for_answers_to_these(tmp_path: Path) -> None:
    def answers(name: str, ids: list[str]) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        prompt = [{"role": "user", "content": "Bread?"}]
        rows = [{"prompt_id": i, "kind": "helpful", "prompt": prompt, "text": f"{name} {i}"} for i in ids]
        write_table(folder / "answers.parquet", ANSWERS, rows)
        return made("answers", name, folder)

    base = answers("base", ["1", "2"])
    found = _samples({"answers[base]": base, "answers[sft]": answers("sft", ["1", "2"])})
    for _ in range(2):  # it can be read again
        assert [row["answers"] for row in found] == [{"base": f"base {i}", "sft": f"sft {i}"} for i in "12"]
    with pytest.raises(CAIError, match="same prompts"):
        list(_samples({"answers[base]": base, "answers[sft]": answers("turned", ["2", "1"])}))
    with pytest.raises(ValueError, match="shorter"):
        list(_samples({"answers[base]": base, "answers[sft]": answers("short", ["1"])}))
    assert list(_samples({})) == []


class TestTextsThatWereCut:
    ROUND: dict[str, Any] = {"critique": "No.", "revision": None}  # noqa: RUF012
    ROWS: dict[str, list[dict[str, Any]]] = {  # noqa: RUF012
        "answers": [{"text": text, "cut_at": at} for text, at in (("a", 48), ("b", 0), ("c", 40), (None, None))],
        "pairs": [{"a": "a", "b": "b", "cut_at": {"a": 16, "b": 0}}, {"a": "a", "b": "b", "cut_at": None}],
        "chains": [
            {"answer": "a", "cut_at": 0, "rounds": [{**ROUND, "critique_cut_at": 8}, ROUND]},
            {"answer": None, "cut_at": None, "rounds": None},
        ],
    }
    COLUMNS = {"answers": ANSWERS, "pairs": PAIRS, "chains": CHAINS}  # noqa: RUF012

    def artifacts(self, folder: Path, *, older: bool) -> dict[str, Artifact]:
        for name, rows in self.ROWS.items():
            columns = {key: kind for key, kind in self.COLUMNS[name].items() if not (older and key == "cut_at")}
            write_table(
                folder / f"{name}.parquet", columns, [{k: v for k, v in r.items() if k in columns} for r in rows]
            )
        stages = {"revise": "revise", "pairs": "pairs", "answers[rl[1]]": "answers", "sft": "sft"}
        return {stage: made(kind, "d", folder) for stage, kind in stages.items()}

    def entry(
        self, stage: str, texts: str, n: int, cut: int, unknown: int, tokens: int | None = None
    ) -> dict[str, Any]:
        found = {"stage": stage, "model": "rl[1]" if stage == "answers[rl[1]]" else None, "texts": texts}
        return {**found, "n": n, "cut": cut, "unknown": unknown, "share": cut / n if n else None, "tokens": tokens}

    def test_texts_that_are_there_are_counted_by_their_ends(self, tmp_path: Path) -> None:
        assert _truncation(self.artifacts(tmp_path, older=False)) == [
            self.entry("revise", "answers", 1, 0, 0), self.entry("revise", "critiques", 1, 1, 1, 8),
            self.entry("pairs", "answers", 2, 1, 2, 16), self.entry("answers[rl[1]]", "answers", 3, 2, 0, 48),
        ]  # fmt: skip

    def test_of_an_older_store_it_is_not_known(self, tmp_path: Path) -> None:
        artifacts = self.artifacts(tmp_path, older=True)
        found = {entry["stage"]: entry for entry in _truncation(artifacts)}
        assert found["pairs"] == self.entry("pairs", "answers", 0, 0, 4)
        assert found["answers[rl[1]]"] == self.entry("answers[rl[1]]", "answers", 0, 0, 3)
        assert [row["cut_at"] for row in _samples(artifacts)] == [{"rl[1]": None}] * 4
        assert _cut_answers(list(found.values()), {}) == []

    @pytest.mark.parametrize(("cut", "said"), [(0, False), (9, False), (10, True), (100, True)])
    def test_a_tenth_of_a_models_answers_is_worth_a_warning(self, cut: int, said: bool) -> None:
        some = [
            self.entry("answers[base]", "answers", 100, n, 0) | {"model": m} for m, n in (("base", cut), ("sft", 4))
        ]
        found = _cut_answers([*some, self.entry("pairs", "answers", 4, 4, 0)], {"base": "base model"})
        assert [(finding["level"], finding["title"]) for finding in found] == [
            ("warning", f"{(cut + 4) / 2:.1f} % of the evaluated answers were cut at the token limit")
        ][: int(said)]
        assert not said or f"base model {cut} of 100 ({cut}.0 %), sft 4 of 100 (4.0 %)" in found[0]["text"]
