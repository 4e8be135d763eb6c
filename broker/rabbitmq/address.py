"""A broker's URL, as RabbitMQ's documentation writes it, and what pika has to know of it.

    amqp://user:password@host:5672/vhost
    amqps://user:password@host/vhost?cacertfile=ca.pem
    amqps://user:password@host/vhost?cacertfile=ca.pem&certfile=me.pem&keyfile=me.key
    amqps://user@host/vhost?cacertfile=ca.pem&certfile=me.pem&keyfile=me.key

With the last one, without a password, the certificate says who we are (RabbitMQ's mechanism
EXTERNAL). ``cacertfile``: whom we believe, instead of the system's authorities; ``certfile`` and
``keyfile``: our own certificate (PEM, unencrypted); ``server_name_indication``: the name in the
server's certificate where it is not the host's. The server's certificate is always checked. Other
parameters (``heartbeat``, …) are pika's.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import pika
from pika.credentials import ExternalCredentials, PlainCredentials

from fluffle.schemas.errors import UserError

_OURS = ("cacertfile", "certfile", "keyfile", "server_name_indication")


def parameters_of(url: str) -> pika.URLParameters:
    """Raises: UserError, which never holds the URL: there may be a password in it."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("amqp", "amqps"):
            raise ValueError
        query = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        tls = {key: query.pop(key) for key in _OURS if key in query}
        place = parts.netloc.rpartition("@")[2]  # pika wants a password wherever there is a user
        bare = parts._replace(netloc=place, query=urlencode(query))
        parameters = pika.URLParameters(bare.geturl())
    except Exception:  # whatever pika meets in it
        raise _no_url() from None
    if parts.scheme == "amqps":
        name = tls.get("server_name_indication", parameters.host)
        parameters.ssl_options = pika.SSLOptions(_context(tls), name)
    elif tls:
        raise UserError("certificates are for amqps://, and the broker's URL begins with amqp://")
    if parts.username is not None:
        user = unquote(parts.username)
        if parts.password is not None:
            parameters.credentials = PlainCredentials(user, unquote(parts.password))
        elif "certfile" in tls:
            parameters.credentials = _Certified(user)
        else:
            raise UserError(
                f"no password for user {user!r}: name a file that holds it with --password-file "
                "(FLUFFLE_PASSWORD_FILE), or write it into the broker's URL"
            )
    elif "certfile" in tls:
        parameters.credentials = ExternalCredentials()
    return parameters


def completed(
    url: str, ca: Path | None, cert: Path | None, key: Path | None, password: Path | None
) -> str:
    """The URL with what is kept in files: certificates by their names, the password as it is.

    A password that is in the URL already stays.
    Raises: UserError.
    """
    files = {"cacertfile": ca, "certfile": cert, "keyfile": key}
    given = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    parts = urlsplit(url)
    query = urlencode([*parse_qsl(parts.query), *given.items()]) if given else parts.query
    netloc = parts.netloc
    if password is not None and parts.password is None:
        user, _, place = netloc.rpartition("@")
        if not user:
            raise UserError(
                "a password file needs a user in the broker's URL, like amqps://user@host/vhost"
            )
        try:
            secret = password.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the password from {password}: {error}") from None
        netloc = f"{user}:{quote(secret, safe='')}@{place}"
    return urlunsplit(parts._replace(netloc=netloc, query=query))


class _Certified(ExternalCredentials):  # type: ignore[misc]
    """The certificate is the password; the name is what we take its owner's to be."""

    def __init__(self, username: str) -> None:
        super().__init__()
        self.username = username


def _context(tls: dict[str, str]) -> ssl.SSLContext:
    ca, cert, key = (tls.get(name) for name in ("cacertfile", "certfile", "keyfile"))
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"cannot read an authority's certificate from {ca}: {_why(error)}"
        ) from None
    if key and not cert:
        raise UserError(f"the key {key} is of no use without its certificate: --tls-cert")
    if cert:
        try:
            context.load_cert_chain(cert, key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"cannot use the certificate {cert} with the key {key or cert}: {_why(error)}"
            ) from None
    return context


def _no_password() -> str:
    raise UserError(
        "the key of our certificate is encrypted: give one that is not, readable by us alone"
    )


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error.strerror or error).replace("_", " ").lower()


def _no_url() -> UserError:
    return UserError("the broker's URL is not like amqp://user:password@host:5672/vhost")
