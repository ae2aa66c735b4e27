"""Faults of the machine that a search runs on: its processes, disks, files, memory and clock."""

from __future__ import annotations

import contextlib
import signal

import psutil
from command import Driver
from fault_matrix import Damage, Ground, fault


def workers(driver: Driver, idle: bool = False) -> list[psutil.Process]:
    """The workers of a driver that train, or those between two trials."""
    found = []
    for process in driver.descendants():
        try:
            title = (process.cmdline() or [""])[0]
        except psutil.NoSuchProcess:
            continue
        if title.startswith("ray::ImplicitFunc") and idle != title.endswith(".train"):
            found.append(process)
    return found


def ended_well(driver: Driver) -> None:
    """The search went on to its end as if nothing had happened, and left no process behind."""
    assert driver.wait(600) == 0, driver.stderr
    assert driver.stderr == ""
    assert driver.survivors() == []


@fault("SIGKILL of a worker in the middle of a trial")
def a_worker_in_the_middle_of_a_trial(ground: Ground) -> Damage:
    driver, training = ground.start(), list[psutil.Process]()
    driver.until(lambda: ground.finished() and (training.extend(workers(driver)) or training))
    before = ground.finished()
    with contextlib.suppress(psutil.NoSuchProcess):
        training[0].send_signal(signal.SIGKILL)
    ended_well(driver)
    return ground.damage(1, before)
