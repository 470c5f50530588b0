"""``cai models``: the models that need no account and no hub."""

from __future__ import annotations

import json
import sys

import click

from cai_core.cli.terminal import clean, columns
from cai_core.errors import UserError


@click.group("models")
def command() -> None:
    """List and fetch the models of the catalog."""
