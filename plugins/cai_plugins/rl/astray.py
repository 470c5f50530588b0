"""Training that has gone astray: what shows it, and which policy is the result then.

The policy after step k is first seen at step k + 1: in the answers that it draws, or in the pairs that it reads. So
where trouble shows at step s, the policy after s - 1 is bad, and the last known to be good is one after s - 2 or
before. A loss or gradient that is not finite is an error (``checks.diverged``), since then there is nothing to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cai_core.errors import CAIError
from cai_plugins._torch.checkpoints import last_whole
from cai_plugins.rl.validation import Validation

KL = "the KL to the reference"


def trouble(row: Mapping[str, Any], max_kl: float | None, max_empty: float | None = None, what: str = KL) -> str:
    """Why training must not go on from what ``row`` shows: ``kl`` in nats per answer, which ``what`` names, and
    ``empty``, a share, as far as it has them. Empty text where it may."""
    kl, empty = row.get("kl"), row.get("empty")
    if kl is not None:
        if math.isnan(kl):
            return "the policy's probabilities are not numbers"
        if max_kl is not None and kl > max_kl:
            return f"{what} is {kl:.1f} nats per answer, above max_kl {max_kl:g}"
        if math.isinf(kl):
            return f"{what} is infinite"
    if max_empty is not None and empty is not None and empty >= max_empty:
        return f"{empty:.0%} of the answers are empty, max_empty is {max_empty:g}"
    return ""


def last_good(folder: Path, step: int, found: str, validation: Validation | None) -> Path | None:
    """The last checkpoint in ``folder`` that is known to be good where trouble (``found``) shows at ``step``. None
    where a validation has chosen: it has seen a policy in order. Raises ``CAIError`` where there is none."""
    if validation is not None and validation.best is not None:
        return None
    good = last_whole(folder, at_most=step - 2)
    if good is None:
        raise CAIError(
            f"training stopped at step {step}: {found}; no earlier checkpoint is known to be good",
            where="rl",
            hint="lower learning_rate, raise beta, or lower save_steps to keep earlier checkpoints",
        )
    return good


def stopped(found: str, step: int, last: int, good: int | None) -> str:
    """A note on trouble at ``step`` of ``last``. ``good``: the step of the result, if no validation chose it."""
    text = f"stopped at step {step} of {last}: {found}"
    if good is None:
        return text
    return (
        f"{text}. The result is the policy after step {good}; a lower learning_rate or a higher beta would go further"
    )


class Guard(TrainerCallback):
    """Ends a training by transformers' ``Trainer`` that has gone astray. Put it before ``StageCallback``.

    see: an entry of the log to what ``trouble`` reads. ``found``, at ``step``: what it was; "" is nothing.
    """

    def __init__(
        self,
        see: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        max_kl: float | None,
        max_empty: float | None = None,
        what: str = KL,
    ) -> None:
        self.see = see
        self.limits = (max_kl, max_empty, what)
        self.found, self.step = "", 0

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kw: Any) -> None:
        """Runs before a checkpoint of the same step is written: there is none."""
        if not self.found and (found := trouble(self.see(logs or {}), *self.limits)):
            self.found, self.step = found, state.global_step
            control.should_training_stop, control.should_save = True, False

    def good(self, folder: Path, validation: Validation | None) -> int | None:
        """The step of the policy that is the result, where this ended the training and no validation chooses. Raises
        ``CAIError`` where none is known to be good."""
        found = last_good(folder, self.step, self.found, validation) if self.found else None
        return None if found is None else int(found.name.rpartition("-")[2])

    def outcome(self, last: int, good: int | None) -> tuple[list[str], dict[str, float]]:
        """Notes and metrics for the report."""
        if not self.found:
            return [], {}
        return [stopped(self.found, self.step, last, good)], {"stopped": float(self.step)}
