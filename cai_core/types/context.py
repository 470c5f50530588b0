"""What a component is handed besides its options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from cai_core.types.backend import Backend
from cai_core.types.principles import Constitution
from cai_core.types.records import Conversation
from cai_core.types.reward import Preference, RewardModel


class Progress(Protocol):
    """Where long work says how far it is."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` steps are finished."""
        ...


class StageContext(Protocol):
    """Handed to every factory; lives as long as the stage's worker process.

    seed: this stage's seed, derived from the run's.
    workdir: a folder for checkpoints that survives a crash and is removed when the stage is done.
    device: "cpu" or "cuda".
    constitution: the run's.
    progress: where to say how far the work is.

    The context owns backends and components, and closes them.
    """

    seed: int
    workdir: Path
    device: str
    constitution: Constitution
    progress: Progress

    def backend(self, role: str) -> Backend:
        """The model in this role, built once: the stage's own (revise: "generator", audit: "judge", rl:
        "policy", evaluate: the names of the models), and those that the component declared in ``roles``."""
        ...

    def component(self, kind: str) -> Any:
        """The component of another kind that this one declared in ``needs``."""
        ...

    def member(self, kind: str, name: str, options: Mapping[str, Any], context: StageContext) -> Any:
        """The component of this kind and name with these options, for one that is made of others (``members`` of
        ``Component``). ``context``: what the member is handed, this one or one that differs from it."""
        ...

    def reward_model(self, folder: Path) -> RewardModel:
        """The reward model that ``fit`` of the component in ``needs`` saved in ``folder``, apart from the run's own.
        ``UserError`` where the folder has none that it can read."""
        ...

    def preferences(self) -> Sequence[Preference]:
        """The run's labelled pairs, for an RL algorithm that declared "label" in ``learns_from``: those that have a
        label, in the order of the stage ``pairs``. Those kept for a held-out reward model are not among them."""
        ...

    def may_learn(self, prompt: Conversation) -> bool:
        """Whether the stage may learn from comparisons on this conversation. Where the recipe has a held-out reward
        model, some are for it alone and the others for everything else; else always. The run's labels come divided;
        a component that adds comparisons of its own asks here."""
        ...

    def heldout_reward(self) -> RewardModel | None:
        """For an RL algorithm: a reward model fitted on labels that nothing else has learnt from, to see by how it
        scores the policy whether a rising reward still means better answers; to choose a checkpoint by, and never to
        learn from. None where the recipe has none."""
        ...
