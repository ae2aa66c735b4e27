"""A run of Ray Tune in a thread of its own, fed with jobs as they come up."""

from __future__ import annotations

import heapq
import itertools
import json
import math
import shutil
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from clsearch.errors import ClsearchError, InputError, StoreError
from clsearch.protocols import Ended, Job
from clsearch.records import TrialRecord
from clsearch.redaction import redacted
from clsearch.search import local
from clsearch.search._ray import ray, tune

RETRIES, ROUNDS = 1, 3
"""How often Tune starts a pack again when its worker dies, and how often it is given the pack.

Rounds in which it was handed to a worker that had nothing to do, and was dead, do not count: that
is found as the pack is handed over.
"""

GONE = dict.fromkeys(("TUNE_RESULT_DIR", "RAY_AIR_LOCAL_CACHE_DIR"))
"""Variables that Tune has no more, and will not start with."""

TOLD = {"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0"}}
"""What workers have of the driver's environment: they stay in the folder that they are in, since
those of trials are deleted. Tune by itself adds secrets, which Ray writes into a log of every host;
those of a store are a host's own."""

STOP = 10.0
"""Seconds that Tune has to end."""


@dataclass(repr=False, eq=False)
class Work:
    """A job, with references to the data it needs, and to the rest of the job where that holds
    tensors. Tune copies its settings, writes them out as the name of a trial, and keeps them to
    its next step, which may be long after; this is one thing, has no words, and lets go of all when
    the job is over."""

    job: Job
    data: Mapping[int, Any]
    rest: Any = None
    rounds: int = 0
    """How often it was lost."""
    begun: bool = False
    """Whether a worker has begun with it since Tune was given it."""

    def __deepcopy__(self, memo: Any) -> Work:
        return self

    def let_go(self) -> None:
        vars(self).clear()


class _OverError(Exception):
    """Ends Tune's loop, which cleans up: nothing more will come."""


class _AbortError(BaseException):
    """Ends Tune's loop as it is: workers are still at work, and not waited for."""


class TuneRun:
    """A Tune run in a thread of its own.

    Jobs go in by `submit` and wait in `queue` until a worker is free, those of the earliest task
    first: of these what a whole chain waits for, then the largest. What happens to them comes out
    of `events`, errors too.
    """

    def __init__(self, trainable: Any, workers: int) -> None:
        self.workers, self.over = workers, False
        self.resting = 0
        """Workers that are kept with nothing to do: alive when they were last heard of."""
        self.queue: list[tuple[int, float, int, Work]] = []
        self.events: SimpleQueue[TrialRecord | Ended | Exception] = SimpleQueue()
        self.given: dict[str, Work] = {}
        self.changed, self.numbers = threading.Condition(), itertools.count()
        self.thread = threading.Thread(target=self._fit, args=(trainable,), daemon=True)

    def submit(self, works: Iterable[Work]) -> None:
        with self.changed:
            for work in works:
                job = work.job
                size = len(job.parts) * len(job.keys) if type(job) is Job else math.inf
                heapq.heappush(self.queue, (job.task, -size, next(self.numbers), work))
            self.changed.notify()
        if self.thread.ident is None:
            self.thread.start()

    def wait(self) -> TrialRecord | Ended:
        event = self.events.get()
        if isinstance(event, Exception):
            raise event
        return event

    def end(self) -> None:
        """Ends it, whatever workers do."""
        with self.changed:
            self.over = True
            self.changed.notify()
        if self.thread.ident is not None:
            self.thread.join(STOP)

    def next(self, trial_id: str) -> Work | None:
        """What the next worker gets. With no job anywhere, waits until there is one."""
        with self.changed:
            while self.idle and not self.over:
                self.changed.wait()
            self.check()
            if not self.queue or len(self.given) >= self.workers:
                return None
            work = self.given[trial_id] = heapq.heappop(self.queue)[-1]
            work.begun = False
            return work

    def begin(self, trial_id: str) -> None:
        """A worker has begun with a trial of Tune's: one that is kept, if there is any."""
        self.resting = max(self.resting - 1, 0)
        self.given[trial_id].begun = True

    def check(self) -> None:
        """Called at every turn of Tune's loop."""
        if self.over:
            raise _AbortError if self.given else _OverError

    @property
    def idle(self) -> bool:
        """Whether there is no job anywhere."""
        with self.changed:
            return not (self.queue or self.given)

    def done(self, trial_id: str, lost: str = "") -> None:
        """A trial of Tune's is over; a job that was lost has further rounds."""
        with self.changed:
            work = self.given.pop(trial_id)
        job = work.job
        if not lost:
            self.resting += 1
        elif not work.begun and self.resting:
            self.resting -= 1
        else:
            work.rounds += 1
        if lost and work.rounds < ROUNDS:
            self.submit([work])
        else:
            work.let_go()
            self.events.put(Ended(job, lost))

    def _fit(self, trainable: Any) -> None:
        folder = local.new_folder()
        try:
            with local.environment(GONE):
                self._tuner(trainable, folder).fit()
            raise ClsearchError("Ray Tune has ended by itself")
        except (_OverError, _AbortError):
            pass
        except (tune.TuneError, ray.exceptions.RayError, OSError) as error:
            said = " ".join(str(error).split())
            self.events.put(ClsearchError(f"Ray has stopped: {said}"))
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self.events.put(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _tuner(self, trainable: Any, folder: str) -> Any:
        return tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                reuse_actors=True,
                num_samples=-1,
                search_alg=_Feed(self),
                scheduler=_Keeper(self.workers),
                trial_name_creator=lambda trial: trial.trial_id,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                callbacks=[_Relay(self)],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )


