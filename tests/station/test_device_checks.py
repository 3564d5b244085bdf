"""`flawline doctor` shows the GPU, says why it cannot be used, and finds two builds of faiss in one environment."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from flawline.errors import FlawlineError
from flawline.settings.tree import Settings
from station.cli import device_checks, doctor_checks
from station.cli.device_checks import Devices, Gpu
from station.cli.finding import Status

H200 = Gpu("NVIDIA H200", "580.95.05", "9.0", 143771.0, 1024.0)
READY = Devices((H200,), "2.15.0", "13.2", 1)


def settings_with(**worker: object) -> Settings:
    settings = Settings()
    return settings.model_copy(update={"worker": settings.worker.model_copy(update=worker)})


def smi(folder: Path, script: str) -> None:
    command = folder / "nvidia-smi"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(command.stat().st_mode | stat.S_IXUSR)


def test_machine_without_a_gpu_is_one_line() -> None:
    [finding] = device_checks.gpu(settings_with(), Devices)
    assert finding.status is Status.OK
    assert finding.text == "no NVIDIA GPU on this machine: CPUs score, with the neighbour index Int8Index"


def test_workers_that_want_a_gpu_which_is_missing_are_a_failure_with_the_key() -> None:
    [finding] = device_checks.gpu(settings_with(num_gpus=0.5), Devices)
    assert finding.status is Status.FAIL
    assert "worker.num_gpus is 0.5" in finding.text and "worker.num_gpus = 0" in finding.remedy


def test_machine_without_a_gpu_beside_a_cluster_that_has_them_is_in_order() -> None:
    [finding] = device_checks.gpu(settings_with(num_gpus=0.5, ray_address="ray://10.0.0.9:10001"), Devices)
    assert finding.status is Status.OK and "worker.ray_address" in finding.text and "TorchIndex" in finding.text


def test_gpu_in_use_is_shown_with_driver_capability_memory_and_index() -> None:
    gpu, torch = device_checks.gpu(settings_with(num_gpus=1.0), lambda: READY)
    assert (gpu.status, torch.status) == (Status.OK, Status.OK)
    assert gpu.text == "NVIDIA H200: driver 580.95.05, compute capability 9.0, 139.4 of 140.4 GiB free"
    assert "PyTorch 2.15.0 with CUDA 13.2 can use 1 of 1" in torch.text and "TorchIndex" in torch.text


@pytest.mark.parametrize("wanted", [0.0, 0.5])
@pytest.mark.parametrize(
    ("devices", "text", "remedy"),
    [
        (Devices((H200,), "2.14.1+cpu", None, 0), "2.14.1+cpu was built without CUDA", "flawline[gpu]"),
        (Devices((H200,), "2.15.0", "13.2", 0), "finds no GPU through driver 580.95.05", "CUDA_VISIBLE_DEVICES"),
    ],
)
def test_gpu_that_pytorch_cannot_use_says_why(devices: Devices, text: str, remedy: str, wanted: float) -> None:
    shown, problem = device_checks.gpu(settings_with(num_gpus=wanted), lambda: devices)
    assert "NVIDIA H200" in shown.text
    assert problem.status is (Status.FAIL if wanted else Status.WARN)
    assert text in problem.text and remedy in problem.remedy


def test_gpu_that_no_worker_uses_is_a_warning_with_the_key() -> None:
    finding = device_checks.gpu(settings_with(), lambda: READY)[-1]
    assert finding.status is Status.WARN and "worker.num_gpus" in finding.remedy and "Int8Index" in finding.text


def test_index_follows_the_runtime() -> None:
    for runtime, num_gpus, index in (
        ("auto", 0.0, "Int8Index"),
        ("openvino", 0.0, "Int8Index"),
        ("torch", 0.0, "TorchIndex"),
        ("auto", 0.5, "TorchIndex"),
    ):
        finding = device_checks.gpu(settings_with(runtime=runtime, num_gpus=num_gpus), lambda: READY)[-1]
        assert finding.text.endswith(f"the neighbour index {index}"), (runtime, num_gpus)


@pytest.mark.system
def test_driver_is_asked_through_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    smi(tmp_path, "echo 'NVIDIA H100 80GB HBM3, 580.95.05, 9.0, 81559, 4'; echo 'NVIDIA L4, 580.95.05, 8.9, 23034, 0'")
    devices = device_checks.probe()
    assert [gpu.name for gpu in devices.gpus] == ["NVIDIA H100 80GB HBM3", "NVIDIA L4"]
    assert devices.gpus[1] == Gpu("NVIDIA L4", "580.95.05", "8.9", 23034.0, 0.0)
    assert devices.torch and devices.usable >= 0
    smi(tmp_path, "echo 'No devices were found'; exit 6")
    assert device_checks.probe() == Devices()
    smi(tmp_path, "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    with pytest.raises(FlawlineError, match=r"nvidia-smi failed \(Failed to initialize NVML"):
        device_checks.probe()
    smi(tmp_path, "echo 'Field \"compute_cap\" is not a valid field to query.'")
    with pytest.raises(FlawlineError, match="update NVIDIA's driver"):
        device_checks.probe()


def test_driver_without_its_command_is_no_machine_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(device_checks, "DRIVER_DEVICE", tmp_path / "nvidiactl")
    assert device_checks.probe() == Devices()
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(FlawlineError, match="nvidia-smi is missing"):
        device_checks.probe()


def test_one_faiss_is_shown_by_name() -> None:
    [finding] = device_checks.faiss(Settings(), lambda: {"faiss-cpu": "1.15.1"}, lambda name: [])
    assert (finding.status, finding.text) == (Status.OK, "faiss-cpu 1.15.1")


def test_two_builds_of_faiss_are_a_failure_that_names_both() -> None:
    installed = {"faiss-cpu": "1.15.1", "faiss-gpu-cuvs": "1.15.1"}
    [finding] = device_checks.faiss(Settings(), lambda: installed)
    assert finding.status is Status.FAIL
    assert finding.text.startswith("faiss-cpu 1.15.1 and faiss-gpu-cuvs 1.15.1 overwrite each other's files")
    assert finding.remedy.startswith("`pip uninstall faiss-cpu faiss-gpu-cuvs`, then ")


def test_installed_faiss_belongs_to_one_package() -> None:
    [(name, version)] = device_checks.faiss_packages().items()
    assert name.startswith("faiss-") and version


def test_faiss_that_lacks_a_library_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faiss.py").write_text("raise ImportError('libcuvs.so: cannot open\\nshared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    [finding] = device_checks.faiss(Settings(), lambda: {"faiss-gpu-cuvs": "1.15.1"})
    assert finding.status is Status.FAIL
    assert finding.text == "faiss-gpu-cuvs 1.15.1 cannot be loaded: libcuvs.so: cannot open shared object file"


def test_no_faiss_is_a_warning_with_the_command() -> None:
    [finding] = device_checks.faiss(Settings(), dict)
    assert finding.status is Status.WARN and "flawline[cpu]" in finding.remedy


def test_faiss_for_another_cuda_than_pytorch_is_a_warning() -> None:
    needs = {
        "faiss-gpu-cu12": ["numpy<3", "nvidia-cuda-runtime-cu12>=12.1.105", "nvidia-cublas-cu12>=12.1.3.1"],
        "torch": ["filelock", "nvidia-cudnn-cu13==9.24.0.43; platform_system == 'Linux'"],
    }
    [finding] = device_checks.faiss(Settings(), lambda: {"faiss-gpu-cu12": "1.14.1"}, needs.get)
    assert finding.status is Status.WARN
    assert "CUDA 12" in finding.text and "CUDA 13" in finding.text and "flawline[gpu]" in finding.remedy


@pytest.mark.parametrize(
    ("requirements", "generation"),
    [
        (["numpy>=1.25", "packaging"], None),
        (["nvidia-cuda-runtime<14,>=13.2", "nvidia-cublas<14,>=13.2", "libcuvs-cu13==26.06.*"], 13),
        (["nvidia-cuda-runtime-cu12>=12.4.127"], 12),
        (["nvidia-nccl-cu13==2.30.7; platform_system == 'Linux'"], 13),
    ],
)
def test_cuda_generation_is_read_from_the_names_of_the_libraries(
    requirements: list[str], generation: int | None
) -> None:
    assert device_checks.cuda_generation(requirements) == generation


def test_doctor_runs_both_checks() -> None:
    assert {device_checks.gpu, device_checks.faiss} <= set(doctor_checks.ALL)
