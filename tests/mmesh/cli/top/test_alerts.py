"""Firing alerts of a Prometheus, which may be away or something else."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mmesh.cli.commands.top.alerts import Alert, firing


def alert(name, severity, state="firing"):
    labels = {"alertname": name, "severity": severity}
    return {"labels": labels, "annotations": {"summary": f"{name} it is"}, "state": state}


@pytest.fixture
def serve():
    """Serve a text under /api/v1/alerts of a URL."""
    servers = []

    def start(text):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/api/v1/alerts" else 404)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_those_that_fire_come_with_the_worst_first(serve):
    alerts = [alert("B", "ticket"), alert("C", "page"), alert("A", "page", "pending")]
    url = serve(json.dumps({"data": {"alerts": alerts}}))
    assert firing(url) == [Alert("C", "page", "C it is"), Alert("B", "ticket", "B it is")]


@pytest.mark.parametrize("text", ["", "[]", "<html>", '{"data": {}}', '{"data": {"alerts": [1]}}'])
def test_what_is_no_prometheus_is_told(serve, text):
    url = serve(text)
    assert firing(url) == [Alert("", "", f"{url} does not tell alerts")]


def test_a_prometheus_that_is_away_is_told():
    (one,) = firing("http://127.0.0.1:1")
    assert one.summary == "http://127.0.0.1:1 does not tell alerts"
