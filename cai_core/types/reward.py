"""Reward models: fit on preferences, then score answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cai_core.errors import PluginError
from cai_core.types.records import Conversation
from cai_core.types.trainer import TrainResult


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers with the probability ``p_a`` in [0, 1] that A is better; ``source`` names the mixture part."""

    id: str
    prompt: Conversation
    response_a: str
    response_b: str
    p_a: float
    source: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A conversation and one answer to it."""

    id: str
    prompt: Conversation
    response: str


class RewardModel(Protocol):
    """Learns from preferences, then scores answers.

    Order: one score per exchange, in the order given.
    Shapes and units: scores are finite floats without a unit; only differences within one model mean anything. The more
    likely the labels call an answer better, the higher it scores.
    Ownership: ``model`` is read only; ``out`` is new and its own; ``load`` reads nothing but what ``fit`` wrote there.
    Errors: ``UserError`` on preferences that cannot be learnt from (``p_a`` outside [0, 1] or NaN, none left),
    ``CAIError`` when asked for scores before ``fit`` or ``load``.
    Determinism: scores do not depend on the batch, up to rounding; after ``load`` they equal those after ``fit``.
    """

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """Train from the model folder ``model`` and save to the new folder ``out``; afterwards ``score`` works."""
        ...

    def load(self, path: Path) -> None:
        """Use what ``fit`` saved; scores equal those after ``fit``."""
        ...

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """One finite score per exchange, in the same order, independent of the batch up to float rounding."""
        ...


class NoReward:
    """Handed to an RL algorithm that does not learn from a reward: every use of it is a ``PluginError``."""

    def fit(self, model: Path, preferences: Sequence[Preference], out: Path) -> TrainResult:
        """Raises."""
        raise self._error()

    def load(self, path: Path) -> None:
        """Raises."""
        raise self._error()

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """Raises."""
        raise self._error()

    def _error(self) -> PluginError:
        return PluginError(
            "the algorithm asked for a reward that it does not learn from",
            hint='its author must name "reward" in `learns_from` of Component',
        )
