"""A policy under training, as seen from outside of its trainer: what it samples, and how likely that was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from cai_core.types.backend import GenerateRequest
from cai_core.types.context import StageContext
from cai_plugins._torch.loading import load_causal
from cai_plugins._torch.memory import most_rows, token_budget
from cai_plugins._torch.ranks import shares_weights
from cai_plugins._torch.rollouts import Rollouts
from cai_plugins.rl.checks import end_tokens
from cai_plugins.rl.gathered import check_whole, copied, refresh
from cai_plugins.rl.samples import Tokens, answer_logits, by_length, forward_inputs, only_answers, tokens_of

# Our choice: on a CPU, memory is for the training beside it.
BUDGET = {"cpu": 16384}
"""Tokens in memory at a time while sampling; elsewhere those of ``memory.token_budget``."""


class Live:
    """See ``validation.Policy``. ``model`` is a causal model or one with adapters, whose weights may change between
    calls; the reference is ``policy``: the adapters switched off, or a copy that is loaded once it is asked for. Where
    its weights are to be shared out it is given before that, and what is sampled and read with here is a whole copy.
    Raises ``UserError`` where such a copy could not be brought up to date.
    """

    def __init__(
        self,
        model: Any,
        policy: Path,
        tokenizer: Any,
        context: StageContext,
        temperature: float,
        micro: int,
        rows: int | None = None,
        budget: int | None = None,
    ) -> None:
        check_whole()
        self._given = model
        self.trained = model = copied(model, policy, context.device) if shares_weights() else model.to(context.device)
        self.model = model.get_base_model() if isinstance(model, PeftModel) else model
        self.policy, self.tokenizer, self.context = policy, tokenizer, context
        self.temperature, self.micro = temperature, micro
        self.proper = end_tokens(self.model, tokenizer, policy)
        self.ends = self.proper | set(tokenizer.all_special_ids)
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(self.proper)
        self._frozen: Any = None
        device = self.model.device
        rows, budget = rows or most_rows(device), budget or BUDGET.get(device.type) or token_budget(self.model)
        with self._precision():
            self.rollouts = Rollouts(self.model, sorted(self.ends), self.pad, rows, budget)

    def sample(self, requests: Sequence[GenerateRequest], prompts: Sequence[list[int]]) -> list[list[int]]:
        """See ``Rollouts``."""
        self.refresh()
        with self._precision():
            return self.rollouts.sample(requests, prompts)

    def refresh(self) -> None:
        """Where weights are shared out, ``trained`` gets them as they are now; all processes call it at the same time.
        """
        if self.trained is not self._given:
            refresh(self.trained, self._given)

    def ended(self, answer: Sequence[int]) -> bool:
        """Whether the policy ended the answer as it should; another special token cuts it off."""
        return answer[-1] in self.proper

    def text(self, answer: Sequence[int]) -> str:
        """The answer as the reward model reads it."""
        tokens = answer[:-1] if answer[-1] in self.ends else answer
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def logp(self, samples: Sequence[Tokens], *, reference: bool = False, learner: Any = None) -> Tensor:
        """The log-probability of each answer at the sampling's temperature, in nats, [rows]. learner: what is called in
        place of the policy here."""
        inputs, width = forward_inputs(samples, self.pad, self.rollouts.takes, self.model.device)
        ids = inputs["input_ids"]
        own = torch.tensor([[0] * (width - len(a)) + [1] * len(a) for _, a in samples], device=ids.device).bool()
        with self._as(reference) as model, self._precision():
            output = (learner or model)(**inputs, **only_answers(width, self.rollouts.takes))
            logits = answer_logits(output.logits, width, self.temperature)
        logp = logits.log_softmax(-1).gather(-1, ids[:, -width:, None])[..., 0]
        return torch.where(own, logp, 0).sum(1)

    @torch.no_grad()
    def kl(self, samples: Sequence[Tokens]) -> list[float]:
        """log pi - log ref of each answer, in nats: its mean over samples of the policy is the KL. By a copy of the
        weights, where there is one, as they were at the last ``sample`` or ``refresh``."""
        found = [0.0] * len(samples)
        training = self.model.training
        self.model.eval()
        for rows in by_length(range(len(samples)), tokens_of(samples), self.micro):
            some = [samples[i] for i in rows]
            difference = self.logp(some) - self.logp(some, reference=True)
            for i, value in zip(rows, difference.tolist(), strict=True):
                found[i] = value
        self.model.train(training)
        return found

    @contextmanager
    def _as(self, reference: bool) -> Iterator[Any]:
        if not reference:
            yield self.model
        elif isinstance(self.trained, PeftModel):
            with self.trained.disable_adapter():
                yield self.model
        else:
            if self._frozen is None:
                frozen = load_causal(self.policy, self.context.device, all_weights=True).to(self.context.device)
                self._frozen = frozen.requires_grad_(False).eval()
            yield self._frozen

    def _precision(self) -> Any:
        device = torch.device(self.context.device).type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=device != "cpu")


def no_dropout(model: Any) -> None:
    """Dropout would make the ratio of a policy to itself a random number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
