"""The OpenAPI document is right: what it allows is answered as it says, and clients that are generated from it work."""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.harness.processes import free_port
from tests.server.tiny import CALL, LABELS, Running, encoded, noise, plain, publish

pytestmark = pytest.mark.process

BIN = Path(sys.executable).parent
# Every one but that a request which the document allows is answered: it cannot say which bytes are an image.
CHECKS = "--exclude-checks=positive_data_acceptance"
EXAMPLES, SEED = "5", "1"
RUN_SECONDS = 900  # five on a quiet core
# The generator knows no images; all of these are a body of bytes.
RAW = "content_type_overrides:\n" + "".join(
    f"  {kind}: application/octet-stream\n" for kind in ("image/png", "image/jpeg", "image/webp", "application/zip")
)


class Opened(Running):
    """With an admin port."""

    def __init__(self, repository: Path) -> None:
        self.admin_port = free_port()
        super().__init__(repository, admin_port=self.admin_port, max_body_bytes=1 << 20)


@pytest.fixture(scope="module")
def server(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """Two versions, and an admin port."""
    repository = tmp_path_factory.mktemp("repository")
    for version in ("1", "2"):
        publish(repository, version, seed=int(version))
    running = Opened(repository)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def document(server: Opened) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/openapi.json").json()
    return found


def admin_url(server: Opened) -> str:
    return f"http://127.0.0.1:{server.admin_port}"


def test_the_document_tells_nobody_where_the_admin_port_is(server: Opened, document: dict[str, Any]) -> None:
    """Whoever may read it reads what the port answers, at the address that it has by default."""
    assert admin_url(server) not in json.dumps(document)
    assert document["paths"]["/admin/models"]["servers"][0]["url"] == "http://127.0.0.1:8002"


@pytest.mark.slow
@pytest.mark.parametrize("port", ["public", "admin"])
def test_what_the_document_allows_is_answered_as_it_says(
    server: Opened, document: dict[str, Any], tmp_path: Path, port: str
) -> None:
    """Schemathesis finds no other status, header or shape, no fault, and nothing that is taken by mistake."""
    which = ["--exclude-path-regex", "^/admin"]
    if port == "admin":
        which = ["--include-path-regex", "^/admin", "--url", admin_url(server)]
    command = [BIN / "schemathesis", "run", f"{server.url}/openapi.json", *which, CHECKS, "--phases=coverage,fuzzing"]
    command += [f"--max-examples={EXAMPLES}", f"--seed={SEED}", "--no-color", "--continue-on-failure"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert run.returncode == 0, run.stdout[-6000:]
    tested = re.search(r"(\d+) generated, \1 passed", run.stdout)
    assert tested is not None and int(tested[1]) > 100


@pytest.fixture(scope="module")
def generated(document: dict[str, Any], server: Opened, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client that openapi-python-client wrote, as a package."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "config.yaml").write_text(f"{RAW}post_hooks: []\n")
    options = ["--output-path", folder / "awnet_generated", "--config", folder / "config.yaml", "--meta", "none"]
    options.append("--fail-on-warning")
    command = [BIN / "openapi-python-client", "generate", "--url", f"{server.url}/openapi.json", *options]
    run = subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("awnet_generated")
    finally:
        sys.path.remove(str(folder))


@pytest.mark.slow
def test_a_generated_client_works(generated: Any, server: Opened, document: dict[str, Any]) -> None:
    """Files, base64, raw bytes; the model; tensors; the admin port."""

    def api(name: str) -> Any:
        return importlib.import_module(f"awnet_generated.api.{name}")

    models, types = (importlib.import_module(f"awnet_generated.{name}") for name in ("models", "types"))
    client = generated.Client(base_url=server.url, raise_on_unexpected_status=True)
    good = encoded(plain(0.1))

    def file(data: bytes, name: str) -> Any:
        return types.File(payload=io.BytesIO(data), file_name=name, mime_type="image/png")

    predict = api("default.predict").sync
    body = models.PredictFilesBody(image=[file(good, "a.png"), file(good[:-30], "b.png")])
    answer = predict(client=client, body=body, top_k=2, signals=models.PredictSignals.SUMMARY)
    first, second = answer.results
    assert (first.file, first.adversarial.verdict.value, len(first.predictions)) == ("a.png", "clean", 2)
    assert first.signals.blocks[0].name == "blocks.0"
    assert (second.file, second.problem.status) == ("b.png", 422)
    text = base64.b64encode(good).decode()
    for same in (models.Base64Images(image=text), file(good, "a.png")):
        [alone] = predict(client=client, body=same, top_k=2).results
        assert alone.predictions == first.predictions
    refused = predict(client=client, body=models.Base64Images(image="?"))
    assert (type(refused).__name__, refused.status) == ("Problem", 400)

    assert api("model.model").sync(client=client).labels == LABELS
    protocol = "open_inference_protocol"
    assert api(f"{protocol}.model_metadata").sync("awnet", client=client).versions == ["1", "2"]
    parameters = models.InferenceInputParametersType0.from_dict({"content_type": "base64"})
    given = models.InferenceInput(
        name=models.InferenceInputName.IMAGE_BYTES,
        shape=[1],
        datatype=models.InferenceInputDatatype.BYTES,
        parameters=parameters,
        data=[text],
    )
    asked = models.InferenceRequest(inputs=[given], outputs=[models.RequestedOutput(name="verdict")])
    inferred = api(f"{protocol}.model_infer").sync("awnet", client=client, body=asked)
    assert inferred.outputs[0].data == ["clean"]

    admin = generated.Client(base_url=admin_url(server), raise_on_unexpected_status=True)
    status = api("admin.admin_promote").sync("awnet", client=admin, body=models.Version(version=1))
    assert status.to_dict()["models"][0]["serving"] == "1"
    assert api("model.model").sync(client=client).version == "1"


def test_every_operation_has_a_name_and_every_path_of_a_route_is_there(document: dict[str, Any]) -> None:
    """A generated client is made of names."""
    names = [o["operationId"] for path in document["paths"].values() for m, o in path.items() if m != "servers"]
    assert len(set(names)) == len(names) and all(re.fullmatch("[a-z_]+", name) for name in names)
    assert {"/predict", "/model", "/metrics", "/v2", "/v2/models/{model}/infer", "/admin/canary"} <= document[
        "paths"
    ].keys()


def test_the_page_has_an_upload_to_try_without_a_script(server: Opened) -> None:
    """A browser posts it as any form, and shows the JSON; the policy allows that address and no other."""
    page = server.http.get("/docs")
    assert "<script" not in page.text
    assert "form-action 'self'" in page.headers["content-security-policy"]
    form = re.search(
        r'<form action="(\w+)" method="post" enctype="multipart/form-data">(.*?)</form>', page.text, re.DOTALL
    )
    assert form is not None
    field = re.search(r'<input type="file" name="(\w+)"', form[2])
    assert field is not None
    headers = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    image = encoded(noise())
    answer = httpx.post(f"{server.url}/{form[1]}", files={field[1]: ("a.png", image)}, headers=headers, **CALL)
    assert answer.json()["results"][0]["file"] == "a.png"
    assert os.path.basename(form[1]) == "predict"
