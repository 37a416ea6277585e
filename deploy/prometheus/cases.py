"""What each alert must say: samples of a server, and the minutes at which the alert rests, waits and fires.

`judge` holds the rules beside this file to one case, by `promtool test rules`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from server.core.verdict import VERDICTS

RULES = sorted((Path(__file__).resolve().parent / "rules").glob("*.yml"))

AWNET = 'job="awnet",instance="a:8000"'
MODEL = f'{AWNET},model="awnet",version="1"'
PREDICT = f'{AWNET},route="/predict",method="POST"'

# What a healthy server shows, a sample a minute: 600 calibrated images, 1 % of them adversarial and 4 % suspicious, and
# 60 palette images, half of them adversarial.
HEALTHY = {
    f"up{{{AWNET}}}": "1+0x600",
    f"awnet_engine_up{{{AWNET}}}": "1+0x600",
    f"awnet_workers{{{AWNET}}}": "4+0x600",
    f"awnet_workers_up{{{AWNET}}}": "4+0x600",
    f'awnet_triton_up{{{AWNET},address="127.0.0.1:8101"}}': "1+0x600",
    f'awnet_reloads_total{{{AWNET},model="awnet",result="refused"}}': "0+0x600",
    f'awnet_reloads_total{{{AWNET},model="awnet",result="loaded"}}': "0+0x30 1+0x570",
    f'awnet_keys_reads_total{{{AWNET},result="refused"}}': "0+0x600",
    f'awnet_keys_reads_total{{{AWNET},result="loaded"}}': "0+0x30 1+0x570",
    f'awnet_certificate_reads_total{{{AWNET},result="refused"}}': "0+0x600",
    f'awnet_certificate_reads_total{{{AWNET},result="loaded"}}': "0+0x30 1+0x570",
    f"awnet_certificate_expiry_timestamp_seconds{{{AWNET}}}": f"{90 * 86_400}+0x600",
    f"awnet_queue_images{{{AWNET}}}": "10+0x600",
    f"awnet_queue_capacity_images{{{AWNET}}}": "256+0x600",
    f'awnet_requests_total{{{PREDICT},code="200"}}': "0+600x600",
    f'awnet_requests_total{{{PREDICT},code="422"}}': "0+10x600",
    f'awnet_requests_total{{{PREDICT},code="503"}}': "0+0x600",
    f'awnet_request_seconds_bucket{{{AWNET},route="/predict",le="0.1"}}': "0+609x600",
    f'awnet_request_seconds_count{{{AWNET},route="/predict"}}': "0+610x600",
    f'awnet_verdicts_total{{{MODEL},verdict="clean"}}': "0+570x600",
    f'awnet_verdicts_total{{{MODEL},verdict="suspicious"}}': "0+24x600",
    f'awnet_verdicts_total{{{MODEL},verdict="adversarial"}}': "0+6x600",
    f'awnet_watched_images_total{{{MODEL},calibrated="true",verdict="clean"}}': "0+570x600",
    f'awnet_watched_images_total{{{MODEL},calibrated="true",verdict="suspicious"}}': "0+24x600",
    f'awnet_watched_images_total{{{MODEL},calibrated="true",verdict="adversarial"}}': "0+6x600",
    f'awnet_watched_images_total{{{MODEL},calibrated="false",verdict="clean"}}': "0+20x600",
    f'awnet_watched_images_total{{{MODEL},calibrated="false",verdict="suspicious"}}': "0+10x600",
    f'awnet_watched_images_total{{{MODEL},calibrated="false",verdict="adversarial"}}': "0+30x600",
    f'awnet_target_fpr_ratio{{{MODEL},verdict="adversarial"}}': "0.01+0x600",
    f'awnet_cusum_limit{{{MODEL},verdict="adversarial"}}': "19.373+0x600",
    f'awnet_cusum_raised{{{MODEL},verdict="adversarial"}}': "0+0x600",
    f'awnet_uncalibrated_cusum_raised{{{MODEL},of="uncalibrated"}}': "0+0x600",
    f'awnet_uncalibrated_cusum_raised{{{MODEL},of="suspicious"}}': "0+0x600",
    f'awnet_uncalibrated_cusum_raised{{{MODEL},of="adversarial"}}': "0+0x600",
    f'awnet_query_guard_events_total{{{AWNET},who="client"}}': "0+0x600",
    f'awnet_query_guard_events_total{{{AWNET},who="all"}}': "0+0x600",
    f"awnet_score_drift{{{MODEL}}}": "0.01+0x600",
    f"awnet_score_drift_images{{{MODEL}}}": "5000+0x600",
    f'awnet_omega_drift{{{MODEL},block="blocks.0"}}': "0.1+0x600",
    f"awnet_omega_drift_images{{{MODEL}}}": "1000+0x600",
    f"awnet_golden_probe_interval_seconds{{{AWNET}}}": "10+0x600",
    f'awnet_golden_probes_total{{{MODEL},expected="adversarial",result="right"}}': "0+3x600",
    f'awnet_golden_probes_total{{{MODEL},expected="adversarial",result="wrong"}}': "0+0x600",
}


def name(start: str, *labels: str) -> str:
    """The one series of HEALTHY that begins so and holds these labels."""
    [found] = [
        series for series in HEALTHY if series.startswith(start + "{") and all(label in series for label in labels)
    ]
    return found


def verdict(which: str) -> str:
    return name("awnet_verdicts_total", f'verdict="{which}"')


def judged(which: str, calibrated: str = "true") -> str:
    return name("awnet_watched_images_total", f'calibrated="{calibrated}"', f'verdict="{which}"')


class Case(NamedTuple):
    """`changed` replaces series of HEALTHY; the rest are minutes at which the alert must be in that state."""

    alert: str
    changed: dict[str, str]
    quiet: tuple[int, ...]
    firing: tuple[int, ...] = ()
    pending: tuple[int, ...] = ()
    labels: str = ""


# Six hours of the usual, then ten minutes in which 10 % are adversarial, then the usual again.
ATTACK: dict[str, str] = {
    judged("clean"): "0+570x420 239920+520x10 245170+570x160",
    judged("adversarial"): "0+6x420 2580+60x10 3186+6x160",
}
# Two replicas with 2 % adversarial each for half an hour, where 1 % is what the threshold was set to flag.
SPREAD: dict[str, str] = {
    series.replace("a:8000", replica): values
    for replica in ("a:8000", "b:8000")
    for series, values in {
        name("up"): "1+0x600",
        judged("clean"): "0+570x200 114000+564x30 130920+570x370",
        judged("suspicious"): "0+24x600",
        judged("adversarial"): "0+6x200 1200+12x30 1560+6x370",
    }.items()
}
# An hour in which one prediction of ten fails.
ERRORS: dict[str, str] = {name("awnet_requests_total", 'code="503"'): "0+0x60 0+60x60 3600+0x480"}
PALETTE = {  # nine times as many uncalibrated images from minute 420 on, nearly all of them adversarial
    judged("clean", "false"): "0+20x420 8420+20x180",
    judged("adversarial", "false"): "0+30x420 13140+540x180",
}
MORE_FLAGGED = {  # as many as before, and nearly all of them adversarial, for half an hour
    judged("clean", "false"): "0+20x420 8401+1x30 8451+20x150",
    judged("suspicious", "false"): "0+10x420 4201+1x30 4241+10x150",
    judged("adversarial", "false"): "0+30x420 12658+58x30 14428+30x150",
}
# From minute 200 on another version answers, to which most images are uncalibrated and flagged.
RELOADED = {
    judged(which, calibrated): f"0+{n}x200 {200 * n}+0x400"
    for calibrated, counts in (("true", (570, 24, 6)), ("false", (20, 10, 30)))
    for which, n in zip(VERDICTS, counts, strict=True)
} | {
    judged(which, calibrated).replace('version="1"', 'version="2"'): f"_x200 0+{n}x400"
    for calibrated, counts in (("true", (57, 2, 1)), ("false", (50, 50, 500)))
    for which, n in zip(VERDICTS, counts, strict=True)
}
LEARNT = {f'awnet_uncalibrated_usual_ratio{{{MODEL},of="{of}"}}': "0.5+0x600" for of in ("uncalibrated", "adversarial")}
SLOW: dict[str, str] = {name("awnet_request_seconds_bucket"): "0+610x60 36600+305x60 54900+610x480"}
CASES = [
    Case("AWNetTargetDown", {name("up"): "1+0x9 0+0x10 1+0x20"}, quiet=(5, 25), pending=(10,), firing=(12, 19)),
    Case("AWNetTargetAbsent", {name("up"): "_x10 1+0x20"}, quiet=(12,), pending=(2,), firing=(6,)),
    Case(
        "AWNetEngineDown", {name("awnet_engine_up"): "1+0x9 0+0x10 1+0x20"}, quiet=(5, 25), pending=(10,), firing=(12,)
    ),
    Case(
        "AWNetWorkersMissing",
        {name("awnet_workers_up"): "4+0x9 3+0x20 4+0x20"},
        quiet=(5, 35),
        pending=(12,),
        firing=(18, 28),
    ),
    Case(
        "AWNetTritonDown", {name("awnet_triton_up"): "1+0x9 0+0x10 1+0x20"}, quiet=(5, 25), pending=(10,), firing=(12,)
    ),
    Case(
        "AWNetReloadFailed",
        {name("awnet_reloads_total", "refused"): "0+0x60 1+0x100"},
        quiet=(58, 80),
        firing=(63,),
    ),
    Case("AWNetReloadFailed", {name("awnet_reloads_total", "loaded"): "0+1x100"}, quiet=(20, 60)),
    Case(
        "AWNetKeysRefused",
        {name("awnet_keys_reads_total", 'result="refused"'): "0+0x60 1+0x100"},
        quiet=(58, 80),
        firing=(63,),
    ),
    Case("AWNetKeysRefused", {name("awnet_keys_reads_total", 'result="loaded"'): "0+1x100"}, quiet=(20, 60)),
    Case(
        "AWNetCertificateRefused",
        {name("awnet_certificate_reads_total", 'result="refused"'): "0+0x60 1+0x100"},
        quiet=(58, 80),
        firing=(63,),
    ),
    Case("AWNetCertificateRefused", {name("awnet_certificate_reads_total", 'result="loaded"'): "0+1x100"}, quiet=(20,)),
    # promtool's clock begins at 0; the certificate is replaced at minute 100 by one of 90 days.
    Case(
        "AWNetCertificateExpires",
        {name("awnet_certificate_expiry_timestamp_seconds"): f"{14 * 86_400 + 1800}+0x99 {90 * 86_400}+0x400"},
        quiet=(28, 105),
        pending=(32,),
        firing=(40, 99),
    ),
    Case("AWNetCertificateExpires", {name("awnet_certificate_expiry_timestamp_seconds"): "0+0x600"}, quiet=(20, 500)),
    Case(
        "AWNetQueueFilling",
        {name("awnet_queue_images"): "10+0x9 250+0x10 10+0x20"},
        quiet=(5, 25),
        pending=(11,),
        firing=(13,),
    ),
    Case("AWNetErrorBudgetBurn", ERRORS, quiet=(60, 130), firing=(80, 119), labels='burn="14.4"'),
    Case("AWNetErrorBudgetBurn", ERRORS, quiet=(60, 160), firing=(80, 119), labels='burn="6"'),
    Case("AWNetErrorBudgetBurn", ERRORS, quiet=(60, 250), firing=(90, 119), labels='burn="3"'),
    Case("AWNetErrorBudgetBurn", ERRORS, quiet=(60, 500), firing=(130,), labels='burn="1"'),
    Case(
        "AWNetErrorBudgetBurn",
        {name("awnet_requests_total", 'code="503"'): "0+0.3x600"},  # half of what the budget allows
        quiet=(60, 120, 300, 500),
    ),
    Case(
        "AWNetErrorBudgetBurn",
        {name("awnet_requests_total", 'code="422"'): "0+600x600"},  # the clients' own mistakes
        quiet=(60, 120, 300, 500),
    ),
    Case("AWNetLatencyBudgetBurn", SLOW, quiet=(60, 130), firing=(90, 119), labels='burn="14.4"'),
    Case("AWNetLatencyBudgetBurn", SLOW, quiet=(60, 160), firing=(90, 119), labels='burn="6"'),
    Case(
        "AWNetAdversarialCusum",
        {name("awnet_cusum_raised"): "0+0x9 1+0x10 0+0x20"},
        quiet=(5, 25),
        firing=(10, 19),
    ),
    Case("AWNetReplicasCusum", SPREAD, quiet=(100, 210, 330), firing=(219, 228)),
    Case("AWNetReplicasCusum", ATTACK, quiet=(419, 426, 440)),  # one server: its own CUSUM tells of it
    Case("AWNetAdversarialShare", ATTACK, quiet=(419, 440), pending=(423,), firing=(426,)),
    Case(
        "AWNetAdversarialShare",  # 2.5 % where the past was clean: less than three times what the threshold allows
        {judged("clean"): "0+600x420 252585+585x180", judged("adversarial"): "0+0x420 15+15x180"},
        quiet=(300, 423, 426, 440),
    ),
    Case(
        "AWNetAdversarialShare",  # a third, of nine images in five minutes
        {
            judged("clean"): "0+1x600",
            judged("suspicious"): "0+0x600",
            judged("adversarial"): "0+0x420 1+1x180",
        },
        quiet=(300, 423, 426, 440),
    ),
    Case(
        "AWNetAdversarialShare",  # so all along: this is what the ceiling is for
        {judged("clean"): "0+400x600", judged("adversarial"): "0+200x600"},
        quiet=(500, 590),
    ),
    Case("AWNetAdversarialCeiling", ATTACK, quiet=(300, 426, 440)),
    Case(
        "AWNetAdversarialCeiling",  # a seventh for an hour
        {
            judged("clean"): "0+570x60 34710+510x60 65880+570x400",
            judged("adversarial"): "0+6x60 450+90x60 5856+6x400",
        },
        quiet=(59, 130),
        firing=(67, 119),
    ),
    Case(
        "AWNetUncalibratedFlagged",
        {name("awnet_uncalibrated_cusum_raised", 'of="adversarial"'): "0+0x9 1+0x10 0+0x20"},
        quiet=(5, 25),
        pending=(10,),
        firing=(12, 19),
    ),
    Case("AWNetUncalibratedFlagged", MORE_FLAGGED, quiet=(419, 470), firing=(426, 448)),
    Case("AWNetUncalibratedFlagged", MORE_FLAGGED | LEARNT, quiet=(419, 426, 448, 470)),  # the server watches itself
    Case("AWNetUncalibratedFlagged", PALETTE, quiet=(419, 423, 430, 480, 540, 600)),  # other images than before
    Case(
        "AWNetUncalibratedShare",
        {name("awnet_uncalibrated_cusum_raised", 'of="uncalibrated"'): "0+0x9 1+0x60 0+0x60"},
        quiet=(5, 75),
        pending=(12,),
        firing=(16, 68),
    ),
    Case("AWNetUncalibratedShare", PALETTE, quiet=(419, 598), pending=(425,), firing=(430, 500)),
    Case("AWNetUncalibratedShare", PALETTE | LEARNT, quiet=(419, 430, 500, 590)),
    Case("AWNetUncalibratedShare", MORE_FLAGGED, quiet=(419, 426, 448, 470)),
    *(
        Case(alert, RELOADED, quiet=(190, 203, 230, 262, 300, 420, 600))
        for alert in ("AWNetUncalibratedFlagged", "AWNetUncalibratedShare", "AWNetAdversarialShare")
    ),
    *(  # palette images and nothing else
        Case(
            alert,
            {judged(which): "0+0x600" for which in VERDICTS}
            | {
                judged("clean", "false"): "0+60x600",
                judged("suspicious", "false"): "0+60x600",
                judged("adversarial", "false"): "0+480x600",
            },
            quiet=(5, 60, 200, 400, 600),
        )
        for alert in (
            "AWNetAdversarialShare",
            "AWNetAdversarialCeiling",
            "AWNetUncalibratedFlagged",
            "AWNetUncalibratedShare",
            "AWNetNothingFlagged",
        )
    ),
    *(
        Case("AWNetQueryGuard", {name("awnet_query_guard_events_total", who): "0+0x60 1+0x60"}, (59, 80), (62, 74))
        for who in ('who="client"', 'who="all"')
    ),
    Case(
        "AWNetDetectorSilent",
        {
            verdict(which): f"0+{n}x60 {60 * n}+0x30 {60 * n}+{n}x60"
            for which, n in zip(VERDICTS, (570, 24, 6), strict=True)
        },
        quiet=(59, 98),
        pending=(67,),
        firing=(75,),
    ),
    Case(
        "AWNetDetectorSilent",  # nobody asks, nobody is judged
        {name("awnet_requests_total", 'code="200"'): "0+0x600"} | {verdict(which): "0+0x600" for which in VERDICTS},
        quiet=(20, 100),
    ),
    Case(
        "AWNetNothingFlagged",
        {
            judged("clean"): "0+600x600",
            judged("suspicious"): "0+0x150 0+24x300",
            judged("adversarial"): "0+0x600",
        },
        quiet=(0, 155),
        firing=(60, 140),
    ),
    Case(
        "AWNetScoreShift",
        {name("awnet_score_drift"): "0.01+0x9 0.6+0x20 0.01+0x20"},
        quiet=(5, 35),
        pending=(15,),
        firing=(22,),
    ),
    Case(
        "AWNetScoreShift",  # a handful of images says nothing
        {name("awnet_score_drift"): "0.6+0x60", name("awnet_score_drift_images"): "20+0x60"},
        quiet=(15, 30, 50),
    ),
    Case(
        "AWNetOmegaShift",
        {name("awnet_omega_drift"): "0.1+0x9 1.5+0x20 0.1+0x20"},
        quiet=(5, 35),
        pending=(15,),
        firing=(22,),
    ),
    Case(
        "AWNetGoldenProbeUndetected",
        {name("awnet_golden_probes_total", "wrong"): "0+0x60 1+1x4 5+0x60"},
        quiet=(58, 80),
        firing=(62, 66),
    ),
    Case(
        "AWNetGoldenProbesMissing",
        {name("awnet_golden_probes_total", "right"): "0+3x60 180+0x60 180+3x60"},
        quiet=(50, 65, 125),
        firing=(85,),
    ),
    Case(
        "AWNetGoldenProbesMissing",  # nobody asked for any
        {
            name("awnet_golden_probes_total", "right"): "0+0x120",
            name("awnet_golden_probe_interval_seconds"): "0+0x120",
        },
        quiet=(50, 85),
    ),
]


def promtool(folder: Path, series: dict[str, str], checks: list[dict[str, Any]]) -> str:
    """What `promtool test rules` says about these samples; `checks` are its promql_expr_test entries."""
    document = {
        "rule_files": [str(path) for path in RULES],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": key, "values": values} for key, values in series.items()],
                "promql_expr_test": checks,
            }
        ],
    }
    path = folder / "rules.test.yml"
    path.write_text(json.dumps(document), "utf-8")
    done = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def judge(case: Case, folder: Path) -> str:
    """Hold the alert of a case to the states that it must have; what promtool says."""
    last = max(case.quiet + case.firing)
    series = {key: values.replace("x600", f"x{last}") for key, values in (HEALTHY | case.changed).items()}
    expression = f'count by (alertstate) (ALERTS{{alertname="{case.alert}",{case.labels}}})'
    states = [(minute, "firing") for minute in case.firing] + [(minute, "pending") for minute in case.pending]
    checks: list[dict[str, Any]] = [
        {
            "expr": expression,
            "eval_time": f"{minute}m",
            "exp_samples": [{"labels": f'{{alertstate="{state}"}}', "value": 1}],
        }
        for minute, state in states
    ]
    checks += [{"expr": expression, "eval_time": f"{minute}m", "exp_samples": []} for minute in case.quiet]
    return promtool(folder, series, checks)
