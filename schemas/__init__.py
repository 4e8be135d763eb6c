"""Schemas of what travels and of what is configured: messages, codec, experiment file. No I/O."""

from fluffle.schemas.codec import SCHEMA_VERSION, decode, encode, encoded_size
from fluffle.schemas.errors import DecodeError, UserError
from fluffle.schemas.experiment import Experiment, Plan
from fluffle.schemas.messages import (
    Assignment,
    ClientFailed,
    ClientUpdate,
    Evaluation,
    Event,
    GlobalModel,
    Masks,
    Message,
    Run,
    UnmaskRequest,
)
from fluffle.schemas.tensors import Tensors, group, tensors_sha256

__all__ = [
    "SCHEMA_VERSION",
    "Assignment",
    "ClientFailed",
    "ClientUpdate",
    "DecodeError",
    "Evaluation",
    "Event",
    "Experiment",
    "GlobalModel",
    "Masks",
    "Message",
    "Plan",
    "Run",
    "Tensors",
    "UnmaskRequest",
    "UserError",
    "decode",
    "encode",
    "encoded_size",
    "group",
    "tensors_sha256",
]
