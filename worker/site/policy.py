"""The policy of a site: what runs may ask of it, in a TOML file that only the site can change.

    [tasks]
    sha256 = ["…"]            # of task files that may train here; fluffle site check prints it

    [steps]
    clip_norm = 1.0           # a run has to clip, at this or less
    noise_std = 0.01          # and to add noise, of this or more

    [privacy]
    epsilon = 8.0             # at most, over all updates of all runs; needs both steps above
    delta = 1e-5

    [tensors]
    may_leave = ["trainable/*"]

    [hours]
    open = "22:00-06:00"      # by the site's clock; nothing is trained or sent at other times

    [traffic]
    bytes_a_day = 100_000_000
    updates_an_hour = 60

A table that is left out asks for nothing. Nothing in a message can change any of it.

Epsilon is of zero-concentrated differential privacy, which adds up over updates: an update that is
clipped at C and gets noise of standard deviation s costs rho = (2C / s)^2 / 2, as two data sets of
the site can lie 2C apart, and all together are (rho + 2 sqrt(rho ln(1/delta)), delta)-
differentially private (Bun and Steinke, arXiv 1605.02065, propositions 1.3 and 1.6). It is of the
site's whole data, and only of what gets noise: with [privacy] nothing but ``trainable`` tensors may
leave. Counts of examples, losses and metrics that go with an update are not covered.
"""

from __future__ import annotations

import fnmatch
import math
import re
import tomllib
from collections.abc import Iterable
from datetime import datetime, time
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator, model_validator

from fluffle.schemas import Plan, UserError
from fluffle.schemas.steps import Clip, Noise
from fluffle.schemas.table import Table

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


class Tasks(Table):
    """Which task files may train here."""

    sha256: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]

    @field_validator("sha256")
    @classmethod
    def _are_hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not re.fullmatch(r"[0-9a-f]{64}", one) for one in value):
            raise ValueError("a SHA-256 has 64 digits, 0 to 9 and a to f")
        return value


class Steps(Table):
    """What a run has to do to an update at least."""

    clip_norm: _Positive | None = None
    noise_std: _Positive | None = None


class Privacy(Table):
    """What all updates together may cost."""

    epsilon: _Positive
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5


class TensorsLeave(Table):
    """Patterns of names (``trainable/0``); one that matches is enough."""

    may_leave: Annotated[tuple[str, ...], Field(strict=False)] = ("*",)


class Hours(Table):
    """When the site takes part."""

    open: str

    @field_validator("open")
    @classmethod
    def _are_hours(cls, value: str) -> str:
        if not _HOURS.fullmatch(value) or value[:5] == value[6:]:
            raise ValueError("hours are like 22:00-06:00")
        return value

    def holds(self, at: datetime) -> bool:
        """Whether the site takes part then."""
        first, last = (time.fromisoformat(part) for part in self.open.split("-"))
        now = at.time()
        return first <= now < last if first < last else now >= first or now < last


class TrafficLimits(Table):
    """How much may leave. Days and hours are the last 24 hours and 60 minutes."""

    bytes_a_day: Annotated[int, Field(gt=0)] | None = None
    updates_an_hour: Annotated[int, Field(gt=0)] | None = None


class SitePolicy(Table):
    """One site's policy."""

    tasks: Tasks | None = None
    steps: Steps = Steps()
    privacy: Privacy | None = None
    tensors: TensorsLeave = TensorsLeave()
    hours: Hours | None = None
    traffic: TrafficLimits = TrafficLimits()

    @model_validator(mode="after")
    def _epsilon_needs_both(self) -> SitePolicy:
        if self.privacy and (self.steps.clip_norm is None or self.steps.noise_std is None):
            raise ValueError("[privacy] needs clip_norm and noise_std in [steps]")
        return self

    @classmethod
    def read(cls, path: Path) -> SitePolicy:
        """Raises: UserError, in one line."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the site's policy {path}: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{path} is no valid TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the policy"
            raise UserError(f"{path}: {where}: {first['msg']}") from None

    def objection_to_task(self, sha256: str) -> str:
        """Why a task file with this hash may not train here; nothing where it may."""
        if self.tasks is not None and sha256 not in self.tasks.sha256:
            return f"the policy does not list the task file (SHA-256 {sha256})"
        return ""

    def objection_to(self, plan: Plan) -> str:
        """Why no update may be made by this plan; nothing where it may."""
        clips = [step.norm for step in plan.update or () if isinstance(step, Clip)]
        stds = [step.std for step in plan.update or () if isinstance(step, Noise)]
        wanted = self.steps
        if plan.secure is not None:
            return "the policy is held against what leaves, and secure_aggregation masks it before"
        if wanted.clip_norm is not None and not any(norm <= wanted.clip_norm for norm in clips):
            return f"the policy wants updates clipped at {wanted.clip_norm:g} or less"
        if wanted.noise_std is not None and not any(std >= wanted.noise_std for std in stds):
            return f"the policy wants noise of standard deviation {wanted.noise_std:g} or more"
        if self.privacy is not None and _clip_before_noise(plan) is None:
            return "the policy wants clipping before noise, or its epsilon would mean nothing"
        if plan.training.algorithm is not None and ":" in str(plan.training.algorithm):
            return "the policy takes no client algorithm from a file"
        for step in plan.update or ():
            if not type(step).__module__.startswith("fluffle."):
                return "the policy takes no step from a file"
        return ""

    def objection_to_tensors(self, names: Iterable[str]) -> str:
        """Why these may not leave; nothing where they may."""
        for name in names:
            if not any(fnmatch.fnmatchcase(name, one) for one in self.tensors.may_leave):
                return f"the policy does not let {name} leave"
            noisy = name.startswith(("trainable/", "sparse/", "range/trainable/"))
            if self.privacy is not None and not noisy:
                return f"{name} gets no noise, and [privacy] counts only what does"
        return ""

    def cost_of(self, plan: Plan) -> float:
        """The rho of one update by this plan; 0 where nothing is counted."""
        found = _clip_before_noise(plan)
        return 0.0 if self.privacy is None or found is None else (2 * found[0] / found[1]) ** 2 / 2

    def epsilon_of(self, rho: float) -> float:
        """What updates of this rho together cost."""
        if self.privacy is None:
            return 0.0
        return rho + 2 * math.sqrt(rho * math.log(1 / self.privacy.delta))


def _clip_before_noise(plan: Plan) -> tuple[float, float] | None:
    """The last clipping before noise, and that noise; None where there is none."""
    norm = None
    for step in plan.update or ():
        if isinstance(step, Clip):
            norm = step.norm
        elif isinstance(step, Noise) and norm is not None:
            return norm, step.std
    return None
