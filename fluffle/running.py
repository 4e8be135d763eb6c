"""``fluffle run``: an aggregator, workers and an evaluator around one broker, until the end."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from fluffle.aggregator.ledger import record
from fluffle.aggregator.ledger.archive import UPDATES
from fluffle.aggregator.ledger.damage import blamed
from fluffle.aggregator.ledger.disk import cannot_delete, cannot_write, is_of_the_disk, make_folder
from fluffle.aggregator.ledger.leftovers import refuse_without_run
from fluffle.aggregator.ledger.reader import LedgerReader
from fluffle.aggregator.ledger.summary import summarise
from fluffle.aggregator.ledger.weights import WEIGHTS
from fluffle.aggregator.ledger.writer import Ledger
from fluffle.aggregator.service import AggregatorService
from fluffle.aggregator.strategies.custom import CODE
from fluffle.broker import AggregatorPort, Broker
from fluffle.device_files import check_travels
from fluffle.display import Display, snapshot
from fluffle.export import STATES, save_models
from fluffle.helper.service import FOLDER as HELPER
from fluffle.helper.service import check_helper_key, own_helper, working
from fluffle.memory import MemoryWatch
from fluffle.schemas import Experiment, Tensors, UserError
from fluffle.schemas.experiment import DevicesTable
from fluffle.tracking import Tracker, tracked
from fluffle.worker.services.client_state import MEMORY_BYTES, ClientStates
from fluffle.worker_group import Processes, Threads, WorkerGroup

if TYPE_CHECKING:
    from fluffle.worker.training.sharing import Trainers

_log = logging.getLogger(__name__)

_REFRESH_S = 0.2
#: Where ``--broker local`` keeps its queues, in the run folder.
NODE = "rabbitmq"
#: What a run that ended before its ledger was made may have left.
_LEFT = (NODE, STATES, HELPER, "logs", "lost+found")


def run_experiment(
    experiment: Experiment,
    folder: Path,
    display: Display,
    *,
    url: str = "embedded",
    federation: str = "fluffle",
    connect_timeout_s: float = 30.0,
    workers: int = 0,
    slots: int = 1,
    code: Path | None = None,
    initial: Tensors | None = None,
    trackers: Sequence[Tracker] = (),
    save: bool = True,
) -> dict[str, Any]:
    """Run or resume the experiment in ``folder``; the summary object.

    url: "embedded", "local" (a private RabbitMQ node) or of a broker.
    workers: worker processes; 0 for threads in this process.
    code: the folder of a strategy from a file.
    initial: the weights of version 0, by default the task's.
    trackers: where curves go.
    save: whether the end leaves Keras files.
    Raises: UserError.
    """
    if url == "embedded" and workers:
        raise UserError(
            "worker processes need a broker that they can share: add --broker local, or leave "
            "--workers out and use --slots"
        )
    if url != "embedded":
        check_travels(experiment)
    evaluates = experiment.evaluation.every_updates > 0 or not experiment.task.clients
    with ExitStack() as stack:
        memory = MemoryWatch()
        stack.callback(memory.close)
        if url in ("embedded", "local"):
            stack.enter_context(_lock(folder))  # elsewhere the broker's leader lock does this
        amqp = _amqp(url, folder, experiment, stack)
        broker = _broker(amqp, federation, connect_timeout_s)
        port = broker.aggregator()
        stack.callback(port.close)
        if amqp == url:
            say_of_timeouts(experiment, port)
        helper = None
        if amqp != url or not amqp:
            helper = own_helper(experiment, broker, folder)
        elif experiment.secure_aggregation is not None:
            check_helper_key(experiment)
        if helper is not None:
            stack.enter_context(working(helper))
        service = AggregatorService(
            experiment,
            port,
            folder,
            run_id=new_run_id(experiment),
            code=code,
            initial=initial,
            helper_key=helper.public_key if helper else None,
        )
        # An update that a real broker has must not outlive its client's state.
        states = ClientStates(folder / STATES, memory_bytes=0 if amqp else MEMORY_BYTES)
        group: WorkerGroup = (
            Processes(
                *(amqp, federation, workers, slots, evaluates, folder / "logs", folder / STATES),
                engine=experiment.training.engine or "tensorflow",
            )
            if workers
            else Threads(broker, slots, evaluates, states)
        )
        with tracked(service, trackers):
            _drive(service, service, display, group)
        summary = read_summary(folder, memory.peak_mb)
    if summary["status"] == "finished" and save and not workers:
        save_models(folder)  # TensorFlow is here already
    if summary["status"] == "finished":
        shutil.rmtree(folder / NODE, ignore_errors=True)  # there only to resume
    return summary


def run_virtual(
    experiment: Experiment,
    folder: Path,
    display: Display,
    *,
    slots: int,
    code: Path | None = None,
    initial: Tensors | None = None,
    trackers: Sequence[Tracker] = (),
    save: bool = True,
    shared: Trainers | None = None,
) -> dict[str, Any]:
    """Run the experiment under the virtual clock; the summary object, with ``virtual_s``.

    shared: trainers that runs before it have left in this process, to be left to the next.

    A run that was stopped starts over, which gives the same bytes. Raises: UserError.
    """
    from fluffle.simulation.virtual import VirtualRun
    from fluffle.worker.training.per_plan import make_trainer
    from fluffle.worker.training.runtime import configure

    with ExitStack() as stack:
        if shared is not None:
            stack.callback(shared.end)
        memory = MemoryWatch()
        stack.callback(memory.close)
        stack.enter_context(_lock(folder))
        forget_unfinished(folder, experiment, initial is not None)
        if not takes_time(experiment):
            _log.warning(
                "nothing takes time in this experiment, so all its virtual times will be 0: say "
                "what devices are like, as with --set devices.preset=phones, or take --clock real"
            )
        configure(slots, experiment.training.engine)
        virtual = VirtualRun(
            experiment,
            folder,
            run_id=new_run_id(experiment),
            slots=slots,
            # Personal weights can be exported afterwards.
            states=ClientStates(folder / STATES) if experiment.keeps_weights else None,
            code=code,
            initial=initial,
            trainers=shared.of if shared else make_trainer,
        )
        started = time.perf_counter()
        try:
            with tracked(virtual.service, trackers):
                _drive(virtual, virtual.service, display)
        except OSError as error:  # what the simulation itself writes
            if not is_of_the_disk(error):
                raise
            raise cannot_write(folder, error) from error
        wall_s = time.perf_counter() - started
        summary = read_summary(folder, memory.peak_mb)
    if summary["status"] == "finished" and save:
        save_models(folder)
    kept = folder / "summary.json"
    if not virtual.busy_s and kept.exists():
        return dict(json.loads(kept.read_text()))  # it was finished before
    summary |= {
        "virtual_s": summary["wall_s"],
        "wall_s": round(wall_s, 3),
        "updates_per_s": round(summary["updates_counted"] / wall_s, 3),
        "train_fraction": round(virtual.busy_s / (wall_s * slots), 4),
    }
    kept.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def takes_time(experiment: Experiment) -> bool:
    """Whether virtual time can pass: a device needs some for something, or a client rests."""
    devices = (experiment.devices or DevicesTable()).with_preset
    rates = (devices.download_bytes_per_s, devices.upload_bytes_per_s, devices.hardware)
    seconds = (devices.delay_s, devices.seconds_per_example, devices.latency_s)
    waits = devices.availability not in (None, "always") or devices.dropout
    rests = experiment.participation.pause_s[1] > 0
    return bool(any(rates) or any(seconds) or waits or rests)


def forget_unfinished(folder: Path, experiment: Experiment, initial: bool) -> None:
    """Clear a folder of a virtual run of this experiment that has something left to do.

    initial: whether it starts over with weights from a file. Raises: UserError where it began with
    such, and would start over without.
    """
    if not (folder / "ledger.sqlite").exists():
        return
    with blamed(folder), closing(Ledger(folder)) as ledger:
        unfinished = ledger.open_run(experiment, "", 0, "virtual")
        version = ledger.latest_version()
        began = ledger.query("SELECT updates FROM versions WHERE version = 0")
        if unfinished and began == [(0,)] and not initial:  # nobody sent these weights
            raise UserError(f"the run in {folder} began with --initial FILE: give it again")
    if unfinished:
        if version > 0:
            _log.info(
                f"the run in {folder} had made version {version}: under the virtual clock it "
                "starts over, for what was on its way then is not kept; the bytes are the same"
            )
        try:
            # The ledger last: what is cut short here is begun again.
            for name in (UPDATES, WEIGHTS, CODE):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)
            for name in record.FILES:
                (folder / name).unlink(missing_ok=True)
            for path in folder.glob("ledger.sqlite*"):
                path.unlink()
        except OSError as error:
            raise cannot_delete(folder, error) from error


def new_run_id(experiment: Experiment) -> str:
    """A name for a run that no other has."""
    return f"{experiment.experiment.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def read_summary(folder: Path, peak_rss_mb: float, led: bool = True) -> dict[str, Any]:
    """The summary of the run in this folder; of a run that nobody leads any more it is "stopped".

    led: whether this process did, and not another that goes on.
    """
    with blamed(folder), closing(LedgerReader(folder)) as ledger:
        summary = {**summarise(ledger), "peak_rss_mb": peak_rss_mb, "folder": str(folder)}
    if led and summary["status"] == "running":
        summary["status"] = "stopped"
    return summary


def check_folder(folder: Path) -> None:
    """Raises: UserError where something of somebody else's lies in what shall be a run folder."""
    if (folder / "ledger.sqlite").exists():
        return
    try:
        found = sorted(path.name for path in folder.iterdir())
    except OSError:
        return  # it is not there, or cannot be one: who makes it says why
    refuse_without_run(folder)
    if others := [name for name in found if name not in _LEFT and not name.startswith(".")]:
        raise UserError(
            f"--out {folder} holds no run, and is not empty ({others[0]}): name a folder that is "
            "new, empty or a run's"
        )


