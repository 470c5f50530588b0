"""What a plugin registers: a named factory with its options."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from pydantic import BaseModel

P_co = TypeVar("P_co", covariant=True)

EXECUTION: dict[str, Any] = {"execution": True}
"""Put ``json_schema_extra=EXECUTION`` on an option's ``Field`` that changes how work is done and never what comes out
(token budget, concurrency, logging). It is recorded with the run and left out of the digest."""

SCOPE: dict[str, Any] = {"scope": True}
"""Put ``json_schema_extra=SCOPE`` on an option of an evaluator that decides which units there are or how rows are
summed up, and never what the row of a unit with the same payload says. When it changes the metrics are made anew, and
the rows that are there stay."""


@dataclass(frozen=True, slots=True)
class Component(Generic[P_co]):
    """A part on offer: the pipeline resolves ``name`` from the recipe and calls ``factory(options, context)``.

    name: lower-case identifier, unique within the distribution and kind.
    options: a pydantic model with ``extra="forbid"`` and ``frozen=True`` and no field called ``name``.
    factory: called once per stage in the worker process with ``(options, StageContext)``; heavy imports belong in
        its body, since the module that registers it is imported by ``cai plugins list``.
    summary: one line for people.
    revision: raised by the author whenever the same options give other results; part of every digest.
    needs: kinds of other components that it asks the context for (``context.component(kind)``): the recipe's backend,
        prompts, principle_sampler, critique_template, labeler, trainer or reward_model, and not its own kind.
    needs_of: of options, those of ``needs`` that are asked for with them; without it all are.
    roles: roles of models that it asks the context for (``context.backend(role)``) besides those of its stage, e.g. a
        reward model that asks the "judge". Whoever needs a component gets the models of its roles too. A labeler names
        the judge as well: where it asks no model, none is loaded.
    roles_of: of options, those of ``roles`` that are asked for with them, e.g. none where an option is off; without it
        all are, whatever the options.
    learns_from: of an RL algorithm, the stages whose results it learns from: "prompts", "reward" (the fitted reward
        model) and "label" (the labelled pairs, ``context.preferences()``). A recipe must have these, and a result
        depends on no other. One that does not name "prompts" or "reward" is given no prompts, or a reward model that
        refuses to score.
    distributed: of a trainer, reward model or RL algorithm, whether it trains in several processes that ``accelerate
        launch`` starts (``launch.processes``). Each process calls it with the same arguments, except that ``out`` is a
        folder to throw away in all but the first; the result must be that of one process, up to rounding. Without it
        the stage has one process, whatever the recipe says of all stages.
    trains: of a reward model, whether ``fit`` trains the model in the role "reward_base". Without it there is no such
        model in the stage, ``fit`` is handed ``workdir`` in its place, and no preferences where a recipe has no labels.
    reads: of an evaluator, what it reads of a run besides the models: "answers" (to the held-out prompts), "reward"
        (the fitted reward model, where it ``needs`` one; without this the component is handed out unfitted, for those
        who load a model of another run), "chains" (critiques and revisions) and "training" (the training prompts).
        ``reads_of``: of options, those of ``reads`` that are read with them.
    members: of a component made of others of its own kind, the option that lists them: models that allow extras, each
        with a field called as the kind ("labeler") that names the member. Fields of the model are the composite's, all
        else are the member's options. The pipeline checks members as if they stood in the recipe themselves; their ids,
        revisions and options are part of every digest, their ``needs`` and ``roles`` are added to the composite's own,
        and ``context.member`` builds them. A field ``role`` names the model that the member is given as its "judge".
    """

    name: str
    options: type[BaseModel]
    factory: Callable[[Any, Any], P_co]
    summary: str
    revision: int = 1
    needs: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    roles_of: Callable[[Any], Collection[str]] | None = None
    learns_from: tuple[str, ...] = ("prompts", "reward")
    distributed: bool = False
    reads: tuple[str, ...] = ("answers", "reward")
    reads_of: Callable[[Any], Collection[str]] | None = None
    needs_of: Callable[[Any], Collection[str]] | None = None
    members: str = ""
    trains: bool = True
