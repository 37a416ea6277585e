"""A live Prometheus, an Alertmanager and a place for its messages, on free ports of 127.0.0.1."""

from __future__ import annotations

import json
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .exchange import exposition
from .processes import Process, free_port
from .report import ROOT

RULES = ROOT / "deploy/prometheus/rules"


def fetch(url: str, accept: str = "*/*") -> bytes:
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=30) as answer:
        body: bytes = answer.read()
    return body


def scraped(port: int) -> dict[str, float]:
    """/metrics at `port`, as `exposition` reads it."""
    return exposition(fetch(f"http://127.0.0.1:{port}/metrics"))


class Prometheus(Process):
    """Scrapes and evaluates every `interval` seconds.

    Args:
        folder: its data and configuration.
        jobs: name -> addresses (host:port).
        rules: load deploy/prometheus/rules.
        alertmanager: its address.
    """

    def __init__(
        self,
        folder: Path,
        jobs: Mapping[str, Sequence[str]],
        *,
        interval: float = 1,
        rules: bool = True,
        alertmanager: str | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        seconds = f"{interval:g}s"
        config: dict[str, Any] = {
            "global": {"scrape_interval": seconds, "scrape_timeout": seconds, "evaluation_interval": seconds},
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": list(addresses)}]} for name, addresses in jobs.items()
            ],
        }
        if rules:
            config["rule_files"] = [str(RULES / "*.yml")]
        if alertmanager is not None:
            config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yml").write_text(json.dumps(config), "utf-8")  # JSON is YAML
        super().__init__(
            [
                "prometheus",
                "--config.file=prometheus.yml",
                "--storage.tsdb.path=data",
                f"--web.listen-address={self.url.removeprefix('http://')}",
                "--enable-feature=exemplar-storage",
                "--log.level=warn",
            ],
            folder / "prometheus.log",
            folder=folder,
        )
        self.answering(f"{self.url}/-/ready")

    def api(self, path: str, **parameters: object) -> Any:
        """`data` of an answer of Prometheus's HTTP API."""
        answer = json.loads(fetch(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        if answer["status"] != "success":
            raise RuntimeError(f"{path}: {answer}")
        return answer["data"]

    def query(self, expression: str, **parameters: object) -> list[dict[str, Any]]:
        """The instant vector of an expression now; a scalar becomes a vector of one."""
        data = self.api("query", query=expression, **parameters)
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        found: list[dict[str, Any]] = data["result"]
        return found

    def over(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Its range vector: [{"metric": labels, "values": [[time, text], ...]}, ...]."""
        found: list[dict[str, Any]] = self.api("query_range", query=expression, start=start, end=end, step=step)[
            "result"
        ]
        return found

    def states(self) -> dict[str, str]:
        """Alert name -> pending or firing; alerts at rest are left out."""
        states: dict[str, str] = {}
        for alert in self.api("alerts")["alerts"]:
            name = alert["labels"]["alertname"]
            if states.get(name) != "firing":
                states[name] = alert["state"]
        return states


class Webhook:
    """Where Alertmanager's messages arrive; `messages` holds (time, document)."""

    def __init__(self) -> None:
        self.messages: list[tuple[float, dict[str, Any]]] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                messages.append((time.time(), json.loads(body)))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Alertmanager(Process):
    """Sends what it is told on to one webhook, soon."""

    def __init__(self, folder: Path, webhook: str, group_wait: str = "1s", group_interval: str = "5s") -> None:
        self.address = f"127.0.0.1:{free_port()}"
        config = {
            "route": {
                "receiver": "hook",
                "group_by": ["alertname"],
                "group_wait": group_wait,
                "group_interval": group_interval,
                "repeat_interval": "1h",
            },
            "receivers": [{"name": "hook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "alertmanager.yml").write_text(json.dumps(config), "utf-8")
        super().__init__(
            [
                "prometheus-alertmanager",
                "--config.file=alertmanager.yml",
                "--storage.path=data",
                f"--web.listen-address={self.address}",
                "--cluster.listen-address=",
                "--log.level=warn",
            ],
            folder / "alertmanager.log",
            folder=folder,
        )
        self.answering(f"http://{self.address}/-/ready")


def substitute(expression: str, interval: str, span: str) -> str:
    """A dashboard's expression as Grafana would send it with everything chosen."""
    variables = {"$__rate_interval": interval, "$__range": span, "$instance": ".+", "$job": ".+", "$model": ".+"}
    for variable, value in variables.items():
        expression = expression.replace(variable, value)
    return expression
