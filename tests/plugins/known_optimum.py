"""A toy problem whose optimum is known, to hold RL algorithms to.

One prompt, answers of one token out of a handful: the policy is a table of probabilities. Of all policies, the one with
pi(a) proportional to ref(a) exp(r(a) / beta) has the highest E[r] - beta KL(pi || ref), namely
beta log sum_a ref(a) exp(r(a) / beta).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from training import turns

from cai_core.testing.tiny import CHATML
from cai_core.types.prompts import Prompt
from cai_core.types.reward import Exchange

WORDS = ("apple", "bread", "corn", "date", "egg")
SCORES = {"apple": 1.0, "bread": 0.6, "corn": 0.2, "date": -0.5, "egg": 0.0}
PROMPT = Prompt("p", turns("egg"))


class Scores:
    """The reward: one number per word, 0 for anything else."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [SCORES.get(exchange.response.strip(), 0.0) for exchange in exchanges]


def table(folder: Path, seed: int) -> Path:
    """A policy over ten tokens, complete with tokenizer and chat template."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: i for i, word in enumerate([*special, "user", "assistant", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="egg"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="egg"
    )
    tokenizer.chat_template = CHATML
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def distribution(folder: Path) -> tuple[Tensor, Tensor]:
    """The probabilities of the first token, and the reward of each."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "egg"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        shares = AutoModelForCausalLM.from_pretrained(folder).eval()(ids).logits[0, -1].double().softmax(-1)
    answers = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(shares))]
    return shares, torch.tensor([SCORES.get(answer.strip(), 0.0) for answer in answers], dtype=torch.float64)


@dataclass(frozen=True)
class Outcome:
    """E[r] - beta KL of the policy as given, of the trained one, and of the best there is."""

    given: float
    found: float
    best: float

    @property
    def missing(self) -> float:
        """The share of what there is to gain that was not gained."""
        return (self.best - self.found) / (self.best - self.given)


def outcome(given: Path, trained: Path, beta: float) -> Outcome:
    ref, rewards = distribution(given)
    found, _ = distribution(trained)
    best = beta * float((ref.log() + rewards / beta).logsumexp(0))
    objective = float((found * rewards).sum()) - beta * float((found * (found / ref).log()).sum())
    return Outcome(float((ref * rewards).sum()), objective, best)
