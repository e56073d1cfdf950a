"""Package definition, pins and set-up script agree with each other; nothing is downloaded."""

import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def read_pins(name: str) -> dict[str, str]:
    """Package -> version of a requirements file, which must hold exact pins only."""
    pins = {}
    for line in (ROOT / name).read_text().splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        key = canonicalize_name(requirement.name)
        assert key not in pins, f"{key} is pinned twice"
        pins[key] = specifier.version
    return pins


@pytest.fixture
def definition(monkeypatch) -> dict:
    """What setup.py hands to setuptools."""
    caught = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: caught.update(kwargs))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return caught


def test_version_is_that_of_the_package(definition):
    source = (ROOT / "lomar_det" / "__init__.py").read_text()
    assert f'__version__ = "{definition["version"]}"' in source
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", definition["version"])


def test_every_package_is_installed(definition):
    expected = set()
    for name, folder in (("lomar_det", "lomar_det"), ("lomar_pretrain", "projects/lomar_pretrain")):
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            expected.add(".".join((name, *inner)))
    expected.add("lomar_det.configs")
    for config in (ROOT / "configs").rglob("*.py"):  # recipes: folders without __init__.py
        inner = config.parent.relative_to(ROOT / "configs").parts
        expected.add(".".join(("lomar_det.configs", *inner)))
    assert set(definition["packages"]) == expected
    assert definition["package_dir"] == {
        "lomar_pretrain": "projects/lomar_pretrain",
        "lomar_det.configs": "configs",
    }


def test_pins_satisfy_the_ranges(definition):
    groups = [
        (definition["install_requires"], read_pins("requirements.txt")),
        (definition["extras_require"]["dev"], read_pins("requirements-dev.txt")),
    ]
    for ranges, pins in groups:
        for requirement in map(Requirement, ranges):
            name = canonicalize_name(requirement.name)
            assert name in pins, f"{name} has no pin"
            assert requirement.specifier.contains(pins[name]), f"{requirement} excludes its pin"
    assert not read_pins("requirements.txt").keys() & read_pins("requirements-dev.txt").keys()


def test_detectron2_is_hash_pinned_and_never_pulled_in(definition):
    text = (ROOT / "requirements-detectron2.txt").read_text()
    assert re.search(r"^sal-detectron2==0\.7\.2 \\\n +--hash=sha256:[0-9a-f]{64}$", text, re.M)
    assert not any("detectron2" in requirement for requirement in definition["install_requires"])


def run_setup(folder: Path, python: str) -> subprocess.CompletedProcess:
    """Runs a copy of the set-up script in an otherwise empty folder."""
    (folder / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "setup_env.sh", folder / "tools")
    return subprocess.run(
        ["bash", "tools/setup_env.sh"],
        cwd=folder,
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 3.10", "is Python 3.10, but 3.11 or newer is needed"),
        ("exit 1", "no usable Python"),
        ('case "$2" in *ensurepip*) exit 1;; *) echo 3.11;; esac', "lacks the venv module"),
    ],
)
def test_unsuitable_interpreter_is_refused(tmp_path, body, message):
    python = tmp_path / "fake python"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    result = run_setup(tmp_path, str(python))
    assert result.returncode == 1
    assert message in result.stderr and "PYTHON=python3.12" in result.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_prints_its_targets():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    result = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "demo", "test", "lint", "format", "clean"):
        assert f"make {target}" in result.stdout


@pytest.mark.parametrize("name", [".ci/run", "tools/setup_env.sh"])
def test_scripts_are_executable_and_strict(name):
    assert os.access(ROOT / name, os.X_OK)
    assert "set -euo pipefail" in (ROOT / name).read_text()
    subprocess.run(["bash", "-n", str(ROOT / name)], check=True)


def test_an_installation_carries_the_recipes(definition, tmp_path):
    """What `pip install` copies, without building a wheel."""
    build = setuptools.Distribution(definition | {"script_name": "setup.py"})
    build = build.get_command_obj("build_py")
    build.build_lib, build.compile = str(tmp_path), False
    build.ensure_finalized()
    build.run()
    for folder, package in (("configs", "lomar_det/configs"), ("projects/lomar_pretrain",) * 2):
        for path in (ROOT / folder).rglob("*.py"):
            target = tmp_path / package.removeprefix("projects/") / path.relative_to(ROOT / folder)
            assert target.read_bytes() == path.read_bytes()
