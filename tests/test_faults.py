"""Real faults on real searches: whatever is killed, cut off or broken, the selections stay.

The faults are those of `python -m tests.faults`, each injected as often as it is `short`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_matrix import Fault, faults_config, ground, undisturbed_run
from faults import registry

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TESTED = {name: fault for name, fault in registry().items() if fault.short}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return faults_config(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="module")
def undisturbed(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that nothing happened to."""
    return undisturbed_run(config, tmp_path_factory.mktemp("undisturbed") / "out")


@pytest.mark.parametrize("fault", TESTED.values(), ids=list(TESTED))
def test_nothing_is_lost(fault: Fault, config: Path, undisturbed: Path, tmp_path: Path) -> None:
    with ground(fault.short, config, undisturbed, tmp_path) as made:
        damage = fault.inject(made)
    print(damage)
    assert damage.injected >= 1
    assert damage.nothing, damage
