"""Checks of `flawline doctor` on what computes: the GPU, PyTorch on it, and the build of faiss."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from flawline.errors import FlawlineError, one_line
from flawline.settings.tree import Settings
from scorer.search.neighbours import faiss_module
from station.cli.finding import Finding, Status

SMI_TIMEOUT_S = 20.0  # the first call loads the driver where nothing else holds it; a judgement, not measured
SMI_FIELDS = ("name", "driver_version", "compute_cap", "memory.total", "memory.used")
MIB_PER_GIB = 1024
DRIVER_DEVICE = Path("/dev/nvidiactl")
INSTALL_FAISS = "`pip install 'flawline[cpu]'`, or 'flawline[gpu]' for an NVIDIA GPU"
INSTALL_GPU = "`pip install 'flawline[gpu]'` into a new environment"


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver describes it."""

    name: str
    driver: str
    capability: str
    total_mib: float
    used_mib: float


@dataclass(frozen=True)
class Devices:
    """The GPUs of this machine, and what PyTorch makes of them.

    `cuda` is the version that PyTorch was built for, None for a build without CUDA; `usable` is the number of GPUs that
    it can use. PyTorch is asked only where there is a GPU: `torch` is empty elsewhere.
    """

    gpus: tuple[Gpu, ...] = ()
    torch: str = ""
    cuda: str | None = None
    usable: int = 0


def probe() -> Devices:
    """Ask NVIDIA's driver and PyTorch. Raises FlawlineError when the driver does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        if DRIVER_DEVICE.exists():
            remedy = "install NVIDIA's tools, or give the container the driver capability `utility`"
            raise FlawlineError(f"an NVIDIA driver is loaded, and nvidia-smi is missing: {remedy}")
        return Devices()
    gpus = parse_smi(_smi(command))
    if not gpus:
        return Devices()
    import torch

    return Devices(gpus, torch.__version__, torch.version.cuda, torch.cuda.device_count())


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """Return the GPUs in the CSV that `nvidia-smi` prints for SMI_FIELDS. Raises FlawlineError for other text."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    try:
        return tuple(Gpu(name, driver, cap, float(total), float(used)) for name, driver, cap, total, used in rows)
    except ValueError as error:
        raise FlawlineError(f"nvidia-smi answers {text.strip()[:200]!r}: update NVIDIA's driver") from error


