"""``report``: results -> files, by reporters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai_core.errors import PluginError
from cai_core.pipeline.job import Job
from cai_core.pipeline.results import build_results


def run_report(job: Job, folder: Path) -> dict[str, Any]:
    """Writes what the reporters write. The same artifacts give the same bytes."""
    results = build_results(job)
    written = []
    for spec, reporter in job.all_of("reporter"):
        for path in reporter.write(results, folder):
            if not path.resolve().is_relative_to(folder.resolve()):
                raise PluginError(f"it wrote outside its folder: {path}", where=f"reporter {spec['id']}")
            written.append({"reporter": spec["id"], "file": path.relative_to(folder).as_posix()})
    return {
        "ok": len(written),
        "files": written,
        "status": results["status"],
        "findings": results["findings"],
        "summary": {"models": results["models"], "metrics": results["metrics"]},
    }
