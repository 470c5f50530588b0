"""Small records that several contracts share. All are immutable; none holds a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from cai_core.errors import ErrorKind

Role = Literal["system", "user", "assistant"]
JSON: TypeAlias = "bool | int | float | str | list[Any] | dict[str, Any] | None"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates and data sets use."""
        return {"role": self.role, "content": self.content}


Conversation: TypeAlias = tuple[Message, ...]


def conversation(turns: Iterable[Mapping[str, Any]]) -> Conversation:
    """Messages from dictionaries with ``role`` and ``content``. Raises ``ValueError`` on any other role."""
    result = []
    for turn in turns:
        role = turn["role"]
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"role is {role!r}; it must be system, user or assistant")
        result.append(Message(role, str(turn["content"])))
    return tuple(result)


@dataclass(frozen=True, slots=True)
class UnitFailure:
    """Why a unit has no result. It is stored as a row; it is never a zero and never dropped.

    message: half a surrogate pair in it, from a server or a data set, becomes its escape, since no file takes it.
    """

    kind: ErrorKind
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", self.message.encode("utf-8", "backslashreplace").decode())


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a model reads: either chat ``messages`` (rendered with the model's own chat template) or raw ``text``.

    prefill: the beginning of the assistant's turn, written for it. A chat input ends on a user turn.
    stop: generation ends before any of these strings; they are not part of the completion.
    """

    messages: Conversation = ()
    text: str = ""
    prefill: str = ""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.messages) == bool(self.text):
            raise ValueError("a model input has either messages or text")
