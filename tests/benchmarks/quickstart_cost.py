"""Time and peak memory of the quickstart per stage, from an empty store and an empty model cache.

Run: python tests/benchmarks/quickstart_cost.py [--keep-model] [RECIPE]   (or: make cost)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil


class PeakMemory(threading.Thread):
    """Samples the resident memory of a process and all its children ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(pid)
        self.peak = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.1):
            total = 0
            try:
                for process in [self.process, *self.process.children(recursive=True)]:
                    try:
                        total += process.memory_info().rss
                    except psutil.Error:
                        continue
            except psutil.Error:
                return
            self.peak = max(self.peak, total)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="quickstart")
    parser.add_argument("--keep-model", action="store_true", help="use the model cache as it is")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ)
        if not arguments.keep_model:
            environment["CAI_CACHE"] = str(Path(folder) / "cache")
        command = [sys.executable, "-m", "cai_core.cli.main", "run", arguments.recipe, "--store", f"{folder}/store"]
        command += ["--runs", f"{folder}/runs", "--json"]
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        memory = PeakMemory(process.pid)
        memory.start()
        output, _ = process.communicate()
        seconds = time.monotonic() - start
        memory.done.set()
        if process.returncode:
            return process.returncode
        record = json.loads(output)
        print(f"{'stage':<18} {'seconds':>8} {'peak MB':>8}")
        for stage in record["stages"]:
            info = stage.get("info", {})
            print(f"{stage['id']:<18} {info.get('seconds', 0):>8} {info.get('peak_mb', 0):>8}")
        inside = sum(stage.get("info", {}).get("seconds", 0) for stage in record["stages"])
        print(f"{'model and start-up':<18} {seconds - inside:>8.1f}")
        print(f"{'all':<18} {seconds:>8.1f} {memory.peak / 2**20:>8.0f}  (peak: all processes together)")
        again = time.monotonic()
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=True)
        print(f"{'the same again':<18} {time.monotonic() - again:>8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
