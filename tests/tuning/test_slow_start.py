"""A trial that failed only because Ray was slow to start is tried again; others are not."""

import pytest
import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from terrafm.config import load_config
from terrafm.errors import RayStartError, TerraFMError
from terrafm.ray.runtime import ensure_ray
from terrafm.storage import exists
from terrafm.train.driver import supervisor
from terrafm.train.run_folder import RunFolder, read_failure
from tuning.sweep import _RESTARTS
from tuning.trial import PretrainTrial

SLOW = ControllerError(WorkerGroupStartupTimeoutError(2))
LOST = ControllerError(WorkerGroupStartupFailedError("its node died"))
WRONG = WorkerGroupError("rank 0", {0: ValueError("a loss that is none")})
DIED = WorkerGroupError("rank 0", {0: RayActorError()})


def trial(folder, *failures):
    """A trial whose training fails so, one failure after the other."""
    found = PretrainTrial.__new__(PretrainTrial)
    found._folder, found._scored = str(folder), None
    coming = iter(failures)

    def lines():
        found._failure = next(coming)
        yield from ()

    found._lines = lines
    return found


def test_a_trial_hands_it_to_tune_and_leaves_no_failure_behind(tmp_path):
    error = RayStartError("Ray did not start")
    with pytest.raises(RayStartError):
        trial(tmp_path, error).step()
    assert not exists(RunFolder(str(tmp_path)).failure)


def test_a_failure_that_would_repeat_itself_ends_the_trial(tmp_path):
    assert trial(tmp_path, TerraFMError("no data")).step() == {tune.result.DONE: True}
    assert str(read_failure(str(tmp_path))) == "no data"
    # And stands there no longer once the trial is started again.
    with pytest.raises(RayStartError):
        trial(tmp_path, RayStartError("slow")).step()
    assert read_failure(str(tmp_path)) is None


@pytest.fixture
def supervised(monkeypatch, tmp_path):
    """Runs a supervisor whose groups end with these errors of Ray Train, as `fit` raises them."""
    monkeypatch.setattr(supervisor, "keep_data_actors_here", lambda: None)
    monkeypatch.setattr(supervisor, "renew_ray", lambda cpus: None)
    monkeypatch.setattr(supervisor, "start_control", lambda variables: None)
    monkeypatch.setattr(supervisor.time, "sleep", lambda seconds: None)

    class Silent:
        stopping, step = None, 0

        def __init__(self, *arguments, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def seconds_silent(self):
            return 0.0

    monkeypatch.setattr(supervisor, "WorkerMonitor", Silent)
    monkeypatch.setattr(supervisor.ray, "cluster_resources", dict)
    monkeypatch.setattr(supervisor, "group_facts", lambda *_: {})

    def run(*errors):
        coming = iter(errors)
        config = load_config("demo", [f"train.max_failures={len(errors) - 1}"])

        class Group:
            def fit(self):
                raise next(coming)

        class Setup:
            total_steps = 4

        Setup.config = config
        found = supervisor.Supervisor.__new__(supervisor.Supervisor)
        found._setup, found._train, found._output = Setup, config.train, str(tmp_path)
        found._cancelled, found._validator = supervisor.threading.Event(), None
        found._events = supervisor.EventLog(str(tmp_path))
        found._limits = supervisor.GroupLimits({"CPU": 1.0}, {}, 2, 0.0, 1.0)
        found._gpu, found._interrupted_at = False, None
        found._tell_of_failure = lambda ending, step: None
        found._coordinator = type("Nobody", (), {"cancel_resource_request": lambda self: None})()
        found._choose_checkpoint = lambda: supervisor.Checkpoint(None, 0)
        found._await_machines = lambda: (2, 1.0)
        found._trainer = lambda *arguments: Group()
        with pytest.raises(TerraFMError, match="without reaching another checkpoint") as ended:
            found.run()
        return type(ended.value)

    return run


def test_only_groups_that_never_started_may_pass(supervised):
    assert supervised(SLOW, LOST, SLOW) is RayStartError
    assert supervised(SLOW) is RayStartError
    for errors in ((WRONG,), (DIED, DIED), (SLOW, WRONG), (WRONG, SLOW)):
        assert supervised(*errors) is TerraFMError


class FirstSlow(PretrainTrial):
    """Its Ray is slow for as many starts as are asked for."""

    def setup(self, config, task):
        self._folder, self._scored, self._slow = task["folder"], None, task["slow"]
        self._cancelled, self._training, self._failure = _Nobody(), None, None

    def _lines(self):
        import os

        starts = len(os.listdir(self._folder))
        open(os.path.join(self._folder, str(starts)), "w").close()
        if starts < self._slow:
            self._failure = RayStartError("Ray did not start")
            return
        yield {"step": 4, "collapsed": False}

    def _metrics(self, line):
        return {"step": line["step"], tune.result.DONE: True}


class _Nobody:
    def set(self):
        pass


@pytest.fixture(scope="module")
def local_ray():
    ray.shutdown()
    ensure_ray(2)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(("slow", "failed"), [(2, False), (_RESTARTS + 1, True)])
def test_tune_starts_it_again_a_few_times(slow, failed, local_ray, tmp_path):
    folder = tmp_path / "starts"
    folder.mkdir()
    ended = tune.Tuner(
        tune.with_parameters(FirstSlow, task={"folder": str(folder), "slow": slow}),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path / "tune"),
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            verbose=0,
        ),
    ).fit()
    assert len(list(folder.iterdir())) == min(slow, _RESTARTS) + 1
    assert (ended[0].error is not None) is failed
