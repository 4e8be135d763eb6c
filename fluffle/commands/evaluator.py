"""``fluffle evaluator``: measures versions of the global model, in a process of its own."""

from __future__ import annotations

from fluffle.commands.options import (
    BrokerUrl,
    Data,
    Federation,
    MetricsAddress,
    MetricsPort,
    Name,
    Parent,
    Stay,
    TaskFile,
    Timeout,
    secure,
    use_task,
)


@secure
def evaluator(
    url: BrokerUrl,
    name: Name = "",
    federation: Federation = "fluffle",
    stay: Stay = False,
    task: TaskFile = None,
    data: Data = None,
    connect_timeout: Timeout = 30.0,
    metrics_port: MetricsPort = None,
    metrics_address: MetricsAddress = "127.0.0.1",
    parent: Parent = 0,
) -> None:
    """Measure versions of the global model on held-out examples."""
    from fluffle.commands.service import connect, default_name, may_leave_early, metrics_at, serve
    from fluffle.metrics import EvaluatorMetrics
    from fluffle.probes import Readiness

    use_task(task, data, 1)
    name = name or default_name("evaluator")
    broker = connect(url, federation, name, connect_timeout)
    readiness = Readiness()
    with metrics_at(metrics_address, metrics_port, readiness, "evaluator", federation) as registry:
        from fluffle.worker.services.evaluator import EvaluatorService
        from fluffle.worker.training.runtime import configure

        may_leave_early()
        configure(1)
        measured = EvaluatorMetrics(registry)
        port = broker.worker(name, 0)
        readiness.waits = port.waits
        service = EvaluatorService(port, name, stay=stay, on_evaluation=measured.on_evaluation)
        serve(service, port.close, parent)
