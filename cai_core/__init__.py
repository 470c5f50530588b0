"""cai-core: Constitutional AI from a recipe, every part a plugin.

Importing this package loads nothing else, so that ``cai --help`` stays quick.
"""

from __future__ import annotations

__version__ = "0.1.0"
