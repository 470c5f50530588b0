"""The errors a user, a plugin author or the pipeline can meet.

Every message says what was wrong; ``where`` says in which file, line, recipe path or plugin; ``hint`` says what to
do. The command line prints all three and exits with ``exit_code`` (2: the user's input is wrong, 1: anything else).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

ErrorKind = Literal["infra", "refusal", "unparseable", "too_long"]
"""Why one unit of work has no result: the machine or server failed, the model refused, its text could not be read
back, or the input does not fit the model's context."""


class CAIError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  {self.hint}" if self.hint else text


class UserError(CAIError):
    """What the user gave is wrong: a recipe, a file, an option. Exit code 2."""

    exit_code = 2


class UserErrors(UserError):
    """Several user errors found in one pass, reported together."""

    def __init__(self, problems: Sequence[UserError]) -> None:
        super().__init__(f"{len(problems)} problems" if len(problems) != 1 else "1 problem")
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)


class EnvironmentProblem(CAIError):
    """The machine is in the way: no space, no permission, no network, a dead worker. Exit code 1."""


class PluginError(CAIError):
    """A plugin broke its contract; the message names the distribution. Exit code 1."""


class Cancelled(CAIError):
    """The user stopped the run (Ctrl-C or SIGTERM). The same command goes on from here. Exit code 130."""

    exit_code = 130


class UnitError(CAIError):
    """One unit of work has no result. Plugins raise it or return it as ``UnitFailure``; it becomes a row."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
