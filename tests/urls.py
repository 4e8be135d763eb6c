"""A broker's URL with another user or another port in it."""

from __future__ import annotations

from urllib.parse import urlsplit


def as_user(url: str, name: str, password: str = "secret") -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{name}:{password}@{parts.hostname}:{parts.port}").geturl()


def at_port(url: str, port: int) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}").geturl()


def user_of(url: str) -> str:
    return str(urlsplit(url).username)
