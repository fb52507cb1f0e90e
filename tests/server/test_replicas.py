"""Two servers behind deploy/nginx.conf, over TLS."""

import re
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from ppvilg.benchmark.serving import Server, served
from tests.server.conftest import until

ROOT = Path(__file__).parents[2]
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(NGINX is None, reason="nginx is not installed")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def proxy(servers: list[Server], folder: Path) -> Iterator[httpx.Client]:
    """nginx with the shipped file, of which only the ports and the certificate's place are others."""
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key, certificate, port = folder / "own.key", folder / "own.crt", free_port()
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *name]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    text = (ROOT / "deploy/nginx.conf").read_text("utf-8")
    for written, own in (
        ("127.0.0.1:8001", servers[0].url.removeprefix("http://")),
        ("127.0.0.1:8002", servers[1].url.removeprefix("http://")),
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/ppvilg.crt", str(certificate)),
        ("/etc/ssl/ppvilg.key", str(key)),
    ):
        assert written in text
        text = text.replace(written, own)
    own_files = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}\n"
        f"http {{ access_log off; {own_files}\n{text}\n}}\n"
    )
    process = subprocess.Popen([NGINX, "-c", str(folder / "nginx.conf")], stderr=subprocess.PIPE)
    try:
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=f"https://localhost:{port}", verify=trusted, timeout=60) as client:
            until(lambda: healthy(client, process))
            yield client
    finally:
        process.terminate()
        process.communicate()


def healthy(client: httpx.Client, process: subprocess.Popen) -> bool:
    assert process.poll() is None, process.stderr.read()
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_server_that_is_killed_loses_no_request(tiny_model, tmp_path):
    requests = [{"prompt": "红色方块", "seed": seed, "guidance": 2.0, "n": 2} for seed in range(60)]
    with ExitStack() as stack:
        servers = [stack.enter_context(served(str(tiny_model), capacity=4)) for _ in range(2)]
        client = stack.enter_context(proxy(servers, tmp_path))
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(client.post, "/v1/images", json=request) for request in requests]
            until(lambda: all(server.metric("http_requests_total") > 8 for server in servers))
            servers[0].process.send_signal(signal.SIGKILL)
            assert not asked[-1].done()
            answers = [future.result() for future in asked]
        assert [answer.status_code for answer in answers] == [200] * len(requests)
        alone = [httpx.post(f"{servers[1].url}/v1/images", json=request, timeout=60).json()["data"] for request in requests]
        assert [answer.json()["data"] for answer in answers] == alone
        with client.stream("POST", "/v1/images", json=requests[0] | {"stream": True}) as answer:
            events = re.findall(r"^event: (\w+)$", "".join(answer.iter_text()), re.MULTILINE)
        assert events[-1] == "done"
        assert "partial" in events


def test_rates_count_for_who_asks_the_proxy(tiny_model, tmp_path):
    with ExitStack() as stack:
        servers = [stack.enter_context(served(str(tiny_model), rate="3/minute")) for _ in range(2)]
        client = stack.enter_context(proxy(servers, tmp_path))
        statuses = [client.post("/v1/images", json={"prompt": "红"}).status_code for _ in range(8)]
        assert statuses == [200] * 6 + [429] * 2
        assert (
            httpx.post(
                f"{servers[0].url}/v1/images", json={"prompt": "红"}, headers={"X-Forwarded-For": "192.0.2.7"}
            ).status_code
            == 200
        )
