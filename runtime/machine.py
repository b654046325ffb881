"""Facts about this machine and process, for reports."""

from __future__ import annotations

import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")  # of Linux; elsewhere nothing is known of the CPU

# Instructions, the fastest first: what a thread makes of them in a tick's graph, in operations per second. Cautious:
# measured were 230 to 400 · 10⁹ in bfloat16 and 130 · 10⁹ in float32, on an AMD EPYC; the last is a guess for AVX2.
FLOPS_OF_A_THREAD = {"amx_bf16": 200e9, "avx512_bf16": 200e9, "avx512f": 100e9, "": 40e9}


def cpu_name() -> str:
    if CPUINFO.exists():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def multiplies_int8() -> bool:
    """Whether the CPU has instructions for sums of int8 products; without them int8 is slow, and may overflow."""
    known = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp"}
    return CPUINFO.exists() and not known.isdisjoint(CPUINFO.read_text().split())


def flops_of_a_thread() -> float:
    """Operations per second that a thread can be counted on for; the same each time on one machine."""
    known = set(CPUINFO.read_text().split()) if CPUINFO.exists() else set()
    return next(flops for name, flops in FLOPS_OF_A_THREAD.items() if name in known or not name)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_mb() -> float | None:
    """The most memory that this process has held, in MB; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(used / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def process_age_s() -> float | None:
    """Seconds since this process was started, to a hundredth; None where the system does not say."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return None
    started = int(stat.read_text().rpartition(")")[2].split()[19])  # clock ticks after the machine's start
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def versions() -> dict[str, str]:
    """Versions of what a frame's bytes may depend on."""
    found = {"python": platform.python_version()}
    for package in ("worldloop", "numpy", "onnxruntime", "openvino", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