@contextmanager
def stopping(stop: Any) -> Iterator[None]:
    """Ctrl-C and SIGTERM call ``stop``; a second Ctrl-C interrupts as ever.

    Signals are the main thread's: in another nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Job(Protocol):
    def run(self) -> object: ...
    def stop(self) -> None: ...


def _drive(
    job: _Job, service: AggregatorService, display: Display, group: WorkerGroup | None = None
) -> None:
    """The job works in a thread of its own; this one shows the service and hears Ctrl-C."""
    failure: list[BaseException] = []

    def lead() -> None:
        try:
            job.run()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=lead, name="aggregator", daemon=True)
    try:
        with stopping(job.stop):
            thread.start()
            if group is not None:
                group.start()
            while thread.is_alive():
                display.show(snapshot(service))
                thread.join(_REFRESH_S)
                if group is not None:
                    group.check()
    finally:
        job.stop()
        thread.join()
        if group is not None:
            group.stop()
    if failure:
        raise failure[0]


def _amqp(url: str, folder: Path, experiment: Experiment, stack: ExitStack) -> str:
    """Where the broker is; "" for the embedded one. Starts the private node that ``local`` is."""
    if url == "embedded":
        return ""
    if url != "local":
        return url
    from fluffle.broker.admin import consumer_timeout
    from fluffle.broker.admin.node import Node

    _log.info("starting a private RabbitMQ node …")
    timeout = consumer_timeout.setting(consumer_timeout.needed_s(experiment))
    return stack.enter_context(Node(folder / NODE, settings={"consumer_timeout": timeout})).url


def say_of_timeouts(experiment: Experiment, port: AggregatorPort) -> None:
    """Warn of what a RabbitMQ server may take back while we are at it."""
    from fluffle.broker.admin.consumer_timeout import too_short
    from fluffle.broker.rabbitmq.port import Port

    if isinstance(port, Port) and (warning := too_short(experiment, port.server_version)):
        _log.warning(warning)


def _broker(url: str, federation: str, connect_timeout_s: float) -> Broker:
    if not url:
        from fluffle.broker.embedded import EmbeddedBroker

        return EmbeddedBroker()
    from fluffle.broker.rabbitmq.broker import RabbitMQBroker

    return RabbitMQBroker(url, federation, connect_timeout_s=connect_timeout_s)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"{folder} is in use by another aggregator: wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()
