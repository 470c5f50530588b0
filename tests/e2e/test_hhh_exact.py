"""``logprob`` equals an independent computation (tests/exact.py) on the authors' 438 HHH items, item by item.

The independent computation is in float64, so that the difference is ours: in float32 it is itself off by as much. The
slow tests need the items (CAI_HHH_ITEMS, or where the paper's data lies beside the repository) and the model in the
cache. A tiny random model and the 135M model are asked about all items; what they should say is computed here for the
one, and for the other lies in tests/data, of which three items are computed again. The 1.5B model is asked about 4
items, chosen by hash; with CAI_EXACT_ALL=1 about all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cai_core.models.catalog import model_path
from cai_core.testing.tiny import tiny_model
from cai_core.text.pairs import Pair, read_pairs
from cai_core.types.labeler import Comparison
from cai_core.types.principles import Constitution, Principle
from cai_plugins.backends.plugin import TransformersOptions, make_transformers
from cai_plugins.labelers.plugin import LogprobOptions, make_logprob
from exact import QUESTION, both_orders

PRINCIPLE = Principle("hhh", comparison=QUESTION)
ITEMS = Path(__file__).parents[3] / "shared/data/cai-paper/evals/438HHHEvaluations.jsonl"
DATA = Path(__file__).parents[1] / "data"
# What float32 makes of a model of 30 layers.
TOLERANCE = 1e-5

Expected = dict[str, tuple[float, float]]


def computed(model: Path, pairs: Sequence[Pair], form: str) -> Expected:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForCausalLM.from_pretrained(model, dtype="float64").eval()
    return {pair.id: both_orders(network, tokenizer, pair, form) for pair in pairs}


def kept(model: Path, pairs: Sequence[Pair], form: str) -> Expected:
    """What is in tests/data, if anything is, as far as three items show that it is right."""
    file = DATA / f"exact-{model.name}.json"
    if not file.is_file():
        return computed(model, pairs, form)
    found: Expected = {name: tuple(both) for name, both in json.loads(file.read_text(encoding="utf-8"))[form].items()}
    for name, both in computed(model, pairs[:3], form).items():
        # transformers takes norms and rotations in float32 whatever the format, and a GPU rounds them otherwise.
        assert found[name] == pytest.approx(both, abs=1e-6)
    return {pair.id: found[pair.id] for pair in pairs}


def compare(model: Path, pairs: Sequence[Pair], form: str) -> None:
    expected = kept(model, pairs, form)
    backend = make_transformers(TransformersOptions(model=str(model), dtype="float32"), SimpleNamespace(device="cpu"))
    context: Any = SimpleNamespace(
        constitution=Constitution("c", "1", "", (PRINCIPLE,), digest="d"), backend=lambda role: backend, seed=0
    )
    labeler = make_logprob(LogprobOptions(format=form, shots=0), context)
    asked = [Comparison(pair.id, pair.prompt, pair.a, pair.b, (PRINCIPLE,)) for pair in pairs]
    labels = {label.id: label for label in labeler.label(asked)}
    assert {label.id for label in labels.values() if label.failure} == set()
    for name, (first, second) in expected.items():
        evidence = labels[name].evidence
        assert evidence["p_a_first"] == pytest.approx(first, abs=TOLERANCE)
        assert evidence["p_a_second"] == pytest.approx(second, abs=TOLERANCE)
        assert labels[name].p_a == pytest.approx((first + second) / 2, abs=TOLERANCE)

    def right(p: dict[str, float]) -> float:
        return sum(float((p[pair.id] > 0.5) == (pair.p_a == 1.0)) for pair in pairs) / len(pairs)

    own = {name: float(label.p_a or 0.0) for name, label in labels.items()}
    assert right(own) == right({name: sum(both) / 2 for name, both in expected.items()})


def long_tiny_model(path: Path, seed: int) -> Path:
    """Random weights, and room for the longest item."""
    model = tiny_model(path, seed=seed)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 16384}))
    return model


@pytest.mark.parametrize("form", ["paper", "chat"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_independent_script_on_written_items(tmp_path: Path, form: str, seed: int) -> None:
    model = long_tiny_model(tmp_path / "tiny", seed)
    talk = "\n\nHuman: Hi! Ça va?\n\nAssistant:  Fine.\n\nHuman: How do I bake bread?"
    rows = [
        {"prompt": "How do I bake bread?", "a": "Mix flour, water and salt.", "b": "No.", "p_a": 1},
        {"prompt": talk, "a": "Let it rise, then bake it.", "b": "Bread grows on trees 🌳.", "p_a": 1},
        {"prompt": talk, "a": "(B)", "b": "\n\nThe answer is: (A)", "p_a": 0},
        {"prompt": "Bread?", "a": "x", "b": "y " * 60, "p_a": 0},
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    compare(model, read_pairs(path), form)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("form", ["chat", "paper"])
@pytest.mark.parametrize(
    ("name", "few"), [("tiny", None), ("smollm2-135m-instruct", None), ("qwen2.5-coder-1.5b-instruct", 4)]
)
def test_equals_the_independent_script_on_the_authors_items(
    tmp_path: Path, name: str, few: int | None, form: str
) -> None:
    path = Path(os.environ.get("CAI_HHH_ITEMS", ITEMS))
    if not path.is_file():
        pytest.skip(f"the authors' 438 HHH items are not at {path}; set CAI_HHH_ITEMS")
    model = long_tiny_model(tmp_path / "tiny", 2) if name == "tiny" else model_path(name)
    if not (model / "config.json").is_file():
        pytest.skip(f"{name} is not in the cache; run `cai models pull {name}`")
    pairs = sorted(read_pairs(path), key=lambda pair: sha256(pair.id.encode()).digest())
    assert len(pairs) == 438
    everything = few is None or os.environ.get("CAI_EXACT_ALL") == "1"
    limit = int(os.environ.get("CAI_EXACT_LIMIT", "438"))
    compare(model, pairs[: limit if everything else few], form)
