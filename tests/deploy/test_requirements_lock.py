"""The images' lock files: every package that flawline needs, at one version that pyproject.toml allows, with hashes."""

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
VARIANTS = ("cpu", "gpu")
IMAGE = {"python_version": "3.11", "python_full_version": "3.11.13", "sys_platform": "linux", "os_name": "posix",
         "platform_system": "Linux", "platform_machine": "x86_64", "implementation_name": "cpython",
         "platform_python_implementation": "CPython", "extra": ""}  # fmt: skip


def locked(variant: str) -> dict[str, tuple[Version, int]]:
    """Return version and number of hashes of each package in the lock file of an image."""
    text = (ROOT / f"deploy/requirements.{variant}.lock").read_text()
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
    return [requirement for requirement in map(Requirement, texts) if requirement.name != project["name"]]


def pinned() -> dict[str, Version]:
    """Return the versions of PyTorch for CPUs that the Dockerfile installs."""
    text = (ROOT / "deploy/Dockerfile").read_text()
    return {name: Version(version) for name, version in re.findall(r'"(torch(?:vision)?)==([^"]+)"', text)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_requirement_is_locked_within_its_range_and_has_hashes(variant: str) -> None:
    packages = locked(variant)
    assert all(hashes for _, hashes in packages.values())
    versions = {name: version for name, (version, _) in packages.items()} | (pinned() if variant == "cpu" else {})
    for requirement in [*of_pyproject("s3", variant), *map(Requirement, PROJECT["build-system"]["requires"])]:
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} and {version}: run `make lock`"


@pytest.mark.parametrize(("variant", "build"), [("cpu", "faiss-cpu"), ("gpu", "faiss-gpu-cuvs")])
def test_an_image_holds_one_build_of_faiss(variant: str, build: str) -> None:
    assert [name for name in locked(variant) if name.startswith("faiss")] == [build]
    assert [r.name for r in of_pyproject(variant) if r.name.startswith("faiss")] == [build]


def test_the_gpu_image_has_a_pip_that_reads_the_versions_faiss_asks_for() -> None:
    assert locked("gpu")["pip"][0] >= Version("24.1"), (
        "pip 24.0 takes libcuvs-cu13==26.06.* for another release than 26.6"
    )


def test_faiss_and_pytorch_of_the_gpu_image_use_one_generation_of_cuda() -> None:
    packages = locked("gpu")
    assert {match[0] for name in packages if (match := re.search(r"-cu\d+$", name))} == {"-cu13"}
    assert all(packages[name][0].major == 13 for name in ("nvidia-cuda-runtime", "nvidia-cublas", "cuda-toolkit"))


def test_what_both_images_hold_has_the_same_version_in_both() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    assert {
        name: (cpu[name][0], gpu[name][0]) for name in cpu.keys() & gpu.keys() if cpu[name][0] != gpu[name][0]
    } == {}
    assert cpu.keys() - gpu.keys() == {"faiss-cpu"}


def test_pytorch_is_the_one_that_the_lock_file_was_made_for_and_brings_no_cuda_into_it() -> None:
    lines = (ROOT / "deploy/requirements.cpu.in").read_text().splitlines()
    named = {r.name: r.specifier for r in map(Requirement, [line for line in lines if line.startswith("torch")])}
    assert {name: f"=={version}" for name, version in pinned().items()} == {n: str(s) for n, s in named.items()}
    assert set(named) == PYTORCH
    gpu = [name for name in locked("cpu") if name.startswith(("torch", "nvidia-", "cuda-", "triton"))]
    assert gpu == [], "add them to UNLOCKED in the Makefile"


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_locked_packages_need_is_locked_too(variant: str) -> None:
    packages = locked(variant)
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
    installs = [line.partition("pip install ")[2] for line in text.splitlines() if "pip install" in line]
    assert len(installs) == 3
    pytorch, lock, package = installs
    assert set(re.findall(r'"([a-z]+)==', pytorch)) == PYTORCH
    assert "--no-deps --require-hashes -r /tmp/requirements.lock" in lock
    assert "COPY deploy/requirements.${VARIANT}.lock /tmp/requirements.lock" in text
    assert 'if [ "$VARIANT" = cpu ]; then' in text.partition("pip install")[0]
    assert package.startswith("--no-deps --no-build-isolation . && pip check")
