"""Python's garbage collector under control."""

import gc
import weakref

import pytest

from terrafm.train.worker.garbage_collection import GarbageControl


class Node:
    """Refers to itself: only a collection frees it."""

    def __init__(self):
        self.itself = self


@pytest.fixture(autouse=True)
def usual_collector():
    yield
    gc.unfreeze()
    gc.enable()


def test_cycles_go_at_the_chosen_steps_only():
    control = GarbageControl(3)
    control.start()
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 0
    alive = weakref.ref(Node())
    control.step_done(1)
    control.step_done(2)
    assert alive() is not None
    control.step_done(3)
    assert alive() is None
    control.stop()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
