"""The page in a real Chromium. The fixture `visit` also holds each test to a silent console and to one host."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.requires import requires
from tests.server.schema_2 import schema_2
from tests.server.schema_3 import publish_modes
from tests.server.tiny import Running, encoded, noise, plain, publish

pytestmark = requires("chromium")

Visit, Image = Callable[..., Any], Callable[..., Path]
PATIENCE_MS = 60_000
TIMES = "\u00d7"
REFUSED = "Failed to load resource"  # the browser's own line on the console about an answer of 4xx or 5xx

# Hands files to the page as the clipboard or a drop would; `files` is [[name, type, base64], ...].
HAND_OVER = """([kind, files]) => {
  const carried = new DataTransfer();
  for (const [name, type, data] of files) {
    carried.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, {type}));
  }
  const event = kind === "paste"
    ? new ClipboardEvent("paste", {clipboardData: carried, bubbles: true, cancelable: true})
    : new DragEvent("drop", {dataTransfer: carried, bubbles: true, cancelable: true});
  document.getElementById("drop").dispatchEvent(event);
}"""


# What has the focus, and how it is outlined; a hidden control shows its focus on what follows it.
FOCUS = """() => {
  const focus = document.activeElement;
  const outlined = ["file", "radio"].includes(focus.type) ? focus.nextElementSibling : focus;
  const name = focus.id || focus.name || focus.className || focus.textContent.trim();
  return [name, getComputedStyle(outlined).outlineStyle];
}"""

# Classes of the boxes whose content is wider than they are.
OVERFULL = """() => [...document.querySelectorAll('.card, .recent, .notes, .ask')]
  .filter(box => box.scrollWidth > box.clientWidth).map(box => box.className)"""


def soon(locator: Any) -> Any:
    """Assertions on `locator` that wait; to wait for an expression would take `eval`, which the policy forbids."""
    from playwright.sync_api import expect

    return expect(locator)


def hand_over(page: Any, kind: str, **images: float) -> None:
    files = [
        [f"{name}.png", "image/png", base64.b64encode(encoded(plain(red))).decode()] for name, red in images.items()
    ]
    page.evaluate(HAND_OVER, [kind, files])


def choose(page: Any, *paths: Path) -> None:
    page.set_input_files("#file", [str(path) for path in paths])
    page.wait_for_selector(".verdict, .problem")


def choose_several(page: Any, *paths: Path) -> None:
    """And wait until each has its answer."""
    page.set_input_files("#file", [str(path) for path in paths])
    soon(page.locator(".strip")).not_to_contain_text("waiting", timeout=PATIENCE_MS)


@pytest.mark.parametrize(
    ("red", "verdict", "means"),
    [
        (0.2, "Clean", "no proof"),
        (0.6, "Suspicious", "about 1 in 20 scores this high"),
        (0.9, "Adversarial", "do not rely on its class"),
    ],
)
def test_a_chosen_image_is_judged_in_words(visit: Visit, image: Image, red: float, verdict: str, means: str) -> None:
    """The verdict, what it means, ten classes, both thresholds, the signals, the preparation and the times."""
    page = visit()
    choose(page, image("mine.png", red))
    card = page.locator(".verdict")
    best = page.locator(".classes .best").inner_text().split()
    assert card.locator("h3").inner_text().split() == [verdict, *best]  # in the first line of the card
    assert card.inner_text().split()[0] == verdict
    assert means in card.inner_text()
    assert page.locator(".classes tbody tr").count() == 10
    label = page.get_by_role("region", name="Adversarial score").get_by_role("img").get_attribute("aria-label")
    assert "suspicious above 0.410 (5\u00a0% of clean images)" in label
    assert "adversarial above 0.770 (1\u00a0% of clean images)" in label
    assert page.locator(".omegas li").count() == 3
    assert "pixels went in untouched" in page.get_by_role("region", name="Preparation").inner_text()
    times = page.get_by_role("region", name="Times").inner_text()
    assert all(stage in times for stage in ("decode", "queue", "inference", "In the server"))
    assert f"mine.png: {verdict.lower()}" in page.get_by_role("status").text_content()


GAUGE = """async ([width, scores]) => {
  const { gauge } = await import("/page/charts.js");
  const marks = scores.map((score, index) => ({ score, index, kind: "clean" }));
  const thresholds = [0.001, 0.008].map((score) => ({ score, shown: "a", note: "" }));
  const drawing = gauge(marks, thresholds, "")(width);
  const host = document.createElement("div");
  host.className = "chart";
  host.append(drawing);
  document.body.append(host);
  const boxes = [...drawing.querySelectorAll(".tick-label")].map((label) => label.getBBox());
  const ticks = [...drawing.querySelectorAll(".tick")].map((tick) => Number(tick.getAttribute("x1")));
  host.remove();
  return [ticks, boxes.map((box) => [box.x, box.x + box.width])];
}"""


def test_the_ends_of_the_gauge_say_where_they_are(visit: Visit) -> None:
    """First and last tick have their figure, inside the drawing; no two figures overlap, however narrow."""
    page = visit()
    for width in (220, 290, 360, 640, 900):
        for scores in ((0.5,), (0.0005, 0.9997), (0.00000002, 0.99999998), (0, 1)):
            ticks, labels = page.evaluate(GAUGE, [width, scores])
            for (begins, ends), tick in ((labels[0], ticks[0]), (labels[-1], ticks[-1])):
                assert begins - 4 <= tick <= ends + 4, (width, scores)
            assert labels[0][0] >= -2 and labels[-1][1] <= width + 2, (width, scores)
            assert all(a[1] <= b[0] for a, b in pairwise(labels)), (width, scores)


def test_the_page_shows_the_score_and_the_class_that_predict_gives(visit: Visit, served: Running, image: Image) -> None:
    """The page is one more client of /predict, and adds nothing."""
    path = image("mine.png", 0.5)
    answer = served.http.post("/predict", content=path.read_bytes(), headers={"content-type": "image/png"}).json()
    page = visit()
    choose(page, path)
    best = answer["results"][0]["predictions"][0]
    shown = float(page.locator(".score b").inner_text())
    assert shown == pytest.approx(answer["results"][0]["adversarial"]["score"], rel=0.01)
    row = page.locator(".classes .best").inner_text()
    assert best["label"] in row and f"{100 * best['probability']:.1f}" in row


def test_two_images_are_compared_and_what_differs_is_shown(visit: Visit, image: Image) -> None:
    """Of a flat image, changing red alone by 0.7 changes every pixel by 179 levels (51 to 230)."""
    page = visit()
    choose(page, image("one.png", 0.2), image("two.png", 0.9))
    assert [title.split()[0] for title in page.locator(".verdict h3").all_inner_texts()] == ["Clean", "Adversarial"]
    assert (
        "100\u00a0% of the pixels differ, none by more than 179 of 255 levels"
        in page.locator(".difference").text_content()
    )
    assert page.locator(".classes").count() == 2
    assert page.locator(".omegas li").first.locator("b").count() == 2


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_a_pasted_or_dropped_image_is_judged(visit: Visit, kind: str) -> None:
    page = visit()
    hand_over(page, kind, handed=0.9)
    page.wait_for_selector(".verdict.adversarial")
    assert "handed.png" in page.locator(".verdict").inner_text()


def test_pasting_no_image_says_so(visit: Visit) -> None:
    page = visit()
    hand_over(page, "paste")
    soon(page.get_by_role("status")).to_contain_text("no image", timeout=PATIENCE_MS)


def test_an_example_is_shown_beside_its_attacked_twin(visit: Visit) -> None:
    """And alone, once one of the two is asked for."""
    page = visit()
    page.get_by_role("button", name="ship", exact=True).click()
    page.wait_for_selector(".verdict >> nth=1")
    assert [name.strip() for name in page.locator(".verdict .name").all_inner_texts()] == ["ship", "ship, attacked"]
    assert "none by more than 8 of 255 levels" in page.locator(".difference").inner_text()
    page.get_by_label("Attacked", exact=True).check()
    soon(page.locator(".verdict")).to_have_count(1, timeout=PATIENCE_MS)
    assert page.locator(".verdict .name").inner_text() == "ship, attacked"


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("cut.png", encoded(plain(0.5))[:60], "cut short or damaged"),
        ("moving.gif", b"GIF89a" + bytes(40), "not a PNG, JPEG or WebP"),
        ("nothing.png", b"", "empty"),
        ("large.png", bytes(2 << 20), "too large"),
    ],
)
def test_a_refused_image_is_explained_with_the_id_of_its_request(
    visit: Visit, tmp_path: Path, name: str, body: bytes, says: str
) -> None:
    page = visit(expected=REFUSED)
    (tmp_path / name).write_bytes(body)
    with page.expect_response("**/predict?*") as heard:
        choose(page, tmp_path / name)
    problem = page.get_by_role("alert")
    assert says in problem.inner_text()
    assert heard.value.headers["x-request-id"] in problem.inner_text()
    assert page.locator(".verdict").count() == 0
    assert says in page.get_by_role("status").text_content()


def test_a_server_that_is_gone_is_told_and_asked_again(visit: Visit, image: Image) -> None:
    page = visit(expected=REFUSED)
    page.route("**/predict?*", lambda route: route.abort())
    choose(page, image("mine.png", 0.2))
    assert "could not be reached" in page.get_by_role("alert").inner_text()
    page.unroute("**/predict?*")
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector(".verdict.clean")


def test_an_example_that_did_not_arrive_can_be_asked_for_again(visit: Visit, image: Image) -> None:
    """And it is the example that is asked about then, not the image before it."""
    page = visit(expected=REFUSED)
    choose(page, image("mine.png", 0.2))
    page.route("**/examples/*.png", lambda route: route.abort())
    page.get_by_role("button", name="ship", exact=True).click()
    page.get_by_role("alert").wait_for()
    page.unroute("**/examples/*.png")
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector(".verdict >> nth=1")
    assert [name.strip() for name in page.locator(".verdict .name").all_inner_texts()] == ["ship", "ship, attacked"]


def test_a_busy_server_says_when_to_ask_again(visit: Visit, image: Image) -> None:
    """503 with Retry-After, as admission control answers."""
    page = visit(expected=REFUSED)
    document = '{"type": "urn:awnet:problem:queue-full", "status": 503, "detail": "no room", "request_id": "abc"}'
    headers = {"retry-after": "3", "content-type": "application/problem+json"}
    page.route("**/predict?*", lambda route: route.fulfill(status=503, headers=headers, body=document))
    choose(page, image("mine.png", 0.2))
    alert = page.get_by_role("alert").inner_text()
    assert "hands full" in alert and "3 seconds" in alert and "abc" in alert


def test_a_scaled_lossy_image_is_said_to_be_outside_the_thresholds(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    plain(0.2, (300, 200)).save(tmp_path / "photo.jpg")
    choose(page, tmp_path / "photo.jpg")
    prepared = page.get_by_role("region", name="Preparation").inner_text()
    assert f"centre square of 200 {TIMES} 200, then scaled down to 32 {TIMES} 32" in prepared
    assert "not set on images like this one (resized)" in prepared
    assert "take the verdict as a hint" in page.locator(".verdict .caution").inner_text()
    page.wait_for_selector(".preview canvas")


@pytest.fixture(scope="module")
def with_domains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose model has contract schema 2: P(attacked) is the score at even odds."""
    with Running(publish(tmp_path_factory.mktemp("repository"), "1", schema_2()), prior=0.1) as running:
        running.wait_ready()
        yield running


