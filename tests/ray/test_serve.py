"""On Ray Serve: the answers of `python -m server`, by replicas that may be killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from awnet.ray.__main__ import main
from awnet.ray.settings import given_settings, replica_settings
from benchmarks.harness.exchange import exposition, fetch, seconds_until
from benchmarks.harness.load import loaded
from benchmarks.harness.ray import RayServe
from benchmarks.harness.report import ROOT
from server.errors import SourceError
from server.settings.options import SettingsError
from server.settings.settings import Settings
from tests.server.recorded_answers import Answer, Ports, asks, differences, exchange, kept, stored_images
from tests.server.test_answers import EXPECTED
from tests.server.tiny import publish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning"),  # in Ray Serve
]

# What one process has counted, which is not the same where several answer in turn; /metrics, which has ports of its own
# here, and the document that names it.
OF_A_PROCESS = re.compile(r"metrics |GET /metrics|method: \w+ /metrics|GET /page/recent\.json|GET /openapi\.json")
MADE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # a request id of Ray's proxy


def without_identity(answer: Answer) -> Answer:
    """An answer as it can be compared: Ray's proxy makes other request ids, and tells them in another place."""
    headers = [line for line in answer.get("headers", []) if line != "server: uvicorn"]
    body = answer.get("body", "")
    return {
        "status": answer["status"],
        "headers": sorted(MADE.sub("<made>", line) for line in headers),
        "body": MADE.sub("<made>", body) if isinstance(body, str) else body,
    }


def test_answers_are_those_that_were_recorded_of_the_server(on_ray: RayServe) -> None:
    """/predict, the Open Inference Protocol, every refusal and the page: status, headers and body."""
    ports = Ports(on_ray.port, 0, 0, on_ray.log)
    listed = [
        ask
        for ask in asks(stored_images())
        if not ask.admin and ask.method != "GRPC" and not OF_A_PROCESS.match(ask.name)
    ]
    now = kept({ask.name: exchange(ports, ask) for ask in listed})
    own = now.pop("predict: with a request id that is none")  # told twice: as it was sent, and as the body has it
    assert {"x-request-id: no id!", "x-request-id: <made>"} < set(own["headers"])
    unlike = {
        name: differences(without_identity(EXPECTED[name]), without_identity(answer)) for name, answer in now.items()
    }
    assert {name: found for name, found in unlike.items() if found} == {}
    assert len(now) > 300


def test_metrics_of_the_replicas_add_up(on_ray: RayServe) -> None:
    """Each replica of a node has a port, from AWNET_METRICS_PORT on, and no other port tells its figures."""

    async def images() -> list[float]:
        texts = [await fetch(on_ray.metrics_port + number, "/metrics") for number in range(on_ray.replicas)]
        verdicts = [
            {name: value for name, value in exposition(text).items() if name.startswith("awnet_verdicts_total")}
            for text in texts
        ]
        return [sum(found.values()) for found in verdicts]

    async def before_and_after() -> tuple[list[float], list[float], int]:
        before = await images()
        async with loaded(on_ray.port, pause=0.005) as load:
            await asyncio.sleep(1)
        return before, await images(), len(load.samples) + len(load.images)

    before, after, sent = asyncio.run(before_and_after())
    assert sum(after) - sum(before) == sent
    assert all(now > then for now, then in zip(after, before, strict=True)), "one replica had no part"


def test_a_killed_replica_costs_no_wrong_answer_and_is_replaced(on_ray: RayServe) -> None:
    """What was under way in it fails; the other one answers on, and Ray starts another."""

    async def killed() -> tuple[Any, float]:
        first, other = on_ray.pids()
        async with loaded(on_ray.port) as load:
            await asyncio.sleep(1)
            os.kill(first, signal.SIGKILL)
            at = time.monotonic()

            async def replaced() -> bool:
                """A third process has metrics of its own, so it answers."""
                return {first, other} < {first, *on_ray.pids()} and b"awnet" in await fetch(
                    on_ray.metrics_port, "/metrics"
                ) + await fetch(on_ray.metrics_port + 1, "/metrics")

            await seconds_until(replaced, 120, on_ray)
            await asyncio.sleep(1)
        return load, at

    load, at = asyncio.run(killed())
    counts = load.counts()
    assert counts["wrong"] == 0
    assert counts["ok"] > 50
    assert load.failed() <= load.keeping + load.opening, counts  # at most what was under way
    assert load.failed(since=at + 30) == 0


