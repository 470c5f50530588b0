"""The decoder: what is shared and inherited changes the work, never the text; and models that it does not fit."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cai_core.errors import CAIError
from cai_core.testing.tiny import tiny_model
from cai_core.types.backend import Completion, GenerateRequest, Sampling, ScoreRequest
from cai_core.types.records import ModelInput
from cai_plugins._torch import decoding, memory
from cai_plugins._torch.decoding import _Buffer, _reading_with_block, _with_block, draw, nucleus, waiting_times
from cai_plugins._torch.lora import lora_config
from cai_plugins._torch.options import LoraOptions
from cai_plugins._torch.rollouts import Rollouts
from cai_plugins.backends.plugin import TransformersOptions
from cai_plugins.backends.transformers import TransformersBackend
from draws import plain_draw

BLOCK = "Consider the following conversation between a human and an assistant, and say what is wrong with it. " * 4
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 400, "initializer_range": 0.2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {**SMALL, **HEADS, "max_position_embeddings": 512},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400, "n_positions": 512, "initializer_range": 0.2},
    "gpt_neox": {**SMALL, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 512},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400, "initializer_range": 0.2},
    "mistral": {**SMALL, **HEADS, "sliding_window": 24, "max_position_embeddings": 512},
    "gemma2": {**SMALL, **HEADS, "sliding_window": 24, "head_dim": 8, "max_position_embeddings": 512},
    "mamba": {**SMALL, "state_size": 4, "time_step_rank": 4},
}
FAST = {"qwen2", "gpt2", "gpt_neox"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def opened(folder: Path, **options: Any) -> TransformersBackend:
    backend = TransformersBackend(TransformersOptions(model=str(folder), **options), "cpu")
    backend._open()
    return backend


def request(name: str, text: str, *, parent: str = "", new: int = 12, heat: float = 1.0) -> GenerateRequest:
    seed = sum(map(ord, name))
    return GenerateRequest(name, ModelInput(text=text), Sampling(new, heat, 0.95), seed, parent=parent)


class Chains:
    """Texts that go on where the text before ended; what follows comes as soon as it is known."""

    def __init__(self, openings: list[str], turns: int) -> None:
        self.fresh = [request(f"c{i}/0", text) for i, text in enumerate(openings)]
        self.asked = {one.id: one for one in self.fresh}
        self.turns = turns

    def __iter__(self) -> Iterator[GenerateRequest]:
        return self

    def __next__(self) -> GenerateRequest:
        if not self.fresh:
            raise StopIteration
        return self.fresh.pop(0)

    def follow(self, done: Completion) -> None:
        name, _, turn = done.id.partition("/")
        if int(turn) + 1 < self.turns:
            before = self.asked[done.id].input.text + done.text
            after = request(f"{name}/{int(turn) + 1}", f"{before} Then what is said about the rest?", parent=done.id)
            self.asked[after.id] = after
            self.fresh.insert(0, after)

    def run(self, backend: TransformersBackend) -> dict[str, str]:
        texts = {}
        for done in backend.generate(self):
            assert done.failure is None
            texts[done.id] = done.text
            self.follow(done)
        return texts


OPENINGS = [f"{BLOCK} Case {i}: {'how do I bake bread and ' * (i % 5)}why is that?" for i in range(9)]


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_chains_over_a_shared_block_give_the_text_of_each_request_alone(folder: Path, rows: int) -> None:
    backend = opened(folder, max_batch=rows)
    assert backend._decoder is not None
    chains = Chains(OPENINGS, 3)
    texts = chains.run(backend)
    assert len(texts) == 27
    plain = opened(folder)
    plain._decoder = None
    for name, text in texts.items():
        (alone,) = plain.generate([chains.asked[name]])
        assert alone.text == text, name


def test_work_is_shared_and_inherited(folder: Path) -> None:
    backend = opened(folder)
    assert backend._decoder is not None
    chains = Chains(OPENINGS, 3)
    texts = chains.run(backend)
    lengths = {name: len(backend._encode(one.input)) for name, one in chains.asked.items()}
    new = sum(len(backend._tokenizer(text)["input_ids"]) + 1 for text in texts.values())
    from_scratch = sum(lengths.values())
    # The block once, what is the openings' own, and what each later turn adds.
    block = len(backend._tokenizer(BLOCK)["input_ids"])
    own = sum(lengths[f"c{i}/0"] - block for i in range(9))
    added = sum(lengths[f"c{i}/{t}"] - lengths[f"c{i}/{t - 1}"] for i in range(9) for t in (1, 2))
    computed = backend._decoder.shared["computed"]
    assert computed < 1.3 * (block + own + added + new)
    assert computed < 0.35 * (from_scratch + new)


def test_rows_make_room_at_once(folder: Path) -> None:
    """Short and long rows: no row waits for a whole batch to end."""
    backend = opened(folder, max_batch=4)
    lengths = [3, 40, 3, 3, 3, 3, 3, 3]
    requests = [request(f"r{i}", f"Case {i}", new=n) for i, n in enumerate(lengths)]
    assert backend._decoder is not None
    backend._decoder.ends = frozenset()
    order = [done.id for done in backend.generate(requests)]
    assert order[-1] == "r1"
    forwards = []
    backend._model.register_forward_pre_hook(
        lambda module, args, given: forwards.append(len(given["input_ids"])), with_kwargs=True
    )
    list(backend.generate(requests))
    assert sum(n for n in forwards) < 4 * 40, "fixed batches of four would make two full ones of 40 and 3 steps"


def test_keys_and_values_go_when_the_texts_are_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the garbage collector: in a sampling of hours it came too late, and gigabytes were waiting for it."""
    backend = opened(folder)
    made: list[weakref.ref[Any]] = []

    class Watched(_Buffer):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(weakref.ref(self))

    monkeypatch.setattr("cai_plugins._torch.decoding._Buffer", Watched)
    gc.collect()
    gc.disable()
    try:
        Chains(OPENINGS, 3).run(backend)
        alive = sum(one() is not None for one in made)
    finally:
        gc.enable()
    assert len(made) > 3
    assert alive == 0


