"""The authors' released prompt files (github.com/anthropics/ConstitutionalHarmlessnessPaper) as a constitution.

The files stay where the user has them; what is made here is for the user's own folder. Every text is taken apart into
parts that the built-in templates put together again byte for byte, and a file that cannot be is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cai_core.constitution.read import SCHEMA_VERSION, constitution_digest
from cai_core.errors import UserError
from cai_core.text.transcripts import parse_transcript, render_transcript
from cai_core.types.principles import ComparisonShot, Constitution, CritiqueShot, FewShots, Principle

INSTRUCTIONS = "CritiqueRevisionInstructions.json"
COMPARISONS = "RLMadisonInstructions.json"
SHOTS = "CritiqueRevisionFewShotPrompts.json"
COMPARISON_SHOTS = "RLMadisonFewShotPrompts.json"
REASONING_SHOTS = "RLMadisonPrecogFewShotPrompts.json"
_TAGS = ("\n\nCritiqueRequest: ", "\n\nCritique: ", "\n\nRevisionRequest: ", "\n\nRevision: ")
_NEXT = "\n\nHuman:"  # examples end on the tag of the turn that would come next


def import_authors(folder: Path) -> Constitution:
    """Principles ``harmful0`` to ``harmful15`` (critique and revision), ``comparison0`` to ``comparison15``, and the
    few-shots. ``folder`` holds the files, or has them in ``prompts/``. Raises ``UserError`` naming file and entry."""
    folder = folder / "prompts" if (folder / "prompts" / INSTRUCTIONS).is_file() else folder
    names = (INSTRUCTIONS, COMPARISONS, SHOTS, COMPARISON_SHOTS, REASONING_SHOTS)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{', '.join(missing)} not found",
            where=str(folder),
            hint="give the folder `prompts` of a copy of github.com/anthropics/ConstitutionalHarmlessnessPaper",
        )
    raw = {name: (folder / name).read_bytes() for name in names}
    try:
        data = {name: _json(name, text) for name, text in raw.items()}
        constitution = Constitution(
            id="cai-paper",
            version=hashlib.sha256(b"".join(raw[name] for name in names)).hexdigest()[:12],
            title="The principles of the Constitutional AI paper, as its authors released them",
            principles=(*_revisions(data[INSTRUCTIONS]), *_comparisons(data[COMPARISONS])),
            licence="none stated by the authors: for your own use, do not pass on",
            source="github.com/anthropics/ConstitutionalHarmlessnessPaper, folder prompts",
            few_shots=FewShots(
                tuple(_critique_shot(text, f"{SHOTS}[{i}]") for i, text in enumerate(data[SHOTS])),
                tuple(_comparison_shot(entry, f"{COMPARISON_SHOTS}[{i}]")
                      for i, entry in enumerate(data[COMPARISON_SHOTS])),
                tuple(entry["prompt"].removesuffix(_NEXT) for entry in data[REASONING_SHOTS]),
            ),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        detail = f"no field {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"not in the form of the authors' files: {detail}",
            where=str(folder),
            hint="use the files as they were released",
        ) from error
    return replace(constitution, digest=constitution_digest(constitution))


def _json(name: str, text: bytes) -> Any:
    """What a file holds: an object where ``name`` is that of the instructions, else a list; not an empty one."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8, and nesting without end
        raise ValueError(f"{name} is no JSON: {error}") from error
    wanted = dict if name == INSTRUCTIONS else list
    if not isinstance(found, wanted) or not found:
        raise ValueError(f"{name} holds no {'object' if wanted is dict else 'list'} with entries")
    return found


def as_yaml(constitution: Constitution) -> str:
    """A constitution as a file that ``load_constitution`` reads back with the same digest."""
    import yaml

    shots = constitution.few_shots
    data: dict[str, Any] = {
        "schema": SCHEMA_VERSION,
        **{key: getattr(constitution, key) for key in ("id", "version", "title", "licence", "source")},
        "principles": [
            {
                "id": p.id,
                **{key: getattr(p, key) for key in ("critique", "revision", "comparison") if getattr(p, key)},
                **({"weight": p.weight} if p.weight != 1 else {}),
                **({"tags": list(p.tags)} if p.tags else {}),
            }
            for p in constitution.principles
        ],
    }
    if shots != FewShots():
        data["few_shots"] = {
            "critiques": [_shot(shot) for shot in shots.critiques],
            "comparisons": [_shot(shot) for shot in shots.comparisons],
            "reasoning": list(shots.reasoning),
        }
    return str(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100))


def _shot(shot: CritiqueShot | ComparisonShot) -> dict[str, Any]:
    fields = {name: getattr(shot, name) for name in shot.__dataclass_fields__}
    return {**fields, "prompt": [message.as_dict() for message in shot.prompt]}


def _revisions(entries: dict[str, Any]) -> list[Principle]:
    found = []
    for name, entry in entries.items():
        (critique,) = entry["prompt"]
        found.append(
            Principle(
                name,
                critique=_inside(critique, _TAGS[0], "\n\nCritique:", f"{INSTRUCTIONS}.{name}"),
                revision=_inside(entry["edit_request"], _TAGS[2], "\n\nRevision:", f"{INSTRUCTIONS}.{name}"),
            )
        )
    return found


def _comparisons(texts: list[str]) -> list[Principle]:
    return [
        Principle(f"comparison{i}", comparison=_inside(text, "\n", " Options:", f"{COMPARISONS}[{i}]"))
        for i, text in enumerate(texts)
    ]


def _inside(text: str, before: str, after: str, where: str) -> str:
    inner = text.removeprefix(before).removesuffix(after)
    if f"{before}{inner}{after}" != text or inner != inner.strip():
        raise ValueError(f"{where} does not begin with {before!r} and end on {after!r}")
    return inner


def _critique_shot(text: str, where: str) -> CritiqueShot:
    text = text.removesuffix(_NEXT)
    transcript, *rest = text, *[""] * len(_TAGS)
    for i, tag in enumerate(_TAGS):
        before, found, after = (transcript if i == 0 else rest[i - 1]).partition(tag)
        if not found:
            raise ValueError(f"{where} has no {tag.strip()!r}")
        if i == 0:
            transcript = before
        else:
            rest[i - 1] = before
        rest[i] = after
    *prompt, response = parse_transcript(transcript)
    if response.role != "assistant" or render_transcript((*prompt, response)) != transcript:
        raise ValueError(f"{where} is no transcript that ends on an answer")
    return CritiqueShot(tuple(prompt), response.content, *rest)


def _comparison_shot(entry: dict[str, Any], where: str) -> ComparisonShot:
    prompt = parse_transcript(entry["prompt"].removesuffix("\n\nAssistant:"))
    (better,), (worse,) = entry["corrects"], entry["incorrects"]
    if f"{render_transcript(prompt)}\n\nAssistant:" != entry["prompt"]:
        raise ValueError(f"{where} does not end on the assistant's tag")
    return ComparisonShot(prompt, better, worse)
