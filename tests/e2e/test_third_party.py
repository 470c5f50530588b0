"""From outside: packages that cai-core does not know, installed beside its wheel in a clean environment."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cai_core.plugins import KINDS
from tiny import embedded_stand_in
from wheels import NOT_SHIPPED, ROOT, CleanVenv, build

EXAMPLE = ROOT / "docs/examples/cai-extras"
SMALL = [
    # With this seed the random model writes letters in every answer of 8 tokens, so that no unit fails.
    *("-o", "seed=18"),
    *("-o", "prompts.red_team=4", "-o", "prompts.helpful=2", "-o", "prompts.heldout_red_team=3"),
    *("-o", "prompts.heldout_helpful=2", "-o", "prompts.heldout_borderline=2"),
    *("-o", "revise.sampling.max_new_tokens=8", "-o", "pairs.sampling.max_new_tokens=8"),
    *("-o", "evaluate.sampling.max_new_tokens=8", "-o", "label.audit={name: judge_audit, limit: 8}"),
    *("-o", "rl={name: above_mean, samples: 3, max_new_tokens: 6}"),
]


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> CleanVenv:
    return CleanVenv(tmp_path_factory.mktemp("clean") / "venv")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the tiny model under the embedded one's name."""
    home = tmp_path_factory.mktemp("home")
    embedded_stand_in(home / "cache")
    return home


def components(venv: CleanVenv, home: Path, distribution: str) -> list[tuple[str, str]]:
    listed = json.loads(venv.cai("plugins", "list", "--json", cwd=home))
    assert listed["failures"] == []
    return [(item["kind"], item["name"]) for item in listed["components"] if item["distribution"] == distribution]


@pytest.mark.timeout(600)
def test_an_installed_package_takes_part_by_recipe_alone(venv: CleanVenv, home: Path, tmp_path: Path) -> None:
    cache = str(home / "cache")
    (home / "recipe.yaml").write_text((EXAMPLE / "recipe.yaml").read_text(encoding="utf-8"))
    venv.cai("plan", "recipe.yaml", cwd=home, check=2, CAI_CACHE=cache)  # not installed: its components are unknown

    source = tmp_path / "cai-extras"
    shutil.copytree(EXAMPLE, source, ignore=NOT_SHIPPED)
    venv.install("-e", source)
    both = [("labeler", "ordinal"), ("rl_algorithm", "above_mean")]
    assert components(venv, home, "cai-extras") == both
    part = json.loads(venv.cai("run", "recipe.yaml", *SMALL, "--until", "label", "--json", cwd=home, CAI_CACHE=cache))
    made = [stage["id"] for stage in part["stages"] if stage["status"] == "ok"]
    assert "label" in made
    venv.run("-m", "pytest", "-q", "-p", "no:cacheprovider", str(source / "tests"), cwd=tmp_path)

    # The same package from its wheel: what the editable one made is as good as its own, and the rest runs.
    venv.uninstall("cai-extras")
    assert components(venv, home, "cai-extras") == []
    venv.install(build("wheel", source, tmp_path / "dist"))
    assert components(venv, home, "cai-extras") == both
    where = venv.run("-c", "import cai_extras; print(cai_extras.__file__)", cwd=tmp_path)
    assert where.startswith(str(venv.folder)), "the wheel and not the folder"
    record = json.loads(venv.cai("run", "recipe.yaml", *SMALL, "--json", cwd=home, CAI_CACHE=cache))
    assert record["status"] == "ok"
    assert {stage["id"] for stage in record["stages"] if stage.get("reused")} == set(made)
    assert {"reward", "rl", "evaluate", "report"} <= {s["id"] for s in record["stages"] if not s.get("reused")}
    (folder,) = (home / "runs").glob("extras-*")
    results = json.loads((folder / "report.json").read_text())
    assert results["labels"]["n"] == 4
    parts = json.dumps(results["provenance"]["components"])
    assert "cai-extras/ordinal" in parts
    assert "cai-extras/above_mean" in parts


def test_no_file_of_the_project_knows_the_example() -> None:
    found = [
        path
        for folder in ("cai_core", "plugins")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".yaml", ".j2") and re.search("cai.extras", path.read_text(encoding="utf-8"))
    ]
    assert found == []


