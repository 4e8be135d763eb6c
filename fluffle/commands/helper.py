"""``fluffle helper``: unmasks sums of updates for secure aggregation, in a process of its own."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from fluffle.commands.options import (
    BrokerUrl,
    ExperimentFile,
    Federation,
    Settings,
    Timeout,
    secure,
)
from fluffle.schemas.errors import UserError


@secure
def helper(
    file: ExperimentFile,
    url: BrokerUrl,
    out: Annotated[Path, typer.Option(help="The helper's own folder: its key and its ledger.")],
    settings: Settings = None,
    federation: Federation = "fluffle",
    connect_timeout: Timeout = 30.0,
) -> None:
    """Unmask sums of updates for secure aggregation, each update once; sees no update.

    Its operator's copy of the experiment file says what is allowed: runs of its name, at least
    min_clients clients, weights up to max_weight. The first start makes the key, and says it.
    """
    from fluffle.commands.service import connect, may_leave_early, serve
    from fluffle.experiment_file import load_experiment
    from fluffle.helper.ledger import HelperLedger
    from fluffle.helper.service import HelperService

    experiment = load_experiment(file, settings or [], os.environ)
    table = experiment.secure_aggregation
    if table is None:
        raise UserError(f"{file} has no [secure_aggregation]: there is nothing to help with")
    with closing(HelperLedger(out)) as ledger:
        if table.helper_key != ledger.public:
            raise UserError(
                f"the key of the helper in {out} is {ledger.public}: write "
                f'helper_key = "{ledger.public}" under [secure_aggregation] in {file}, here and '
                "where the aggregator starts"
            )
    broker = connect(url, federation, "helper", connect_timeout)
    may_leave_early()
    service = HelperService(experiment, broker.helper(), out)
    serve(service, service.close, 0)