def test_images_of_two_domains_have_a_scale_each_and_say_what_speaks_for_them(
    visit: Visit, with_domains: Running, tmp_path: Path
) -> None:
    """The chance of an attack at the operator's prior, the domain or why there is none, the thresholds applied."""
    noise().save(tmp_path / "noise.png")
    plain(0.5).save(tmp_path / "flat.png")
    page = visit(url=with_domains.url)
    choose(page, tmp_path / "noise.png", tmp_path / "flat.png")
    page.wait_for_selector(".verdict >> nth=1")
    many, flat = page.locator(".verdict").all_inner_texts()
    assert "not set on" not in many
    assert "not set on images like this one (few colours)" in flat
    assert re.search("If 10\u00a0% of all images were attacked, 9.9\u00a0% of those that score like", many)
    assert "were attacked" not in flat
    scales = page.get_by_role("region", name="Adversarial score").get_by_role("img")
    labels = [scales.nth(n).get_attribute("aria-label") for n in range(scales.count())]
    assert ["0.300" in label for label in labels] == [True, False]
    assert ["0.600" in label for label in labels] == [False, True]
    assert (
        "it is one of the domain “pristine”"
        in page.get_by_role("region", name="Preparation and times of noise.png").inner_text()
    )


def test_of_an_image_without_a_domain_no_share_of_clean_images_is_told(
    visit: Visit, with_domains: Running, tmp_path: Path
) -> None:
    """The thresholds' rates were measured on other images: the verdict stands without "1 in 100"."""
    plain(0.99).save(tmp_path / "flat.png")
    page = visit(url=with_domains.url)
    choose(page, tmp_path / "flat.png")
    verdict = page.locator(".verdict").inner_text()
    assert "Adversarial" in verdict and "do not rely on its class" in verdict and "hint" in verdict
    assert "Of clean images" not in verdict


