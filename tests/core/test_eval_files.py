"""What ``cai eval -o`` writes, without a model."""

from __future__ import annotations

import json
from pathlib import Path

from cai_core.cli.eval import _write
from cai_core.pipeline.tables import EVAL_ROWS
from cai_core.store.tables import write_table


def test_half_a_character_is_written_as_its_escape(tmp_path: Path) -> None:
    for folder in ("artifact", "out"):
        (tmp_path / folder).mkdir()
    row = {"evaluator": "x", "model": "m", "id": "1", "payload": {"a": "\ud800 \u05d0"}, "values": {}, "failure": None}
    write_table(tmp_path / "artifact" / "rows.parquet", EVAL_ROWS, [row])
    for name in ("metrics", "curves", "counts"):
        (tmp_path / "artifact" / f"{name}.json").write_text("[]")
    _write(tmp_path / "artifact", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8")) == row
