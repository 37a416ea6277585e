"""A client asks a live server, and a model in this process answers the same."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import io
import logging
import os
import re
import shutil
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import awnet
from awnet.client.images import MAX_BYTES, Encoded, encode
from tests.client.fake import Asked, Reply, answer, fake, problem, result
from tests.server.http.one_port import certificate
from tests.server.tiny import LABELS, OMEGA, ROOT, Running, encoded, noise, plain, publish


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[awnet.Client]:
    with awnet.Client(served.url) as client:
        yield client


@pytest.fixture(scope="module")
def local(repository: Path) -> Iterator[awnet.LocalModel]:
    with awnet.load(repository, threads=2) as local:
        yield local


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as a user has them: a clean, an adversarial, a broken and a large one."""
    (tmp_path / "clean.png").write_bytes(encoded(plain(0.1)))
    (tmp_path / "adversarial.jpg").write_bytes(encoded(plain(0.9), "JPEG"))
    (tmp_path / "broken.png").write_bytes(encoded(noise())[:-40])
    (tmp_path / "large.webp").write_bytes(encoded(noise(300, 200), "WEBP"))
    return tmp_path


def test_an_answer_is_typed(client: awnet.Client, folder: Path, served: Running) -> None:
    """Class, verdict and what they rest on; the document itself is there, too."""
    path = folder / "clean.png"
    got = client.predict(path, top_k=2, signals="all")
    raw = served.http.post("/predict?top_k=2&signals=all", content=path.read_bytes()).json()
    [document] = raw["results"]
    assert got.raw == document
    assert (got.name, got.ok, got.flagged) == (str(path), True, False)
    assert (got.label, got.confidence) == (
        document["predictions"][0]["label"],
        document["predictions"][0]["probability"],
    )
    assert [p.label for p in got.predictions] == [p["label"] for p in document["predictions"]]
    judged = document["adversarial"]
    assert (got.verdict, got.score, got.prior) == (judged["verdict"], judged["score"], judged["prior"])
    assert (got.calibrated, got.why, got.domain) == (judged["calibrated"], judged["why"], judged["domain"])
    assert got.probability == judged["probability"]
    assert got.thresholds is not None and got.target_fpr is not None and got.signals is not None
    assert (got.thresholds.suspicious, got.target_fpr.adversarial) == (0.41, 0.01)
    assert list(got.signals.convolutions) == [name for name, _, _ in OMEGA]
    assert got.signals.blocks[0].mean == document["signals"]["blocks"][0]["mean"]
    assert (got.format, got.width, got.height, got.resized) == ("PNG", 32, 32, False)
    assert got.model is not None and got.model.sha256 == raw["model"]["sha256"]
    assert (got.mode, got.request_id is None) == ("auto", False)


def test_an_image_may_be_given_in_many_ways(client: awnet.Client, tmp_path: Path) -> None:
    """Of a lossless file, all say the same."""
    image = noise()
    data, path = encoded(image), tmp_path / "a.png"
    path.write_bytes(data)
    given: list[Any] = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), image]
    given += [np.asarray(image), np.asfortranarray(np.asarray(image))]
    with path.open("rb") as file:
        given.append(file)
        results = [client.predict(one, signals="all") for one in given]
    assert len({(one.score, str(one.signals)) for one in results}) == 1
    assert results[0].name == results[-1].name == str(path)


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        ("http://127.0.0.1:1/a.png", "not fetched"),
        ("data:image/png;base64,AA", "not fetched"),
        ("nothing/there.png", "No such file"),
        ("a\0b", "null"),
        (".", "directory"),
        ("/dev/zero", "neither a file nor a link to one"),
        (3, "builtins.int is no image"),
        (None, "NoneType is no image"),
        (io.StringIO("a"), "'rb'"),
        (np.zeros((32, 32, 3), np.float32), r"not float32 \[32, 32, 3\]"),
        (np.zeros((3, 32, 32), np.uint8), r"not uint8 \[3, 32, 32\]"),
        (np.zeros((0, 0, 3), np.uint8), "uint8"),
    ],
)
def test_what_is_no_image_is_refused_here(image: Any, sentence: str) -> None:
    """Before anything is sent; the sentence says what to give."""
    with pytest.raises(awnet.InputError, match=sentence):
        encode(image)


