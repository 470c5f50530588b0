"""One GPU: what trains, samples and scores there. These tests have to be asked for (``-m gpu``; with ``-s`` they print
what they measure)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kills import KINDS, MORE, SNAPSHOTS, finished, killed, start
from training import distance

from cai_core.models.catalog import is_cached, model_path
from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import GenerateRequest, Sampling, ScoreRequest
from cai_core.types.records import Message, ModelInput
from cai_plugins.backends.plugin import TransformersOptions
from cai_plugins.backends.transformers import TransformersBackend
from homes import SMALL, Home
from tiny import embedded_stand_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is needed"),
]

REAL = "smollm2-135m-instruct"


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_killed_and_started_again_it_ends_as_one_that_ran_through(kind: str, tmp_path: Path) -> None:
    """As near as two that ran through are to each other: on a GPU sums are not always taken in the same order."""
    model = tiny_model(tmp_path / "tiny")

    def out(name: str) -> Path:
        return tmp_path / name / "out/model"

    def run(name: str) -> tuple[list[int], Any]:
        steps, curve = finished(start(kind, model, tmp_path / name, out(name), "cuda"))
        return steps, json.loads(curve)

    (steps, once), (_, twice) = run("once"), run("twice")
    when = killed(start(kind, model, tmp_path / "killed", out("killed"), "cuda"), steps[-1])
    again, resumed = run("killed")
    assert again[0] > 1, f"it went on instead of starting anew ({when})"
    assert again[-1] == steps[-1]
    kept = ("model", *SNAPSHOTS.get(kind.partition("-")[0], ()))
    apart = {
        name: (
            max(abs(a - b) for a, b in zip(numbers(once), numbers(other), strict=True)),
            max(distance(tmp_path / "once/out" / part, tmp_path / name / "out" / part) for part in kept),
        )
        for name, other in (("twice", twice), ("killed", resumed))
    }
    print(f"\n{kind}: largest difference of the curve, of a weight: {apart} ({when})")
    for far, near in zip(apart["killed"], apart["twice"], strict=True):
        assert far <= max(4 * near, 1e-6), when


def numbers(curve: Any) -> Iterator[float]:
    """All of them, in order."""
    if isinstance(curve, (list, dict)):
        for part in curve if isinstance(curve, list) else curve.values():
            yield from numbers(part)
    elif isinstance(curve, (int, float)):
        yield float(curve)


@pytest.fixture(scope="module", params=["tiny", REAL])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tiny":
        return tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    if not is_cached(REAL):
        pytest.skip(f"{REAL} is not there: cai models pull {REAL}")
    return model_path(REAL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_fast_ways_fit(folder: Path, dtype: str) -> None:
    backend = TransformersBackend(TransformersOptions(model=str(folder), dtype=dtype), "cuda")
    backend._open()
    assert backend._decoder is not None
    assert backend._scorer is not None


def test_the_same_as_on_a_cpu(folder: Path) -> None:
    """In float32: greedy text, sampled text, and the probabilities of letters after a conversation."""
    shared = "Consider the following conversation between a human and an assistant. " * 12
    inputs = [ModelInput((Message("user", f"{shared}How do I bake {i} loaves of bread?"),)) for i in range(6)]
    asked = [
        GenerateRequest(f"{heat}/{i}", given, Sampling(16, heat), 7 + i)
        for heat in (0.0, 1.0)
        for i, given in enumerate(inputs)
    ]
    letters = [ScoreRequest(str(i), given, (" (A)", " (B)")) for i, given in enumerate(inputs)]
    found = {}
    for device in ("cpu", "cuda"):
        backend = TransformersBackend(TransformersOptions(model=str(folder), dtype="float32"), device)
        texts = {done.id: (done.text, done.failure) for done in backend.generate(asked)}
        found[device] = texts, {scores.id: scores.logprobs for scores in backend.score(letters)}
        backend.close()
    assert found["cuda"][0] == found["cpu"][0]
    apart = max(
        abs(a - b)
        for name, values in found["cpu"][1].items()
        for a, b in zip(values, found["cuda"][1][name], strict=True)
    )
    print(f"\n{folder.name}: largest difference of a log-probability: {apart:.1e}")
    assert apart < 1e-3


@pytest.mark.parametrize("rl", ["grpo", "ppo"])
def test_the_whole_pipeline(rl: str, tmp_path: Path) -> None:
    embedded_stand_in(tmp_path / "cache")
    home = Home(tmp_path, tmp_path / "cache")
    home.cai("run", "quickstart", *SMALL, "-o", f"rl={rl}", "-o", "device=cuda")
    (report,) = (tmp_path / "runs").glob("*/report.json")
    stages = json.loads(report.read_text(encoding="utf-8"))["stages"]
    assert {stage["status"] for stage in stages} <= {"ok", "partial"}, stages
