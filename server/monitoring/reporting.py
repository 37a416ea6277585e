"""Reports what the detector, the query guard, the CUSUM and golden probes see as findings; see `findings`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..core.engine import Model
from ..core.images import EncodedImage, ImageInput
from ..core.modes import Mode
from ..core.policy import At, Decision, Policy
from ..core.verdict import Judgement, Verdict
from ..errors import StartupError, UnknownFinding
from ..findings.delivery import Deliveries, Delivery
from ..findings.evidence import evidence, thresholds
from ..findings.finding import Image, Observation, Subject
from ..findings.journal import Journal
from ..findings.ocsf import Mark, marked
from ..findings.quarantine import FOLDER, Quarantine
from ..findings.reading import Found, findings
from ..findings.recorder import Recorder
from ..guard.guard import Event
from ..settings.settings import Settings
from .detection import Monitor
from .findings_metrics import FindingsMetrics
from .metrics import Metrics
from .request import KEY, ObservedRequest

DAY_SECONDS = 86_400
NEWEST_SEGMENTS = 2  # of each chain, that the list of the newest findings is read from


class Reporting:
    """The findings of one process.

    Args:
        journal: where they are written.
        window: seconds, see `findings.coalescing.Coalescer`.
        at: the least verdict that is a finding.
        metrics: counts them.
        monitor: has the CUSUMs, and hashes addresses.
        receivers: that the journal is sent to.
        quarantine: keeps flagged images.
    """

    def __init__(
        self,
        journal: Journal,
        window: float,
        at: At,
        metrics: FindingsMetrics,
        monitor: Monitor,
        receivers: Sequence[Delivery] = (),
        quarantine: Quarantine | None = None,
    ) -> None:
        metrics.expect()
        self._deliveries = Deliveries(journal.folder.parent, journal.folder, receivers, metrics.delivered)
        metrics.deliver(self._deliveries.waiting)
        self._folder = journal.folder.parent
        self._recorder = Recorder(journal, window, metrics.event, metrics.lost, quarantine)
        self._at: At = at
        self._flagged = {"adversarial"} if at == "adversarial" else {"adversarial", "suspicious"}
        self._monitor = monitor

    @classmethod
    def of(
        cls, settings: Settings, metrics: Metrics, monitor: Monitor, further: Sequence[Delivery] = ()
    ) -> Reporting | None:
        """What the settings ask for, with `further` receivers; None where that is nothing. Raises StartupError."""
        if settings.findings_dir is None:
            return None
        kept = settings.findings_keep_bytes, DAY_SECONDS * settings.findings_keep_days
        journal = Journal(settings.findings_dir, *kept)
        how = settings.findings_window_seconds, settings.findings_at
        quarantine = _quarantine(settings, metrics.findings)
        return cls(journal, *how, metrics.findings, monitor, [*_receivers(settings), *further], quarantine)

    def start(self) -> None:
        """Begin to write and to send, on the running loop; what was seen before is kept until then."""
        self._recorder.start()
        self._deliveries.start()

    async def stop(self) -> None:
        """Close every finding, and send what can be sent at once: some seconds at most."""
        await asyncio.to_thread(self._recorder.stop)
        await self._deliveries.stop()

    def findings(self, most: int) -> list[Found]:
        """The newest findings of all processes; reads files. Raises OSError."""
        return findings(self._folder, NEWEST_SEGMENTS)[:most]

    def evidence(self, identity: str, models: Iterable[Model], with_image: bool) -> bytes:
        """What there is of a finding, as a ZIP; reads files. Raises UnknownFinding, OSError."""
        known = {model.sha256: thresholds(model.contract) for model in models}
        found = evidence(self._folder, identity, known, with_image)
        if found is None:
            raise UnknownFinding("no finding with this id is kept")
        return found

    def mark(self, identity: str, mark: Mark, comment: str) -> Found:
        """Write that a person has looked at a finding; reads files. Raises UnknownFinding, OSError."""
        for found in findings(self._folder):
            if found.id == identity:
                self._recorder.write(marked(found.event, mark, comment, _utc()))
                return found._replace(mark=mark)
        raise UnknownFinding("no finding with this id is kept")

    @staticmethod
    def files(images: Sequence[ImageInput]) -> list[bytes | None]:
        """The files of a request, before they are decoded and forgotten; None for tensors."""
        return [image.data if isinstance(image, EncodedImage) else None for image in images]

    def answered(
        self,
        request: ObservedRequest | None,
        model: Model,
        mode: Mode,
        judgements: Sequence[Judgement],
        policy: Policy,
        decisions: Sequence[Decision],
        images: Sequence[ImageInput],
        files: Sequence[bytes | None],
        omega: NDArray[np.float32],
    ) -> None:
        """The images of one request were judged, and the monitor has seen them; all sequences are in their order."""
        rows = [row for row, judged in enumerate(judgements) if judged.verdict in self._flagged]
        if not rows:
            return
        now = _utc()
        request_id = None if request is None else request.id
        which = (model.name, model.version, model.sha256)
        client, key = self._named(None if request is None else request.client)
        subject = Subject("image", client, key, *which)
        seen, watch = [], self._monitor.of(model)
        for row in rows:
            judged, file = judgements[row], files[row]
            pixels = images[row].pixels(model.contract.preprocessing.size) if file is None else None
            data, shape = (file or b"", None) if pixels is None else (pixels.tobytes(), pixels.shape)
            drift = partial(watch.omega.distances, omega[row].copy())
            image = _image(judged, mode, policy, decisions[row], data, shape, drift)
            seen.append(Observation(subject, now, 1, request_id, image))
        cusum = watch.cusums[self._at]
        if cusum.raised:
            detail = f"{self._at}, against a share of {cusum.target:g} of natural images"
            seen.append(Observation(Subject("rate", None, None, *which), now, len(rows), request_id, detail=detail))
        self._recorder.see(seen)

    def repeated(self, event: Event) -> None:
        """The query guard tells of a client, or of all together."""
        of_all = f" of about {event.clients} clients" if event.client is None else ""
        detail = f"{event.images} different ones{of_all} that are alike within {event.seconds:g} s"
        subject = Subject("query-guard", *self._named(event.client))
        self._recorder.see([Observation(subject, _utc(), event.images, event.last_id, detail=detail)])

    def missed(self, model: Model, mode: Mode, expected: Verdict) -> None:
        """A golden image was not answered as it must be."""
        subject = Subject("detector", None, None, model.name, model.version, model.sha256)
        self._recorder.see([Observation(subject, _utc(), detail=f"the last one is {expected}, in mode {mode}")])

    def _named(self, client: str | None) -> tuple[str | None, str | None]:
        """A client by its hash or the name of its key, as the request log has it."""
        if client is None:
            return None, None
        if client.startswith(KEY):
            return None, client.removeprefix(KEY)
        return self._monitor.clients.name(client), None


def _quarantine(settings: Settings, metrics: FindingsMetrics) -> Quarantine | None:
    """What the settings ask for; images that an earlier start has kept go by age all the same. Raises StartupError."""
    folder, most_bytes = settings.findings_dir, settings.findings_images_bytes
    if folder is None or not (most_bytes or (folder / FOLDER).is_dir()):
        return None
    metrics.expect_images()
    return Quarantine(folder, most_bytes, DAY_SECONDS * settings.findings_images_days, metrics.image)


def _receivers(settings: Settings) -> list[Delivery]:
    """Those that the settings name. Raises StartupError."""
    found: list[Delivery] = []
    if settings.findings_webhook and settings.findings_webhook_secret_file is not None:
        from ..findings.webhook import Webhook, read_secret, wrong_url  # httpx, for those who ask for it

        if why := wrong_url(settings.findings_webhook):
            raise StartupError(f"findings_webhook {why}")
        secret = read_secret(settings.findings_webhook_secret_file)
        found.append(Webhook(settings.findings_webhook, secret, settings.findings_ca))
    if settings.findings_syslog:
        from ..findings.syslog import Address, Syslog

        try:
            address = Address.parse(settings.findings_syslog)
        except ValueError as error:
            raise StartupError(f"findings_syslog {error}") from None
        found.append(Syslog(address, settings.findings_ca))
    return found


def _image(
    judged: Judgement,
    mode: Mode,
    policy: Policy,
    decision: Decision,
    data: bytes,
    shape: tuple[int, ...] | None,
    drift: Callable[[], Mapping[str, float]],
) -> Image:
    thresholds = judged.applied.thresholds
    exceeded = thresholds.adversarial if judged.verdict == "adversarial" else thresholds.suspicious
    return Image(
        *(mode, judged.verdict, judged.score, exceeded.score, exceeded.fpr, judged.applied.name, judged.calibrated),
        *(judged.probability, policy, decision, data),
        drift=drift,
        shape=shape,
    )


def _utc() -> int:
    return time.time_ns() // 1_000_000
