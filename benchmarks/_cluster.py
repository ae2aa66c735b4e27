"""Workers of a cluster that are not there: Ray Tune's own loop runs, and its actors only let time
pass.

What the driver does is done, and its CPU time moves the clock: Tune's controller and actor manager,
one `ray.wait` over as many references as there would be, one `ray.get` and one call of a real actor
wherever there would be one. What workers do moves the clock by recorded seconds, with nothing done.
"""

from __future__ import annotations

import contextlib
import functools
import heapq
import itertools
import json
import pickle
import queue
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from clsearch.protocols import Job
from clsearch.records import TrialRecord
from clsearch.search import tune_run
from clsearch.search._ray import ray, tune
from clsearch.store import Store, write_record

EXECUTION: Any = ray.air.execution
LOOP: Any = tune.execution.tune_controller

LATENCY = 0.002
"""Seconds from a worker's answer to the driver, beyond what the driver computes."""


class Clock:
    """Seconds since the start: the CPU time of this process, and what was waited for.

    What two threads compute counts one after the other: Python's lock has it so.
    """

    def __init__(self) -> None:
        self._began, self._aside, self._lock = time.process_time(), 0.0, threading.Lock()
        self.waited = self.charged = 0.0

    @property
    def busy(self) -> float:
        """CPU seconds of the driver."""
        return time.process_time() - self._began - self._aside + self.charged

    @property
    def now(self) -> float:
        return self.busy + self.waited

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """What this thread computes meanwhile is not the driver's."""
        began = time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self._aside += time.thread_time() - began

    def charge(self, seconds: float) -> None:
        """CPU seconds that the driver would have taken."""
        with self._lock:
            self.charged += seconds

    def wait(self, seconds: float) -> None:
        with self._lock:
            self.waited += max(seconds, 0.0)


class Answering:
    """The one real actor: it takes every call and gives an answer of the usual size."""

    def __init__(self, report: dict[str, Any]) -> None:
        self.report = report

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.report if method == "train" else True

    def filled(self, **_: Any) -> dict[str, Any]:
        return {"pid": 1, "hostname": "worker", "node_ip": "127.0.0.1"}


