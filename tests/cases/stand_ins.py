"""A proxy that notes what it is shown, and a dashboard of Ray's that notes whom it answers."""

import asyncio
import http.server
import threading

import pytest

SECRET = "secret-token-0123456789abcdef"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY")
JOB = {
    "type": "SUBMISSION", "job_id": "01000000", "submission_id": "pretrain-run-1",
    "status": "SUCCEEDED", "entrypoint": "python -m ray_jobs pretrain", "message": "done",
    "driver_exit_code": 0, "metadata": {"terrafm_verb": "pretrain"}, "driver_node_id": "1",
}  # fmt: skip

HEAD = {
    "isHeadNode": True, "nodeId": "1", "nodeName": "head", "state": "ALIVE",
    "nodeManagerAddress": "127.0.0.1",
}  # fmt: skip


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that everything in the environment names; what it was sent, one text a request."""
    sent = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def answer(self):
            sent.append(f"{self.requestline}\n{self.headers}")
            self.send_error(502)

        def __getattr__(self, name):
            if name.startswith("do_"):
                return self.answer
            raise AttributeError(name)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in PROXIES:
        for spelled in (name, name.lower()):
            monkeypatch.setenv(spelled, f"http://127.0.0.1:{server.server_port}")
    for name in ("NO_PROXY", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield sent
    server.shutdown()


@pytest.fixture
def dashboard(monkeypatch):
    """URL of a stand-in for Ray's dashboard, and the Authorization of each request to it."""
    from aiohttp import web

    seen = []

    async def answer(request):
        seen.append((request.method, request.path, request.headers.get("Authorization")))
        if request.path.endswith("/logs/tail"):
            socket_ = web.WebSocketResponse()
            await socket_.prepare(request)
            await socket_.send_str("followed\n")
            if "hangs" in request.path:
                await asyncio.sleep(600)
            await socket_.close()
            return socket_
        if request.method == "GET" and "/packages/" in request.path:
            return web.Response(status=404)
        if request.method == "POST" and request.path == "/api/jobs/":
            return web.json_response({"job_id": "new", "submission_id": "new"})
        return web.json_response(
            {
                "/api/version": {"version": "4", "ray_version": "2.60.0", "ray_commit": "x"},
                "/api/jobs/": [JOB, JOB | {"submission_id": "hangs", "status": "RUNNING"}],
                f"/api/jobs/{JOB['submission_id']}/logs": {"logs": "printed\n"},
                "/api/authentication_mode": {"authentication_mode": "token"},
                "/nodes": {"data": {"summary": [{"raylet": HEAD, "cmdline": []}]}},
            }.get(request.path, {})
        )

    loop, ready, port = asyncio.new_event_loop(), threading.Event(), []

    async def serve():
        server = web.Application()
        server.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(server, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.append(runner.addresses[0][1])
        ready.set()

    def work():
        asyncio.set_event_loop(loop)
        loop.run_until_complete(serve())
        loop.run_forever()

    threading.Thread(target=work, daemon=True).start()
    assert ready.wait(30)
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    yield f"http://127.0.0.1:{port[0]}", seen
    loop.call_soon_threadsafe(loop.stop)
