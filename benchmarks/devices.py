"""What machine this is, and what its maker says it can do.

Nominal figures are only a frame: every round measures the machine itself (:mod:`benchmarks.roofline`).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Chip:
    """Nominal figures of an Apple chip with all its GPU cores.

    Attributes:
        gpu_cores: of the largest variant.
        bandwidth_gb_s: unified memory, 1e9 bytes a second.
        tflops: float32, 1e12 operations a second: cores x 128 lanes x 2 x clock.
        source: where the figures come from.
        smaller: GB/s of the variant with the fewest cores where its memory is slower too (Apple's specifications).
    """

    gpu_cores: int
    bandwidth_gb_s: float
    tflops: float
    source: str
    smaller: float | None = None

    def with_cores(self, cores: int | None) -> Chip:
        """The chip as sold with fewer GPU cores; itself for None."""
        if cores is None or cores >= self.gpu_cores:
            return self
        return replace(
            self,
            gpu_cores=cores,
            bandwidth_gb_s=self.smaller or self.bandwidth_gb_s,
            tflops=round(self.tflops * cores / self.gpu_cores, 1),
        )


_APPLE = "cores and bandwidth: Apple's technical specifications (support.apple.com/specs)"
_CLOCK = "; TFLOP/s: cores x 128 lanes x 2 x {} GHz, the clock as listed at hmc-tech.com/gpu"
_M5 = "cores and bandwidth: Apple's press release of March 2026, as in lowyat.net/2026/385170"
CHIPS: dict[str, Chip] = {
    "Apple M1": Chip(8, 68.3, 2.6, _APPLE + "; TFLOP/s: Apple's newsroom, 10 November 2020"),
    "Apple M1 Pro": Chip(16, 200, 5.2, _APPLE + "; TFLOP/s: Apple's newsroom, 18 October 2021"),
    "Apple M1 Max": Chip(32, 400, 10.4, _APPLE + "; TFLOP/s: Apple's newsroom, 18 October 2021"),
    "Apple M1 Ultra": Chip(64, 800, 20.8, _APPLE + "; TFLOP/s: twice an M1 Max"),
    "Apple M2": Chip(10, 100, 3.6, _APPLE + "; TFLOP/s: Apple's newsroom, 6 June 2022"),
    "Apple M2 Pro": Chip(19, 200, 6.8, _APPLE + _CLOCK.format(1.398)),
    "Apple M2 Max": Chip(38, 400, 13.6, _APPLE + _CLOCK.format(1.398)),
    "Apple M2 Ultra": Chip(76, 800, 27.2, _APPLE + "; TFLOP/s: twice an M2 Max"),
    "Apple M3": Chip(10, 100, 3.6, _APPLE + _CLOCK.format(1.398)),
    "Apple M3 Pro": Chip(18, 150, 6.4, _APPLE + _CLOCK.format(1.398)),
    "Apple M3 Max": Chip(40, 400, 14.3, _APPLE + _CLOCK.format(1.398), smaller=300),
    "Apple M3 Ultra": Chip(80, 819, 28.6, _APPLE + "; TFLOP/s: twice an M3 Max"),
    "Apple M4": Chip(10, 120, 3.8, _APPLE + _CLOCK.format(1.470)),
    "Apple M4 Pro": Chip(20, 273, 7.5, _APPLE + _CLOCK.format(1.470)),
    "Apple M4 Max": Chip(40, 546, 17.2, _APPLE + _CLOCK.format(1.678), smaller=410),
    "Apple M5": Chip(10, 153, 4.5, "cores and bandwidth: apple.com/newsroom, 15 October 2025" + _CLOCK.format(1.740)),
    "Apple M5 Pro": Chip(20, 307, 8.3, _M5 + "; TFLOP/s: half an M5 Max, its own clock is not published"),
    "Apple M5 Max": Chip(
        40,
        614,
        16.6,
        _M5 + "; TFLOP/s: cores x 128 lanes x 2 x 1.620 GHz, which powermetrics shows under load: "
        "github.com/feedback-assistant/reports/issues/830",
        smaller=460,
    ),
}


@dataclass(frozen=True)
class Machine:
    """Where a benchmark ran.

    Attributes:
        device: ``"gpu"`` or ``"cpu"``: where MLX computes.
        processor: as the system names it.
        cores: of the CPU, as many as this process may use.
        memory_gb: 1e9 bytes.
        system: operating system and release.
        power: ``"mains"``, ``"battery"`` or None where it cannot be told.
        gpu_cores: of an Apple GPU, or None.
        nominal: the chip's figures, with the GPU cores that are there; or None.
        versions: of Python and the libraries that matter.
        blas: what multiplies matrices on the CPU; see :func:`mlx_bert.blas.enable`.
        blas_threads: ``OPENBLAS_NUM_THREADS``, or None when not set.
        load_average: of the last minute, this process included: well above ``cores`` means that others worked too.
    """

    device: str
    processor: str
    cores: int
    memory_gb: float
    system: str
    power: str | None
    gpu_cores: int | None
    nominal: dict[str, Any] | None
    versions: dict[str, str]
    blas: str
    blas_threads: str | None
    load_average: float


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def processor_name() -> str:
    """Such as ``"Apple M2 Max"`` or the model name of an x86 processor."""
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            found = re.search(r"^model name\s*:\s*(.+)$", lines.read(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def find_chip(processor: str) -> Chip | None:
    """The maker's figures for a processor's name, or None for one that is not in the table."""
    return CHIPS.get(" ".join(processor.split()))


def gpu_core_count() -> int | None:
    """Cores of an Apple GPU: chips are sold with some switched off."""
    if sys.platform != "darwin":
        return None
    found = re.search(r'"gpu-core-count"\s*=\s*(\d+)', _output("ioreg", "-rc", "AGXAccelerator"))
    return int(found[1]) if found else None


def power_source() -> str | None:
    """A laptop on battery may clock down."""
    if sys.platform == "darwin":
        listed = _output("pmset", "-g", "batt")
        return "battery" if "Battery Power" in listed else "mains" if "AC Power" in listed else None
    supplies = list(Path("/sys/class/power_supply").glob("*/online"))
    if not supplies:
        return None
    return "mains" if any(supply.read_text().strip() == "1" for supply in supplies) else "battery"


def memory_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def library_versions() -> dict[str, str]:
    """Versions of what a figure depends on; libraries that are not installed are left out."""
    found = {"python": platform.python_version()}
    for name in ("mlx-bert", "mlx", "numpy", "tokenizers", "torch", "transformers", "sentence-transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def this_machine() -> Machine:
    """Read everything about the machine that a figure depends on."""
    import mlx.core as mx

    import mlx_bert

    processor = processor_name()
    chip, cores = find_chip(processor), gpu_core_count()
    return Machine(
        device=mx.default_device().type.name,
        processor=processor,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=round(memory_bytes() / 1e9, 1),
        system=f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        power=power_source(),
        gpu_cores=cores,
        nominal=asdict(chip.with_cores(cores)) if chip else None,
        versions=library_versions(),
        blas=mlx_bert.blas_backend,
        blas_threads=os.environ.get("OPENBLAS_NUM_THREADS"),
        load_average=round(os.getloadavg()[0], 1),
    )
