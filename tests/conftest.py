"""Settings for all tests: no network, few threads, no timed examples."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))  # tests/tiny.py

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in the worker process

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # workers side by side, and what they start, share the cores

settings.register_profile("cai", deadline=None)
settings.load_profile("cai")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes come first, so that no process is left alone with one of them at the end."""
    first = ("test_third_party.py", "test_tutorial.py", "test_quickstart_tiny.py", "test_training_kills.py")
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))
