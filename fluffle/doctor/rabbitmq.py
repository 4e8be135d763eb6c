"""RabbitMQ: a server on this machine, and the one at a URL."""

from __future__ import annotations

import re
from dataclasses import asdict

from fluffle.doctor.finding import Finding
from fluffle.schemas import UserError
from fluffle.schemas.codec import MAX_HEAD_BYTES
from fluffle.schemas.sizes import MIB

_LARGER = "max_message_size in its rabbitmq.conf raises it (ours: broker/admin/rabbitmq.conf)"


def find_server() -> Finding:
    """A server that ``--broker local`` can start."""
    from fluffle.broker.admin.node import find_server as look

    try:
        scripts = look()
    except UserError as error:
        what, _, how = str(error).partition(": ")
        get = how.partition(", or give")[0]
        return Finding(
            "rabbitmq",
            "lack",
            f"{what}; the embedded broker needs none",
            get,
            {"scripts": None, "version": None},
        )
    script = (scripts / "rabbitmq-server").resolve()  # Homebrew: …/rabbitmq/4.0.5/sbin/…
    paths = [str(script), *map(str, scripts.parent.glob("lib/rabbitmq_server-*"))]
    told = [m[1] for path in paths if (m := re.search(r"rabbitmq(?:_server-|/)(\d[\w.]*)", path))]
    version = told[0] if told else None
    found = f"server {version or 'of unknown version'} in {scripts}: --broker local works"
    facts = {"scripts": str(scripts), "version": version}
    return Finding("rabbitmq", "ok", found, facts=facts)


def find_broker(url: str, federation: str, parameters: int = 0) -> Finding:
    """The broker at a URL: version, rights, limits.

    parameters: of a model that shall fit into its messages, in float32.
    """
    if not url:
        text = "none was looked at"
        return Finding("broker", "note", text, "fluffle doctor --broker amqp://…", {"url": False})
    from fluffle.broker.admin.probe import COMMON_LIMIT, probe

    try:
        size = parameters * 4 + MAX_HEAD_BYTES if parameters else 0
        seen = probe(url, federation, size)
    except UserError as error:
        facts = {"url": True, "reachable": False, "error": str(error)}
        return Finding("broker", "lack", str(error), _mend(str(error)), facts)
    major = int(seen.version.split(".")[0]) if seen.version[:1].isdigit() else 0
    if seen.largest_message is not None:
        limit = f"messages up to {seen.largest_message / MIB:.3g} MiB"
    elif seen.takes_large:
        limit = f"messages over {COMMON_LIMIT // MIB} MiB pass"
    else:
        limit = f"messages up to {16 if major >= 4 else 128} MiB unless configured otherwise"
    can = [role for role, may in (("train", seen.may_train), ("lead", seen.may_lead)) if may]
    roles = f"may {' and '.join(can)}" if can else "may neither train nor lead"
    if not seen.federation:
        state = f"nobody has led {federation} here yet"
        if not can:
            state += ", or this user may not see it"
    else:
        many = "what waits in {}.updates is not for this user to see"
        if seen.waiting is not None:
            many = f"{seen.waiting} updates wait in {{}}.updates"
        state = many.format(federation)
    found = f"RabbitMQ {seen.version} at {seen.where}: user {seen.user} {roles}; {limit}; {state}"
    facts = {"url": True, "reachable": True, **asdict(seen)}
    if not (seen.may_train or seen.may_lead):
        get = "`fluffle broker users` prints the rabbitmqctl lines that give them"
        return Finding("broker", "lack", found, get, facts)
    if size:
        needs = f"a model of {parameters:,} parameters needs {size / MIB:.3g} MiB"
        if seen.takes_asked is False:
            get = f"{_LARGER}; 512 MiB is the most that RabbitMQ has: above it, freeze weights"
            return Finding("broker", "lack", f"{found}; {needs}, which is too much", get, facts)
        fits = "and fits" if seen.takes_asked else "and nobody could say whether that fits"
        return Finding("broker", "ok", f"{found}; {needs} {fits}", facts=facts)
    small = seen.largest_message is not None and seen.largest_message <= COMMON_LIMIT
    return Finding("broker", "ok", found, f"for larger models: {_LARGER}" if small else "", facts)


def find_settings(url: str, federation: str, api: str) -> Finding:
    """What is dangerous for a federation in how the broker at a URL is set up."""
    if not url:
        return Finding("settings", "note", "of no broker", facts={"seen": False, "dangers": []})
    from fluffle.broker.admin.dangers import api_of, dangers
    from fluffle.broker.admin.management import Management
    from fluffle.broker.rabbitmq.address import alternatives, parameters_of

    try:
        vhost = parameters_of(alternatives(url)[0]).virtual_host
        found = dangers(Management(api or api_of(url)), federation, vhost)
    except UserError as error:
        facts = {"seen": False, "error": str(error), "dangers": []}
        how = (
            "its operators can look: a user with the tag monitoring, and --api "
            "http://USER:PASSWORD@HOST:15672 where it is not that of the broker's URL"
        )
        text = f"feature flags, policies and replicas are not to be seen: {error}"
        return Finding("settings", "note", text, how, facts)
    facts = {"seen": True, "dangers": found}
    if found:
        return Finding("settings", "lack", "\n".join(found), facts=facts)
    ok = "feature flags, policies and queues on the broker are as a federation needs them"
    return Finding("settings", "ok", ok, facts=facts)


def _mend(error: str) -> str:
    if "refused user" in error:
        return "user and password as rabbitmqctl add_user made them (guest is for loopback only)"
    if "virtual host" in error and "may not use" in error:
        return "rabbitmqctl list_vhosts; in a URL / is %2F"
    if "not like amqp" in error:
        return "put it in quotes where the password has signs that the shell reads"
    return (
        "does the server run there, and is port 5672 (amqps: 5671) open? `fluffle run` needs none"
    )
