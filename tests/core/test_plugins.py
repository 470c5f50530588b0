"""Discovery with real distributions: hand-written dist-info folders on ``sys.path``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from cai_core.cli.main import main
from cai_core.errors import PluginError
from cai_core.plugins import PluginFailure, Plugins, load_plugins

HEAD = """
from pydantic import BaseModel, ConfigDict, Field
from cai_core.hookspecs import hookimpl
from cai_core.types.component import Component

class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

def make(options, context):
    return object()

"""


def labelers(*names: str) -> str:
    """A module that offers labelers of these names."""
    lines = "".join(f"    yield Component({name!r}, Options, make, 'summary of {name}')\n" for name in names)
    return HEAD + "@hookimpl\ndef cai_register_labelers():\n" + lines


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install(distribution, {entry: (module, source)})`` puts a distribution on ``sys.path``."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delenv("CAI_DISABLE_PLUGINS", raising=False)

    def write(distribution: str, entries: dict[str, tuple[str, str | None]], version: str = "1.0") -> None:
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = "".join(f"{entry} = {module}\n" for entry, (module, _) in entries.items())
        (info / "entry_points.txt").write_text(f"[cai_core]\n{lines}")
        for module, source in entries.values():
            if source is not None:
                (site / f"{module.partition(':')[0]}.py").write_text(dedent(source))

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def load(**kwargs: bool) -> Plugins:
    """All plugins but the built-in ones."""
    return load_plugins(disable=["cai-core"], **kwargs)


def ids(plugins: Plugins) -> list[str]:
    return [offer.id for offer in plugins.offers]


def only_failure(plugins: Plugins) -> PluginFailure:
    assert len(plugins.failures) == 1, plugins.failures
    return plugins.failures[0]


def test_a_plugin_is_found_and_its_offer_says_where_it_comes_from(install: Install) -> None:
    install("X_Extras", {"judges": ("x_judges", labelers("vote"))}, version="2.1")
    (offer,) = load().offers
    assert (offer.kind, offer.id, offer.plugin_id) == ("labeler", "x-extras/vote", "x-extras:judges")
    assert (offer.distribution, offer.version, offer.origin) == ("x-extras", "2.1", "x_judges")
    assert offer.component.summary == "summary of vote"


def test_two_distributions_may_use_the_same_entry_name_and_component_name(install: Install) -> None:
    install("a-dist", {"labelers": ("mod_a", labelers("same"))})
    install("b-dist", {"labelers": ("mod_b", labelers("same"))})
    plugins = load()
    assert ids(plugins) == ["a-dist/same", "b-dist/same"]
    assert plugins.failures == ()


def test_order_does_not_depend_on_the_order_of_installation(install: Install) -> None:
    install("zz", {"b": ("mod_zb", labelers("z_b")), "a": ("mod_za", labelers("z_a"))})
    install("aa", {"c": ("mod_a", labelers("a_c"))})
    assert ids(load()) == ["aa/a_c", "zz/z_a", "zz/z_b"]


BROKEN = {
    "import error": ("import nothing_of_this_name", "ModuleNotFoundError", "nothing_of_this_name"),
    "exits": ("raise SystemExit(3)", "SystemExit: 3", "CAI_DISABLE_PLUGINS=bad"),
    "syntax": ("def (", "SyntaxError", ""),
    "no hook": ("x = 1", "no hook", "hookimpl"),
    "unknown hook": (
        HEAD + "@hookimpl\ndef cai_register_labeler():\n    return []\n",
        "unknown hook 'cai_register_labeler'",
        "Did you mean 'cai_register_labelers'?",
    ),
    "wrong argument": (
        HEAD + "@hookimpl\ndef cai_register_labelers(config):\n    return []\n",
        "config",
        "no arguments",
    ),
    "wrapper": (
        HEAD + "@hookimpl(wrapper=True)\ndef cai_register_labelers():\n    return (yield)\n",
        "hook wrapper",
        "",
    ),
    "old wrapper": (
        HEAD + "@hookimpl(hookwrapper=True)\ndef cai_register_labelers():\n    yield\n",
        "hook wrapper",
        "",
    ),
    "not a component": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n    return [('vote', make)]\n",
        "tuple, not Component",
        "",
    ),
    "not iterable": (HEAD + "@hookimpl\ndef cai_register_labelers():\n    return None\n", "NoneType", "Yield"),
    "endless": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n    while True:\n        yield 1\n",
        "more than 1000",
        "",
    ),
    "bad name": (labelers("Vote-1"), "bad name 'Vote-1'", "a-z"),
    "extras allowed": (
        HEAD + "class Loose(BaseModel):\n    model_config = ConfigDict(frozen=True)\n"
        "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Loose, make, 's')\n",
        "Loose must forbid extras",
        'extra="forbid"',
    ),
    "not frozen": (
        HEAD + "class Soft(BaseModel):\n    model_config = ConfigDict(extra='forbid')\n"
        "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Soft, make, 's')\n",
        "Soft must forbid extras and be frozen",
        "",
    ),
    "option called name": (
        HEAD + "class Named(Options):\n    name: str = ''\n"
        "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Named, make, 's')\n",
        "field 'name'",
        "",
    ),
    "option with the alias name": (
        HEAD + "class Named(Options):\n    title: str = Field('', alias='name')\n"
        "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Named, make, 's')\n",
        "field 'name'",
        "",
    ),
    "options not a model": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', dict, make, 's')\n",
        "not a pydantic model",
        "",
    ),
    "factory": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Options, None, 's')\n",
        "factory is not callable",
        "",
    ),
    "summary": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Options, make, 'a\\nb')\n",
        "summary",
        "",
    ),
    "revision": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Options, make, 's', 0)\n",
        "revision 0",
        "",
    ),
    "needs an unknown kind": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n"
        "    yield Component('vote', Options, make, 's', 1, ('judge',))\n",
        "needs ('judge',)",
        "trainer",
    ),
    "needs is nonsense": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n    yield Component('vote', Options, make, 's', 1, 7)\n",
        "needs 7",
        "trainer",
    ),
    "an unknown role": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n"
        "    yield Component('vote', Options, make, 's', 1, (), ('jugde',))\n",
        "roles ('jugde',)",
        "judge",
    ),
    "learns from what is no stage for it": (
        HEAD + "@hookimpl\ndef cai_register_rl_algorithms():\n"
        "    yield Component('vote', Options, make, 's', learns_from=('labels',))\n",
        "learns_from ('labels',)",
        "label",
    ),
    "reads what a run does not have": (
        HEAD + "@hookimpl\ndef cai_register_evaluators():\n"
        "    yield Component('vote', Options, make, 's', reads=('labels',))\n",
        "reads ('labels',)",
        "chains",
    ),
    "needs_of that is no function": (
        HEAD + "@hookimpl\ndef cai_register_evaluators():\n"
        "    yield Component('vote', Options, make, 's', needs_of='labeler')\n",
        "needs_of is not callable",
        "function",
    ),
    "needs its own kind": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n"
        "    yield Component('vote', Options, make, 's', 1, ('labeler',))\n",
        "needs ('labeler',)",
        "trainer",
    ),
    "needs a kind of which there are many": (
        HEAD + "@hookimpl\ndef cai_register_labelers():\n"
        "    yield Component('vote', Options, make, 's', 1, ('evaluator',))\n",
        "needs ('evaluator',)",
        "trainer",
    ),
    "twice": (labelers("vote", "vote"), "'vote' twice", ""),
    "backend without a model": (
        HEAD + "@hookimpl\ndef cai_register_backends():\n    yield Component('vote', Options, make, 's')\n",
        "has no field 'model'",
        "The pipeline sets it",
    ),
    "for newer hooks": (
        labelers("vote") + "CAI_HOOKSPEC_VERSION = 2\n",
        "written for version 2 of the hooks, not for version 1",
        "Install a newer cai-core",
    ),
    "for several newer hooks": (
        labelers("vote") + "CAI_HOOKSPEC_VERSION = (3, 4)\n",
        "written for version 3, 4 of the hooks",
        "Install a newer cai-core",
    ),
    "for older hooks": (
        labelers("vote") + "CAI_HOOKSPEC_VERSION = 0\n",
        "written for version 0 of the hooks",
        "Install a newer version of the plugin",
    ),
    "version is nonsense": (
        labelers("vote") + "CAI_HOOKSPEC_VERSION = '1.0'\n",
        "CAI_HOOKSPEC_VERSION is '1.0'",
        "CAI_HOOKSPEC_VERSION = 1",
    ),
    "fails half-way": (
        labelers("vote") + "    raise RuntimeError('no such GPU')\n",
        "RuntimeError: no such GPU",
        "",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_remembered_and_the_others_work(case: str, install: Install) -> None:
    source, reason, hint = BROKEN[case]
    install("bad", {"judges": ("mod_bad", source)}, version="0.3")
    install("good", {"judges": ("mod_good", labelers("fine"))})
    plugins = load()
    assert ids(plugins) == ["good/fine"], "nothing of a broken plugin is on offer, all of the other is"
    failure = only_failure(plugins)
    assert (failure.plugin_id, failure.distribution, failure.version) == ("bad:judges", "bad", "0.3")
    assert reason in failure.reason
    assert hint in failure.hint
    assert failure.hint.strip(), "a remedy"
    said = str(failure)
    assert said.startswith("plugin bad:judges (0.3) is not used: "), "the distribution"
    if "@hookimpl" in source and case not in NO_HOOK_TO_NAME:
        assert re.search(r"cai_register_\w+", said), "the hook"


NO_HOOK_TO_NAME = ("for newer hooks", "for several newer hooks", "for older hooks", "version is nonsense")
"""What is wrong with the module as a whole."""


@pytest.mark.parametrize("line", ["CAI_HOOKSPEC_VERSION = 1", "CAI_HOOKSPEC_VERSION = (1, 2)", ""])
def test_a_plugin_may_be_written_for_several_versions_of_the_hooks(line: str, install: Install) -> None:
    install("good", {"judges": ("mod_good", f"{labelers('fine')}{line}\n")})
    plugins = load()
    assert (ids(plugins), plugins.failures) == (["good/fine"], ())


def test_the_list_the_doctor_and_the_unknown_name_all_show_a_failed_plugin(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("future", {"judges": ("mod_future", labelers("vote") + "CAI_HOOKSPEC_VERSION = 9\n")})
    said = []
    for arguments, code in ((["plugins", "list"], 0), (["plugins", "doctor"], 1), (["plugins", "show", "vote"], 2)):
        assert main(arguments) == code
        captured = capsys.readouterr()
        said.append(captured.out + captured.err)
    for text in said:
        assert "future:judges" in text
        assert "written for version 9 of the hooks" in text
        assert "Install a newer cai-core" in text


def test_a_good_plugin_of_a_distribution_survives_a_broken_one(install: Install) -> None:
    install("mixed", {"a": ("mod_m1", "import nothing_here"), "b": ("mod_m2", labelers("fine"))})
    plugins = load()
    assert ids(plugins) == ["mixed/fine"]
    assert only_failure(plugins).plugin_id == "mixed:a"


def test_the_same_component_from_two_plugins_of_one_distribution_is_refused(install: Install) -> None:
    install("twin", {"a": ("mod_t1", labelers("same")), "b": ("mod_t2", labelers("same", "other"))})
    plugins = load()
    assert ids(plugins) == ["twin/same"]
    assert "twin:a" in only_failure(plugins).reason


def test_the_same_name_in_two_kinds_is_fine(install: Install) -> None:
    more = "@hookimpl\ndef cai_register_reward_models():\n    yield Component('both', Options, make, 's')\n"
    install("x", {"a": ("mod_x", labelers("both") + more)})
    plugins = load()
    assert [(offer.kind, offer.id) for offer in plugins.offers] == [("labeler", "x/both"), ("reward_model", "x/both")]
    assert plugins.failures == ()


def test_an_entry_point_must_name_a_module_that_exists_once(install: Install) -> None:
    install("attr", {"a": ("mod_attr:plugin", "plugin = 1")})
    install("gone", {"a": ("mod_gone", None)})
    install("shared", {"a": ("mod_shared", labelers("one")), "b": ("mod_shared", None)})
    plugins = load()
    assert ids(plugins) == ["shared/one"]
    reasons = {failure.plugin_id: f"{failure.reason} {failure.hint}" for failure in plugins.failures}
    assert "not a module" in reasons["attr:a"]
    assert "install gone again" in reasons["gone:a"]
    assert "shared:a already" in reasons["shared:b"]


def test_a_foreign_plugin_cannot_take_the_place_of_a_built_in_one(install: Install) -> None:
    install("aaa", {"a": ("cai_plugins.principles.plugin", None)})
    plugins = load_plugins()
    assert not [offer for offer in plugins.offers if offer.distribution == "aaa"]
    assert [offer for offer in plugins.offers if offer.plugin_id == "cai-core:principles"]
    (failure,) = [failure for failure in plugins.failures if failure.distribution == "aaa"]
    assert "cai-core:principles already" in failure.reason


def test_optional_hooks_of_another_core_are_ignored(install: Install) -> None:
    more = "@hookimpl(optionalhook=True)\ndef cai_register_of_the_future():\n    raise RuntimeError\n"
    install("x", {"a": ("mod_x", labelers("vote") + more)})
    plugins = load()
    assert (ids(plugins), plugins.failures) == (["x/vote"], ())


@pytest.mark.parametrize("disabled", ["bad", "BAD", "bad:judges", " bad ,other"])
def test_disabled_plugins_are_not_even_imported(
    disabled: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("bad", {"judges": ("mod_bad", "import os; os.environ['CAI_TEST_IMPORTED'] = '1'")})
    install("good", {"judges": ("mod_good", labelers("fine"))})
    monkeypatch.delenv("CAI_TEST_IMPORTED", raising=False)
    monkeypatch.setenv("CAI_DISABLE_PLUGINS", disabled)
    plugins = load()
    assert (ids(plugins), plugins.failures) == (["good/fine"], ())
    assert "bad:judges" in plugins.disabled
    assert "mod_bad" not in sys.modules


def test_strict_makes_a_failure_fatal_and_names_it(install: Install) -> None:
    install("bad", {"judges": ("mod_bad", "x = 1")})
    with pytest.raises(PluginError, match="bad:judges"):
        load(strict=True)


def test_what_a_plugin_prints_stays_out_of_standard_output(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = "print('import')\n" + labelers("vote").replace("    yield", "    print('hook')\n    yield")
    install("loud", {"a": ("mod_loud", loud)})
    assert ids(load()) == ["loud/vote"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "import" in captured.err
    assert "hook" in captured.err


def test_unreadable_metadata_is_a_failure_of_that_distribution(install: Install, tmp_path: Path) -> None:
    install("good", {"judges": ("mod_good", labelers("fine"))})
    info = tmp_path / "site" / "torn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torn\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[cai_core]\nthis line has no equals sign\n")
    plugins = load()
    assert ids(plugins) == ["good/fine"]
    assert only_failure(plugins).distribution == "torn"


def test_the_first_of_two_installed_copies_counts(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("twice", {"a": ("mod_new", labelers("new"))}, version="2.0")
    old = tmp_path / "old" / "twice-1.0.dist-info"
    old.mkdir(parents=True)
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: twice\nVersion: 1.0\n")
    (old / "entry_points.txt").write_text("[cai_core]\nb = mod_old\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(old.parent)])
    plugins = load()
    assert [(offer.id, offer.version) for offer in plugins.offers] == [("twice/new", "2.0")]
    assert plugins.failures == ()


def test_loading_twice_gives_the_same(install: Install) -> None:
    install("good", {"judges": ("mod_good", labelers("fine"))})
    assert ids(load()) == ids(load()) == ["good/fine"]


def test_doctor_tells_the_sick_from_the_well(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "doctor"]) == 0
    capsys.readouterr()
    install("well", {"one": ("well_plugin", labelers("logprob"))})
    install("sick", {"two": ("sick_plugin", "import nothing_of_this_name\n")}, version="2.1")
    assert main(["plugins", "doctor"]) == 1
    out = capsys.readouterr().out
    assert "ok        well:one (1.0): 1 component(s)" in out
    (line,) = [line for line in out.splitlines() if line.startswith("failed    sick:two (2.1): ")]
    assert "ModuleNotFoundError" in line
    assert "the module 'nothing_of_this_name'" in out, "the remedy"
    assert "clash     labeler 'logprob': name it in full: cai-core/logprob, well/logprob" in out
    assert main(["plugins", "doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [failure["plugin"] for failure in found["failed"]] == ["sick:two"]
    assert "Traceback" in found["failed"][0]["detail"]
    assert found["clashes"][0]["ids"] == ["cai-core/logprob", "well/logprob"]


def test_doctor_shows_what_was_switched_off(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("off", {"one": ("off_plugin", "raise SystemExit(3)\n")})
    monkeypatch.setenv("CAI_DISABLE_PLUGINS", "off")
    assert main(["plugins", "doctor"]) == 0
    assert "disabled  off:one" in capsys.readouterr().out
