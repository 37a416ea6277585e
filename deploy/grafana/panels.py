"""What the dashboard shows, row by row: titles, descriptions, units, queries. `build` makes Grafana's JSON of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

S = 'job=~"$job", instance=~"$instance"'
M = f'{S}, model=~"$model"'
P = f'{S}, route=~"/predict|.+/infer|.+/ModelInfer"'  # a prediction, as in deploy/prometheus/rules
R = "[$__rate_interval]"
# Without their last brace, so that a verdict may be added.
CALIBRATED = f'awnet_watched_images_total{{{M}, calibrated="true"'
UNCALIBRATED = f'awnet_watched_images_total{{{M}, calibrated="false"'
# An alert about a whole job names no instance.
FIRING = 'ALERTS{alertstate="firing", alertname=~"AWNet.+", job=~"$job", instance=~"$instance|"}'

GREEN, ORANGE, RED = "green", "orange", "red"
# Lines whose name says how good they are, by the whole of it; statuses by how they begin.
COLOURS = {
    "clean": GREEN,
    "suspicious": ORANGE,
    "adversarial": RED,
    "suspicious or adversarial": ORANGE,
    "expected, suspicious": "light-orange",
    "expected, adversarial": "light-red",
    "threshold, suspicious": "light-orange",
    "threshold, adversarial": "light-red",
    "right": GREEN,
    "wrong": RED,
    "failed": ORANGE,
}
WORDS = {"{{verdict}}": ("clean", "suspicious", "adversarial"), "{{result}}": ("right", "wrong", "failed")}
EXPECTED = ("expected, ", "threshold, ")  # drawn dashed: what the contract says, not what is measured
STATUSES = {"2": GREEN, "4": ORANGE, "5": RED}


class Query(NamedTuple):
    """An expression and what its lines are called."""

    expr: str
    legend: str = "__auto"

    def named(self, labels: Mapping[str, str]) -> str:
        """What the line with these labels is called; nothing where the panel has but one."""
        name = "" if self.legend == "__auto" else self.legend
        for label, value in labels.items():
            name = name.replace("{{" + label + "}}", value)
        return name


class Panel(NamedTuple):
    """One panel. `steps` are (value, colour) from the second colour on; the first one is green, or red if `falls`."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "lines"  # lines, share (stacked to 100 %), stat or heatmap
    steps: tuple[tuple[float, str], ...] = ()
    falls: bool = False
    width: int = 8
    logarithmic: bool = False

    def colours(self) -> dict[str, str]:
        """Line name -> colour, for the lines of this panel that have one of their own."""
        names = [query.legend for query in self.queries]
        for word, values in WORDS.items():
            names += [name.replace(word, value) for name in names if word in name for value in values]
        return {name: COLOURS[name] for name in names if name in COLOURS}

    @property
    def of_statuses(self) -> bool:
        """Its lines are called by HTTP statuses."""
        return any(query.legend == "{{code}}" for query in self.queries)


def one(expr: str, legend: str = "__auto") -> tuple[Query, ...]:
    return (Query(expr, legend),)


