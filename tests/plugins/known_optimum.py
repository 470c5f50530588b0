"""Toy problems whose optimum is known, to hold RL algorithms to.

One prompt, answers of one token out of a handful: the policy is a table of probabilities. Of all policies, the one with
pi(a) proportional to ref(a) exp(r(a) / beta) has the highest E[r] - beta KL(pi || ref), namely
beta log sum_a ref(a) exp(r(a) / beta).

The same with answers of up to two tokens, where a first token is worth what can follow it, less what that costs in KL.
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
from cai_plugins._torch.chat import Chat

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
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<|im_start|>", eos_token="<|im_end|>", unk_token="<pad>"
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
    ids = Chat(tokenizer, folder).ids(PROMPT.messages, generation_prompt=True)
    with torch.no_grad():
        shares = AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([ids])).logits[0, -1].double()
        shares = shares.softmax(-1)
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


# answers of up to two tokens -----------------------------------------------------------------------------------------

GOOD = {("corn", "bread"), ("date", "egg")}


class PairScores:
    """The reward of up to two words, of which the second counts by the first."""

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        return [pair_score(exchange.response.split()) for exchange in exchanges]


def pair_score(words: Sequence[str]) -> float:
    if len(words) < 2:
        return SCORES.get(words[0], 0.0) / 2 if words else -0.3
    first, second = words
    return (SCORES.get(first, 0.0) - SCORES.get(second, 0.0)) / 2 + ((first, second) in GOOD)


@dataclass(frozen=True)
class Tree:
    """A policy over answers of up to two tokens: the log-probability of each first one, [n], and of each second one
    after it, [n, n]. ``ends``: the first tokens that nothing follows."""

    first: Tensor
    second: Tensor
    ends: Sequence[int]

    def mean(self, of_answer: Tensor) -> Tensor:
        """For each first token the mean of [n, n] over the second ones. After one that ends all columns are equal."""
        return (self.second.exp() * of_answer).sum(1)

    def later_kl(self, ref: Tree) -> Tensor:
        """For each first token the KL of what follows it, in nats."""
        found = self.mean(self.second - ref.second)
        found[list(self.ends)] = 0
        return found

    def objective(self, ref: Tree, rewards: Tensor, beta: float) -> float:
        """E[r] - beta KL."""
        worth = self.mean(rewards) - beta * (self.first - ref.first) - beta * self.later_kl(ref)
        return float((self.first.exp() * worth).sum())

    def away(self, other: Tree) -> float:
        """The share of answers (0 to 1) whose first token would have to be another."""
        return float((self.first.exp() - other.first.exp()).abs().sum()) / 2


def tree(folder: Path, ends: Sequence[int]) -> tuple[Tree, Tensor]:
    """A policy, and the reward of each answer, [n, n]."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = Chat(tokenizer, folder).ids(PROMPT.messages, generation_prompt=True)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        first = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        second = model(torch.tensor([[*ids, i] for i in range(len(first))])).logits[:, -1].double().log_softmax(-1)
    texts = [
        [tokenizer.decode([i] if i in ends else [i, j], skip_special_tokens=True) for j in range(len(first))]
        for i in range(len(first))
    ]
    rewards = [[pair_score(text.split()) for text in row] for row in texts]
    return Tree(first, second, ends), torch.tensor(rewards, dtype=torch.float64)


def best(ref: Tree, rewards: Tensor, beta: float, *, foresight: bool = True) -> Tree:
    """The policy with the highest E[r] - beta KL. Without ``foresight`` a first token is not charged with the KL of
    what follows it: each token pays for itself alone."""
    second = (ref.second + rewards / beta).log_softmax(1)
    found = Tree(ref.first, second, ref.ends)
    worth = found.mean(rewards) - (beta * found.later_kl(ref) if foresight else 0)
    return Tree((ref.first + worth / beta).log_softmax(0), second, ref.ends)
