"""Loaded by pytest where cai-core is installed: the fixture that the conformance classes use. Light on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cai_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random language model of two layers, with tokenizer and chat template; never write into it."""
    from cai_core.testing.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("cai") / "tiny")