class Watched:
    """A queue that counts what is put into it, and how often the search has come for it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.events: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, event: Any) -> None:
        with self.cluster.search_waits:
            self.cluster.puts += 1
        self.events.put(event)

    def get(self) -> Any:
        with self.cluster.search_waits:
            self.cluster.waits += 1
            self.cluster.search_waits.notify_all()
        return self.events.get()


def _never() -> None:
    """A task for a resource that no node has: its reference stays pending."""


class Cluster:
    """`workers` stand-ins for actors; `seconds` says how long a job takes, `make` leaves what it
    would and returns the record of a member, where it trains. `start` are the seconds a worker
    needs to start, `group` the CPU seconds that a placement group costs the driver."""

    def __init__(
        self,
        workers: int,
        store: Store,
        seconds: Callable[[Job], float],
        make: Callable[[Job, int], TrialRecord | None],
        start: float,
        group: float,
    ) -> None:
        self.workers, self.store, self.seconds, self.make = workers, store, seconds, make
        self.start, self.group, self.clock = start, group, Clock()
        self.trained, self.trials, self.packs, self.started, self.free = 0.0, 0, 0, 0, workers
        self.job_bytes = self.report_bytes = 0
        self._due: list[tuple[float, int, Any]] = []
        self._answers: dict[Any, Callable[[], Any]] = {}
        self._numbers = itertools.count()
        report = {"record": "x" * 4000, "done": False, "training_iteration": 1, "pid": 1}
        self.actor = ray.remote(num_cpus=0)(Answering).remote(report)
        never = ray.remote(num_cpus=0, resources={"nowhere": 1})(_never)
        self._pending = [never.remote() for _ in range(3 * workers + 1000)]
        self._idle = 0.0
        self.puts = self.waits = 0
        self.search_waits = threading.Condition()

    def close(self) -> None:
        ray.kill(self.actor)
        for reference in self._pending:
            ray.cancel(reference)

    def waiting(self, count: int) -> list[Any]:
        """References that are not ready."""
        return self._pending[:count]

    def call(self, method: str, after: float, answer: Callable[[], Any], *args: Any) -> Any:
        """Calls the real actor; the reference is ready `after` so many seconds, with `answer`."""
        reference = self.actor.call.remote(method, *args)
        with self.clock.aside():
            due = self.clock.now + after + LATENCY
            heapq.heappush(self._due, (due, next(self._numbers), reference))
            self._answers[reference] = answer
        return reference

    def wait(
        self, references: list[Any], num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[Any], list[Any]]:
        """`ray.wait` for one: the next that is due, once the clock is there."""
        clock = self.clock
        self._settle()
        with clock.aside():
            wanted = set(references)
            while self._due and self._due[0][2] not in wanted:
                self._answers.pop(heapq.heappop(self._due)[2], None)
            limit = float("inf") if timeout is None else clock.now + timeout
            due = self._due[0][0] if self._due else float("inf")
        if due > limit:
            ray.wait(self.waiting(max(len(references), 1)), timeout=0)
            self._pass(limit, due, timeout or 0.0)
            return [], references
        clock.wait(due - clock.now)
        reference = heapq.heappop(self._due)[2]
        ready, _ = ray.wait([*self.waiting(len(references) - 1), reference], num_returns=1)
        self._idle = 0.0
        return ready, []

    def _settle(self) -> None:
        """Lets the search's thread do all that it can do at this time."""
        with self.search_waits:
            self.search_waits.wait_for(lambda: self.waits > self.puts)

    def end(self) -> None:
        """The search is over, and waits for nothing more."""
        with self.search_waits:
            self.waits += 1 << 30
            self.search_waits.notify_all()

    def _pass(self, limit: float, due: float, timeout: float) -> None:
        """Lets a turn of Tune's loop pass in which nothing happens; the turns like it, up to what
        is due next, are charged and not run."""
        clock = self.clock
        busy, self._idle = clock.busy - self._idle, clock.busy
        clock.wait(limit - clock.now)
        turns = int((due - clock.now) / (timeout + busy)) - 1 if due < float("inf") else 0
        if turns > 0 and 0 < busy < 0.05:
            clock.charge(turns * busy)
            clock.wait(turns * timeout)
            self._idle = clock.busy

    def get(self, reference: Any) -> Any:
        """`ray.get`: fetches the real answer, gives the simulated one."""
        ray.get(reference)
        with self.clock.aside():
            return self._answers.pop(reference)()

    @contextlib.contextmanager
    def in_place_of_actors(self) -> Iterator[None]:
        """Tune's loop finds these workers."""
        seen = types.SimpleNamespace(**vars(ray))
        seen.wait, seen.get, seen.kill = self.wait, self.get, lambda actor: None
        with (
            mock.patch.object(EXECUTION._internal.actor_manager, "ray", seen),
            mock.patch.object(EXECUTION._internal.event_manager, "ray", seen),
            mock.patch.object(
                LOOP, "PlacementGroupResourceManager", functools.partial(Resources, self)
            ),
            mock.patch.object(tune_run, "SimpleQueue", functools.partial(Watched, self)),
        ):
            yield