RECIPE = """
schema: 1
name: mine
models: {base: smollm2-135m-instruct}
backend: my_backend
prompts: my_prompts
revise:
  rounds: 1
  critique_template: my_critique_template
  principle_sampler: my_principle_sampler
  sampling: {max_new_tokens: 8}
sft: my_trainer
pairs: {sampling: {max_new_tokens: 8}}
label: {labeler: my_labeler, audit: {name: judge_audit, limit: 4}}
reward: my_reward_model
rl: {name: my_rl_algorithm, steps: 2, max_new_tokens: 6}
evaluate: {evaluators: [my_evaluator, length], sampling: {max_new_tokens: 8}}
report: [my_reporter, json]
"""


@pytest.mark.timeout(600)
def test_every_kind_of_new_package_installs_passes_its_tests_and_runs(
    venv: CleanVenv, home: Path, tmp_path: Path
) -> None:
    """`cai plugins new` for all kinds: lint, install, contract, and one recipe made of nothing else."""
    names = []
    for kind in KINDS:
        name = f"my-{kind.replace('_', '-')}"
        said = venv.cai("plugins", "new", name, "--kind", kind, cwd=tmp_path)
        assert f"pip install -e '{name}[test]'" in said
        names.append(name)
    ruff = [sys.executable, "-m", "ruff", "check", "--no-cache", "--extend-select", "I,B,UP,SIM", "."]
    for name in names:
        done = subprocess.run(ruff, cwd=tmp_path / name, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-torch.*,transformers.*]\nfollow_imports = skip\nignore_missing_imports = true\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini"]
    sources = [str(next((tmp_path / name / "src").rglob("plugin.py"))) for name in names]
    done = subprocess.run([*mypy, *sources], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    venv.install(*(part for name in names for part in ("-e", tmp_path / name)))
    tests = [str(tmp_path / name / "tests") for name in names]
    options = ["-q", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib"]
    said = venv.run("-m", "pytest", *options, *tests, cwd=tmp_path)
    assert "failed" not in said
    (home / "mine.yaml").write_text(RECIPE)
    record = json.loads(venv.cai("run", "mine.yaml", "--json", cwd=home, CAI_CACHE=str(home / "cache")))
    assert record["status"] in ("ok", "partial")
    assert all(stage["status"] in ("ok", "partial") for stage in record["stages"])
    (folder,) = (home / "runs").glob("mine-*")
    assert "answers that ask back" in (folder / "report.txt").read_text()
    for name in names:
        venv.uninstall(name)


@pytest.mark.timeout(600)
def test_a_broken_neighbour_disturbs_nobody_and_is_named_where_it_matters(
    venv: CleanVenv, home: Path, tmp_path: Path
) -> None:
    """A package that fails when it is imported, and a sound one that nobody chose: same plan, same digests, a run that
    goes through, in the workers too. --strict-plugins makes it fatal; switched off it is not imported."""
    cache = str(home / "cache")
    arguments = ("quickstart", *SMALL[:-2])
    before = json.loads(venv.cai("plan", *arguments, "--json", cwd=home, CAI_CACHE=cache))
    for name in ("aaa-broken", "zzz-sound"):
        venv.cai("plugins", "new", name, "--kind", "labeler", cwd=tmp_path)
    plugin = tmp_path / "aaa-broken/src/aaa_broken/plugin.py"
    plugin.write_text("import no_such_module\n" + plugin.read_text())
    venv.install("-e", tmp_path / "aaa-broken", "-e", tmp_path / "zzz-sound")
    after = json.loads(venv.cai("plan", *arguments, "--json", cwd=home, CAI_CACHE=cache))
    assert (before["run_id"], [s["digest"] for s in before["stages"]]) == (
        after["run_id"],
        [s["digest"] for s in after["stages"]],
    )
    assert "Status: ok" in venv.cai("run", *arguments, "--until", "pairs", cwd=home, CAI_CACHE=cache)
    assert "aaa-broken:aaa_broken" in venv.cai("plugins", "list", cwd=home)
    assert "Install what provides the module 'no_such_module'" in venv.cai("plugins", "doctor", cwd=home, check=1)
    venv.cai("plan", *arguments, "--strict-plugins", cwd=home, check=1, CAI_CACHE=cache)
    venv.cai("plan", *arguments, "--strict-plugins", cwd=home, CAI_CACHE=cache, CAI_DISABLE_PLUGINS="aaa-broken")
    disabled = ("-o", "plugins.disable=[aaa-broken]")
    venv.cai("plan", *arguments, *disabled, "--strict-plugins", cwd=home, CAI_CACHE=cache)
    for requirement, code in (("zzz-sound>=0.1,<1", 0), ("zzz-sound>=2", 2), ("no-such-package", 2), ("??", 2)):
        line = f"plugins.require=['{requirement}']"
        venv.cai("plan", *arguments, "-o", line, cwd=home, check=code, CAI_CACHE=cache)
    venv.uninstall("aaa-broken")
    venv.uninstall("zzz-sound")


class Author:
    """Follows the tutorial to the letter: commands, files and changes in the order of the page."""

    def __init__(self, venv: CleanVenv, folder: Path, home: Path) -> None:
        self.venv, self.folder, self.home = venv, folder, home
        self.said: list[str] = []

    def follow(self, page: str) -> None:
        file = r"<!-- file: (?P<path>[^,]+?)(?:, replace: (?P<old>.+?) -> (?P<new>.+?))? -->"
        step = file + r"|```(?P<kind>\w+)\n(?P<text>.*?)```"
        target = ""
        for match in re.finditer(step, page, flags=re.S):
            if match["path"] and match["old"]:
                path = self.folder / match["path"]
                text = path.read_text()
                assert text.count(match["old"]) == 1, match["old"]
                path.write_text(text.replace(match["old"], match["new"]))
            elif match["path"]:
                target = match["path"]
            elif match["kind"] == "python":
                assert target, "every file has a name"
                (self.folder / target).write_text(match["text"])
            elif match["kind"] == "console":
                for line in match["text"].splitlines():
                    self.type(line.removeprefix("$ "))

    def type(self, line: str) -> None:
        command, _, comment = line.partition("  # ")
        words = shlex.split(command)
        failing = comment.strip().removeprefix("fails: ") if comment.strip().startswith("fails: ") else ""
        if words[:3] == ["pip", "install", "-e"]:
            self.venv.install("-e", words[3].partition("[")[0], cwd=self.folder)
            self.said.append("")
        elif words[0] == "pytest":
            more = ["-p", "no:cacheprovider", "-rfs"]
            said = self.venv.run("-m", *words, *more, cwd=self.folder, check=1 if failing else 0)
            assert failing in said
            self.said.append(said)
        else:
            assert words[0] == "cai", line
            # In a store that has the stages before the labels already.
            more = [*SMALL[:-2], "--store", str(self.home / ".cai/store")] if words[1] in ("run", "plan") else []
            self.said.append(self.venv.cai(*words[1:], *more, cwd=self.folder, CAI_CACHE=str(self.home / "cache")))


@pytest.mark.timeout(600)
def test_the_tutorial_of_the_first_plugin(venv: CleanVenv, home: Path, tmp_path: Path) -> None:
    author = Author(venv, tmp_path, home)
    author.follow((ROOT / "docs/tutorial/first-plugin.md").read_text(encoding="utf-8"))
    new, _, listed, shown, passed, failed, planned, ran = author.said
    assert "cai run quickstart -o label.labeler=cai_engages" in new
    assert re.search(r"labeler +cai_engages +0\.1\.0 +cai-engages:cai_engages", listed)
    assert "strength" in shown
    assert re.search(r"\d+ passed, 3 skipped|\d+ passed, 4 skipped", passed)
    assert "asks no judge" in passed
    assert re.search(r"FAILED \S+::test_swapping_the_answers_gives_one_minus_p", failed)
    assert re.search(r"label +run", planned)
    assert "Status: ok" in ran
    venv.uninstall("cai-engages")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["x", "--kind", "judge"], "unknown kind 'judge'"),
        (["Bad_Name", "--kind", "labeler"], "is no name for a package"),
        (["class", "--kind", "labeler"], "is no name for a package"),
        (["cai-core", "--kind", "labeler"], "cai-core's own name"),
        (["there", "--kind", "labeler"], "exists already"),
    ],
)
def test_a_new_package_needs_a_good_name(arguments: list[str], wrong: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "cai_core.cli.main", "plugins", "new", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert wrong in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert list((tmp_path / "there").iterdir()) == []