def test_a_threshold_near_1_is_not_told_as_1(visit: Visit, image: Image) -> None:
    """No score lies above 1: of the last domain's thresholds, the digits that count are those of what is missing."""
    page = visit()

    def near_1(route: Any) -> None:
        response = route.fetch()
        answer = response.json()
        answer["results"][0]["adversarial"]["thresholds"] = {"suspicious": 0.99915886, "adversarial": 0.99971336}
        route.fulfill(response=response, json=answer)

    page.route("**/predict?*", near_1)
    choose(page, image("mine.png", 0.2))
    label = page.get_by_role("region", name="Adversarial score").get_by_role("img").get_attribute("aria-label")
    assert "suspicious above 0.999159 (5" in label and "adversarial above 0.999713 (1" in label


def test_everything_works_from_the_keyboard(visit: Visit) -> None:
    """Skip link, choice of the twin by arrow keys, an example by Enter; focus can be seen all the way."""
    page = visit()
    seen = []
    for _ in range(40):
        page.keyboard.press("Tab")
        focus = page.evaluate(FOCUS)
        seen.append(focus)
        if focus[0] == "twin":
            page.keyboard.press("ArrowRight")  # from both to clean
        if focus[0] == "ship":
            page.keyboard.press("Enter")
            break
    assert [name for name, outline in seen if outline == "none"] == []
    names = [name for name, _ in seen]
    assert names[0] == "skip" and "file" in names and "twin" in names and names[-1] == "ship"
    page.wait_for_selector(".verdict")
    assert page.locator(".verdict .name").inner_text() == "ship"
    assert page.evaluate("document.activeElement.textContent.trim()") == "ship"
    assert "ship: " in page.get_by_role("status").text_content()


