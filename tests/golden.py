"""Where the authors' files lie, for tests that compare with them; they have no licence, so they are not in the tree.

``CAI_PAPER_FILES`` names a copy of github.com/anthropics/ConstitutionalHarmlessnessPaper; a folder ``shared`` beside
the checkout is looked at too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_PLACES = [Path(p) for p in (os.environ.get("CAI_PAPER_FILES"),) if p] + [
    parent / "shared" / "data" / "cai-paper" for parent in (ROOT, ROOT.parent)
]
PAPER = next((place for place in _PLACES if (place / "prompts").is_dir()), None)
needs_paper = pytest.mark.skipif(PAPER is None, reason="the authors' files are not here; CAI_PAPER_FILES names them")
