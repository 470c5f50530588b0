"""Conversations as tokens, with a model's own chat template. Message text is hostile: it cannot become markup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from cai_core.errors import UserError
from cai_core.types.records import Conversation, Message

IGNORED = -100
"""The label of a token that carries no loss (PyTorch's ``ignore_index``)."""


class Chat:
    """Renders conversations with the tokenizer's chat template.

    Special tokens inside message text are broken up (``<|im_end|>`` becomes ``< |im_end|>``), as the ``transformers``
    backend does, so that training sees what generation sees.
    """

    def __init__(self, tokenizer: Any, path: Path) -> None:
        self.tokenizer = tokenizer
        self.path = path
        self._specials = sorted(set(tokenizer.all_special_tokens), key=len, reverse=True)

    def plain(self, text: str) -> str:
        """``text`` without special tokens and lone surrogates."""
        for special in self._specials:
            text = text.replace(special, f"{special[0]} {special[1:]}")
        return text.encode("utf-8", "replace").decode("utf-8")

    def turns(self, messages: Conversation) -> list[dict[str, str]]:
        """The form that chat templates take."""
        return [{"role": message.role, "content": self.plain(message.content)} for message in messages]

    def text(self, messages: Conversation, *, generation_prompt: bool = False) -> str:
        """The rendered conversation. Raises ``UserError`` where the template refuses it."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    self.turns(messages), tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise UserError(
                f"the chat template refuses a conversation with the turns [{roles}]: {error}", where=str(self.path)
            ) from error

    def ids(self, messages: Conversation, *, generation_prompt: bool = False) -> list[int]:
        """The rendered conversation as tokens; the template alone decides on a beginning-of-sequence token."""
        return self._encode(self.text(messages, generation_prompt=generation_prompt))

    def answer(self, messages: Conversation) -> tuple[list[int], list[int]]:
        """Tokens of a conversation that ends on an assistant turn, and their labels: ``IGNORED`` except on the last
        turn's text and its end-of-turn token.

        The prompt is tokenised by itself, exactly as it is when the model generates.
        """
        whole = self.text(messages)
        # A template may open the turn with more than a finished turn holds (an empty thought, say).
        prompt = _common_start(self.text(messages[:-1], generation_prompt=True), whole)
        completion = whole[len(prompt) :]
        stripped = completion.rstrip()
        if not any(stripped.endswith(special) for special in self._specials):
            stripped = f"{stripped}{self.tokenizer.eos_token or ''}"
        before, after = self._encode(prompt), self._encode(stripped)
        return before + after, [IGNORED] * len(before) + after

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def drop_early_turns(
    messages: Conversation, limit: int, length: Callable[[Conversation], int]
) -> tuple[Conversation, bool]:
    """``messages`` without as many of its earliest exchanges as it takes for ``length`` to be within ``limit``,
    and whether it now is. A system turn, the last user turn and what follows it always stay."""
    system: Sequence[Message] = messages[:1] if messages[0].role == "system" else ()
    rest = messages[len(system) :]
    while length((*system, *rest)) > limit:
        later = next((i for i in range(1, len(rest)) if rest[i].role == "user"), None)
        if later is None:
            return (*system, *rest), False
        rest = rest[later:]
    return (*system, *rest), True


def _common_start(a: str, b: str) -> str:
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return a[:i]
    return min(a, b, key=len)