def test_two_runs_at_a_time_do_not_meet(folder: Path) -> None:
    backend = opened(folder)
    requests = [request(f"r{i}", text, new=5 + i) for i, text in enumerate(OPENINGS[:4])]
    whole = {done.id: done.text for done in backend.generate(requests)}
    seen = {}
    for done in backend.generate(requests):
        seen[done.id] = done.text
        (inner,) = backend.generate([request("r9", "Another one")])
        assert inner.id == "r9"
    assert seen == whole


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_the_text_of_a_plain_loop(folder: Path, tmp_path: Path, name: str) -> None:
    """Those whose attention the decoder can steer, and those that fall back to reading each prompt whole."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(1)
    config = AutoConfig.for_model(name, **ARCHITECTURES[name], **special)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    backend = opened(tmp_path / "m")
    assert (backend._decoder is not None) == (name in FAST)
    requests = [request(f"r{i}", text, heat=0, new=8) for i, text in enumerate(OPENINGS[:5])]
    done = {one.id: one.text for one in backend.generate(requests)}
    for one in requests:
        ids = tokenizer(one.input.text)["input_ids"]
        new: list[int] = []
        with torch.no_grad():
            while len(new) < 8:
                token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
                if token in tokenizer.all_special_ids:
                    break
                new.append(token)
        assert done[one.id] == tokenizer.decode(new, skip_special_tokens=True), name


def test_a_model_that_gives_other_logits_this_way_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cai_plugins._torch import decoding

    honest = decoding._attention
    monkeypatch.setitem(
        decoding.AttentionInterface._global_mapping,
        decoding.NAME,
        lambda *args, **given: (honest(*args, **given)[0] * (0.5 if decoding._STATE.active else 1), None),
    )
    assert opened(folder)._decoder is None


def test_draws_depend_on_seed_and_step_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 50)
    samplings = [Sampling(9, t, p) for t, p in ((1.0, 1.0), (0.7, 0.9), (0.0, 1.0), (2.0, 0.5), (1.0, 0.3))]
    together = draw(logits, samplings, list(range(5)), [3] * 5)
    alone = [draw(logits[i : i + 1], samplings[i : i + 1], [i], [3])[0] for i in range(5)]
    assert together == alone
    assert together[2] == int(logits[2].argmax())


def test_waiting_times_are_exponential_and_hang_on_seed_and_step() -> None:
    assert len({waiting_times(7, step, 1)[0] for step in range(500)}) == 500
    for numbers in (waiting_times(3, 4, 4000), np.array([waiting_times(seed, 0, 1)[0] for seed in range(4000)])):
        assert numbers.min() > 0
        assert scipy.stats.kstest(numbers, "expon").pvalue > 1e-3
    # Of all versions and machines: a run that goes on elsewhere draws what it would have drawn here.
    assert waiting_times(1, 2, 2).tolist() == pytest.approx([0.9638016060321107, 0.8622543710618935], rel=1e-14)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.0, -50.0]]).expand(4000, -1)
    tokens = draw(logits, [Sampling(1, 0.5, 1.0)] * 4000, list(range(4000)), [0] * 4000)
    wanted = (logits[0] / 0.5).softmax(-1)
    for token in range(4):
        share = tokens.count(token) / 4000
        assert abs(share - wanted[token]) < 5 * (wanted[token] * (1 - wanted[token]) / 4000) ** 0.5 + 1e-9


def test_what_has_no_probability_is_never_drawn() -> None:
    logits = torch.full((3, 1000), -1e9)
    logits[:, 0] = 0.0
    assert draw(logits, [Sampling(1)] * 3, [1, 2, 3], [0] * 3) == [0, 0, 0]


@pytest.mark.parametrize("size", [7, 128, 1000, 4096])
def test_a_draw_is_that_of_plain_python(size: int) -> None:
    torch.manual_seed(size)
    logits = torch.randn(300, size) * 4
    logits[::2, size // 3 :] -= 200  # much of the vocabulary has no probability at all
    tokens = draw(logits, [Sampling(1)] * 300, list(range(300)), [5] * 300)
    for row, (values, token) in enumerate(zip(logits, tokens, strict=True)):
        assert token == plain_draw(values.softmax(-1), row, 5)


@pytest.mark.parametrize("size", [40, 1000])
def test_draws_of_a_large_vocabulary_follow_the_probabilities(size: int) -> None:
    torch.manual_seed(1)
    logits = (torch.randn(size) * 2).expand(20_000, -1)
    tokens = draw(logits, [Sampling(1)] * 20_000, list(range(20_000)), [9] * 20_000)
    wanted = 20_000 * logits[0].double().softmax(-1).numpy()
    seen = np.bincount(tokens, minlength=size)
    often = wanted > 5
    pooled = [np.append(x[often], x[~often].sum() + 1e-9) for x in (seen, wanted)]
    assert scipy.stats.chisquare(*pooled, sum_check=False).pvalue > 1e-3


def test_rounding_changes_a_draw_only_in_a_photo_finish() -> None:
    """As batches of other shapes do: logits that differ in their sixth digit. Where the cumulative probability passes a
    number, 7 of these 500 tokens would be others."""
    torch.manual_seed(0)
    logits = torch.randn(500, 49152) * 2.5
    other = logits + 1e-5 * torch.randn_like(logits)
    tokens, again = (draw(given, [Sampling(1)] * 500, list(range(500)), [0] * 500) for given in (logits, other))
    assert sum(a != b for a, b in zip(tokens, again, strict=True)) <= 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_the_fast_ways(folder: Path, dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    backend = opened(folder, dtype=dtype)
    assert backend._decoder is not None
    assert backend._scorer is not None
    assert not caplog.records


@pytest.mark.parametrize("name", ["_with_block", "_reading_with_block"])
def test_a_block_that_is_not_seen_whole_shows_at_the_start(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = getattr(decoding, name)

    def wrong(query: Any, key: Any, value: Any, mask: Any, scaling: float, *block: torch.Tensor) -> torch.Tensor:
        keys, values, seen = block
        return right(query, key, value, mask, scaling, keys[:, 1:], values[:, 1:], seen[..., 1:])

    monkeypatch.setattr(decoding, name, wrong)
    assert opened(folder)._decoder is None
    assert "generates batch by batch" in caplog.text


def test_a_policy_in_mixed_precision_keeps_the_decoder(folder: Path) -> None:
    """As on a GPU: weights in bfloat16 under adapters in float32, and autocast."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    get_peft_model(model, lora_config(LoraOptions(), "CAUSAL_LM"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Rollouts(model, [2], 3, 64, 4096).shares