class Resources(EXECUTION.ResourceManager):  # type: ignore[misc]
    """Tune's resource manager over the workers that are free."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.staged, self.held, self.looked = cluster, 0, 0, -1.0

    def request_resources(self, resource_request: Any) -> None:
        self.cluster.clock.charge(self.cluster.group)
        self.staged += 1

    def cancel_resource_request(self, resource_request: Any) -> None:
        self.staged -= 1

    def has_resources_ready(self, resource_request: Any) -> bool:
        if self.staged and self.cluster.free:
            return True
        if self.staged and self.cluster.clock.now > self.looked + 0.1:
            self.update_state()
        return False

    def update_state(self) -> None:
        """Looks at every placement group that is not there yet."""
        count = max(self.staged - self.cluster.free, 0)
        if count:
            ray.wait(self.cluster.waiting(count), num_returns=count, timeout=0)
        self.looked = self.cluster.clock.now

    def get_resource_futures(self) -> list[Any]:
        return self.cluster.waiting(max(self.staged - self.cluster.free, 0))

    def acquire_resources(self, resource_request: Any) -> Any:
        if not self.has_resources_ready(resource_request):
            return None
        self.staged -= 1
        self.held += 1
        self.cluster.free -= 1
        return Acquired(resource_request, self.cluster)

    def free_resources(self, acquired_resource: Any) -> None:
        self.held -= 1
        self.cluster.free += 1

    def clear(self) -> None:
        self.cluster.free += self.held
        self.staged = self.held = 0


class Acquired(EXECUTION.resources.AcquiredResources):  # type: ignore[misc]
    """A worker's resources: whoever starts an actor there gets a stand-in."""

    def __init__(self, resource_request: Any, cluster: Cluster) -> None:
        super().__init__(resource_request)
        self.cluster = cluster

    def annotate_remote_entities(self, entities: list[Any]) -> list[Any]:
        return [types.SimpleNamespace(remote=lambda **kwargs: Worker(self.cluster, **kwargs))]


class Worker:
    """The stand-in for an actor with Tune's trainable in it."""

    def __init__(self, cluster: Cluster, config: dict[str, Any], **_: Any) -> None:
        self.cluster, self.done = cluster, 0
        self.job: Job = config["work"].job
        cluster.started += 1

    def __getattr__(self, method: str) -> Any:
        """A method of the actor, called by its `remote`."""
        if method in ("__ray_terminate__", "stop"):
            return types.SimpleNamespace(
                remote=lambda: self.cluster.call(method, 0.0, lambda: True)
            )
        if method in ("__ray_ready__", "train", "reset"):
            act = type(self).__dict__[f"_{method.strip('_')}"]
            return types.SimpleNamespace(remote=functools.partial(act, self))
        if method == "get_auto_filled_metrics":
            return self.cluster.actor.filled
        raise AttributeError(method)

    def _ray_ready(self) -> Any:
        return self.cluster.call("ready", self.cluster.start, lambda: True)

    def _reset(self, config: dict[str, Any], storage: Any = None) -> Any:
        with self.cluster.clock.aside():
            self.job, self.done = config["work"].job, 0
            sent = pickle.dumps(self.job)
            self.cluster.job_bytes += len(sent)
        return self.cluster.call("reset", 0.0, lambda: True, sent, storage)

    def _train(self) -> Any:
        cluster, number = self.cluster, self.done
        self.done += 1
        after = 0.0
        if number == 0:
            with cluster.clock.aside():
                after = cluster.seconds(self.job)
                cluster.trained += after
                cluster.packs += type(self.job) is Job
        return cluster.call("train", after, lambda: self._report(number))

    def _report(self, number: int) -> dict[str, Any]:
        """What the driver is told: a record, or that the job is done."""
        cluster = self.cluster
        if number >= len(self.job.keys):
            return {"__duplicate__": True}
        record = cluster.make(self.job, number)
        said: dict[str, Any] = {"kept": 1}
        if record is not None:
            write_record(cluster.store, record, None)
            said = {"record": json.dumps(record.to_json())}
            cluster.trials += 1
        cluster.report_bytes += len(str(said))
        return {
            **said,
            "done": False,
            "training_iteration": number + 1,
            "time_this_iter_s": 1.0,
            "time_total_s": 1.0,
            "pid": 1,
            "hostname": "worker",
            "node_ip": "127.0.0.1",
            "date": "",
            "timestamp": 0,
        }
