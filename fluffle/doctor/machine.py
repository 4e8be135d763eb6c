"""The machine: Python, TensorFlow, GPU, memory, disk, data, Docker."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import psutil

from fluffle.doctor.finding import Finding
from fluffle.schemas.sizes import GB, human_bytes

#: Resident memory, measured on 2 cores with the default experiment: a worker process with any
#: number of clients, the evaluator alike; an aggregator.
WORKER_GB, AGGREGATOR_GB = 0.7, 0.07
#: Less free disk than this does not hold many run folders, nor a data set.
_LEAST_DISK_GB = 2.0
#: What is written and synced to see how fast the disk is: about a million weights.
_SYNCED_BYTES = 4_000_000
_TRIES = 5
_COMMAND_S = 8.0
#: TensorFlow takes several seconds to import, more with CUDA.
_IMPORT_S = 90.0


def find_python() -> Finding:
    """The Python that runs this."""
    version = ".".join(map(str, sys.version_info[:3]))
    cores = os.cpu_count() or 1
    facts = {"version": version, "cores": cores, "load": round(os.getloadavg()[0], 2)}
    return Finding("python", "ok", f"{version} at {sys.executable}, {cores} cores", facts=facts)


def find_backend() -> Finding:
    """Keras and its backend, by their packages: importing them takes seconds."""
    told = os.environ.get("KERAS_BACKEND") or _keras_file() or "tensorflow"
    facts = {"backend": "tensorflow", "keras": _version("keras")}
    missing = [m for m in ("tensorflow", "keras") if importlib.util.find_spec(m) is None]
    if missing:
        return Finding(
            "backend",
            "lack",
            f"{' and '.join(missing)} not installed: aggregators run, workers do not",
            "pip install 'fluffle[cpu]', with an NVIDIA GPU 'fluffle[gpu]'; `make run` does it",
            facts,
        )
    facts["tensorflow"] = _version("tensorflow", "tensorflow-cpu", "tensorflow-intel")
    found = f"TensorFlow {facts['tensorflow']}, Keras {facts['keras']}"
    if told != "tensorflow":
        found += f"; KERAS_BACKEND or keras.json says {told}: trainings take TensorFlow anyway"
    return Finding("backend", "ok", found, facts=facts)


#: How each engine's cards are counted, in a process of its own.
_COUNTS = {
    "TensorFlow": "import tensorflow as t; print(len(t.config.list_physical_devices('GPU')))",
    "JAX": "import jax; print(sum(d.platform == 'gpu' for d in jax.devices()))",
}


def find_gpu() -> Finding:
    """NVIDIA GPUs, and which engines can use them; only where there is one are they imported."""
    listed = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if not listed:
        text = "none: training runs on the cores, one for each slot"
        return Finding("gpu", "note", text, facts={"cards": [], "usable": 0})
    cards = listed.splitlines()
    seen = {}
    for engine, script in _COUNTS.items():
        if importlib.util.find_spec(engine.lower()) is not None:
            counted = _output(sys.executable, "-c", script, timeout_s=_IMPORT_S)
            seen[engine] = int(counted) if counted.isdigit() else 0
    facts = {"cards": cards, "usable": max(seen.values(), default=0)}
    told = ", ".join(
        f"{engine} sees {count}" if count else f"{engine} does not see it"
        for engine, count in seen.items()
    )
    found = f"{'; '.join(cards)}; {told or 'no engine is installed'}"
    if not facts["usable"]:
        remedy = (
            "pip install 'fluffle[gpu]', or jax[cuda12] for the engine jax (both bring CUDA); the "
            "driver has to be new enough for it"
        )
        return Finding("gpu", "lack", found, remedy, facts)
    return Finding("gpu", "ok", found, facts=facts)


def find_memory() -> Finding:
    """Free memory, and how many worker processes it holds beside aggregator and evaluator."""
    total, free = _memory()
    fit = max(0, int((free / GB - AGGREGATOR_GB - WORKER_GB) / WORKER_GB))
    facts = {
        "total_gb": round(total / GB, 1),
        "free_gb": round(free / GB, 1),
        "worker_processes": fit,
    }
    found = (
        f"{human_bytes(free)} of {human_bytes(total)} free: {fit} worker processes of "
        f"{WORKER_GB} GB beside an evaluator ({WORKER_GB} GB) and an aggregator "
        f"({AGGREGATOR_GB} GB)"
    )
    if fit >= 1:
        return Finding("memory", "ok", found, facts=facts)
    return Finding("memory", "lack", found, "close programs, or let workers run elsewhere", facts)


def find_disk(out: Path) -> Finding:
    """Free space where run folders go, and how long a small model takes to be durable."""
    existing = next(
        folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir()
    )
    free = shutil.disk_usage(existing).free
    facts: dict[str, object] = {"folder": str(out), "free_gb": round(free / GB, 1), "sync_ms": None}
    try:
        sync_ms = facts["sync_ms"] = _sync_ms(existing)
    except OSError as error:
        why = f"{existing} cannot be written ({error.strerror})"
        return Finding("disk", "lack", why, "choose another --out", facts)
    model = human_bytes(_SYNCED_BYTES)
    found = f"{human_bytes(free)} free for {out}, a {model} model durable in {sync_ms} ms"
    if free >= _LEAST_DISK_GB * GB:
        return Finding("disk", "ok", found, facts=facts)
    return Finding("disk", "lack", found, "make room, or choose another --out", facts)


def find_data() -> Finding:
    """Data sets in the cache, every byte checked."""
    from fluffle.worker.datasets import describe
    from fluffle.worker.datasets.cache import cache_folder

    described = describe()
    here = [recipe.name for recipe, path in described if path]
    absent = [recipe.name for recipe, path in described if not path]
    facts = {"folder": str(cache_folder()), "here": here, "absent": absent}
    found = f"{', '.join(here) or 'no data set yet'} in {cache_folder()}"
    if not absent:
        return Finding("data", "ok", found, facts=facts)
    get = f"fluffle data fetch {absent[0]}"
    if len(absent) > 1:
        get += f" (or {', '.join(absent[1:])})"
    if here:
        return Finding("data", "ok", found, get, facts)
    return Finding("data", "lack", found, f"{get}; a run fetches what it needs by itself", facts)


def find_docker() -> Finding:
    """A Docker engine that answers, and Compose."""
    how = "https://docs.docker.com/engine/install/ (only `docker compose up` needs it)"
    if shutil.which("docker") is None:
        return Finding("docker", "lack", "not installed", how, {"engine": None, "compose": None})
    engine = _output("docker", "info", "--format", "{{.ServerVersion}} {{.MemTotal}}").split()
    compose = _output("docker", "compose", "version", "--short")
    facts = {"engine": engine[0] if len(engine) == 2 else None, "compose": compose or None}
    if len(engine) != 2:
        start = "start it: Docker Desktop, or systemctl start docker; your user in group docker?"
        return Finding("docker", "lack", "installed, but no engine answers", start, facts)
    memory = int(engine[1])
    found = f"engine {engine[0]} with {human_bytes(memory)}, Compose {compose or 'not installed'}"
    if compose:
        return Finding("docker", "ok", found, facts=facts | {"memory_gb": round(memory / GB, 1)})
    return Finding("docker", "lack", found, "https://docs.docker.com/compose/install/", facts)


def _version(*distributions: str) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _keras_file() -> str | None:
    from fluffle.worker.datasets.cache import home_folder

    home = Path(os.environ.get("KERAS_HOME") or home_folder() / ".keras")
    try:
        return str(json.loads((home / "keras.json").read_text())["backend"])
    except (OSError, ValueError, KeyError):
        return None


def _memory() -> tuple[int, int]:
    """Bytes in all and free: the machine's, or the container's where that has less."""
    machine = psutil.virtual_memory()
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, no limit, or another system
        return machine.total, machine.available
    return min(machine.total, limit), min(machine.available, limit - used)


def _sync_ms(folder: Path) -> float:
    """Median time of a write and fsync, in milliseconds. Raises: OSError."""
    body, times = os.urandom(_SYNCED_BYTES), []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(_TRIES):
            started = time.perf_counter()
            file.seek(0)
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return round(sorted(times)[_TRIES // 2] * 1000, 1)


def _output(*command: str, timeout_s: float = _COMMAND_S) -> str:
    """What a command prints on stdout; nothing where it is not there, fails or hangs."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
