"""How long commands take to start, side by side: `python tests/benchmarks/startup.py [repeats]`.

Each round runs every command once, so that a busy moment hits all of them alike; medians and ratios are printed as a
table. Times differ from machine to machine; the ratios are what to compare.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

CLICK = "import click\n@click.command()\ndef main(): pass\nmain(['--help'])"
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "a bare click program, --help": [sys.executable, "-c", CLICK],
    "cai --help": [sys.executable, "-m", "cai_core.cli.main", "--help"],
    "cai plugins list": [sys.executable, "-m", "cai_core.cli.main", "plugins", "list"],
}


def measure(repeats: int) -> dict[str, list[float]]:
    """Seconds of every run of every command, after one round that warms the disk cache."""
    found: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(repeats + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            if round_number:
                found[name].append(time.perf_counter() - start)
    return found


if __name__ == "__main__":
    found = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 21)
    medians = {name: statistics.median(times) for name, times in found.items()}
    python, bare = medians["python -c pass"], medians["a bare click program, --help"]
    print("| command | median | times python | times bare click | fastest to slowest |")
    print("| --- | --- | --- | --- | --- |")
    for name, times in found.items():
        spread = f"{1000 * min(times):.0f} to {1000 * max(times):.0f} ms"
        median = medians[name]
        print(f"| `{name}` | {1000 * median:.0f} ms | {median / python:.1f} | {median / bare:.1f} | {spread} |")
