"""What the figures were measured on: the machine, its device and the versions."""

import datetime
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import volax


def cores() -> int:
    """How many cores this process may use; XLA's thread pool has as many threads."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def facts() -> dict[str, Any]:
    """Date, machine and versions; PyTorch's where it was imported."""
    return {"date": str(datetime.date.today()), **place()}


def place() -> dict[str, Any]:
    """The same without the date."""
    packages = ["jax", "jaxlib", "optax", "flax"]
    packages += ["torch"] if "torch" in sys.modules else []
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "cpu": _cpu(),
        "cores": cores(),
        "device": jax.devices()[0].device_kind,
        "versions": {"volax": volax.__version__, **versions},
    }


def header() -> str:
    """All of it in one line."""
    return f"{datetime.date.today()}, {told(place())}"


def told(known: Mapping[str, Any]) -> str:
    """A machine and its versions in one line."""
    versions = ", ".join(f"{k} {v}" for k, v in known["versions"].items())
    return f"{known['cores']} cores of {known['cpu']}, on {known['device']}, {versions}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [x.partition(": ")[2] for x in lines if x.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
