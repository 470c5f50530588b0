"""Prompts for a run: loaded, checked, and no held-out prompt among those that are trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from cai_core.errors import CAIError, PluginError, UserError
from cai_core.pipeline.components import build_component
from cai_core.pipeline.graph import Stage
from cai_core.pipeline.job import Job
from cai_core.pipeline.tables import write_prompts
from cai_core.registry import Registry
from cai_core.store.canonical import derive_seed
from cai_core.text.duplicates import NearDuplicates
from cai_core.text.transcripts import plain_text
from cai_core.types.principles import Constitution
from cai_core.types.prompts import Prompt, PromptKind, PromptSource, Split

SHOWN = 20
"""Contaminated pairs that are written down one by one; all are counted."""
TURN_WORDS = 8
"""A last turn of fewer words ("and then?") is compared as part of its conversation only: our choice."""


@dataclass(frozen=True, slots=True)
class LoadedPrompts:
    """Prompts with what is to be known about them. ``contamination``: policy, number of train prompts that resemble a
    held-out one, and some of the pairs."""

    prompts: tuple[Prompt, ...] = ()
    notes: tuple[str, ...] = ()
    contamination: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> dict[str, Any]:
        """The table, and what goes into the manifest."""
        count = write_prompts(folder / "prompts.parquet", self.prompts)
        notes = list(self.notes)
        if found := self.contamination.get("count"):
            done = "are left out" if self.contamination["policy"] == "drop" else "stay: the evaluation is contaminated"
            notes.append(f"{found} train prompts resemble held-out ones and {done}")
        return {"ok": count, "failed": {}, "notes": notes, "contamination": self.contamination}


def planned_prompts(
    registry: Registry, stage: Stage, constitution: Constitution, seed: int, where: str
) -> LoadedPrompts:
    """Prompts of a source that asks no model. Raises ``UserError`` on bad data and on contamination."""
    spec = stage.components[0].as_dict()
    try:
        source: PromptSource = build_component(registry, spec, _Context(constitution, seed))
        return checked(source, stage.settings, f"prompts {spec['id']}", where)
    except CAIError:
        raise
    except Exception as error:
        hint = "a fault of this plugin; 'cai --debug ...' prints the traceback"
        raise PluginError(f"{type(error).__name__}: {error}", where=f"prompts {spec['id']}", hint=hint) from error


def run_prompts(job: Job, folder: Path) -> dict[str, Any]:
    """``prompts``, where the source asks a model."""
    name = f"prompts {job.component_spec('prompts')['id']}"
    return checked(job.component("prompts"), job.spec.settings, name, name).write(folder)


def checked(source: PromptSource, settings: Any, plugin: str, where: str) -> LoadedPrompts:
    """What the source loads, without those over the limit per group, after all checks."""
    prompts = list(source.load())
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise PluginError(f"it gave {type(prompt).__name__}, not Prompt", where=plugin)
        if prompt.kind not in get_args(PromptKind) or prompt.split not in get_args(Split):
            raise PluginError(
                f"the prompt {prompt.id!r} has kind {prompt.kind!r} and split {prompt.split!r}",
                where=plugin,
                hint=f"kinds: {', '.join(get_args(PromptKind))}; splits: {', '.join(get_args(Split))}",
            )
    kept = _limited(prompts, settings["limit"], where)
    notes = tuple(str(note) for note in getattr(source, "notes", ()))
    kept, contamination = _uncontaminated(kept, settings["contamination"], where)
    return LoadedPrompts(tuple(kept), notes, contamination)


def _limited(prompts: Sequence[Prompt], limit: int | None, where: str) -> list[Prompt]:
    seen: set[str] = set()
    kept: list[Prompt] = []
    counts: dict[tuple[str, str], int] = {}
    for prompt in prompts:
        if prompt.id in seen:
            raise UserError(f"two prompts have the id {prompt.id!r}", where=where, hint="ids are unique")
        seen.add(prompt.id)
        if not prompt.messages or prompt.messages[-1].role != "user":
            raise UserError(f"the prompt {prompt.id!r} does not end on a user turn", where=where)
        group = (prompt.kind, prompt.split)
        counts[group] = counts.get(group, 0) + 1
        if limit is None or counts[group] <= limit:
            kept.append(prompt)
    return kept


def _uncontaminated(
    prompts: Sequence[Prompt], policy: str, where: str
) -> tuple[list[Prompt], dict[str, Any]]:
    index = NearDuplicates()
    for prompt in prompts:
        if prompt.split == "heldout":
            for text in _texts(prompt):
                index.add(prompt.id, text)
    pairs: list[dict[str, Any]] = []
    contaminated: set[str] = set()
    for prompt in prompts:
        if prompt.split == "train":
            found = [near for text in _texts(prompt) if (near := index.find(text))]
            if found:
                contaminated.add(prompt.id)
                heldout, close = max(found, key=lambda near: near[1])
                pairs.append({"train": prompt.id, "heldout": heldout, "similarity": round(close, 3)})
    index.close()
    if pairs and policy == "block":
        shown = ", ".join(f"{p['train']} ~ {p['heldout']} ({p['similarity']:.0%})" for p in pairs[:3])
        raise UserError(
            f"{len(pairs)} train prompts resemble held-out ones, so the evaluation would not be on unseen prompts: "
            f"{shown}{', ...' if len(pairs) > 3 else ''}",
            where=where,
            hint="take them out, or set `contamination: drop` in the recipe (`allow` only reports them)",
        )
    kept = [p for p in prompts if p.id not in contaminated] if policy == "drop" else list(prompts)
    return kept, {"policy": policy, "count": len(pairs), "pairs": pairs[:SHOWN]}


def _texts(prompt: Prompt) -> list[str]:
    """What is compared: the conversation, and its last turn if that says enough."""
    last = prompt.messages[-1].content
    both = len(prompt.messages) > 1 and len(re.findall(r"\w+", last)) >= TURN_WORDS
    return [plain_text(prompt.messages), *([last] if both else [])]


class _Context:
    """What a prompt source is handed while a run is planned: there is no worker yet, and no model."""

    def __init__(self, constitution: Constitution, seed: int) -> None:
        self.seed = derive_seed(seed, "prompts")
        self.workdir = Path()
        self.device = "cpu"
        self.constitution = constitution
        self.progress = self

    def update(self, done: int, total: int, note: str = "") -> None:
        """Loading prompts is quick; nothing is shown."""

    def backend(self, role: str) -> Any:
        """No model is open yet."""
        raise PluginError(f"it asks for the model in the role {role!r}", hint="its author must name it in `roles`")

    def component(self, kind: str) -> Any:
        """Nothing is injected."""
        raise PluginError(f"a prompt source cannot use a {kind}")
