"""Ray's job server, spoken to with the token that Ray would use; every refusal is one line."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from typing_extensions import override

from terrafm.clusters.dashboard import Dashboard
from terrafm.errors import TerraFMError, UsageError
from terrafm.shell import command_line

# Which of our runs a job is; Ray keeps it with the job.
RUN_KEY = "terrafm_run"
STOP_SECONDS = 60.0
_POLL_SECONDS = 0.5


class _DirectClient(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, whose requests go the dashboard's way: Ray's own follow HTTP_PROXY.

    The logs that it follows come by aiohttp, which does not.
    """

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard
        super().__init__(dashboard.url, headers=dashboard.token.headers if dashboard.token else {})

    @override
    def _do_request(
        self,
        method: str,
        endpoint: str,
        *,
        data: bytes | None = None,
        json_data: dict[str, Any] | None = None,
        **options: Any,
    ) -> requests.Response:
        answer = self._dashboard.send(
            method, endpoint, data=data, json=json_data, headers=self._headers, **options
        )
        self._dashboard.check(answer.status_code)
        return answer


class JobServer:
    """The jobs of a cluster.

    Args:
        address: URL of its dashboard.

    Raises:
        UsageError: nobody answers there, or the token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self.dashboard = Dashboard(address)
        version: dict[str, Any] = self.dashboard.get("/api/version")
        self.ray_version = str(version.get("ray_version"))
        self.url = self.dashboard.url
        logging.getLogger("ray").setLevel(logging.ERROR)
        for name in ("dashboard_sdk", "job.sdk"):
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.ERROR)
        with _address_given():
            self.client = _DirectClient(self.dashboard)

    def jobs(self) -> list[JobDetails]:
        """All that were submitted, the newest first."""
        jobs = [job for job in self._call(self.client.list_jobs) if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0, reverse=True)

    def job(self, submission_id: str) -> JobDetails:
        """One job.

        Raises:
            UsageError: the cluster knows no such job.
        """
        for job in self.jobs():
            if job.submission_id == submission_id:
                return job
        known = command_line("terrafm", "jobs", "list", "--address", self.url)
        raise UsageError(f"{self.url} knows no job {submission_id}: {known}")

    def command(self, verb: str, submission_id: str) -> str:
        """What a person gives for a job: `follow` or `stop`."""
        words = ("logs", "--follow") if verb == "follow" else (verb,)
        return command_line("terrafm", "jobs", *words, submission_id, "--address", self.url)

    def logs(self, submission_id: str) -> str:
        """All that the job has printed so far."""
        self.job(submission_id)
        return str(self._call(self.client.get_job_logs, submission_id))

    def submit(self, **job: Any) -> str:
        """Uploads the package and starts the job.

        Returns:
            Its submission id.

        Raises:
            TerraFMError: the cluster refuses.
        """
        return str(self._call(self.client.submit_job, **job))

    def stop(self, submission_id: str) -> bool:
        """Stops a job and waits until it has ended.

        Returns:
            Whether it was running.

        Raises:
            UsageError: the cluster knows no such job.
            TerraFMError: it does not end.
        """
        if self.job(submission_id).status.is_terminal():
            return False
        self._call(self.client.stop_job, submission_id)
        deadline = time.monotonic() + STOP_SECONDS
        while not self.job(submission_id).status.is_terminal():
            if time.monotonic() > deadline:
                raise TerraFMError(f"{submission_id} did not end within {STOP_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)
        return True

    def _call(self, method: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return method(*arguments, **named)
        except (RuntimeError, OSError) as error:
            lines = str(error).strip().splitlines()
            said = lines[-1] if lines else type(error).__name__
            raise TerraFMError(f"the cluster at {self.url}: {said}") from None


@contextmanager
def _address_given() -> Iterator[None]:
    """Ray would prefer an address of the environment to the one that it is given."""
    hidden = {
        name: os.environ.pop(name)
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        if name in os.environ
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def as_dict(job: JobDetails) -> dict[str, Any]:
    """A job as JSON: what `terrafm jobs --json` prints."""
    metadata = job.metadata or {}
    return {
        "id": job.submission_id,
        "status": job.status.value,
        "verb": metadata.get("terrafm_verb"),
        "output": metadata.get("terrafm_output"),
        "started": job.start_time,
        "ended": job.end_time,
        "driver_node": job.driver_node_id,
        "exit_code": job.driver_exit_code,
        "message": job.message,
    }


__all__ = ["RUN_KEY", "JobDetails", "JobServer", "JobStatus", "as_dict"]
