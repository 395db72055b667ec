"""Containers: what both images are built from, and how a process gets into one."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from support.clone import ROOT
from support.container_files import is_sent, read_definition

from fourminutes.comm.container import in_container
from fourminutes.errors import UserError

FOLDER = ROOT / "containers"
LOCKS = ["requirements.lock", "requirements-cuda12.lock"]
TOOLS = Path(sys.executable).parent
COMMAND = ["fourminutes", "train", "--plan", "p.yaml", "--run", "a"]


def definition(lock: str = "requirements.lock"):
    return read_definition((FOLDER / "four-minutes.def").read_text(), lock=lock)


def instructions(name: str, lock: str = "requirements.lock") -> list[str]:
    """What the Dockerfile says by one of its instructions."""
    text = re.sub(r"\$\{lock\}", lock, (FOLDER / "Dockerfile").read_text())
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)


def copied(lock: str) -> list[str]:
    return [path for line in instructions("COPY", lock) for path in line.split()[:-1]]


# --- what they are built from ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_both_images_hold_the_same(lock: str):
    recipe = definition(lock)
    assert recipe.header == {"Bootstrap": "docker", "From": instructions("FROM")[0]}
    assert sorted(recipe.copied) == sorted(copied(lock))
    enter, *commands = (line.strip() for line in recipe.sections["post"].splitlines())
    assert enter == f"cd {instructions('WORKDIR')[0]}"
    assert commands == [line.replace('"', "") for line in instructions("RUN", lock)]
    assert f"export {instructions('ENV')[0]}" in recipe.sections["environment"]


def test_the_lock_is_the_current_one_unless_another_is_asked_for():
    assert instructions("ARG") == ["lock=requirements.lock"]
    assert read_definition((FOLDER / "four-minutes.def").read_text()) == definition("requirements.lock")


def test_their_python_is_the_locks_and_the_projects():
    version = re.fullmatch(r"python:(\d+\.\d+)-slim-bookworm", instructions("FROM")[0])
    assert version is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(project["requires-python"]).contains(version[1])
    assert f"Python {version[1]}" in (ROOT / "requirements.lock").read_text().partition("\n")[0]


@pytest.mark.parametrize("lock", LOCKS)
def test_whatever_is_copied_is_there_and_reaches_the_builder(lock: str):
    ignore = (ROOT / ".dockerignore").read_text()
    for path in copied(lock):
        assert (ROOT / path).exists(), path
        assert is_sent(path, ignore), path


@pytest.mark.parametrize(
    "path", ["data/x.tar", "results/demo/report.html", ".git/config", "src/fourminutes/__pycache__/a.pyc"]
)
def test_nothing_else_reaches_the_builder(path: str):
    assert not is_sent(path, (ROOT / ".dockerignore").read_text())


@pytest.mark.parametrize("lock", LOCKS)
def test_what_they_install_is_the_lock(tmp_path: Path, lock: str):
    """Every command that the script may call only writes its own line down."""
    for name in ("apt-get", "python", "rm"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/called\n')
        (tmp_path / name).chmod(0o755)
    subprocess.run(["/bin/sh", FOLDER / "install.sh", lock], check=True, env={"PATH": str(tmp_path)})
    called = (tmp_path / "called").read_text().splitlines()
    (pip,) = [line for line in called if " pip install " in line]
    assert pip.split()[-2:] == ["--requirement", lock]
    assert [line.split()[1] for line in called if line.startswith("apt-get")] == ["update", "install"]


def test_the_dockerfile_and_the_script_have_no_findings():
    for line in ([TOOLS / "hadolint", FOLDER / "Dockerfile"], [TOOLS / "shellcheck", FOLDER / "install.sh"]):
        done = subprocess.run(line, check=False, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("section", ["post", "environment", "test"])
def test_the_definitions_shell_has_no_findings(section: str):
    script = f"set -ex\n{definition().sections[section]}"  # as Apptainer runs it
    line = [TOOLS / "shellcheck", "--shell=sh", "-"]
    done = subprocess.run(line, check=False, capture_output=True, text=True, input=script)
    assert (done.returncode, done.stdout) == (0, "")


# --- a process inside -----------------------------------------------------------------------------------------------


def found(*programs: str):
    return lambda name: f"/usr/bin/{name}" if name in programs else None


def test_a_process_enters_the_image_where_it_is_with_the_sites_own_binds():
    line = in_container(COMMAND, "docker://a/b:1", "--bind '/scratch/my data'", which=found("apptainer", "singularity"))
    here = str(Path.cwd())
    assert line == [
        *("apptainer", "exec", "--nv", "--bind", here, "--pwd", here),
        *("--bind", "/scratch/my data", "docker://a/b:1", *COMMAND),
    ]


def test_singularity_does_where_there_is_no_apptainer():
    assert in_container(COMMAND, "docker://a", which=found("singularity"))[:2] == ["singularity", "exec"]


def test_without_either_or_without_the_image_one_line_says_what_to_do(tmp_path: Path):
    with pytest.raises(UserError, match="neither apptainer nor singularity is here; is its module loaded"):
        in_container(COMMAND, "docker://a", which=found())
    missing = str(tmp_path / "a.sif")
    with pytest.raises(UserError, match=f"{missing}: no such image; `apptainer build {missing} containers/"):
        in_container(COMMAND, missing, which=found("apptainer"))


def test_a_quote_that_is_never_closed_is_one_line():
    with pytest.raises(UserError, match="arguments of apptainer exec: --bind '/a: No closing quotation"):
        in_container(COMMAND, "docker://a", "--bind '/a", which=found("apptainer"))
