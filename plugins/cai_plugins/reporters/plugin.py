"""Reporters: ``html`` (one file for people), ``json`` (for programs), ``csv`` (for spreadsheets), ``markdown`` (for
terminals), ``model_card`` (for a model's repository)."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component
from cai_core.types.context import StageContext
from cai_core.types.reporter import Reporter


class HtmlOptions(BaseModel):
    """One file that opens from disk and needs no network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    units: int = Field(
        100_000, ge=0, description="prompts and items in the file, with all their texts; JSON and tables hold all"
    )


class JsonOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MarkdownOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class CsvOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelCardOptions(BaseModel):
    """There is nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def make_html(options: HtmlOptions, context: StageContext) -> Reporter:
    """``html``; see ``html.py``."""
    from cai_plugins.reporters.html import HtmlReporter

    return HtmlReporter(options.units)


def make_json(options: JsonOptions, context: StageContext) -> Reporter:
    """``json``; see ``json_report.py``."""
    from cai_plugins.reporters.json_report import JsonReporter

    return JsonReporter()


def make_markdown(options: MarkdownOptions, context: StageContext) -> Reporter:
    """``markdown``; see ``markdown.py``."""
    from cai_plugins.reporters.markdown import MarkdownReporter

    return MarkdownReporter()


def make_csv(options: CsvOptions, context: StageContext) -> Reporter:
    """``csv``; see ``csv_report.py``."""
    from cai_plugins.reporters.csv_report import CsvReporter

    return CsvReporter()


def make_model_card(options: ModelCardOptions, context: StageContext) -> Reporter:
    """``model_card``; see ``model_card.py``."""
    from cai_plugins.reporters.model_card import ModelCardReporter

    return ModelCardReporter()


@hookimpl
def cai_register_reporters() -> Iterable[Component[Reporter]]:
    """The reporters that come with cai-core."""
    yield Component("html", HtmlOptions, make_html, "one HTML file that opens from disk, for people", revision=4)
    yield Component("json", JsonOptions, make_json, "the results as JSON, for programs", revision=3)
    yield Component("markdown", MarkdownOptions, make_markdown, "findings and tables as Markdown", revision=5)
    yield Component("csv", CsvOptions, make_csv, "tables that a spreadsheet opens without running anything", revision=3)
    yield Component("model_card", ModelCardOptions, make_model_card, "a card for the trained model, as hubs read it")