def test_a_file_name_is_only_ever_text(visit: Visit) -> None:
    page = visit()
    name = "<img src=x onerror=alert(1)><b>bold"
    data = base64.b64encode(encoded(plain(0.2))).decode()
    page.evaluate(HAND_OVER, ["drop", [[name, "image/png", data]]])
    page.wait_for_selector(".verdict")
    assert page.locator(".verdict .name").text_content() == name
    assert page.locator(".verdict b").count() == 1  # the score


@pytest.mark.parametrize("width", [360, 820])
def test_nothing_of_the_interfaces_page_sticks_out_sideways(visit: Visit, width: int) -> None:
    page = visit(viewport={"width": width, "height": 740})
    page.goto(page.url.rstrip("/") + "/docs")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 320, 820])
def test_nothing_sticks_out_sideways(visit: Visit, image: Image, width: int) -> None:
    """Neither the page nor a card scrolls sideways, with answers, on a telephone."""
    page = visit(viewport={"width": width, "height": 740})
    choose(page, image("a-rather-long-name-without-any-blank-" * 3 + ".png", 0.2), image("two.png", 0.9))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFULL) == []


def findings(page: Any) -> list[str]:
    """What axe-core finds, serious or not."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="no axe: pip install axe-playwright-python"
    )
    found = axe.Axe().run(page).response
    assert found["passes"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found["violations"]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("state", "width"), [("empty", 1280), ("answers", 400), ("example", 1280), ("refused", 400), ("strip", 1280)]
)
def test_axe_finds_nothing(visit: Visit, image: Image, tmp_path: Path, scheme: str, state: str, width: int) -> None:
    """axe-core's whole rule set; contrast is judged in both colour schemes."""
    page = visit(expected=REFUSED, color_scheme=scheme, viewport={"width": width, "height": 900})
    (tmp_path / "cut.png").write_bytes(encoded(plain(0.5))[:60])
    if state == "answers":
        choose(page, image("one.png", 0.6), image("two.png", 0.9))
    if state == "example":
        page.get_by_role("button", name="ship", exact=True).click()
        page.wait_for_selector(".verdict >> nth=1")
    if state == "refused":
        choose(page, image("one.png", 0.2), tmp_path / "cut.png")
    if state == "strip":
        choose_several(page, *(image(f"{n}.png", n / 10) for n in (2, 6, 9)), tmp_path / "cut.png")
    assert findings(page) == []


