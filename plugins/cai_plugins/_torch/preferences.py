"""What every loss on comparisons needs of them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from cai_core.errors import UserError
from cai_core.types.reward import Preference


def check_preferences(preferences: Iterable[Preference]) -> None:
    """Raises ``UserError`` on a label that is no probability, a weight that is none, or a prompt without a turn."""
    hint = "correct the labels where they come from: the file of the pairs, or the labeler"
    for p in preferences:
        where = f"comparison {p.id!r}"
        if not 0 <= p.p_a <= 1:  # false for NaN too
            raise UserError(f"p_a is {p.p_a}; it must be a probability", where=where, hint=hint)
        if not 0 < p.weight < math.inf:
            raise UserError(f"weight is {p.weight}; it must be positive and finite", where=where, hint=hint)
        if not p.prompt:
            raise UserError("the prompt has no turn", where=where, hint=hint)
