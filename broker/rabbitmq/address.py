"""A broker's URL, as RabbitMQ's documentation writes it, and what pika has to know of it.

    amqp://user:password@host:5672/vhost
    amqps://user:password@host/vhost?cacertfile=ca.pem
    amqps://user:password@host/vhost?cacertfile=ca.pem&certfile=me.pem&keyfile=me.key
    amqps://user@host/vhost?cacertfile=ca.pem&certfile=me.pem&keyfile=me.key
    amqp://user:password@one:5672,two:5672,three:5672/vhost

The last one is a cluster: its hosts are tried in turn, and so are several URLs with commas between
them. With the one before, without a password, the certificate says who we are (RabbitMQ's mechanism
EXTERNAL). ``cacertfile``: whom we believe, instead of the system's authorities; ``certfile`` and
``keyfile``: our own certificate (PEM) and ``password`` its key's, where that is encrypted;
``server_name_indication``: the name in the server's certificate where it is not the host's. The
server's certificate is always checked. ``password_file`` is a file that holds the user's password.
The other parameters of RabbitMQ's URIs are ``heartbeat`` (seconds), ``connection_timeout``
(milliseconds), ``channel_max`` and ``auth_mechanism``; those of pika's URLs are taken too.

A port asks for the parameters again before a connection that finds one of these files changed: who
rotates a secret restarts nobody.
"""

from __future__ import annotations

import difflib
import re
import ssl
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import pika
from pika.credentials import ExternalCredentials, PlainCredentials

from fluffle.schemas.errors import UserError

_TLS = (
    *("cacertfile", "certfile", "keyfile", "password", "server_name_indication"),
    *("verify", "fail_if_no_peer_cert"),
)
_OF_PIKA = (
    *("heartbeat", "channel_max", "frame_max", "locale", "connection_attempts", "retry_delay"),
    *("socket_timeout", "stack_timeout", "blocked_connection_timeout", "tcp_options"),
)
_KNOWN = (*_TLS, *_OF_PIKA, "connection_timeout", "auth_mechanism", "password_file")
#: Parameters that name files.
_FILES = ("cacertfile", "certfile", "keyfile", "password_file")
_MECHANISMS = ("plain", "external")


def alternatives(url: str) -> list[str]:
    """One URL for each host: of several URLs with commas between them, or of a list of hosts.

    ``amqp://user:password@one:5672,two:5672/vhost`` is two. None of them is checked.
    """
    found = []
    for one in re.split(r",(?=amqps?://)", url):
        scheme, mark, rest = one.partition("://")
        authority = re.split("[/?#]", rest.rpartition("@")[2], maxsplit=1)[0]
        before = rest[: rest.rfind("@") + 1]
        after = rest[len(before) + len(authority) :]
        found += [f"{scheme}{mark}{before}{host}{after}" for host in authority.split(",")]
    return found


def parameters_of(url: str) -> pika.URLParameters:
    """Raises: UserError, which never holds the URL: there may be a password in it."""
    parts, query = _parts(url), _query(url)
    tls = {key: query.pop(key) for key in _TLS if key in query}
    mechanism = query.pop("auth_mechanism", "").lower()
    password = _password_of(parts, query.pop("password_file", None))
    if (milliseconds := query.pop("connection_timeout", None)) is not None:
        if not milliseconds.isdecimal() or milliseconds.strip("0") == "":
            raise UserError("connection_timeout of the broker's URL is no number of milliseconds")
        seconds = f"{int(milliseconds) / 1000:g}"
        query = {"socket_timeout": seconds, "stack_timeout": seconds} | query
    try:
        host = parts.netloc.rpartition("@")[2]  # pika wants a password wherever there is a user
        bare = parts._replace(netloc=host, query=urlencode(query))
        parameters = pika.URLParameters(bare.geturl())
    except Exception:  # whatever pika meets in it
        raise _no_url() from None
    if mechanism == "external" and "certfile" not in tls:
        raise UserError(
            "auth_mechanism=external needs a certificate of ours: certfile (--tls-cert)"
        )
    if parts.scheme == "amqps":
        name = tls.get("server_name_indication", parameters.host)
        parameters.ssl_options = pika.SSLOptions(_context(tls), name)
    elif tls:
        raise UserError(
            f"{', '.join(tls)}: certificates are for amqps://, and the broker's URL begins with "
            "amqp://"
        )
    if parts.username is not None:
        user = unquote(parts.username)
        if password is not None:
            parameters.credentials = PlainCredentials(user, password)
        elif "certfile" in tls:
            parameters.credentials = _Certified(user)
        else:
            raise UserError(
                f"no password for user {user!r}: name a file that holds it with --password-file "
                "(FLUFFLE_PASSWORD_FILE), or write it into the broker's URL"
            )
    elif "certfile" in tls:
        parameters.credentials = ExternalCredentials()
    if mechanism == "external" and parts.username is None:
        parameters.credentials = ExternalCredentials()
    elif mechanism == "external":
        parameters.credentials = _Certified(unquote(parts.username or ""))
    return parameters


