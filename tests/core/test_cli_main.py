"""The command line's frame: exit codes, messages, hostile text."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import click
import pytest

from cai_core.cli import main as main_module
from cai_core.cli.main import COMMANDS, cli, main
from cai_core.cli.terminal import clean, columns
from cai_core.errors import Cancelled, EnvironmentProblem, UserError, UserErrors
from cai_core.plugins import KINDS


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command ``report`` that raises what the list holds."""
    errors: list[BaseException] = []

    @click.command("report")
    def command() -> NoReturn:
        raise errors[0]

    monkeypatch.setattr(main_module.importlib, "import_module", lambda name: type("M", (), {"command": command}))
    monkeypatch.delenv("CAI_DEBUG", raising=False)
    return errors


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("bad key", where="r.yaml:3", hint="Write it so."), 2, "Error: r.yaml:3: bad key\n  Write it so.\n"),
        (UserErrors([UserError("one"), UserError("two")]), 2, "Error: one\ntwo\n"),
        (EnvironmentProblem("no network"), 1, "Error: no network\n"),
        (Cancelled("stopped"), 130, "stopped\n"),
        (KeyboardInterrupt(), 130, "Stopped.\n"),
        (OSError(errno.ENOSPC, "x", "/data/f"), 1, "Error: no space left on the disk (/data/f)\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, "Error: Permission denied (/x)\n"),
        (MemoryError(), 1, "Error: out of memory\n"),
        (ValueError("surprise"), 1, "Error: ValueError: surprise\n"),
        (click.UsageError("no such option"), 2, "Error: no such option\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_error_has_its_code_and_no_traceback(
    error: BaseException,
    code: int,
    text: str,
    failing: list[BaseException],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing.append(error)
    assert main(["report"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert "Traceback" not in captured.err


def test_debug_prints_the_traceback(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.append(UserError("bad key"))
    monkeypatch.setenv("CAI_DEBUG", "0")
    assert main(["report"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["--debug", "report"]) == 2
    captured = capsys.readouterr().err
    assert "Traceback" in captured
    assert captured.rstrip().endswith("Error: bad key")


def test_an_error_message_cannot_drive_the_terminal(
    failing: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing.append(UserError("\x1b]0;title\x07 \x9b31m red \u202e evil \ud800 \r overwritten"))
    assert main(["report"]) == 2
    shown = capsys.readouterr().err
    assert shown == "Error: \\x1b]0;title\\x07 \\x9b31m red \\u202e evil \\ud800 \\x0d overwritten\n"


def test_clean_keeps_text_and_line_breaks() -> None:
    assert clean("a\tb\nç 漢字 👩‍💻") == "a\tb\nç 漢字 👩‍💻"
    assert clean("a\tb\nc", one_line=True) == "a\\tb\\nc"
    assert columns(("A", "B"), [("long", "x\ny"), (1, "z")]) == "A     B\nlong  x\\ny\n1     z"


def test_usage_errors_name_the_near_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin"]) == 2
    assert "Did you mean 'plugins'?" in capsys.readouterr().err
    assert main(["plugins", "list", "--nonsense"]) == 2
    assert "Try 'cai plugins list --help'" in capsys.readouterr().err


def test_help_lists_every_command_and_each_can_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    context = click.Context(cli)
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name}" in shown
        assert summary in shown
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert command.get_short_help_str(), f"{name} has a help text"


def test_a_closed_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "constitution", "show", "harmless"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.returncode == 1
    assert done.stderr == ""


def test_a_terminal_with_a_small_character_set_shows_escapes(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("schema: 1\nid: c\nversion: '1'\ntitle: Größe 漢\nprinciples: [{id: a, critique: é}]\n", "utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "constitution", "show", str(path)],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert "Größe \\u6f22".encode("latin-1") in done.stdout


def test_constitution_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["constitution", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["constitutions"]
    assert {"harmless", "hhh"} <= {row["id"] for row in listed}
    assert main(["constitution", "show", "hhh", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["digest"] for row in listed if row["id"] == "hhh"] == [shown["digest"]]
    assert main(["constitution", "show", "hhh"]) == 0
    text = capsys.readouterr().out
    assert all(principle["comparison"] in text for principle in shown["principles"])
    assert main(["constitution", "show", "nothing"]) == 2


def test_plugins_list_and_show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["plugins", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert "uniform" in [c["name"] for c in listed["components"] if c["kind"] == "principle_sampler"]
    assert main(["plugins", "list", "--kind", "principle_sampler"]) == 0
    text = capsys.readouterr().out
    assert "cai-core:principles" in text
    assert "labeler" not in text.partition("\n\n")[0]
    assert main(["plugins", "show", "cai-core/logprob", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)["components"]
    options = {option["name"]: option for option in shown["options"]}
    assert options
    for option in options.values():
        assert option["description"]
        assert option["required"] == ("default" not in option)
    assert main(["plugins", "show", "logprob"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in options)
    assert main(["plugins", "show", "logprb"]) == 2
    assert "Did you mean 'logprob'?" in capsys.readouterr().err
    monkeypatch.setenv("CAI_DISABLE_PLUGINS", "cai-core:labelers")
    assert main(["plugins", "show", "logprob"]) == 2
    assert "cai-core:labelers is disabled" in capsys.readouterr().err


def test_models_list_says_what_is_here(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path))
    from cai_core.models.catalog import model_path

    here = model_path("smollm2-135m-instruct")
    here.mkdir(parents=True)
    (here / "cai_model.json").write_text("{}")
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["models"]}
    assert [name for name, row in rows.items() if row["cached"]] == ["smollm2-135m-instruct"]
    assert all(row["licence"] and row["joined_sha256"] for row in rows.values())
    assert main(["models", "list"]) == 0
    assert all(name in capsys.readouterr().out for name in ["smollm2-135m-instruct"])
    assert main(["models", "pull", "smollm2-135m-instruct"]) == 0
    assert capsys.readouterr().out == f"{here}\n", "only the folder is on standard output"
    assert main(["models", "pull", "smollm2"]) == 2
    assert "smollm2-135m-instruct" in capsys.readouterr().err


def test_a_model_that_asks_is_not_fetched_where_nobody_can_answer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "models", "pull", "qwen2.5-coder-1.5b-instruct"],
        env={**os.environ, "CAI_CACHE": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "state no licence" in done.stderr
    assert "--yes" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_help_of_plugins_new_names_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "new", "--help"]) == 0
    said = capsys.readouterr().out
    assert [kind for kind in KINDS if not re.search(rf"\b{kind}\b", said)] == []
