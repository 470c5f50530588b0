"""The scorer: what requests share is read once, and the log-probabilities are those of plain passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import ScoreRequest, Scores
from cai_core.types.records import ModelInput
from cai_plugins.backends.plugin import TransformersOptions
from cai_plugins.backends.scoring import MIN_SHARED, Scorer, ScoreRow, Tree
from cai_plugins.backends.transformers import TransformersBackend
from tests.plugins.test_decoding import ARCHITECTURES, FAST

LETTERS = (" (A)", " (B)")
SHOTS = "Consider the following conversation, and say which of its two answers is the better one. " * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def opened(folder: Path, **options: Any) -> TransformersBackend:
    backend = TransformersBackend(TransformersOptions(model=str(folder), **options), "cpu")
    backend._open()
    return backend


def comparisons(count: int, block: str = "") -> list[ScoreRequest]:
    """Both orders of ``count`` comparisons, as a labeler asks for them."""
    requests = []
    for number in range(count):
        answers = [f"Answer {number} is short.", f"The other answer, {number + 7}, goes on for a little longer."]
        for order in (0, 1):
            a, b = answers[::-1] if order else answers
            question = f"Question {number}{' and more' * (6 + number)}?"
            text = f"{block}\n\nHuman: {question}\n\nWhich? (A) {a} (B) {b}\n\nThe answer is:"
            requests.append(ScoreRequest(f"{number}/{order}", ModelInput(text=text), LETTERS))
    return requests


def plainly(model: Any, ids: list[int], continuation: list[int]) -> float:
    """An independent reference: one sequence, one whole pass."""
    with torch.no_grad():
        logprobs = model(torch.tensor([ids + continuation])).logits[0].double().log_softmax(-1)
    return float(sum(logprobs[len(ids) + i - 1, token] for i, token in enumerate(continuation)))


def scored(scorer: Scorer, rows: Sequence[ScoreRow]) -> dict[str, list[float]]:
    found = {}
    for batch, block in scorer.batches(rows):
        for tree, result in zip(batch, scorer.score(batch, block), strict=True):
            found |= {row.request.id: sums for row, sums in zip(tree.rows, result, strict=True)}
    return found


# A small alphabet makes long beginnings in common, and sequences that are the beginning of others.
tokens = st.lists(st.integers(3, 5), min_size=1, max_size=12)
cases = st.lists(
    st.tuples(st.sampled_from([0, 20, 70]), tokens, st.lists(tokens, min_size=1, max_size=3)), min_size=1, max_size=8
)


@settings(max_examples=60, deadline=None)
@given(cases, st.integers(1, 4))
def test_any_requests_score_as_in_plain_passes(folder: Path, case: list[Any], most: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder) if not _MODEL else _MODEL[0]
    _MODEL[:] = [model]
    rows = [
        ScoreRow(ScoreRequest(str(i), ModelInput(text="x"), ()), [7] * before + ids, continuations)
        for i, (before, ids, continuations) in enumerate(case)
    ]
    found = scored(Scorer(model, 400, most), rows)
    assert set(found) == {row.request.id for row in rows}
    for row in rows:
        wanted = [plainly(model, row.ids, continuation) for continuation in row.continuations]
        assert found[row.request.id] == pytest.approx(wanted, abs=2e-5)


_MODEL: list[Any] = []


def test_a_tree_holds_every_distinct_beginning_once() -> None:
    rows = [
        ScoreRow(ScoreRequest("a", ModelInput(text="x"), ()), [1, 2, 3], [[4, 5], [4, 6, 7]]),
        ScoreRow(ScoreRequest("b", ModelInput(text="x"), ()), [1, 2, 9], [[4, 5]]),
    ]
    tree = Tree(rows, 1)
    # 2; 3 4 6; 9 4 (the last token of a continuation is not read)
    assert sorted(tree.ids) == [2, 3, 4, 4, 6, 9]
    assert sorted(tree.positions) == [1, 2, 2, 3, 3, 4]
    assert tree.asked == 5, "after 3, 4 and 6, and after 9 and its 4"
    sees = tree.sees()
    seen = {
        (token, position): sorted(tree.ids[j] for j in range(6) if sees[i, j])
        for i, (token, position) in enumerate(zip(tree.ids, tree.positions, strict=True))
    }
    assert seen[6, 4] == [2, 3, 4, 6]
    assert seen[9, 2] == [2, 9]
    assert int(sees.sum()) == 1 + 2 + 2 + 3 + 3 + 4


def test_examples_conversation_and_continuations_are_read_once(folder: Path) -> None:
    backend = opened(folder)
    requests = comparisons(6, SHOTS)
    encoded = {tuple(backend._encode(r.input)) for r in requests}
    scorer = backend._scorer
    assert scorer is not None
    list(backend.score(requests))
    letters = [backend._tokenizer(text, add_special_tokens=False)["input_ids"] for text in LETTERS]
    distinct = {ids[:n] for ids in encoded for n in range(1, len(ids) + 1)}
    distinct |= {(*ids, *c[:n]) for ids in encoded for c in letters for n in range(1, len(c))}
    # Beginnings of less than MIN_TRUNK tokens after the block are read for each comparison.
    assert len(distinct) <= scorer.computed <= len(distinct) + 6 * 16
    before = scorer.computed
    list(backend.score(requests))
    assert scorer.computed - before < before - MIN_SHARED, "the next call finds the block there"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_scores_as_in_plain_passes(folder: Path, tmp_path: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **ARCHITECTURES[name], **special)).eval()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    backend = opened(tmp_path / "m")
    assert (backend._scorer is not None) == (name in FAST)
    requests = comparisons(5, SHOTS[:200])
    done = {one.id: one.logprobs for one in backend.score(requests)}
    for one in requests:
        ids = tokenizer(one.input.text)["input_ids"]
        letters = [tokenizer(c, add_special_tokens=False)["input_ids"] for c in one.continuations]
        assert done[one.id] == pytest.approx([plainly(model, ids, c) for c in letters], abs=1e-4), name


def test_a_model_that_gives_other_logits_this_way_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Tree.sees
    monkeypatch.setattr(Tree, "sees", lambda tree: honest(tree) | True)  # every token sees everything
    backend = opened(folder)
    assert backend._scorer is None
    assert next(iter(backend.score(comparisons(1)))).failure is None


def test_out_of_memory_takes_batches_and_then_trees_apart(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    backend = opened(folder)
    requests = comparisons(6, SHOTS)
    expected = {one.id: one.logprobs for one in backend.score(requests)}
    forward, widths = backend._model.forward, []
    longest = max(len(backend._encode(r.input)) for r in requests)

    def limited(*args: object, **given: torch.Tensor) -> torch.Tensor:
        widths.append(given["input_ids"].numel())
        if widths[-1] > longest + 3:  # room for a single request with its letters, and for no tree of two
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(*args, **given)

    backend._model.forward = limited
    backend._scorer._block = None  # type: ignore[union-attr]
    found: dict[str, Scores] = {one.id: one for one in backend.score(requests)}
    assert max(widths) > longest, "it was tried"
    assert {name: one.failure for name, one in found.items()} == dict.fromkeys(expected)
    for name, wanted in expected.items():
        assert found[name].logprobs == pytest.approx(wanted, abs=1e-4)
    assert "out of memory" in caplog.text


def test_long_rows_are_read_without_a_mask_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cai_plugins.backends import scoring

    requests = comparisons(4)
    wanted = {one.id: one.logprobs for one in opened(folder).score(requests)}
    backend = opened(folder)
    lengths = sorted(len(backend._encode(r.input)) for r in requests)
    monkeypatch.setattr(scoring, "MAX_MASK", (lengths[3] + 8) ** 2)
    shapes = []
    backend._model.register_forward_pre_hook(
        lambda _module, _args, given: shapes.append(given["attention_mask"].shape), with_kwargs=True
    )
    found = {one.id: one.logprobs for one in backend.score(requests)}
    assert {len(shape) for shape in shapes} == {2, 4}, "some plainly, some as trees"
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, abs=1e-4)


def test_batches_keep_to_the_budget(folder: Path) -> None:
    backend = opened(folder, token_budget=300, max_batch=3)
    sizes = []
    forward = backend._model.forward

    def watched(*args: object, **given: torch.Tensor) -> torch.Tensor:
        if given.get("attention_mask") is not None:
            sizes.append((len(given["attention_mask"]), given["attention_mask"].shape[-1]))
        return forward(*args, **given)

    backend._model.forward = watched
    assert len(list(backend.score(comparisons(10)))) == 20
    assert all(rows <= 3 and (rows == 1 or rows * width <= 300) for rows, width in sizes)
    assert any(rows > 1 for rows, _ in sizes)