def test_a_file_is_not_read_without_end(tmp_path: Path) -> None:
    """A device has none, and a path may be somebody else's."""
    endless = tmp_path / "a.png"
    with endless.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(awnet.InputError, match="larger than 64 MiB"):
        encode(endless)
    with endless.open("wb") as file:
        file.truncate(MAX_BYTES)
    assert len(encode(endless).data) == MAX_BYTES


def test_nobody_waits_for_a_pipe(tmp_path: Path) -> None:
    """Opening one waits for its other end, which may never come."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(awnet.InputError, match="neither a file nor a link to one"):
        encode(tmp_path / "a.png")


def test_pixels_become_a_png_of_the_same_pixels() -> None:
    """Ours for arrays, Pillow's for its images, in any mode."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(pixels).data))), pixels)
    for mode in ("RGB", "L", "CMYK", "F"):
        assert Image.open(io.BytesIO(encode(Image.new(mode, (9, 9))).data)).size == (9, 9)


def test_only_the_last_part_of_a_name_is_sent() -> None:
    """A server learns nothing of its clients' folders, and no name breaks out of its header."""
    assert Encoded(b"", "/somewhere/ship.png").sent_name == "ship.png"
    assert Encoded(b"", 'a"\r\nX: y.png').sent_name == "a___X: y.png"
    assert Encoded(b"", "x" * 500).sent_name == "x" * 120
    assert Encoded(b"").sent_name == "image"


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_many_are_answered_in_order_and_a_bad_one_costs_no_neighbour(
    client: awnet.Client, folder: Path, batch: int
) -> None:
    """Broken files, missing ones and what is no image at all have their own errors."""
    images = [folder / "clean.png", folder / "broken.png", folder / "gone.png", b"text", folder / "adversarial.jpg"]
    got = list(client.predict_many([*images, 3, *images], batch=batch, concurrency=3))
    assert [one.verdict for one in got] == [
        "clean",
        *[None] * 3,
        "adversarial",
        None,
        "clean",
        *[None] * 3,
        "adversarial",
    ]
    kinds = [type(one.error) for one in got[:6]]
    refused = [awnet.ImageError, awnet.InputError, awnet.ImageError]
    assert kinds == [type(None), *refused, type(None), awnet.InputError]
    assert [one.name for one in got[:3]] == [str(folder / name) for name in ("clean.png", "broken.png", "gone.png")]


def test_images_are_read_no_further_than_needed(client: awnet.Client) -> None:
    """A generator of a million images is no list of them."""
    taken = 0

    def images() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield encoded(plain(0.1))

    answers = client.predict_many(images(), batch=2, concurrency=2)
    assert [next(answers).label for _ in range(3)]
    answers.close()
    assert taken <= 10


def test_a_batch_that_is_too_large_is_halved() -> None:
    """Also where the server takes less than the client expects."""

    def most_two(asked: Asked) -> Reply:
        count = asked.body.count(b'; name="image"') or 1
        return answer(*[result()] * count) if count <= 2 else problem(413, "body-too-large")

    with fake(most_two) as server, awnet.Client(server.url) as client:
        assert [one.label for one in client.predict_many([b"x"] * 7, batch=7)] == ["ship"] * 7