@pytest.fixture(scope="module")
def withholding(process: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Abstains, and rejects where the model `strict` is asked."""
    repository = publish(publish(tmp_path_factory.mktemp("repository")), name="strict")
    running = Running(repository, models="strict", policy="abstain", policies="strict=reject")
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_image_that_a_policy_withholds_has_no_class_and_the_page_says_why(
    visit: Visit, withholding: Running, image: Image, scheme: str
) -> None:
    """Beside one that is answered: the verdict is there, the class is not. What is rejected is a problem in words."""
    page = visit(expected=REFUSED, url=withholding.url, color_scheme=scheme)
    choose(page, image("clean.png", 0.2), image("attacked.png", 0.9))
    classes = page.locator(".classes")
    assert (classes.count(), page.locator(".classes .best").count()) == (2, 1)
    said = "No class: this server gives none to an image whose verdict is adversarial."
    assert said in classes.nth(1).inner_text()
    assert page.locator(".verdict.adversarial .score").count() == 1
    assert "attacked.png: adversarial, score 0.9020; no class." in page.get_by_role("status").text_content()
    assert findings(page) == []
    choose(page, image("scaled.png", 0.2, (64, 64)))
    soon(classes).to_have_count(1, timeout=PATIENCE_MS)
    soon(classes).to_contain_text("an image that no threshold speaks for", timeout=PATIENCE_MS)
    page.locator("#model").select_option(label="strict, version 1")
    problem = page.get_by_role("alert")
    soon(problem).to_contain_text("does not answer images like this one", timeout=PATIENCE_MS)
    assert "no threshold speaks for it (resized)" in problem.inner_text()
    assert findings(page) == []


def test_the_strip_counts_what_was_just_judged_until_it_is_paused(visit: Visit, image: Image) -> None:
    page = visit()
    choose(page, image("mine.png", 0.9))
    soon(page.locator("#recent-words")).to_contain_text(re.compile(r"\d+ image"), timeout=PATIENCE_MS)
    assert "expected if all are clean" in page.locator("#recent-words").inner_text()
    assert page.locator("#recent-chart .column.adversarial").count() >= 1
    page.get_by_role("button", name="Pause").click()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    choose(page, image("other.png", 0.2))
    page.wait_for_selector(".verdict.clean")
    page.wait_for_timeout(500)
    assert [url for url in asked if "recent" in url] == []


def test_a_mode_can_be_picked_where_the_model_has_several(visit: Visit, tmp_path: Path, image: Image) -> None:
    """A line says what each means; the answer is asked for again, and is the one of /predict in that mode."""
    running = Running(publish(publish_modes(tmp_path / "repository", "2"), "1"), versions_kept=2, mode="auto")
    try:
        running.wait_ready()
        page = visit(url=running.url)
        path = image("mine.png", 0.2)
        choose(page, path)
        descriptions = set()
        for mode in ("robust", "natural", "auto"):
            with page.expect_response("**/predict?*") as asked:
                page.get_by_role("group", name="Operating mode").get_by_label(mode).check()
            assert f"mode={mode}" in asked.value.url
            soon(page.locator(".facts")).to_contain_text(f"awnet, version 2, mode {mode}", timeout=PATIENCE_MS)
            headers = {"content-type": "image/png"}
            answer = running.http.post(f"/predict?mode={mode}", content=path.read_bytes(), headers=headers).json()
            best = answer["results"][0]["predictions"][0]
            row = page.locator(".classes .best").inner_text()
            assert best["label"] in row and f"{100 * best['probability']:.1f}" in row
            descriptions.add(page.locator("#mode-words").inner_text())
        assert len(descriptions) == 3 and all("branch" in words for words in descriptions)
        page.get_by_label("Model").select_option(label="awnet, version 1")
        soon(page.locator("#modes")).to_be_hidden(timeout=PATIENCE_MS)
        soon(page.locator(".facts")).to_contain_text("awnet, version 1", timeout=PATIENCE_MS)
        assert "mode" not in page.locator(".facts").inner_text()
    finally:
        running.stop()


def test_an_older_version_can_be_picked(visit: Visit, tmp_path: Path, image: Image) -> None:
    """With two versions loaded there is something to pick; the answer names the one that gave it."""
    repository = publish(publish(tmp_path / "repository"), "2", seed=1)
    running = Running(repository, versions_kept=2)
    try:
        running.wait_ready()
        page = visit(url=running.url)
        page.get_by_label("Model").wait_for()
        choose(page, image("mine.png", 0.2))
        first = page.locator(".classes").inner_text()
        assert "awnet, version 2" in page.get_by_role("region", name="Preparation").inner_text()
        with page.expect_response("**/predict?*"):
            page.get_by_label("Model").select_option(label="awnet, version 1")
        soon(page.locator(".facts")).to_contain_text("awnet, version 1", timeout=PATIENCE_MS)
        assert page.locator(".classes").inner_text() != first
    finally:
        running.stop()
