"""What the package says of itself: floors, extras, versions of tools, and the workflows."""

import pathlib
import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pinned(path):
    """Package -> version, of the lines with '==' of a file."""
    lines = [line for line in path.read_text().splitlines() if "==" in line]
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines)}


def test_the_floors_that_are_tested_are_those_that_are_asked_for():
    floors = pinned(ROOT / ".ci" / "floors.txt")
    for text in PROJECT["dependencies"]:
        need = Requirement(text)
        if need.marker and not need.marker.evaluate({"sys_platform": "linux"}):
            continue
        (floor,) = need.specifier
        assert floor.operator == ">="
        tested = floors.pop(canonicalize_name(need.name))
        assert need.specifier.contains(tested)
        assert re.fullmatch(rf"{re.escape(floor.version)}(\.0)*", tested), (text, tested)
    assert not floors


def test_jax_has_one_floor_in_all_extras():
    extras = PROJECT["optional-dependencies"].values()
    asked = [Requirement(text) for extra in [PROJECT["dependencies"], *extras] for text in extra]
    assert {str(need.specifier) for need in asked if need.name == "jax"} == {">=0.8.2"}


def test_the_extras_that_the_documents_name_exist():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for names in re.findall(r"'?\.\[([a-z0-9,]+)\]", page.read_text()):
            assert set(names.split(",")) <= set(PROJECT["optional-dependencies"]), (page, names)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_actions_by_commit_and_may_only_read(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used and all(re.fullmatch(r"\S+@[0-9a-f]{40} # v[\d.]+", line) for line in used)


def test_the_workflow_runs_the_same_script_on_each_python_that_is_declared():
    job = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["all"]
    assert job["steps"][-1] == {"run": ".ci/run"}
    declared = [x.rpartition(" ")[2] for x in PROJECT["classifiers"] if ":: Python :: 3." in x]
    assert job["strategy"]["matrix"]["python"] == declared
