"""Delivery in a process of its own: what MLflow's client computes, some 100 ms a trial with
a database in the output folder, would else hold up the search, which has workers to feed.

`main` is that process: a line of JSON comes in for every entry, and one goes out. It ends with its
input, and so with the search, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, cast

from clsearch import mlflow_runs
from clsearch.courier import describe
from clsearch.delivery import Delivery
from clsearch.errors import UndeliveredError

BEGIN = """
import sys
sys.path[:] = sys.argv[2:]
from clsearch.delivery_process import main
main(int(sys.argv[1]))
"""
"""What the process runs, with where answers go; it finds modules where the search does (`-P`)."""

GRACE = 5.0
"""Seconds that the process has to end."""


class DeliveryProcess:
    """A `Delivery` elsewhere: started for the first entry, and again when it has died."""

    def __init__(self, uri: str, artifacts: str | None, system_metrics: bool = False) -> None:
        self._settings = uri, artifacts, system_metrics
        self._process: subprocess.Popen[str] | None = None
        self._questions = self._answers = cast(IO[str], None)
        self._asking, self._closed = threading.Lock(), False
        self.watched = ""
        """See `Delivery`."""

    def __call__(self, content: Mapping[str, Any], files: Path) -> None:
        """Delivers an entry. Raises `UndeliveredError`."""
        with self._asking:
            if self._closed:
                raise UndeliveredError("the search is over", refused=False)
            try:
                self._ask({"content": content, "files": str(files), "watched": self.watched})
            finally:
                if self._closed:
                    self._end()

    def close(self) -> None:
        """Ends the samples of the driver's machine, and the process; one that still waits for an
        answer of MLflow ends when it has it, or with this process."""
        self._closed = True
        if self._asking.acquire(timeout=0.1):  # longer than what follows an answer
            try:
                if self._process is not None:
                    with contextlib.suppress(UndeliveredError):
                        self._ask({})
                    self._end()
            finally:
                self._asking.release()

    def _ask(self, what: Mapping[str, Any]) -> None:
        try:
            problem, refused = json.loads(self._answer(what))
        except (OSError, ValueError) as error:
            ended = self._end() or f"cannot be started: {error}"
            text = f"the process that delivers to MLflow {ended}"
            raise UndeliveredError(text, refused=False) from error
        except BaseException:
            self._end()  # else the next question would have the answer to this one
            raise
        if problem:
            raise UndeliveredError(problem, refused)

    def _answer(self, what: Mapping[str, Any]) -> str:
        if self._process is None:
            self._start()
            print(json.dumps(self._settings), file=self._questions)
        print(json.dumps(what), file=self._questions, flush=True)
        answer = self._answers.readline()
        return answer if answer.endswith("\n") else ""

    def _start(self) -> None:
        """Answers have a pipe of their own: what a library prints is none."""
        answers, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", BEGIN, str(theirs), *sys.path],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs],
                start_new_session=True,  # Ctrl-C is for the search
                encoding="utf-8",
            )
        except BaseException:
            os.close(answers)
            raise
        finally:
            os.close(theirs)
        self._questions = cast(IO[str], self._process.stdin)
        self._answers = os.fdopen(answers, encoding="utf-8")

    def _end(self) -> str:
        """Ends the process; returns how it ended, nothing where there was none."""
        process, self._process = self._process, None
        if process is None:
            return ""
        for stream in (self._questions, self._answers):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            code = process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def refused(error: Exception) -> bool:
    """Whether an entry failed for a reason of its own, which another attempt cannot change."""
    if isinstance(error, UndeliveredError):
        return error.refused
    return mlflow_runs.refused(error)


def main(answers: int) -> None:
    """Delivers what is asked for on standard input, until that ends; `answers` is a descriptor."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the search says when it is over
    lines: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_serve, args=(lines, os.fdopen(answers, "w")), daemon=True).start()
    for line in sys.stdin:
        lines.put(line)
    os._exit(0)  # even in the middle of a request: the next search may be here already


def _serve(lines: SimpleQueue[str], answers: IO[str]) -> None:
    try:
        delivery = Delivery(*json.loads(lines.get()))
        while True:
            asked, problem, no = json.loads(lines.get()), "", False
            try:
                if asked:
                    delivery.watched = asked["watched"]
                    delivery(asked["content"], Path(asked["files"]))
                else:
                    delivery.close()
            except Exception as error:  # noqa: BLE001 - whatever a client raises
                problem, no = describe(error), mlflow_runs.refused(error)
            print(json.dumps([problem, no]), file=answers, flush=True)
    finally:
        os._exit(1)  # who asks must not wait for ever
