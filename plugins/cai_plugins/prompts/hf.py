"""Prompts from a data set of the Hugging Face hub, or a local folder or file that ``datasets`` reads."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import datasets

from cai_core.errors import UserError
from cai_core.types.prompts import Prompt, PromptKind, Split
from cai_core.types.records import Conversation, Message, conversation
from cai_plugins.prompts.common import content_id, split_of
from cai_plugins.prompts.plugin import HFOptions

FORMATS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


class HFPrompts:
    """Rows in their order; a row whose conversation was there already is left out and counted in ``notes``. Code that
    comes with a data set is never run."""

    def __init__(self, options: HFOptions) -> None:
        self.options = options
        self.notes: list[str] = []

    def load(self) -> Sequence[Prompt]:
        """See ``PromptSource``. Raises ``UserError`` naming the row on a column that holds no prompt."""
        self.notes = []
        options = self.options
        rows = self._open()
        if options.column not in rows.column_names:
            known = ", ".join(rows.column_names)
            raise UserError(f"no column {options.column!r}", where=options.dataset, hint=f"columns: {known}")
        prompts: dict[str, Prompt] = {}
        repeated = 0
        name = Path(options.dataset).name if Path(options.dataset).expanduser().exists() else options.dataset
        for number, row in enumerate(rows):
            where = f"{name}[{number}]"
            messages = _messages(row[options.column], where)
            identifier = content_id(messages)
            if identifier in prompts:
                repeated += 1
                continue
            prompts[identifier] = Prompt(
                identifier,
                messages,
                cast(PromptKind, self._of(row, options.kind_column, options.kind, get_args(PromptKind), where)),
                cast(
                    Split,
                    self._of(
                        row, options.split_column, split_of(identifier, options.heldout_share), get_args(Split), where
                    ),
                ),
                where,
            )
            if options.limit and len(prompts) == options.limit:
                break
        if not prompts:
            raise UserError("the data set has no rows", where=options.dataset)
        if repeated:
            self.notes.append(f"{repeated} rows left out: the same prompt was there already")
        return list(prompts.values())

    def _open(self) -> Any:
        options = self.options
        path = Path(options.dataset).expanduser()
        try:
            if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
                found = datasets.load_from_disk(str(path))
                return found[options.split] if isinstance(found, Mapping) else found
            if path.is_file():
                if path.suffix not in FORMATS:
                    raise UserError(f"{path.suffix or 'no ending'} is not read", where=str(path),
                                    hint=f"one of {', '.join(FORMATS)}")  # fmt: skip
                return datasets.load_dataset(FORMATS[path.suffix], data_files=str(path), split="train")
            if not path.exists() and options.dataset.startswith((".", "/", "~")):
                raise UserError("no such file or folder", where=options.dataset)
            with _quiet():
                return datasets.load_dataset(options.dataset, options.config, split=options.split)
        except UserError:
            raise
        except Exception as error:  # datasets has dozens of kinds, from bad names to no network
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"the data set cannot be opened: {reason}",
                where=options.dataset,
                hint="give the id of a data set on the hub, or a folder or file (parquet, jsonl, csv), and its `split`",
            ) from error

    def _of(self, row: Mapping[str, Any], column: str | None, default: str, known: Sequence[str], where: str) -> str:
        if column is None:
            return default
        value = row.get(column)
        if value not in known:
            raise UserError(
                f"{column!r} is {value!r}", where=where, hint=f"it must be one of {', '.join(known)}, in every row"
            )
        return str(value)


def _messages(value: Any, where: str) -> Conversation:
    if isinstance(value, str) and value.strip():
        return (Message("user", value),)
    if isinstance(value, list) and value:
        with contextlib.suppress(TypeError, KeyError, ValueError):
            messages = conversation(value)
            while messages and messages[-1].role == "assistant":
                messages = messages[:-1]  # a finished conversation: what is asked for is its last answer
            if messages and messages[-1].role == "user" and all(m.content.strip() for m in messages):
                return messages
    raise UserError(
        "no prompt here: it is a text, or a list of turns {role, content} with one of the user's", where=where
    )


@contextlib.contextmanager
def _quiet() -> Any:
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