def ratio(over: str, under: str) -> str:
    """Rate of one selection as a part of the rate of another."""
    return f"sum(rate({over}{R})) / sum(rate({under}{R}))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Status": (
        Panel(
            "Servers up",
            "Share of the chosen servers that answer Prometheus.",
            "percentunit",
            one(f"avg(up{{{S}}})"),
            "stat",
            ((0.5, ORANGE), (1, GREEN)),
            True,
            3,
        ),
        Panel(
            "Engine",
            "1 where every server's model has passed its golden self-test and can be run.",
            "short",
            one(f"min(awnet_engine_up{{{S}}})"),
            "stat",
            ((1, GREEN),),
            True,
            3,
        ),
        Panel(
            "Alerts firing",
            "Alerts of deploy/prometheus that fire now; docs/operations.md says what to do about each.",
            "short",
            one(f"count({FIRING}) or vector(0)"),
            "stat",
            ((1, RED),),
            False,
            3,
        ),
        Panel(
            "Under attack?",
            "Highest CUSUM of flagged images as a part of its limit. From 1 on, more images are flagged than the "
            "calibration allows; by chance alone that comes less than once in 30 days of 100 images a second.",
            "percentunit",
            one(f"max(awnet_cusum{{{M}}} / awnet_cusum_limit{{{M}}})"),
            "stat",
            ((0.5, ORANGE), (1, RED)),
            False,
            3,
        ),
        Panel(
            "Adversarial now",
            "Share of calibrated images whose verdict is 'adversarial'. About 1 % at most where nobody attacks.",
            "percentunit",
            one(ratio(f'{CALIBRATED}, verdict="adversarial"}}', f"{CALIBRATED}}}")),
            "stat",
            ((0.03, ORANGE), (0.1, RED)),
            False,
            3,
        ),
        Panel(
            "Golden probes recognised",
            "Share of the last attacked golden images, sent through the real path, that were flagged.",
            "percentunit",
            one(f"min(awnet_golden_probe_detection_ratio{{{M}}})"),
            "stat",
            ((1, GREEN),),
            True,
            3,
        ),
        Panel(
            "Answered",
            "Share of predictions in the chosen time that were answered without a 5xx; the goal is 99.9 %.",
            "percentunit",
            one(
                f'1 - (sum(increase(awnet_requests_total{{{P}, code=~"5.."}}[$__range])) or vector(0)) '
                f"/ sum(increase(awnet_requests_total{{{P}}}[$__range]))"
            ),
            "stat",
            ((0.99, ORANGE), (0.999, GREEN)),
            True,
            3,
        ),
        Panel(
            "p99 of a prediction",
            "99 of 100 predictions are answered within this time; the goal is 0.1 s.",
            "s",
            one(f"histogram_quantile(0.99, sum by (le) (rate(awnet_request_seconds_bucket{{{P}}}{R})))"),
            "stat",
            ((0.05, ORANGE), (0.1, RED)),
            False,
            3,
        ),
    ),
    "Detection": (
        Panel(
            "Verdicts",
            "Images judged each second, by verdict.",
            "short",
            one(f"sum by (verdict) (rate(awnet_verdicts_total{{{M}}}{R}))", "{{verdict}}"),
            "share",
        ),
        Panel(
            "Flagged, against what the thresholds were set to flag",
            "Share of calibrated images over each threshold, and the share of validation images that was over it.",
            "percentunit",
            (
                Query(ratio(f'{CALIBRATED}, verdict="adversarial"}}', f"{CALIBRATED}}}"), "adversarial"),
                Query(ratio(f'{CALIBRATED}, verdict!="clean"}}', f"{CALIBRATED}}}"), "suspicious or adversarial"),
                Query(f"max by (verdict) (awnet_target_fpr_ratio{{{M}}})", "expected, {{verdict}}"),
            ),
        ),
        Panel(
            "CUSUM of flagged images",
            "Evidence that the flagged share is over its target, as a part of the limit: at 1 the alarm is raised, "
            "below 0.5 it is taken back. Calibrated images only.",
            "percentunit",
            one(
                f"max by (model, version, verdict) (awnet_cusum{{{M}}} / awnet_cusum_limit{{{M}}})",
                "{{model}} {{version}}, {{verdict}}",
            ),
            steps=((0.5, ORANGE), (1, RED)),
        ),
        Panel(
            "Scores",
            "How the scores P(adversarial) are distributed. The thresholds are in the panel beside this one.",
            "short",
            one(f"sum by (le) (increase(awnet_score_bucket{{{M}}}{R}))", "{{le}}"),
            "heatmap",
        ),
        Panel(
            "Score quantiles and thresholds",
            "Median and 95th percentile of the scores, as exact as the histogram's bins, and the thresholds.",
            "short",
            (
                Query(f"histogram_quantile(0.5, sum by (le) (rate(awnet_score_bucket{{{M}}}{R})))", "median"),
                Query(f"histogram_quantile(0.95, sum by (le) (rate(awnet_score_bucket{{{M}}}{R})))", "95th percentile"),
                Query(f"max by (verdict) (awnet_threshold{{{M}}})", "threshold, {{verdict}}"),
            ),
            logarithmic=True,
        ),
        Panel(
            "Score drift",
            "Population stability index of recent scores against clean validation images; over 0.25 is a shift. It "
            "says little where it rests on fewer than 500 images.",
            "short",
            one(f"max by (model, version) (awnet_score_drift{{{M}}})", "{{model}} {{version}}"),
            steps=((0.1, ORANGE), (0.25, RED)),
        ),
        Panel(
            "Omega drift, by block",
            "Distance of the recent mean of the regulation signals from the clean one, in clean standard deviations.",
            "short",
            one(f"max by (model, version, block) (awnet_omega_drift{{{M}}})", "{{version}} {{block}}"),
            steps=((0.5, RED),),
        ),
        Panel(
            "Golden probes",
            "Golden images sent through the real path, by how the answer was. They are not among the verdicts.",
            "short",
            one(f"sum by (result) (rate(awnet_golden_probes_total{{{M}}}{R}))", "{{result}}"),
        ),
        Panel(
            "Decisions of policies",
            "Images each second by what the policy of their request decided. Under 'observe' what is withheld here was "
            "answered all the same; 'unsure' is for want of a threshold.",
            "short",
            one(
                f"sum by (policy, decision) (rate(awnet_policy_decisions_total{{{M}}}{R}))", "{{policy}}: {{decision}}"
            ),
        ),
        Panel(
            "Who sends what is flagged",
            "Share of flagged images that one client sent, at least. The list itself, under salted hashes, is on the "
            "admin port.",
            "percentunit",
            one(f"max by (instance) (awnet_flagged_largest_client_ratio{{{S}}})", "{{instance}}"),
        ),
        Panel(
            "Uncalibrated images",
            "Share of images for which the thresholds do not speak; CUSUM and score drift leave them out. And which "
            "part of those is flagged: with palette images it may be nearly all of them, always.",
            "percentunit",
            (
                Query(ratio(f"{UNCALIBRATED}}}", f"awnet_watched_images_total{{{M}}}"), "uncalibrated"),
                Query(ratio(f'{UNCALIBRATED}, verdict!="clean"}}', f"{UNCALIBRATED}}}"), "of them flagged"),
                Query(ratio(f'{UNCALIBRATED}, verdict="adversarial"}}', f"{UNCALIBRATED}}}"), "of them adversarial"),
            ),
        ),
        Panel(
            "Why images are uncalibrated",
            "Images each second for which the thresholds do not speak, by the reason that their answers give.",
            "short",
            one(f"sum by (why) (rate(awnet_uncalibrated_images_total{{{M}}}{R}))", "{{why}}"),
        ),
        Panel(
            "Uncalibrated images, against what was usual",
            "Evidence that more images are uncalibrated than was usual here, or more of those flagged, as a part of "
            "the limit: at 1 the alarm is raised, below 0.5 or after an hour it ends. For the first hour it learns.",
            "percentunit",
            one(
                f"max by (model, version, of) (awnet_uncalibrated_cusum_ratio{{{M}}})", "{{model}} {{version}}, {{of}}"
            ),
            steps=((0.5, ORANGE), (1, RED)),
        ),
    ),
    "Requests": (
        Panel(
            "Requests by route",
            "Requests answered each second.",
            "reqps",
            one(f"sum by (route) (rate(awnet_requests_total{{{S}}}{R}))", "{{route}}"),
        ),
        Panel(
            "Requests by status",
            "Requests answered each second, by HTTP status.",
            "reqps",
            one(f"sum by (code) (rate(awnet_requests_total{{{S}}}{R}))", "{{code}}"),
        ),
        Panel(
            "Refused, by reason",
            "Requests that were not answered as asked, by the type of the problem (docs/api.md).",
            "reqps",
            one(f"sum by (reason) (rate(awnet_rejections_total{{{S}}}{R}))", "{{reason}}"),
        ),
        Panel(
            "Seconds of a prediction",
            "Half, nine tenths and 99 of 100 predictions are answered within these times.",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({q}, sum by (le) (rate(awnet_request_seconds_bucket{{{P}}}{R})))",
                    f"p{100 * q:g}",
                )
                for q in (0.5, 0.9, 0.99)
            ),
            steps=((0.1, RED),),
        ),
        Panel(
            "Where the time goes",
            "Mean seconds of a prediction in each stage.",
            "s",
            one(
                f"sum by (stage) (rate(awnet_stage_seconds_sum{{{S}}}{R})) "
                f"/ sum by (stage) (rate(awnet_stage_seconds_count{{{S}}}{R}))",
                "{{stage}}",
            ),
        ),
        Panel(
            "Error budget spent in the chosen time",
            "1 is the whole budget: 0.1 % of predictions with a 5xx, 1 % slower than 0.1 s.",
            "percentunit",
            (
                Query(
                    f'(sum(increase(awnet_requests_total{{{P}, code=~"5.."}}[$__range])) or vector(0)) '
                    f"/ sum(increase(awnet_requests_total{{{P}}}[$__range])) / 0.001",
                    "errors",
                ),
                Query(
                    f'(1 - sum(increase(awnet_request_seconds_bucket{{{P}, le="0.1"}}[$__range])) '
                    f"/ sum(increase(awnet_request_seconds_count{{{P}}}[$__range]))) / 0.01",
                    "slow",
                ),
            ),
            steps=((1, RED),),
        ),
    ),
    "Saturation": (
        Panel(
            "Queue",
            "Images accepted and unanswered, as a part of the most that are accepted.",
            "percentunit",
            one(
                f"max by (instance) (awnet_queue_images{{{S}}} / awnet_queue_capacity_images{{{S}}})",
                "{{instance}}",
            ),
            steps=((0.8, RED),),
        ),
        Panel(
            "Images in one execution",
            "Mean size of the batches that the model ran.",
            "short",
            one(
                f"sum(rate(awnet_batch_images_sum{{{S}}}{R})) / sum(rate(awnet_batch_images_count{{{S}}}{R}))",
                "mean batch",
            ),
        ),
        Panel(
            "Waiting in the queue",
            "99 of 100 requests wait no longer than this before they run.",
            "s",
            one(
                f'histogram_quantile(0.99, sum by (le) (rate(awnet_stage_seconds_bucket{{{S}, stage="queue"}}{R})))',
                "p99",
            ),
        ),
        Panel(
            "Processor",
            "Cores in use by each server process.",
            "short",
            one(f"sum by (instance) (rate(process_cpu_seconds_total{{{S}}}{R}))", "{{instance}}"),
        ),
        Panel(
            "Memory",
            "Resident memory of each server process.",
            "bytes",
            one(f"max by (instance) (process_resident_memory_bytes{{{S}}})", "{{instance}}"),
        ),
        Panel(
            "Open files",
            "File descriptors in use, as a part of the most that the process may have.",
            "percentunit",
            one(f"max by (instance) (process_open_fds{{{S}}} / process_max_fds{{{S}}})", "{{instance}}"),
            steps=((0.8, RED),),
        ),
        Panel(
            "Waiting to be decoded by processes",
            "Pixels of images that are not cheap to decode, as a part of those that may wait: at 1 further ones get "
            "503.",
            "percentunit",
            one(f"max by (instance) (awnet_decode_queue_pixels{{{S}}} / awnet_decode_queue_capacity_pixels{{{S}}})"),
            steps=((0.5, ORANGE), (0.9, RED)),
        ),
        Panel(
            "Decoding processes at work",
            "Processes that decode an image now; AWNET_DECODE_WORKERS of each worker at most.",
            "short",
            one(f"sum by (instance) (awnet_decode_busy_processes{{{S}}})", "{{instance}}"),
        ),
        Panel(
            "Decoding processes that were ended",
            "In the last interval, by why: too slow and crashed are images that somebody sends on purpose.",
            "short",
            one(f"sum by (why) (increase(awnet_decode_process_ends_total{{{S}}}{R}))", "{{why}}"),
        ),
    ),
    "Model and engine": (
        Panel(
            "Versions",
            "Which versions are open, and what for: serving, canary, shadow or kept.",
            "short",
            one(f"sum by (model, version, role) (awnet_model_info{{{M}}})", "{{model}} {{version}}, {{role}}"),
        ),
        Panel(
            "Attempts to take a version",
            "Reloads in the last interval, by result.",
            "short",
            one(f"sum by (result) (increase(awnet_reloads_total{{{M}}}{R}))", "{{result}}"),
        ),
        Panel(
            "Canary release",
            "Share of unversioned requests that a version on trial is given. Empty where there is none.",
            "percentunit",
            one(f"max by (model, version) (awnet_canary_share{{{M}}})", "{{model}} {{version}}"),
        ),
        Panel(
            "Shadow disagrees",
            "Share of images to which the shadow gave another class or verdict. Empty where there is no shadow.",
            "percentunit",
            one(
                f"sum by (about) (rate(awnet_shadow_disagreements_total{{{M}}}{R})) / ignoring (about) group_left "
                f'sum(rate(awnet_shadow_images_total{{{M}, result="compared"}}{R}))',
                "{{about}}",
            ),
        ),
        Panel(
            "Triton: reached",
            "1 while the server sends requests to this Triton. Empty with the embedded engine, as the panels after it.",
            "short",
            one(f"min by (address) (awnet_triton_up{{{S}}})", "{{address}}"),
        ),
        Panel(
            "Triton: images each second",
            "Images that Triton answered, and failures by reason.",
            "short",
            (
                Query(f"sum by (model) (rate(nv_inference_count{{{M}}}{R}))", "{{model}}"),
                Query(f"sum by (reason) (rate(nv_inference_request_failure{{{M}}}{R}))", "failed, {{reason}}"),
            ),
        ),
        Panel(
            "Triton: images in one execution",
            "How well Triton's dynamic batching fills its batches.",
            "short",
            one(
                f"sum by (model) (rate(nv_inference_count{{{M}}}{R})) "
                f"/ sum by (model) (rate(nv_inference_exec_count{{{M}}}{R}))",
                "{{model}}",
            ),
        ),
        Panel(
            "Triton: where the time goes",
            "Mean time of a request in Triton's queue and in the model. Triton keeps sums only, hence no p99.",
            "µs",
            (
                Query(
                    f"sum by (model) (rate(nv_inference_queue_duration_us{{{M}}}{R})) "
                    f"/ sum by (model) (rate(nv_inference_request_success{{{M}}}{R}))",
                    "{{model}}, queue",
                ),
                Query(
                    f"sum by (model) (rate(nv_inference_compute_infer_duration_us{{{M}}}{R})) "
                    f"/ sum by (model) (rate(nv_inference_request_success{{{M}}}{R}))",
                    "{{model}}, compute",
                ),
            ),
        ),
        Panel(
            "Triton: pending",
            "Requests that wait in Triton for an instance of the model.",
            "short",
            one(f"sum by (model) (nv_inference_pending_request_count{{{M}}})", "{{model}}"),
        ),
    ),
}
ANNOTATIONS = (
    # (name, expression, colour, title)
    (
        "Reloads",
        f'sum by (instance, model) (increase(awnet_reloads_total{{{M}, result="loaded"}}{R})) > 0',
        "blue",
        "{{model}} reloaded on {{instance}}",
    ),
    (
        "Alerts",
        FIRING,
        "red",
        "{{alertname}}",
    ),
)


def queries() -> Iterator[tuple[str, str, Query]]:
    """(row, panel title, query) of the whole dashboard."""
    for row, panels in ROWS.items():
        for panel in panels:
            for query in panel.queries:
                yield row, panel.title, query