def _parts(url: str) -> SplitResult:
    """Raises: UserError."""
    scheme, mark, rest = url.partition("://")
    user = rest.rpartition("@")[0]
    if mark and scheme in ("amqp", "amqps") and any(letter in user for letter in "/?#[]"):
        raise UserError(
            "the user or the password in the broker's URL has one of / ? # [ ] in it: write them "
            "as %2F %3F %23 %5B %5D, or put the password into a file (--password-file)"
        )
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ValueError
        _ = parts.port  # raises where it is no number
    except ValueError:
        raise _no_url() from None
    return parts


def secrets_of(url: str) -> tuple[Path, ...]:
    """The files that are read for this URL. Raises: UserError where it is none."""
    query = _query(url)
    return tuple(Path(query[name]) for name in _FILES if name in query)


def _password_of(parts: SplitResult, file: str | None) -> str | None:
    """The URL's password, else the file's. Raises: UserError where there is none in it."""
    if parts.password is not None:
        return unquote(parts.password)
    if file is None:
        return None
    if parts.username is None:
        raise UserError(
            "a password file needs a user in the broker's URL, like amqps://user@host/vhost"
        )
    try:
        return Path(file).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the password from {file}: {error}") from None


def _query(url: str) -> dict[str, str]:
    """The URL's parameters. Raises: UserError for one that is not known, or cannot be had."""
    text = _parts(url).query
    try:
        query = dict(parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)))
    except ValueError:
        raise UserError("what follows ? in the broker's URL is not like heartbeat=30&…") from None
    for name, value in query.items():
        if name not in _KNOWN:
            near = difflib.get_close_matches(name, _KNOWN, 1)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KNOWN)}"
            raise UserError(f"the broker's URL has a parameter {name[:40]!r}: {meant}")
        if name == "verify" and value != "verify_peer":
            raise UserError("the server's certificate is always checked: verify=verify_peer")
        if name == "auth_mechanism" and value.lower() not in _MECHANISMS:
            raise UserError(f"auth_mechanism is {' or '.join(_MECHANISMS)}")
    return query


def completed(
    url: str, ca: Path | None, cert: Path | None, key: Path | None, password: Path | None
) -> str:
    """The URL with the names of files that hold the rest; a password that is in it already stays.

    Raises: UserError, where the password is not there, too.
    """
    several = alternatives(url)
    if len(several) > 1:
        return ",".join(completed(one, ca, cert, key, password) for one in several)
    files = {"cacertfile": ca, "certfile": cert, "keyfile": key}
    parts = _parts(url)
    if password is not None and parts.password is None:
        _password_of(parts, str(password))
        files["password_file"] = password
    given = {name: str(path.absolute()) for name, path in files.items() if path is not None}
    query = urlencode([*parse_qsl(parts.query), *given.items()]) if given else parts.query
    return urlunsplit(parts._replace(query=query))


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
            context.load_cert_chain(cert, key, password=tls.get("password") or _no_password)
        except (OSError, ssl.SSLError) as error:
            raise UserError(
                f"cannot use the certificate {cert} with the key {key or cert}: {_why(error)}"
            ) from None
    return context


def _no_password() -> str:
    raise UserError(
        "the key of our certificate is encrypted: give one that is not, readable by us alone, or "
        "its password (password= in the broker's URL)"
    )


def _why(error: OSError) -> str:
    reason = getattr(error, "reason", None)
    return str(reason or error.strerror or error).replace("_", " ").lower()


def _no_url() -> UserError:
    return UserError("the broker's URL is not like amqp://user:password@host:5672/vhost")
