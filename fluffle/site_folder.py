"""The folder of a site: who it is, where its broker is, what it allows, and what it has sent.

    site.toml     name, broker, federation, task and data
    policy.toml   what runs may ask (``fluffle.worker.site.policy``)
    password      of its user on the broker
    ca.pem        whom it believes, where the invitation brought one
    audit.jsonl   what passed (``fluffle.worker.site.audit``)

An invitation is one JSON file from the coordinator, with the password in it: it goes by a safe way.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

from fluffle.schemas import UserError

SITE, POLICY, PASSWORD, CA, AUDIT = "site.toml", "policy.toml", "password", "ca.pem", "audit.jsonl"
#: Of every invitation.
KIND = "fluffle-invitation"
TEMPLATE = """\
# What runs may ask of this site: docs/site-policy.md. Nothing in a message can change it.

# [tasks]
# sha256 = ["…"]            # `fluffle site check` prints that of the task file

# [steps]
# clip_norm = 1.0
# noise_std = 0.01

# [privacy]                 # over all runs; needs both steps
# epsilon = 8.0
# delta = 1e-5

# [tensors]
# may_leave = ["trainable/*", "non_trainable/*"]

# [hours]
# open = "22:00-06:00"

[traffic]
bytes_a_day = 10_000_000_000
updates_an_hour = 3600
"""


@dataclass
class Invitation:
    """What a coordinator sends a site."""

    name: str
    broker: str
    federation: str
    password: str
    ca: str = ""
    policy: str = ""

    def write(self, path: Path) -> None:
        """For the site alone. Raises: UserError."""
        text = json.dumps({"kind": KIND, **asdict(self)}, indent=1) + "\n"
        _write(path, text, private=True)

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Raises: UserError."""
        try:
            found = json.loads(path.read_text())
            if found.pop("kind") != KIND:
                raise ValueError
            made = cls(**found)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{path} is no invitation of `fluffle site invite`") from None
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", str(made.name)):
            raise UserError(f"{path} is no invitation: {str(made.name)[:64]!r} is no name")
        return made


@dataclass
class SiteFolder:
    """A site's settings, and where its files are."""

    folder: Path
    name: str
    broker: str
    federation: str = "fluffle"
    task: str = ""
    data: str = ""

    @classmethod
    def make(cls, folder: Path, invitation: Invitation) -> SiteFolder:
        """A new folder, which may be there and empty. Raises: UserError."""
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder} is not empty: a site has a folder of its own")
        site = cls(folder, invitation.name, invitation.broker, invitation.federation)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from None
        lines = [
            *(
                f"{key} = {json.dumps(getattr(site, key))}"
                for key in ("name", "broker", "federation")
            ),
            'task = ""  # PATH/FILE.py:Class, which the coordinator has sent',
            'data = ""  # the folder or file with the data',
        ]
        _write(folder / SITE, "\n".join(lines) + "\n")
        _write(folder / POLICY, invitation.policy or TEMPLATE)
        if invitation.password:
            _write(folder / PASSWORD, f"{invitation.password}\n", private=True)
        if invitation.ca:
            _write(folder / CA, invitation.ca)
        return site

    @classmethod
    def read(cls, folder: Path) -> SiteFolder:
        """Raises: UserError."""
        path = folder / SITE
        try:
            found = tomllib.loads(path.read_text())
            site = cls(folder, **found)
        except OSError as error:
            raise UserError(
                f"cannot read {path}: {error.strerror} (fluffle site init makes a site's folder)"
            ) from None
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}: {error}") from None
        if not all(isinstance(v, str) for v in (site.name, site.broker, site.task, site.data)):
            raise UserError(f"{path}: every value is a text in quotes")
        return site

    @property
    def url(self) -> str:
        """With the names of the files that hold the secrets. Raises: UserError."""
        from fluffle.broker.rabbitmq.address import completed

        def there(name: str) -> Path | None:
            return self.folder / name if (self.folder / name).exists() else None

        return completed(self.broker, there(CA), None, None, there(PASSWORD))

    def task_sha256(self) -> str:
        """Of the task's file. Raises: UserError."""
        file = Path(self.task.rpartition(":")[0])
        if not self.task:
            raise UserError(f'{self.folder / SITE} names no task: task = "PATH/FILE.py:Class"')
        try:
            return hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(f"cannot read the task {file}: {error.strerror}") from None


def _write(path: Path, text: str, private: bool = False) -> None:
    try:
        mode = 0o600 if private else 0o644
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
