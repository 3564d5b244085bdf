"""The image's lock file: every package that flawline needs, at one version that pyproject.toml allows, with hashes."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTORCH = {"torch", "torchvision"}
IMAGE = {"python_version": "3.11", "python_full_version": "3.11.13", "sys_platform": "linux", "os_name": "posix",
         "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
         "platform_python_implementation": "CPython", "extra": ""}  # fmt: skip


def locked() -> dict[str, tuple[Version, int]]:
    """Return version and number of hashes of each package in the lock file."""
    text = (ROOT / "deploy/requirements.lock").read_text()
    entries = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)$", text, re.MULTILINE)
    packages = {
        canonicalize_name(name): (Version(version), hashes.count("sha256:")) for name, version, hashes in entries
    }
    starts = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(packages) == len(starts), "a line of the lock file is no exact version with hashes"
    return packages


def of_pyproject(*extras: str) -> list[Requirement]:
    project = PROJECT["project"]
    texts = [*project["dependencies"], *(text for extra in extras for text in project["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


def pinned() -> dict[str, Version]:
    """Return the versions of PyTorch that the Dockerfile installs."""
    text = (ROOT / "deploy/Dockerfile").read_text()
    return {name: Version(version) for name, version in re.findall(r'"(torch(?:vision)?)==([^"]+)"', text)}


def test_every_requirement_is_locked_within_its_range_and_has_hashes() -> None:
    packages = locked()
    assert all(hashes for _, hashes in packages.values())
    needed = [*of_pyproject("s3"), *map(Requirement, PROJECT["build-system"]["requires"])]
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        version = pinned()[name] if name in PYTORCH else packages[name][0]
        assert requirement.specifier.contains(version), f"{requirement} and {version}: run `make lock`"


def test_pytorch_is_the_one_that_the_lock_file_was_made_for_and_brings_no_cuda_into_it() -> None:
    lines = (ROOT / "deploy/requirements.in").read_text().splitlines()
    named = {r.name: r.specifier for r in map(Requirement, [line for line in lines if line.startswith("torch")])}
    assert {name: f"=={version}" for name, version in pinned().items()} == {n: str(s) for n, s in named.items()}
    assert set(named) == PYTORCH
    gpu = [name for name in locked() if name.startswith(("torch", "nvidia-", "cuda-", "triton"))]
    assert gpu == [], "add them to UNLOCKED in the Makefile"


def test_what_locked_packages_need_is_locked_too() -> None:
    packages = locked()
    compared = 0
    for name, (version, _) in packages.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if Version(installed.version) != version:
            continue
        compared += 1
        for requirement in map(Requirement, installed.requires or []):
            if requirement.marker is None or requirement.marker.evaluate(IMAGE):
                assert canonicalize_name(requirement.name) in packages.keys() | PYTORCH, f"{name} needs {requirement}"
    if not compared:
        pytest.skip("no package is installed at the version of the lock file")


def test_every_dependency_has_a_lower_and_an_upper_bound() -> None:
    for requirement in of_pyproject(*PROJECT["project"]["optional-dependencies"]):
        operators = {clause.operator for clause in requirement.specifier}
        assert operators == {"=="} or (operators & {"<", "<="} and ">=" in operators), str(requirement)


def test_image_installs_by_hash_and_nothing_else_but_pytorch() -> None:
    text = (ROOT / "deploy/Dockerfile").read_text()
    installs = [line.removeprefix("RUN pip install ") for line in text.splitlines() if "pip install" in line]
    assert len(installs) == 3
    pytorch, lock, package = installs
    assert set(re.findall(r'"([a-z]+)==', pytorch)) == PYTORCH
    assert "--no-deps --require-hashes -r /tmp/requirements.lock" in lock
    assert package.startswith("--no-deps --no-build-isolation . && pip check")