def test_an_image_that_is_blamed_is_left_out_and_the_others_are_asked_again() -> None:
    """Of a server that refuses a whole request for one image."""

    def second(asked: Asked) -> Reply:
        if b"spoilt" in asked.body:
            return problem(422, "undecodable-image", image=1)
        return answer(*[result()] * asked.body.count(b'; name="image"'))

    with fake(second) as server, awnet.Client(server.url) as client:
        got = list(client.predict_many([b"1", b"spoilt", b"2"]))
    assert [one.label for one in got] == ["ship", None, "ship"]
    assert isinstance(got[1].error, awnet.ImageError)


def test_a_certificate_of_nobody_known_says_how_to_name_its_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and the variable that it names is read."""
    chain, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    with fake(answer(result()), tls=context) as server:
        with awnet.Client(server.url) as client, pytest.raises(awnet.TransportError, match="SSL_CERT_FILE names"):
            client.predict(b"x")
        assert server.connections == 1
        monkeypatch.setenv("SSL_CERT_FILE", str(chain))
        with awnet.Client(server.url) as client:
            assert client.predict(b"x").ok


def test_what_no_image_can_mend_ends_the_loop() -> None:
    """A wrong key is raised, and not told a thousand times."""
    refused = pytest.raises(awnet.AccessError)
    with fake(problem(401, "unauthorized")) as server, awnet.Client(server.url) as client, refused:
        list(client.predict_many([b"x"] * 100, batch=1, concurrency=2))
    assert len(server.asked) < 5


def test_a_per_image_problem_is_an_error_of_that_image() -> None:
    """As servers put it in place of a result; `predict` of that image alone raises it."""
    inside = problem(422, "image-rejected", image=1).document
    rejected = {"problem": inside, "decision": "withheld"}
    with fake(answer(result(), rejected)) as server, awnet.Client(server.url) as client:
        first, second = client.predict_many([b"x", b"y"])
    assert (first.ok, second.ok, second.decision, second.flagged) == (True, False, "withheld", True)
    assert isinstance(second.error, awnet.RejectedError)
    assert second.error.slug == "image-rejected"
    with fake(answer(rejected)) as server, awnet.Client(server.url) as client, pytest.raises(awnet.RejectedError):
        client.predict(b"y")


@pytest.mark.process
def test_images_of_which_a_policy_leaves_none_have_an_error_each(repository: Path) -> None:
    """The server refuses such a request as a whole; those after it are asked about all the same."""
    images = [encoded(plain(red)) for red in (0.9, 0.95, 0.1, 0.9)]
    running = Running(repository, policy="reject")
    try:
        running.wait_ready()
        with awnet.Client(running.url) as client:
            found = list(client.predict_many(images, batch=2))
    finally:
        running.stop()
    assert [type(result.error) for result in found] == [
        *(awnet.RejectedError, awnet.RejectedError),
        *(type(None), awnet.RejectedError),
    ]
    assert (found[2].policy, found[2].decision, found[2].verdict) == ("reject", "answered", "clean")


def test_fields_that_are_left_out_are_none_and_unknown_ones_are_kept() -> None:
    """A key that may see no scores gets none, and a newer server may tell more."""
    document = {"predictions": [{"class_id": 1, "label": "cat"}], "adversarial": {"verdict": "clean"}, "new": [1]}
    with fake(answer(document)) as server, awnet.Client(server.url) as client:
        got = client.predict(b"x")
    assert (got.label, got.confidence, got.score, got.thresholds, got.format) == ("cat", None, None, None, None)
    assert got.raw["new"] == [1]


def test_levels_stand_in_the_place_of_numbers() -> None:
    """As a key that may not see the numbers is told them."""
    document = {
        "predictions": [{"class_id": 1, "label": "cat", "probability_level": "high"}],
        "adversarial": {"score_level": "very-low", "probability_level": None, "verdict": "clean"},
    }
    with fake(answer(document)) as server, awnet.Client(server.url) as client:
        got = client.predict(b"x")
    assert (got.confidence, got.score, got.probability) == ("high", "very-low", None)


def test_a_request_says_what_its_client_was_told() -> None:
    """Key, model, mode and so on of the client, unless the call says otherwise; the key stands nowhere else."""
    key = "awnet_" + "k" * 43
    options: dict[str, Any] = {"key": key, "model": "m", "mode": "robust", "top_k": 1}
    with fake(answer(result())) as server, awnet.Client(f"{server.url}/prefix/", **options) as client:
        client.predict(b"x")
        client.predict(b"x", mode="auto", version=3, signals="summary", priority="low")
        assert key not in repr(vars(client)) + repr(vars(client._inner))
    first, second = server.asked
    assert first.path.startswith("/prefix/predict?top_k=1&model=m&mode=robust&timeout_ms=")
    assert second.path.startswith(
        "/prefix/predict?top_k=1&signals=summary&model=m&version=3&mode=auto&priority=low&timeout_ms="
    )
    assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {key}"}


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000/predict"),
        ("localhost:8000/", "http://localhost:8000/predict"),
        ("[::1]:8000/a/prefix", "http://[::1]:8000/a/prefix/predict"),
        ("http://scores.example/a/prefix/", "http://scores.example/a/prefix/predict"),
        ("https://[2001:db8::1]", "https://[2001:db8::1]/predict"),
    ],
)
def test_an_address_is_taken_as_it_is_mostly_written(given: str, asked: str) -> None:
    """Without a scheme on this machine, with a slash at its end or none, below the prefix of a proxy, of IPv6."""
    with awnet.Client(given) as client:
        assert isinstance(client._inner, awnet.AsyncClient)
        assert str(client._inner._http.build_request("POST", "predict").url) == asked


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("scores.example:8000", "write https://scores.example:8000, or http://scores.example:8000 without encryption"),
        ("10.0.0.7", "write https://10.0.0.7, or http://10.0.0.7 without encryption"),
        ("::1", "an IPv6 address in brackets"),
        ("htp://scores.example", "write http://HOST:PORT or https://HOST"),
        ("https://user:secret@scores.example", "no user and no password"),
    ],
)
def test_an_address_that_cannot_be_used_says_what_to_write(given: str, said: str) -> None:
    """To another machine nothing is sent in the open unless that is asked for; a password is not repeated."""
    with pytest.raises(ValueError, match=re.escape(said)) as raised:
        awnet.Client(given)
    assert "secret" not in str(raised.value)


def test_the_names_are_those_of_the_client_and_of_nothing_else() -> None:
    """Whichever way they are looked for; they are listed in one place."""
    names: dict[str, Any] = {}
    exec("from awnet import *", names)
    assert names.keys() - {"__builtins__"} == set(awnet.__all__) <= set(dir(awnet))
    assert list(inspect.signature(awnet.Client).parameters) == list(inspect.signature(awnet.AsyncClient).parameters)
    with pytest.raises(AttributeError, match="no attribute 'Klient'"):
        awnet.Klient  # noqa: B018


@pytest.mark.parametrize(
    "arguments",
    [
        {"url": "scores.example:8000"},
        {"url": "::1"},
        {"url": "127.0.0.1:99999"},
        {"url": "ftp://a"},
        {"url": "http://user:password@a"},
        {"url": "http://a/?x=1"},
        {"url": "http://[::1"},
        {"key": "two words"},
        {"key": "line\r\nX: y"},
        {"key": ""},
        {"timeout": 0},
        {"timeout": float("nan")},
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments: dict[str, Any]) -> None:
    """And no thread is left behind."""
    before = threading.active_count()
    with pytest.raises(ValueError):
        awnet.Client(**arguments)
    assert threading.active_count() == before


def test_an_unknown_option_is_a_type_error(client: awnet.Client) -> None:
    """A slip must not go unnoticed."""
    with pytest.raises(TypeError, match="topk"):
        client.predict(b"x", topk=3)


def test_connections_are_kept_and_threads_may_share_a_client() -> None:
    """One connection for calls one after the other; several callers need no more than one each."""
    with fake(answer(result())) as server, awnet.Client(server.url) as client:
        for _ in range(5):
            client.predict(b"x")
        assert server.connections == 1
        callers = [threading.Thread(target=lambda: [client.predict(b"x") for _ in range(5)]) for _ in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert len(server.asked) == 25
    assert server.connections <= 5


def test_a_closed_client_says_so_and_leaves_no_thread() -> None:
    """Closing twice is no fault."""
    before = threading.active_count()
    client = awnet.Client()
    client.close()
    client.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        client.predict(b"x")


@pytest.mark.process
def test_a_forked_process_is_told_to_make_its_own_client() -> None:
    """In place of waiting for a thread that is not there."""
    client = awnet.Client()
    child = os.fork()
    if not child:
        try:
            client.predict(b"x")
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.close()


def test_readiness_and_the_model_are_told(client: awnet.Client, local: awnet.LocalModel) -> None:
    """By a server and by a model in this process alike."""
    assert client.ready() and local.ready()
    assert client.model() == local.model()
    assert client.model()["labels"] == LABELS
    for one in (client, local):
        with pytest.raises(awnet.NotServedError, match="no model 'other'"):
            one.model("other")


def test_the_async_twin_answers_the_same(client: awnet.Client, served: Running, folder: Path) -> None:
    """One by one, many from a plain and from an asynchronous iterable, and its errors."""
    images = sorted(folder.iterdir())

    async def ask() -> tuple[list[awnet.Result], list[awnet.Result], awnet.Result]:
        async def one_by_one() -> Any:
            for image in images:
                yield image

        async with awnet.AsyncClient(served.url) as twin:
            assert await twin.ready() and (await twin.model())["name"] == "awnet"
            with pytest.raises(awnet.ImageError):
                await twin.predict(folder / "broken.png")
            plainly = [one async for one in twin.predict_many(images, batch=2)]
            return plainly, [one async for one in twin.predict_many(one_by_one())], await twin.predict(images[0])

    expected = list(client.predict_many(images))
    plainly, asynchronously, one = asyncio.run(ask())
    assert documents(plainly) == documents(asynchronously) == documents(expected)
    assert one.raw == {name: value for name, value in expected[0].raw.items() if name != "file"}


def test_a_model_in_this_process_answers_what_a_server_answers(
    client: awnet.Client, local: awnet.LocalModel, folder: Path
) -> None:
    """Every value of every kind of file, and the same errors."""
    options: dict[str, Any] = {"top_k": 10, "signals": "all"}
    there, here = (list(one.predict_many(sorted(folder.iterdir()), **options)) for one in (client, local))
    assert [one.verdict for one in here] == ["adversarial", None, "clean", one_of(there, "large.webp").verdict]
    for remote, own in zip(there, here, strict=True):
        assert documents([own]) == documents([remote])
        assert (own.model, own.mode, own.name) == (remote.model, remote.mode, remote.name)
        assert type(own.error) is type(remote.error)
    for asked in ({"top_k": 99}, {"mode": "robust"}, {"model": "other"}, {"version": 9}, {"version": "two"}):
        errors = []
        for one in (client, local):
            with pytest.raises(awnet.RequestError) as raised:
                one.predict(folder / "clean.png", **asked)
            errors.append((type(raised.value), raised.value.slug, raised.value.detail, raised.value.status))
        assert errors[0] == errors[1]


def test_the_programs_of_the_page_run(served: Running, capsys: pytest.CaptureFixture[str]) -> None:
    """Against this server, and with the bundled model in this process."""
    page = (ROOT / "docs/client.md").read_text("utf-8")
    remote, own = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    with contextlib.chdir(ROOT):
        exec(remote.replace("http://127.0.0.1:8000", served.url), {})
        asked, first, second = capsys.readouterr().out.splitlines()
        assert len(asked.split()) == 5 and first.split()[0] == "examples/ship.png"
        assert "the image is none of PNG" in second
        exec(own, {})
        assert capsys.readouterr().out == "adversarial\n"


def test_the_page_lists_every_error() -> None:
    """With the classes that the package exports, and no other."""
    page = (ROOT / "docs/client.md").read_text("utf-8").partition("## Errors")[2].partition("## ")[0]
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    exported = [
        name for name in awnet.__all__ if isinstance(kind := getattr(awnet, name), type) and issubclass(kind, Exception)
    ]
    assert sorted(listed) == sorted(exported)


def documents(results: list[awnet.Result]) -> list[dict[str, Any]]:
    """What was answered, without the request ids in it."""
    return [
        {**one.raw, "problem": {**problem, "request_id": ""}} if (problem := one.raw.get("problem")) else dict(one.raw)
        for one in results
    ]


def one_of(results: list[awnet.Result], name: str) -> awnet.Result:
    return next(one for one in results if one.name is not None and one.name.endswith(name))


def test_a_lone_file_is_loaded(repository: Path, tmp_path: Path, local: awnet.LocalModel) -> None:
    """Wherever it lies, without a manifest; beside one it is held to it."""
    shutil.copy(repository / "awnet/1/model.onnx", tmp_path / "mine.onnx")
    image = encoded(noise())
    with awnet.load(tmp_path / "mine.onnx", threads=1, model="mine") as mine:
        assert mine.predict(image).raw == local.predict(image).raw
        assert mine.model()["name"] == "mine"
    publish(tmp_path, "7")
    with awnet.load(tmp_path / "awnet/7/model.onnx", threads=1) as seven:
        assert seven.model()["version"] == "7"
    (tmp_path / "awnet/7/model.onnx").write_bytes(b"something else")
    with pytest.raises(awnet.LoadError, match="manifest"):
        awnet.load(tmp_path / "awnet/7/model.onnx")


@pytest.mark.parametrize(
    ("path", "options", "sentence"),
    [
        ("nowhere.onnx", {}, "no such file"),
        ("README.md", {}, "not a well-formed ONNX file"),
        ("tests", {}, "no version"),
        ("model_repository", {"version": 99}, "no version 99"),
    ],
)
def test_what_cannot_be_loaded_says_why(path: str, options: dict[str, Any], sentence: str) -> None:
    """And leaves no thread."""
    before = threading.active_count()
    with pytest.raises(awnet.LoadError, match=sentence):
        awnet.load(ROOT / path, **options)
    assert threading.active_count() == before


def test_a_model_in_this_process_takes_nothing_from_the_environment(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's variables are the server's."""
    monkeypatch.setenv("AWNET_PRIOR", "0.5")
    monkeypatch.setenv("AWNET_PORT", "no number")
    with awnet.load(repository, threads=1) as local:
        assert local.model()["prior"] == 0.01
    with pytest.raises(ValueError, match="prior"):
        awnet.load(repository, prior=2)


@pytest.mark.process
def test_models_in_this_process_leave_logging_as_it_is(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has set logging up hears of them; whoever has not, does not."""
    logger = logging.getLogger("awnet")
    level = logger.level
    with caplog.at_level(logging.INFO, "awnet"):
        first, second = awnet.load(repository, threads=1), awnet.load(repository, threads=1)
    first.close()
    second.close()
    assert logger.level == level
    assert any(record.getMessage().startswith("ready: awnet") for record in caplog.records)
    program = f"import awnet; awnet.load({str(repository)!r}, threads=1).close()"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""


@pytest.mark.process
def test_a_model_in_this_process_needs_no_torch(repository: Path) -> None:
    """And asking for the package alone imports neither NumPy nor httpx."""
    program = (
        "import sys, awnet; assert not {'numpy', 'httpx', 'server'} & set(sys.modules);"
        f"awnet.load({str(repository)!r}, threads=1).close();"
        "print(sorted({'torch', 'onnx', 'grpc', 'tritonclient'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
