"""Constitutions: read and named by digest, checked, imported from the authors' files."""

from cai_core.constitution.read import (
    constitution_digest,
    constitution_schema,
    list_constitutions,
    load_constitution,
)

__all__ = ["constitution_digest", "constitution_schema", "list_constitutions", "load_constitution"]