def test_scores_in_the_hundreds_are_not_rounded_in_half_precision() -> None:
    """Keys whose scores differ by less than bfloat16 can tell there."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, 2, n, 64).bfloat16() for n in (4, 9, 9))
    block_key, block_value = torch.randn(2, 70, 64).bfloat16(), torch.randn(2, 70, 64).bfloat16()
    query, key, block_key = query * 8, key + 4, block_key + 4
    seen, block_seen = torch.ones(3, 1, 4, 9).bool(), torch.ones(3, 1, 1, 70).bool()
    found = _with_block(query, key, value, seen, 0.125, block_key, block_value, block_seen)
    keys = torch.cat([block_key.expand(3, -1, -1, -1), key], 2).double()
    values = torch.cat([block_value.expand(3, -1, -1, -1), value], 2).double()
    scores = query.double() @ keys.transpose(2, 3) * 0.125
    assert scores.abs().max() > 100
    assert (found.double() - scores.softmax(-1) @ values).abs().max() < 0.05


def test_the_token_budget_follows_memory_and_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        cache = model(torch.tensor([[5, 6, 7]]), use_cache=True).past_key_values
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert memory.bytes_per_token(model) == held // 3
    for total, wanted in ((8 * 10_000 * held // 3, 10_000), (1, 4096), (2**50, 65536)):
        monkeypatch.setattr(memory, "_container_limit", lambda total=total: total)
        monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(total=2**60))
        assert memory.token_budget(model) == wanted


def test_the_nucleus_of_many_tokens_is_that_of_a_full_sort() -> None:
    """Rows of 1, some hundred and some thousand tokens together: each is widened as far as it needs."""
    torch.manual_seed(0)
    heat = torch.tensor([[0.1], [1.0], [2.0], [20.0]])
    probabilities = (torch.randn(4, 5000) * 3 / heat).softmax(-1)
    kept = nucleus(probabilities, torch.full((4, 1), 0.9)) > 0
    for row, found in zip(probabilities, kept, strict=True):
        ordered = row.sort(descending=True).values
        count = int((ordered.double().cumsum(0) < 0.9).sum()) + 1
        assert torch.equal(found, row >= ordered[count - 1])
    sizes = kept.sum(-1).tolist()
    assert sizes[0] < 64 < sizes[1] < 1024 < sizes[3]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("heat", [0.0, 1.0])
def test_probabilities_that_are_not_numbers_are_no_answer(value: float, heat: float) -> None:
    """Whether the likeliest token is taken or one is drawn, and whatever the row beside it is."""
    for other in (0.0, 1.0):
        samplings = [Sampling(4, other), Sampling(4, heat)]
        logits = torch.randn(2, 300)
        logits[1, 7] = -torch.inf  # a token that cannot be is no trouble
        draw(logits, samplings, [1, 2], [0, 0])
        logits[1, slice(None) if value < 0 else 5] = value
        with pytest.raises(CAIError, match="not numbers") as raised:
            draw(logits, samplings, [1, 2], [0, 0])
        assert raised.value.hint


@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_model_gives_no_text(whole: bool, folder: Path, tmp_path: Path) -> None:
    """A NaN in all that it computes; or for one input, which the decoder's trial of the model does not have."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    (*_, last) = tokenizer("bread")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[slice(None) if whole else last] = torch.nan
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backend = opened(tmp_path)
    assert (backend._decoder is None) == whole
    for heat in (0.0, 1.0):
        with pytest.raises(CAIError, match="not numbers"):
            list(backend.generate([request("x", "bread", heat=heat)]))
    (scores,) = backend.score([ScoreRequest("x", ModelInput(text="bread"), (" a", " b"))])
    assert not any(math.isfinite(value) for value in scores.logprobs)


@pytest.mark.parametrize("queries", [2, 7])
def test_both_ways_to_attend_to_a_block_agree(queries: int) -> None:
    """One for a new token of many rows, one for prompts; the second row sees the first three tokens of the block."""
    drawn = torch.Generator().manual_seed(queries)
    query = torch.randn(2, 3, queries, 8, generator=drawn)
    key, value = torch.randn(2, 2, 3, 9, 8, generator=drawn)
    block_key, block_value = torch.randn(2, 3, 5, 8, generator=drawn)
    mask = torch.ones(2, 1, queries, 9, dtype=torch.bool).tril(9 - queries)
    block_mask = torch.ones(2, 1, 1, 5, dtype=torch.bool)
    block_mask[1, ..., 3:] = False
    given = (query, key, value, mask, 0.3, block_key, block_value, block_mask)
    assert torch.allclose(_reading_with_block(*given), _with_block(*given), atol=1e-5)