def _smi(command: str) -> str:
    arguments = [command, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise FlawlineError(f"nvidia-smi has not answered for {SMI_TIMEOUT_S:g} s: restart the machine") from error
    except OSError as error:
        raise FlawlineError(f"{command} cannot be started ({error.strerror}): install NVIDIA's driver again") from error
    if done.returncode == 0:
        return done.stdout
    reason = " ".join((done.stdout + done.stderr).split())[:200]
    if "No devices were found" in reason:
        return ""
    raise FlawlineError(f"nvidia-smi failed ({reason}): install NVIDIA's driver again")


def gpu(settings: Settings, read: Callable[[], Devices] = probe) -> list[Finding]:
    """Check that the workers' GPU is there and PyTorch can use it, and show what each GPU is."""
    worker, devices = settings.worker, read()
    wanted = worker.num_gpus > 0
    index = _index(settings)
    if not devices.gpus:
        if wanted and worker.ray_address is None:
            text = f"worker.num_gpus is {worker.num_gpus:g}, and this machine has no NVIDIA GPU that its driver shows"
            return [Finding("gpu", Status.FAIL, text, "install NVIDIA's driver, or set worker.num_gpus = 0")]
        where = "the machines of worker.ray_address score" if wanted else "CPUs score"
        return [Finding("gpu", Status.OK, f"no NVIDIA GPU on this machine: {where}, with the neighbour index {index}")]
    findings = [Finding("gpu", Status.OK, _described(gpu)) for gpu in devices.gpus]
    problem = _unusable(devices)
    if problem is not None:
        text, remedy = problem
        return [*findings, Finding("gpu", Status.FAIL if wanted else Status.WARN, text, remedy)]
    torch = f"PyTorch {devices.torch} with CUDA {devices.cuda} can use {devices.usable} of {len(devices.gpus)}"
    if not wanted:
        text = f"{torch}; CPUs score all the same, with the neighbour index {index}"
        return [*findings, Finding("gpu", Status.WARN, text, "set worker.num_gpus to each actor's share of a GPU")]
    return [*findings, Finding("gpu", Status.OK, f"{torch}; workers score there, with the neighbour index {index}")]


def _described(gpu: Gpu) -> str:
    free, total = ((mib / MIB_PER_GIB) for mib in (gpu.total_mib - gpu.used_mib, gpu.total_mib))
    return f"{gpu.name}: driver {gpu.driver}, compute capability {gpu.capability}, {free:.1f} of {total:.1f} GiB free"


def _unusable(devices: Devices) -> tuple[str, str] | None:
    """Return why PyTorch cannot use a GPU, with the remedy; None when it can."""
    if devices.cuda is None:
        return f"PyTorch {devices.torch} was built without CUDA and cannot use it", INSTALL_GPU
    if not devices.usable:
        driver = devices.gpus[0].driver
        text = f"PyTorch {devices.torch} with CUDA {devices.cuda} finds no GPU through driver {driver}"
        return text, "update the driver (CUDA 13 wants 580 or newer), and look at CUDA_VISIBLE_DEVICES"
    return None


def _index(settings: Settings) -> str:
    """Return which neighbour index the workers use: PyTorch's with its runtime, else the one in 8-bit integers."""
    worker = settings.worker
    uses_torch = worker.runtime == "torch" or (worker.runtime == "auto" and worker.num_gpus > 0)
    return "TorchIndex" if uses_torch else "Int8Index"


def faiss_packages() -> dict[str, str]:
    """Return the versions of the installed packages that hold the module faiss, by name."""
    names = sorted(set(metadata.packages_distributions().get("faiss", ())))
    return {name: metadata.version(name) for name in names}


def faiss(
    settings: Settings,
    read: Callable[[], Mapping[str, str]] = faiss_packages,
    needs: Callable[[str], Sequence[str] | None] = metadata.requires,
) -> list[Finding]:
    """Check that one package holds the module faiss, which fits and discovery need, and that it uses PyTorch's CUDA.

    `read` gives the packages that hold it with their versions, `needs` the requirements of a package.
    """
    installed = read()
    named = " and ".join(f"{name} {version}" for name, version in installed.items())
    if len(installed) > 1:
        text = f"{named} overwrite each other's files: each of them holds the module faiss"
        remedy = f"`pip uninstall {' '.join(installed)}`, then {INSTALL_FAISS}"
        return [Finding("faiss", Status.FAIL, text, remedy)]
    if not installed:
        text = "faiss is not installed: fits and discovery do not run on this machine"
        return [Finding("faiss", Status.WARN, text, INSTALL_FAISS)]
    try:
        faiss_module()
    except (FlawlineError, OSError) as error:  # a library that the build needs is missing
        return [
            Finding(
                "faiss", Status.FAIL, f"{named} cannot be loaded: {one_line(error.__cause__ or error)}", INSTALL_FAISS
            )
        ]
    of_faiss, of_torch = (cuda_generation(needs(name) or ()) for name in (next(iter(installed)), "torch"))
    if of_faiss and of_torch and of_faiss != of_torch:
        text = f"{named} brings the libraries of CUDA {of_faiss} beside those of CUDA {of_torch}, which PyTorch brings"
        return [Finding("faiss", Status.WARN, text, f"{INSTALL_GPU}: both then use one CUDA")]
    return [Finding("faiss", Status.OK, named)]


def cuda_generation(requirements: Sequence[str]) -> int | None:
    """Return the CUDA generation in a package's requirements, such as 13 of `nvidia-nccl-cu13`; None without CUDA."""
    matches = (re.match(r"(?:nvidia|lib)[a-z-]*-cu(\d\d)\b", text) for text in requirements)
    return next((int(match[1]) for match in matches if match), None)
