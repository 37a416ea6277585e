"""What /metrics gives: names and help that promtool accepts, exemplars on request, few series, a page that is true."""

from __future__ import annotations

import json
import random
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from benchmarks.harness.processes import free_port
from benchmarks.harness.prometheus import RULES
from deploy.document_metrics import BEGIN, END, PAGE, page, rows
from deploy.grafana.panels import queries
from server.settings.renames import METRICS
from tests.requires import requires
from tests.server.tiny import Running, encoded, noise, plain, publish

FRESH, BUDGET = 500, 600
OPENMETRICS = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}


@pytest.fixture(scope="module")
def running(process: None, tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    repository = tmp_path_factory.mktemp("repository")
    for version in ("1", "2"):
        publish(repository, version)
    server = Running(repository, canary="1:0.5", max_body_bytes=1 << 20, admin_port=(port := free_port()))
    server.admin_port = port
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def series(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_page_lists_exactly_the_metrics_that_the_server_has() -> None:
    """An undocumented metric fails the build. Run `python -m deploy.document_metrics`."""
    text = PAGE.read_text("utf-8")
    assert page(text) == text
    documented = re.findall(r"^\| `(awnet_\w+)` \|", text.split(BEGIN)[1].split(END)[0], re.MULTILINE)
    assert documented == [row.name for row in rows()]


def test_every_metric_that_a_live_server_exposes_is_on_the_page(running: Running) -> None:
    """None comes into being on the way; the old names of renamed ones stand in docs/renames.md."""
    running.http.post("/predict", files={"image": ("a.png", encoded(noise()))})
    families = re.findall(r"^# TYPE (\w+) ", running.http.get("/metrics").text, re.MULTILINE)
    ours = {name for name in families if not name.startswith("process_")}
    assert ours <= {row.name for row in rows()} | METRICS.keys()
    assert all(name.startswith("awnet_") for name in ours)


@requires("prometheus")
def test_promtool_finds_no_fault_in_names_and_help(running: Running) -> None:
    """Names, units, suffixes and help as the conventions want them."""
    text = running.http.get("/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr.strip() == ""


def test_openmetrics_has_request_ids_as_exemplars(running: Running) -> None:
    """So that a slow bucket leads to a line of the log; the plain format has none and stays as it was."""
    for n in range(40):
        headers = {"x-request-id": f"exemplar-{n}"}
        running.http.post("/predict", files={"image": ("a.png", encoded(noise()))}, headers=headers)
    answer = running.http.get("/metrics", headers=OPENMETRICS)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    exemplars = [s.exemplar for s in families["awnet_request_seconds"].samples if s.exemplar]
    assert exemplars
    assert all(re.fullmatch(r"exemplar-\d+|[0-9a-f]{32}", e.labels["request_id"]) for e in exemplars)
    plain_text = running.http.get("/metrics")
    assert plain_text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "exemplar-" not in plain_text.text


@pytest.mark.process
def test_every_route_is_counted_from_the_start(tmp_path: Path) -> None:
    """Or the first 503 of a route begins its series, which no `increase` and no `rate` sees."""
    publish(tmp_path)
    grpc_port = free_port()
    with Running(tmp_path, admin_port=free_port(), grpc_port=grpc_port) as running:
        running.wait_ready()
        text = running.http.get("/metrics").text
    counted = re.findall(r'awnet_requests_total\{code="(\d+)",method="(\w+)",route="([^"]+)"\} ', text)
    codes: dict[tuple[str, str], set[str]] = {}
    for code, method, route in counted:
        codes.setdefault((route, method), set()).add(code)
    routes = {
        ("/", "GET"),
        ("/page/{file}", "GET"),
        ("/predict", "POST"),
        ("/metrics", "GET"),
        ("/model", "GET"),
        ("/v2/models/{model}/infer", "POST"),
        ("/v2/models/{model}/versions/{version}/ready", "GET"),
        ("/v2/health/ready", "GET"),
        ("/admin/reload", "POST"),
        ("/inference.GRPCInferenceService/ModelInfer", "GRPC"),
    }
    assert routes <= codes.keys()
    assert all(found >= {"200", "429", "500", "503", "504"} for found in codes.values())
    for route in ("/predict", "/v2/models/{model}/infer", "/inference.GRPCInferenceService/ModelInfer"):
        assert f'awnet_request_seconds_count{{route="{route}"}} 0.0' in text
    assert len(series(text)) <= FRESH


def test_the_number_of_series_stays_in_its_budget_whatever_is_sent(running: Running) -> None:
    """No path, method, name, id or score becomes a label: at most 600 series after a fuzz run of both ports."""
    rng = random.Random(0)
    images = [encoded(plain(n / 20)) for n in range(20)] + [encoded(noise(40, 30), kind) for kind in ("JPEG", "WEBP")]
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW", "TRACE"]
    for n in range(400):
        path = rng.choice(
            [
                "/predict",
                f"/{rng.randbytes(4).hex()}",
                f"/v2/models/{rng.randbytes(3).hex()}/infer",
                f"/v2/models/awnet/versions/{n}/infer",
                "/v2/models/awnet/ready",
                "/v2",
                "/metrics",
                f"/predict?model={rng.randbytes(3).hex()}&top_k={n}",
            ]
        )
        body = rng.choice([*images, rng.randbytes(50), json.dumps({"inputs": n}).encode(), b""])
        headers = {
            "content-type": rng.choice(["image/png", f"x/{n}", "application/json"]),
            "x-request-id": f"id-{n}",
            "accept": rng.choice(["*/*", "text/html", f"a/{n}"]),
        }
        running.http.request(rng.choice(methods), path, content=body, headers=headers)
    admin = f"http://127.0.0.1:{running.admin_port}/admin"
    for n in range(200):
        path = rng.choice(
            [
                "models",
                "detection",
                "reload",
                "canary",
                "shadow",
                f"models/{rng.randbytes(3).hex()}/rollback",
                f"models/{rng.randbytes(3).hex()}/promote",
                f"{n}",
            ]
        )
        body = rng.choice([b'{"version": 9}', b'{"version": null}', rng.randbytes(5)])
        headers = {"content-type": rng.choice(["application/json", f"x/{n}"]), "x-request-id": f"id-{n}"}
        if rng.random() < 0.2:
            headers["origin"] = f"http://{n}.example"
        running.http.request(rng.choice(methods), f"{admin}/{path}", content=body, headers=headers)
    for image in images:
        running.http.post("/predict", content=image, headers={"content-type": "image/png"})
    lines = series(running.http.get("/metrics").text)
    assert len(lines) <= BUDGET, len(lines)
    assert not any(re.search(r"\bid-\d|127\.0\.0\.1", line) for line in lines)


def test_rules_and_dashboard_speak_of_metrics_that_exist() -> None:
    """A renamed metric must not leave an alert behind that can never fire."""
    known = {row.name for row in rows()}
    known |= {f"{row.name}_{part}" for row in rows() if row.kind == "histogram" for part in ("bucket", "sum", "count")}
    texts = [path.read_text("utf-8") for path in sorted(RULES.glob("*.yml"))] + [
        query.expr for _, _, query in queries()
    ]
    used = {name for text in texts for name in re.findall(r"(?<![\w:])awnet_\w+(?![\w:])", text)}
    assert len(used) > 15
    assert used <= known
