"""A live server watches what it answers: CUSUM, clients, golden probes and the request log, from HTTP to /metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BytesIO

import pytest
from PIL import Image

from benchmarks.harness.processes import free_port
from tests.server.tiny import Running, encoded, noise, plain, publish
from tests.waiting import eventually


@pytest.fixture
def running(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    repository = publish(tmp_path_factory.mktemp("repository"))
    port = free_port()
    server = Running(repository, request_log=True, log_level="warning", admin_port=port, golden_probe_seconds=0.1)
    server.admin_port = port
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def value(server: Running, name: str, **labels: str) -> float:
    """The sum of the series of this name with these labels."""
    total = 0.0
    for line in server.http.get("/metrics").text.splitlines():
        if re.match(name + r"[{ ]", line) and all(f'{k}="{v}"' in line for k, v in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


def test_an_attack_raises_the_cusum_and_names_no_client(running: Running) -> None:
    """Clean images do not; the list of clients grows by one and its address is nowhere in the exposition."""
    clean, attacked = encoded(plain(0.1)), encoded(plain(0.9))
    for _ in range(30):
        running.http.post("/predict", content=clean, headers={"content-type": "image/png"})
    assert value(running, "awnet_cusum_raised") == 0
    for _ in range(30):
        running.http.post("/predict", content=attacked, headers={"content-type": "image/png"})
    assert value(running, "awnet_cusum_raised", verdict="adversarial") == 1
    assert value(running, "awnet_cusum_alarms_total", verdict="adversarial") == 1
    assert value(running, "awnet_watched_images_total", calibrated="true") == 60
    assert value(running, "awnet_flagged_clients") == 1
    assert value(running, "awnet_flagged_largest_client_ratio") == 1
    assert "127.0.0.1" not in running.http.get("/metrics").text


def test_a_scaled_image_counts_apart(running: Running) -> None:
    """The thresholds do not speak for it."""
    running.http.post("/predict", content=encoded(noise(64, 64)), headers={"content-type": "image/png"})
    assert value(running, "awnet_watched_images_total", calibrated="false") == 1
    assert value(running, "awnet_watched_images_total", calibrated="true") == 0


def test_palette_images_that_are_flagged_raise_no_cusum_of_calibrated_images(running: Running) -> None:
    """Nor any other before it is known what is usual; they are counted with their verdict and the reason."""
    buffer = BytesIO()
    with Image.open(BytesIO(encoded(plain(0.9)))) as image:
        image.quantize(16).save(buffer, "PNG")
    for _ in range(30):
        running.http.post("/predict", content=buffer.getvalue(), headers={"content-type": "image/png"})
    assert value(running, "awnet_watched_images_total", calibrated="false", verdict="adversarial") == 30
    assert value(running, "awnet_uncalibrated_images_total", why="colour palette") == 30
    assert value(running, "awnet_cusum_raised") == value(running, "awnet_uncalibrated_cusum_raised") == 0


def test_golden_probes_are_sent_and_never_counted_as_users_verdicts(running: Running) -> None:
    """The first has soon been judged rightly; verdicts, stages and requests know nothing of it."""
    eventually(lambda: value(running, "awnet_golden_probes_total", result="right") > 0)
    assert value(running, "awnet_golden_probes_total", result="wrong") == 0
    assert value(running, "awnet_verdicts_total") == 0
    assert value(running, "awnet_stage_seconds_count") == 0
    assert value(running, "awnet_requests_total", route="/predict") == 0


def test_one_line_a_request_and_none_for_health_and_scrapes(running: Running) -> None:
    """With model, verdicts and stages where there was an answer, and the reason where there was none."""
    running.http.get("/v2/health/ready")
    running.http.get("/metrics")
    headers = {"content-type": "image/png", "x-request-id": "good-1"}
    running.http.post("/predict", content=encoded(plain(0.9)), headers=headers)
    running.http.post("/predict", content=b"nonsense", headers=headers | {"x-request-id": "bad-1"})
    running.stop()
    log = running.text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["request_id"] for line in lines] == ["good-1", "bad-1"]
    good, bad = lines
    assert (good["model"], good["version"], good["verdicts"], good["status"]) == ("awnet", "1", {"adversarial": 1}, 200)
    assert set(good["stages"]) == {"decode", "queue", "inference"}
    assert re.fullmatch("[0-9a-f]{16}", good["client"])
    assert (bad["status"], bad["reason"]) == (415, "unsupported-media")
    assert "127.0.0.1" not in "".join(line for line in log.splitlines() if line.startswith("{"))


def test_the_admin_port_lists_clients_under_hashes_and_tells_the_hash_of_an_address(running: Running) -> None:
    """Whoever has an address from a balancer's log finds its line in the list; the list itself tells no address."""
    running.http.post("/predict", content=encoded(plain(0.9)), headers={"content-type": "image/png"})
    admin = running.http.get(f"http://127.0.0.1:{running.admin_port}/admin/detection?address=127.0.0.1")
    report = admin.json()
    assert "127.0.0.1" not in admin.text
    assert [(c["client"], c["flagged"]) for c in report["clients"]] == [(report["client"], 1)]
    [watched] = report["models"]
    assert (watched["model"], watched["version"], watched["calibrated_images"]) == ("awnet", "1", 1)


def test_counters_that_alerts_look_at_begin_at_zero(running: Running) -> None:
    """An increase from nothing to 1 is none to Prometheus: the first refused version would go unnoticed."""
    text = running.http.get("/metrics").text
    assert 'awnet_reloads_total{model="awnet",result="refused"} 0.0' in text
    assert re.search(r'awnet_golden_probes_total\{.*result="wrong".*\} 0\.0', text)
    assert re.search(r'awnet_verdicts_total\{.*verdict="adversarial".*\} 0\.0', text)
