"""Files from the network: a URL, an npm package, a Python wheel, a Debian package.

npm, pip and apt know the index that this machine is meant to use; no address of one stands here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from fluffle.worker.datasets.cache import home_folder
from fluffle.worker.datasets.recipe import Progress, Unavailable

#: A site that has not answered by then is taken for absent: many networks have none.
ANSWER_S = 5.0
#: A package index that has not delivered 20 MB by then is given up.
PACKAGE_S = 600.0
_CHUNK = 1 << 18


def keras_folder() -> Path:
    """Where Keras keeps data sets."""
    return Path(os.environ.get("KERAS_HOME") or home_folder() / ".keras") / "datasets"


def download(url: str, target: Path, progress: Progress) -> Path:
    """The body of a URL as the file ``target``. Raises: Unavailable, quickly."""
    what = f"downloading {target.name}"
    progress(what, 0, None)
    try:
        with _open(url) as response, target.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0) or None
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress(what, file.tell(), total)
    except (OSError, HTTPException, ValueError) as error:
        raise Unavailable(f"no answer ({error})") from None
    return target


def _open(url: str) -> Any:
    """urlopen within ANSWER_S. Its own timeout does not cover the look-up of the name."""
    answers: list[Any] = []

    def connect() -> None:
        try:
            answers.append(urllib.request.urlopen(url, timeout=ANSWER_S))
        except Exception as error:
            answers.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not answers:
        raise TimeoutError(f"{ANSWER_S:g} s without one")
    if isinstance(answers[0], Exception):
        raise OSError(str(answers[0]))
    return answers[0]


def npm_pack(package: str, sha256: str, folder: Path, progress: Progress) -> Path:
    """The tarball of ``name@version``; none of its scripts run. Raises: Unavailable."""
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable("npm is not installed")
    progress(f"npm pack {package}", 0, None)
    _call([npm, "pack", "--ignore-scripts", "--silent", package], folder)
    tarball = _only(folder, "*.tgz")
    with tarball.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise Unavailable(f"the tarball of {package} has another SHA-256")
    return tarball


def pip_download(requirement: str, folder: Path, progress: Progress) -> Path:
    """The wheel of ``name==version``; nothing is installed or built. Raises: Unavailable."""
    progress(f"pip download {requirement}", 0, None)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    _call([*pip, "--no-deps", "--only-binary=:all:", requirement], folder)
    return _only(folder, "*.whl")


def apt_download(package: str, folder: Path, progress: Progress) -> Path:
    """The unpacked files of a Debian package; nothing is installed. Raises: Unavailable."""
    progress(f"apt-get download {package}", 0, None)
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not installed")
    _call(["apt-get", "download", package], folder)
    _call(["dpkg-deb", "-x", str(_only(folder, "*.deb")), "files"], folder)
    return folder / "files"


def _call(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PACKAGE_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise Unavailable(last[:200])


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise Unavailable(f"{len(found)} files {pattern} were downloaded")
    return found[0]
