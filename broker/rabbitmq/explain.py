"""Explanations of a broker's refusals: a line for a person, and whether trying again may help."""

from __future__ import annotations

import socket
import ssl
from typing import Any

from pika.exceptions import (
    AMQPError,
    AuthenticationError,
    ConnectionClosedByBroker,
    IncompatibleProtocolError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
)

from fluffle.broker.errors import AccessRefused
from fluffle.schemas.errors import UserError

#: A reply code: a right, or the virtual host, is missing.
NOT_ALLOWED = 530
#: OpenSSL's codes for a certificate: past its date; for another name; for another address.
_EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 10, 62, 64


def root_cause(error: Any) -> BaseException:
    """The innermost of the exceptions that pika wraps into each other."""
    while True:
        inner = getattr(error, "exceptions", None) or getattr(error, "exception", None)
        inner = inner[-1] if isinstance(inner, (list, tuple)) else inner
        if inner is None and error.args and isinstance(error.args[0], BaseException):
            inner = error.args[0]
        if not isinstance(inner, BaseException):
            assert isinstance(error, BaseException)
            return error
        error = inner


def describe(error: BaseException) -> str:
    """One line for a person."""
    code, text = getattr(error, "reply_code", None), getattr(error, "reply_text", None)
    if text:
        return f"{code} {text}"
    if isinstance(error, socket.gaierror):
        return "host name not found"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, IncompatibleProtocolError):
        return _ended_at_once("SSL" in str(error.args))
    said = error.args[0] if isinstance(error, AMQPError) and error.args else error
    return (str(said) or type(error).__name__).splitlines()[0][:200]


def refusal_of(error: BaseException, where: str, user: str) -> UserError | None:
    """What a person has to mend at the broker; None where trying again may help.

    pika's ``Probable…`` errors are guesses about a connection that ended during the login: true
    where the broker has closed it with a code, and else the network may have done it.
    """
    closed = "ConnectionClosedByBroker" in str(error.args)
    if isinstance(error, AuthenticationError) or (
        isinstance(error, ProbableAuthenticationError) and closed
    ):
        return AccessRefused(f"RabbitMQ at {where} refused user {user!r}: check name and password")
    denied = isinstance(error, ConnectionClosedByBroker) and error.reply_code == NOT_ALLOWED
    if denied or (isinstance(error, ProbableAccessDeniedError) and closed):
        return AccessRefused(
            f"RabbitMQ at {where}: user {user!r} may not use this virtual host, or there is none "
            "of this name"
        )
    return _refusal_of_tls(error, where) if isinstance(error, ssl.SSLError) else None


def _refusal_of_tls(error: ssl.SSLError, where: str) -> UserError | None:
    """What is wrong with a server's certificate, or with TLS itself."""
    if error.reason == "WRONG_VERSION_NUMBER":
        return AccessRefused(
            f"what is at {where} speaks no TLS: take the port for amqps:// (5671 by default), or a "
            "URL that begins with amqp://"
        )
    if not isinstance(error, ssl.SSLCertVerificationError):
        return None
    if error.verify_code == _EXPIRED:
        return AccessRefused(f"the certificate of RabbitMQ at {where} has expired")
    if error.verify_code in (_OTHER_NAME, _OTHER_ADDRESS):
        return AccessRefused(
            f"the certificate of RabbitMQ at {where} is for another host name: use the name in it, "
            "or put server_name_indication=NAME into the broker's URL"
        )
    return AccessRefused(
        f"the certificate of RabbitMQ at {where} is signed by nobody that we trust "
        f"({error.verify_message}): name the authority's certificate with --tls-ca"
    )


def _ended_at_once(tls: bool) -> str:
    """A broker that refuses a certificate says no more; nor does one that waits for TLS."""
    if tls:
        return (
            "it ends the connection at once: it wants a certificate of ours (--tls-cert, "
            "--tls-key), or refuses the one it got: expired, or signed by nobody that it trusts"
        )
    return (
        "it ends the connection at once: a port for TLS, perhaps (a URL with amqps://), or that of "
        "the web interface (15672, where AMQP is 5672)"
    )