def test_sigterm_answers_what_is_under_way_and_ends_with_status_0(on_ray: RayServe) -> None:
    """The last test: the Ray of this room has ended then."""
    os.kill(on_ray.pid, signal.SIGTERM)
    assert asyncio.run(on_ray.gone(60)) == 0
    assert on_ray.pids() == []


def test_the_file_for_a_cluster_is_one_of_ray_serves_and_names_what_is_there() -> None:
    """Its schema is Ray's; the application, the deployment and each setting exist."""
    from ray.serve.schema import ServeDeploySchema

    from awnet.ray import app
    from awnet.ray.replica import autoscaling

    document = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text("utf-8"))
    (application,) = ServeDeploySchema(**document).applications
    assert (application.import_path, application.deployments[0].name) == ("awnet.ray:app", app._bound_deployment.name)
    scaled = application.deployments[0].autoscaling_config
    assert autoscaling(2, 8).model_dump(exclude_unset=True).items() >= scaled.items(), (
        "other delays than of the program"
    )
    variables = document["applications"][0]["runtime_env"]["env_vars"]
    assert {name.removeprefix("AWNET_").lower() for name in variables} <= Settings.model_fields.keys()


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ({"grpc_port": 8001}, "grpc_port has no effect on Ray"),
        ({"workers": 2}, "replicas are the workers"),
        ({"proxy_protocol": True, "trusted_proxies": "127.0.0.1"}, "no PROXY header"),
    ],
)
def test_what_a_replica_does_not_have_is_refused(setting: dict[str, Any], line: str) -> None:
    """Nobody believes that a port is there, or that connections are encrypted, which are not."""
    with pytest.raises(SettingsError, match=line):
        replica_settings(Settings(**setting), 1)


def test_a_replica_has_the_threads_of_its_cores() -> None:
    """And no more, since others of the node have theirs; a number that is set is taken."""
    assert [replica_settings(Settings(threads=given), 3).threads for given in (0, 2)] == [3, 2]


def test_replicas_of_every_node_are_drawn_alike() -> None:
    """Ray's own router prefers those of the proxy's node: of four on three nodes one got every request."""
    from awnet.ray import app
    from awnet.ray.routing import EvenRouter

    router: Any = SimpleNamespace()  # what Ray keeps in one is not asked for
    replicas: Any = ["here", "there", "elsewhere"]
    drawn = [asyncio.run(EvenRouter.choose_replicas(router, replicas))[0] for _ in range(300)]
    assert all(len({*pair}) == 2 for pair in drawn)
    assert min(sum(name in pair for pair in drawn) for name in replicas) > 100
    assert asyncio.run(EvenRouter.choose_replicas(router, replicas[:1])) == [["here"]]
    used = app._bound_deployment._deployment_config.request_router_config.request_router_class
    assert used == "awnet.ray.routing.EvenRouter"


def test_haproxy_of_ray_takes_no_router_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses the deployment of one that has one."""
    from ray.serve.config import RequestRouterConfig

    from awnet.ray.replica import routing

    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert routing() == RequestRouterConfig()
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    assert routing() != RequestRouterConfig()


def test_paths_are_told_whole() -> None:
    """A replica runs in another folder; what is not set here is up to the variables of its machine."""
    settings = given_settings(Settings(repository="model_repository", api_keys="keys.json", max_batch=8))
    assert settings.keys() == {"repository", "api_keys", "max_batch"}
    assert settings["repository"] == os.path.abspath("model_repository")
    assert settings["api_keys"] == os.path.abspath("keys.json")


def test_a_replica_fetches_its_model_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_variables: None
) -> None:
    """Each for its own repository; what cannot be fetched starts no replica."""
    import ray

    from awnet.ray.replica import Replica

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_assigned_resources=lambda: {"CPU": 1}))
    model = publish(tmp_path / "published") / "awnet/1/model.onnx"

    async def begun(sha256: str) -> dict[str, Any]:
        replica: Any = SimpleNamespace()  # an object that Ray did not make would be awaited by nobody
        given = {"repository": str(tmp_path / "models"), "model_source": f"file://{model}#sha256={sha256}"}
        await Replica.__init__(replica, given)
        status: dict[str, Any] = replica._service.models.status()
        await replica._service.stop()
        return status

    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert asyncio.run(begun(digest))["models"][0]["versions"][0]["sha256"] == digest
    with pytest.raises(SourceError):
        asyncio.run(begun("0" * 64))


def test_what_cannot_be_used_ends_with_status_2(no_variables: None, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and no Ray is started."""
    assert main(["--min-replicas", "3", "--max-replicas", "2"]) == 2
    assert main(["--grpc-port", "9"]) == 2
    assert main(["--max-btch", "2"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ["--min-replicas", "setting", "--max-btch"]