class _Feed(tune.search.Searcher):  # type: ignore[misc]
    """Tune's view of the queue: a search algorithm that suggests the next job."""

    def __init__(self, run: TuneRun | None) -> None:
        super().__init__()
        self.run = run

    def __reduce__(self) -> tuple[type[_Feed], tuple[Any, ...]]:
        """Tune pickles its settings for a restore that is never used: a feed from nowhere."""
        return _Feed, (None,)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        work = None if self.run is None else self.run.next(trial_id)
        return None if work is None else {"work": work}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The relay sees to it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is restored."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is restored."""


class _Keeper(tune.schedulers.FIFOScheduler):  # type: ignore[misc]
    """What Tune keeps, and what not.

    It keeps the workers for which there is nothing to do for now: chains come up with jobs one
    after the other, and a worker takes seconds to start. By itself Tune keeps one, and ends a
    worker that is starting as soon as another can take its trial. It does not keep trials that are
    over, which it goes through at every step, nor the printer that it adds, which keeps them too.
    """

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.workers, self.told = workers, False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if self.told:
            return
        controller = tune_controller._tune_controller
        controller._actor_cache.increase_max(trial.placement_group_factory, self.workers)
        trainable = trial.get_trainable_cls()
        controller._class_cache._cache[trainable] = ray.remote(runtime_env=TOLD)(trainable)
        callbacks = controller._callbacks._callbacks
        callbacks[:] = [each for each in callbacks if isinstance(each, _Relay)]
        self.told = True

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Called at every step. None of its own choice: Tune starts those that wait in order."""
        controller = tune_controller._tune_controller
        self._forget(controller)
        self._let_start(controller)

    def _forget(self, controller: Any) -> None:
        """Trials that are over, with their folders on this host."""
        for trial in controller._stopped_trials | controller._failed_trials:
            controller._trials.remove(trial)
            for kept in ("_stopped_trials", "_failed_trials", "_trials_to_cache"):
                getattr(controller, kept).discard(trial)
            for folder in (trial.local_path, trial.storage.trial_working_directory):
                shutil.rmtree(folder, ignore_errors=True)  # nobody is in there: see `TOLD`

    def _let_start(self, controller: Any) -> None:
        """Tune gives the place of a trial that waits for a worker to one that has its own, where it
        finds that among those that wait; the worker that starts for the first is then ended."""
        actors, started = controller._trial_to_actor, controller._actor_manager.is_actor_started
        for pending in controller._resources_to_pending_trials.values():
            pending.difference_update({t for t in pending if t in actors and started(actors[t])})


class _Relay(tune.Callback):  # type: ignore[misc]
    """Hands what workers report to the driver. Never raises into Tune's loop, but to end it."""

    def __init__(self, run: TuneRun | None) -> None:
        self.run = run

    def __reduce__(self) -> tuple[type[_Relay], tuple[Any, ...]]:
        """Tune pickles its settings for a restore that is never used: a relay to nobody."""
        return _Relay, (None,)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.run is not None:
            self.run.check()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.run is not None:
            self.run.begin(trial.trial_id)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if self.run is None:
            return
        try:
            if "store_error" in result:
                self.run.events.put(StoreError(result["store_error"]))
            elif "failed" in result:
                self.run.events.put(ClsearchError(result["failed"]))
            elif "input_error" in result:
                self.run.events.put(InputError(*result["input_error"]))
            elif "record" in result:
                self.run.events.put(TrialRecord.from_json(json.loads(result["record"])))
        except Exception as error:  # noqa: BLE001 - an exception here would mark the trial ERROR
            self.run.events.put(ClsearchError(f"a report could not be read: {error!r}"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if self.run is not None:
            self.run.done(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        text = str(trial.get_error() or "")
        reason = "its worker died again and again"
        if "RayTaskError" in text:  # it lived, and raised outside of any trial
            reason = redacted(f"its worker cannot train: {text.strip().splitlines()[-1]}")
        if self.run is not None:
            self.run.done(trial.trial_id, reason)
