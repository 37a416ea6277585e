"""deploy/kubernetes: what the chart renders is valid, also for KEDA, Prometheus and KServe, and fits the server.

No cluster is asked: helm renders, kubernetes-validate judges what is Kubernetes' own by its published schemas, and
`custom_resources.yaml` what is not.
"""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import latest_version

from domain import __version__
from server.core.model_source import parse_model_source
from server.settings.settings import Settings
from tests.requires import SEARCH, requires

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "kubernetes"
HEALTH = ("/v2/health/live", "/v2/health/ready")
CUSTOM: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text("utf-8"))
VERSIONS = ("1.28", "1.33", latest_version())
POD_ONLY = ("minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "labels", "model")  # of a component of KServe

OCI = "model.source=image,model.image.reference=registry.example/awnet-model@sha256:" + "0" * 64
WEBHOOK = "findings.enabled=true,findings.webhook=https://siem.example/in,findings.secret=f,"
PULLED = (
    "model.source=pull,model.pull.source=oci://registry.example/awnet@sha256:"
    + "0" * 64
    + ",networkPolicy.egress[0].ports[0].port=443"
)
CASES = {
    "plain": "",
    "findings": "findings.enabled=true",
    "findings-sent": WEBHOOK + "networkPolicy.egress[0].ports[0].port=443",
    "findings-sent-to-a-private-receiver": WEBHOOK + "findings.caSecret=c,networkPolicy.egress[0].ports[0].port=443",
    "telemetry": "settings.AWNET_OTLP_ENDPOINT=https://collector:4318,telemetry.headersSecret=h,telemetry.caSecret=c,"
    "telemetry.clientSecret=t",
    "keys-and-tls": "keys.secret=k,tls.secret=t,grpc.enabled=true",
    "client-certificates": "tls.secret=t,tls.clientCa=true",
    "hpa": "autoscaling.kind=hpa",
    "hpa-on-the-queue": "autoscaling.kind=hpa,autoscaling.customMetrics=true",
    "keda": "autoscaling.kind=keda",
    "monitoring": "monitoring.enabled=true,monitoring.labels.release=prometheus",
    "monitoring-with-keys": "monitoring.enabled=true,keys.secret=k,monitoring.keySecret=m,tls.secret=t",
    "model-volume": OCI,
    "model-copied": OCI + ",model.image.mount=init,model.signingKeySecret=s",
    "model-pulled": PULLED,
    "model-pulled-with-secrets": PULLED
    + ",model.pull.variablesSecret=v,model.pull.dockerConfigSecret=d,model.pull.caSecret=c"
    + ",model.signingKeySecret=s,settings.AWNET_MODEL=ours",
    "model-claim": "model.source=claim,model.claim=c,model.path=models/ours",
    "triton": "triton.enabled=true,model.source=claim,model.claim=c",
    "triton-tls": "triton.enabled=true,triton.tlsSecret=x,model.source=claim,model.claim=c",
    "triton-copied": "triton.enabled=true,model.image.mount=init," + OCI,
    "kserve": "kind=kserve",
    "kserve-triton": "kind=kserve,triton.enabled=true,model.source=claim,model.claim=c",
    "kserve-pulled": "kind=kserve," + PULLED,
    "kserve-copied": "kind=kserve,model.image.mount=init," + OCI,
    "everything": "keys.secret=k,tls.secret=t,grpc.enabled=true,autoscaling.kind=keda,monitoring.enabled=true,"
    "monitoring.keySecret=m,triton.enabled=true,model.source=claim,model.claim=c,settings.AWNET_PRIOR=0.02",
}

pytestmark = requires("helm")


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = str(shutil.which("helm", path=SEARCH))
    environment = {**os.environ, "HELM_CACHE_HOME": "/nonexistent", "HELM_CONFIG_HOME": "/nonexistent"}
    return subprocess.run(
        [program, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@functools.cache
def rendered(values: str) -> str:
    done = helm("template", "awnet", str(CHART), "--namespace", "vision", "--set", values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources(values: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Each resource under its kind and name."""
    found = [document for document in yaml.safe_load_all(rendered(values)) if document]
    named = {(document["kind"], document["metadata"]["name"]): document for document in found}
    assert len(named) == len(found)
    return named


def problems(resource: dict[str, Any], version: str) -> list[str]:
    """What is wrong with a resource, by the schemas of this version of Kubernetes or by ours."""
    if resource["kind"] not in CUSTOM:
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [str(error.message)]
        return []
    custom = CUSTOM[resource["kind"]]
    found = [error.message for error in jsonschema.Draft7Validator(custom["spec"]).iter_errors(resource["spec"])]
    if resource["apiVersion"] != custom["apiVersion"]:
        found.append(f"{resource['apiVersion']} is not {custom['apiVersion']}")
    for pod in pods_of_custom(resource):
        found += problems(pod, version)
    return found


def pods_of_custom(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """What of a custom resource is a pod's specification, as pods."""
    spec = resource["spec"]
    if resource["kind"] == "ClusterServingRuntime":
        parts = [{"containers": spec["containers"]}]
    else:
        parts = [spec[part] for part in ("predictor", "transformer") if "containers" in spec.get(part, {})]
    kept = [{name: value for name, value in part.items() if name not in POD_ONLY} for part in parts]
    return [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": part} for part in kept]


def pod_specs(values: str) -> list[dict[str, Any]]:
    found = []
    for resource in resources(values).values():
        if resource["kind"] == "Deployment":
            found.append(resource["spec"]["template"]["spec"])
        elif resource["kind"] in ("InferenceService", "ClusterServingRuntime"):
            found += [pod["spec"] for pod in pods_of_custom(resource)]
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered_is_valid(case: str) -> None:
    """Strictly: no field that the schemas do not know, in three versions of Kubernetes."""
    for version in VERSIONS:
        if version == "1.28" and "reference:" in rendered(CASES[case]):
            continue  # volumes of images are younger
        for name, resource in resources(CASES[case]).items():
            assert problems(resource, version) == [], (version, name)


@pytest.mark.parametrize(
    ("values", "kind", "spoil"),
    [
        ("", "Deployment", lambda r: r["spec"]["template"]["spec"]["containers"][0].update(readinesProbe={})),
        ("", "Service", lambda r: r["spec"]["ports"][0].update(port="http")),
        (CASES["keda"], "ScaledObject", lambda r: r["spec"].update(coolDownPeriod=3)),
        (CASES["keda"], "ScaledObject", lambda r: r["spec"]["triggers"][0]["metadata"].update(threshold=3)),
        (CASES["monitoring"], "ServiceMonitor", lambda r: r["spec"]["endpoints"][0].update(targetport=1)),
        (CASES["monitoring"], "PrometheusRule", lambda r: r["spec"]["groups"][0].update(rule=[])),
        (CASES["kserve"], "InferenceService", lambda r: r["spec"]["predictor"].update(containres=[])),
        (CASES["kserve-triton"], "ClusterServingRuntime", lambda r: r["spec"]["containers"][0].update(prots=[])),
    ],
)
def test_the_schemas_would_notice_a_mistake(values: str, kind: str, spoil: Any) -> None:
    """A check that accepts everything is none."""
    resource = copy.deepcopy(next(r for (k, _), r in resources(values).items() if k == kind))
    assert problems(resource, VERSIONS[-1]) == []
    spoil(resource)
    assert problems(resource, VERSIONS[-1])


def test_the_linter_finds_nothing() -> None:
    """helm lint, with warnings as errors."""
    done = helm("lint", "--strict", str(CHART))
    assert (done.returncode, "0 chart(s) failed" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("case", CASES)
def test_every_setting_is_one_of_the_server(case: str) -> None:
    """The server takes the values, too; the files of secrets are not there yet when it reads them."""
    data = resources(CASES[case])["ConfigMap", "awnet"]["data"]
    given = {name.removeprefix("AWNET_").lower(): value for name, value in data.items()}
    assert given.keys() <= Settings.model_fields.keys()
    settings = Settings.model_validate(given)
    assert settings.metrics_port == 8003 and settings.port == 8000


@pytest.mark.parametrize("case", CASES)
def test_pods_are_hardened_and_limited(case: str) -> None:
    """No root, no capabilities, nothing to write but volumes, no token of the cluster, no variables of its Services."""
    for pod in pod_specs(CASES[case]):
        containers = pod["containers"] + pod.get("initContainers", [])
        for container in containers:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True and security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"].keys() == {"cpu", "memory"}
        if "securityContext" in pod:  # a runtime of KServe leaves the pod to KServe
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False


@pytest.mark.parametrize("case", CASES)
def test_volumes_that_are_mounted_exist(case: str) -> None:
    """And none is declared for nobody."""
    for pod in pod_specs(CASES[case]):
        containers = pod["containers"] + pod.get("initContainers", [])
        mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_a_model_is_pulled_by_whom_a_server_would_believe() -> None:
    """The init container takes the server's own settings, a pinned source and the secrets, which the server has not."""
    case = CASES["model-pulled-with-secrets"]
    data = resources(case)["ConfigMap", "awnet"]["data"]
    (pod,) = pod_specs(case)
    (pull,), (server,) = pod["initContainers"], pod["containers"]
    assert pull["image"] == server["image"] and pull["command"] == ["python", "-m", "awnet", "pull"]
    given = data | {entry["name"]: entry["value"] for entry in pull["env"] if entry["name"].startswith("AWNET_")}
    settings = Settings.model_validate({name.removeprefix("AWNET_").lower(): value for name, value in given.items()})
    assert parse_model_source(settings.model_source).pinned
    assert (str(settings.repository), settings.model) == ("/models/model_repository", "ours")
    assert {"secretRef": {"name": "v"}} in pull["envFrom"] and {"secretRef": {"name": "v"}} not in server["envFrom"]
    mounts = {mount["mountPath"]: mount for mount in pull["volumeMounts"]}
    assert not mounts["/models"].get("readOnly") and mounts["/etc/awnet/docker"]["readOnly"]
    ours = {mount["mountPath"]: mount for mount in server["volumeMounts"]}
    assert ours["/models"]["readOnly"] and "/etc/awnet/docker" not in ours
    assert {"name": "DOCKER_CONFIG", "value": "/etc/awnet/docker"} in pull["env"]
    (docker,) = [volume for volume in pod["volumes"] if volume["name"] == "docker"]
    assert docker["secret"]["items"] == [{"key": ".dockerconfigjson", "path": "config.json"}]


def test_the_journal_of_findings_has_room_and_its_secret_is_closed() -> None:
    """The one place beside /tmp that a server writes to: the journal is full before the kubelet ends the pod."""
    data = resources(CASES["findings-sent"])["ConfigMap", "awnet"]["data"]
    (pod,) = pod_specs(CASES["findings-sent"])
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {path for path, mount in mounts.items() if not mount.get("readOnly")} == {"/tmp", "/var/lib/awnet"}
    assert data["AWNET_FINDINGS_DIR"].startswith("/var/lib/awnet/")
    assert volumes["findings"]["emptyDir"] == {"sizeLimit": "1Gi"}
    assert 2 * Settings.model_fields["findings_keep_bytes"].default < 1 << 30
    assert data["AWNET_FINDINGS_WEBHOOK_SECRET_FILE"] == "/etc/awnet/findings/secret"
    assert volumes["findings-secret"]["secret"] == {"secretName": "f", "defaultMode": 0o440}


@pytest.mark.parametrize(
    ("case", "container", "variable", "path"),
    [
        ("findings-sent-to-a-private-receiver", "awnet", "AWNET_FINDINGS_CA", "/etc/awnet/findings-ca/ca.crt"),
        ("telemetry", "awnet", "OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/awnet/telemetry-ca/ca.crt"),
        ("telemetry", "awnet", "OTEL_EXPORTER_OTLP_CLIENT_KEY", "/etc/awnet/telemetry/tls.key"),
        ("triton-tls", "awnet", "AWNET_TRITON_CA", "/etc/awnet/triton/ca.crt"),
        ("model-pulled-with-secrets", "model", "SSL_CERT_FILE", "/etc/awnet/pull-ca/ca.crt"),
    ],
)
def test_a_file_that_a_variable_names_is_mounted(case: str, container: str, variable: str, path: str) -> None:
    """From a Secret, closed to others; of a Secret of authorities ca.crt alone, since its key is nobody's here."""
    pod = pod_specs(CASES[case])[0]
    given = dict(resources(CASES[case])["ConfigMap", "awnet"]["data"])
    (found,) = [c for c in pod["containers"] + pod.get("initContainers", []) if c["name"] == container]
    given |= {entry["name"]: entry.get("value") for entry in found.get("env", [])}
    assert given[variable] == path
    folder, _, name = path.rpartition("/")
    (mount,) = [mount for mount in found["volumeMounts"] if mount["mountPath"] == folder]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == mount["name"]]
    assert mount["readOnly"] is True and volume["secret"]["defaultMode"] == 0o440
    if name == "ca.crt":
        assert volume["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


@pytest.mark.parametrize("case", CASES)
def test_every_setting_that_names_a_file_has_its_file(case: str) -> None:
    """A path in a variable is in the image, or below a volume of the container."""
    for pod in pod_specs(CASES[case]):
        for container in pod["containers"]:
            if {"configMapRef": {"name": "awnet"}} not in container.get("envFrom", []):
                continue
            data = resources(CASES[case])["ConfigMap", "awnet"]["data"]
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            for name, value in data.items():
                if value.startswith("/"):
                    assert any(value.startswith(f"{mount}/") for mount in mounts), (name, value)


def test_files_of_settings_have_a_way_in() -> None:
    """Each setting of the server that names a file is one that some values of the chart set."""
    named = {name for name, found in Settings.model_fields.items() if "Path" in str(found.annotation)}
    given = {name for values in CASES.values() for name in resources(values)["ConfigMap", "awnet"]["data"]}
    assert {f"AWNET_{name.upper()}" for name in named - {"config"}} <= given


def test_triton_has_the_key_and_the_server_who_signed_it() -> None:
    """What goes between them is encrypted, and the server knows to whom it speaks."""
    server, triton = (
        resources(CASES["triton-tls"])["Deployment", name]["spec"]["template"]["spec"]
        for name in ("awnet", "awnet-triton")
    )
    (served,) = triton["containers"]
    assert {"--grpc-use-ssl=true", "--grpc-server-key=/etc/awnet/tls/tls.key"} <= set(served["args"])
    files = {item["key"] for volume in triton["volumes"] for item in volume.get("secret", {}).get("items", [])}
    assert files == {"tls.crt", "tls.key"}
    assert "tls.key" not in json.dumps(server)
    data = resources(CASES["triton-tls"])["ConfigMap", "awnet"]["data"]
    assert (data["AWNET_TRITON_TLS"], data["AWNET_TRITON_URLS"]) == ("true", "awnet-triton:8101")


def test_the_token_of_a_collector_is_no_setting() -> None:
    """It stays in its Secret: the map of settings is read by whoever reads the namespace."""
    (pod,) = pod_specs(CASES["telemetry"])
    (headers,) = [e for e in pod["containers"][0]["env"] if e["name"] == "OTEL_EXPORTER_OTLP_HEADERS"]
    assert headers["valueFrom"] == {"secretKeyRef": {"name": "h", "key": "headers"}}


def test_probes_ask_what_the_server_answers() -> None:
    """Alive for a restart, ready for traffic; by HTTPS where there is a certificate."""
    container = pod_specs("")[0]["containers"][0]
    assert container["livenessProbe"]["httpGet"]["path"] in HEALTH
    assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    secure = pod_specs(CASES["keys-and-tls"])[0]["containers"][0]
    assert {secure[probe]["httpGet"]["scheme"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")} == {
        "HTTPS"
    }


def test_a_pod_has_time_to_leave() -> None:
    """The grace period is longer than drain and shutdown together, whatever they are set to."""
    pod = pod_specs("drainSeconds=30,shutdownSeconds=45")[0]
    assert pod["terminationGracePeriodSeconds"] > 30 + 45


def test_other_settings_are_other_pods() -> None:
    """The server reads its settings once."""

    def template(values: str) -> dict[str, Any]:
        return dict(resources(values)["Deployment", "awnet"]["spec"]["template"])

    assert template("") != template("settings.AWNET_PRIOR=0.02")
    assert template("") == template("service.port=81")


def test_the_autoscaler_owns_the_number_of_replicas() -> None:
    """A Deployment that names one would set it back at each upgrade."""
    assert resources("")["Deployment", "awnet"]["spec"]["replicas"] == 2
    for case in ("hpa", "keda"):
        assert "replicas" not in resources(CASES[case])["Deployment", "awnet"]["spec"]


def test_rules_and_dashboard_are_those_of_the_house() -> None:
    """One source: the chart has links to the files that Prometheus and Grafana are given elsewhere."""
    named = resources(CASES["monitoring"])
    groups = named["PrometheusRule", "awnet"]["spec"]["groups"]
    expected = []
    for path in sorted((ROOT / "deploy" / "prometheus" / "rules").glob("*.yml")):
        expected += yaml.safe_load(path.read_text("utf-8"))["groups"]
    assert groups == expected
    dashboard = (ROOT / "deploy" / "grafana" / "dashboards" / "awnet.json").read_text("utf-8")
    assert json.loads(named["ConfigMap", "awnet-dashboard"]["data"]["awnet.json"]) == json.loads(dashboard)


def test_metrics_that_scale_it_exist() -> None:
    """By the names under which the server counts."""
    known = set(re.findall(r"^\| `(awnet_\w+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8"), re.MULTILINE))
    keda = resources(CASES["keda"])["ScaledObject", "awnet"]["spec"]["triggers"]
    hpa = resources(CASES["hpa-on-the-queue"])["HorizontalPodAutoscaler", "awnet"]["spec"]["metrics"]
    used = {name for trigger in keda for name in re.findall(r"awnet_\w+", trigger["metadata"]["query"])}
    used |= {metric["pods"]["metric"]["name"] for metric in hpa if metric["type"] == "Pods"}
    assert used == {"awnet_queue_images", "awnet_queue_capacity_images"} and used <= known


def test_the_service_keeps_metrics_to_itself() -> None:
    """The port that clients reach does not answer /metrics, and only the monitoring namespace reaches the other one."""
    named = resources("")
    assert [port["name"] for port in named["Service", "awnet"]["spec"]["ports"]] == ["http"]
    policy = named["NetworkPolicy", "awnet"]["spec"]
    scraped = [rule for rule in policy["ingress"] if {"port": "metrics", "protocol": "TCP"} in rule["ports"]]
    assert scraped and all(rule["from"] for rule in scraped)
    assert policy["egress"] == []


def test_the_version_is_that_of_the_server() -> None:
    """From the one place."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ("model.source=image", "model.image.reference"),
        ("model.source=claim", "model.claim"),
        ("triton.enabled=true", "does not have the bundled model"),
        ("tls.clientCa=true", "tls.secret"),
        ("monitoring.enabled=true,keys.secret=k", "monitoring.keySecret"),
        ("kind=kserve,autoscaling.kind=hpa", "KServe"),
        ("findings.enabled=true,findings.webhook=https://siem.example", "each call is signed"),
        ("findings.webhook=https://siem.example,findings.secret=f", "findings.enabled=true"),
        ("findings.enabled=true,findings.webhook=http://siem.example,findings.secret=f", "webhook"),
        (WEBHOOK + "networkPolicy.enabled=true", "networkPolicy.egress"),
        ("findings.caSecret=c", "findings.enabled=true"),
        ("findings.enabled=true,findings.caSecret=c", "no receiver"),
        ("telemetry.caSecret=c", "AWNET_OTLP_ENDPOINT"),
        ("triton.tlsSecret=x", "triton.enabled=true"),
        ("kind=kserve,triton.enabled=true,triton.tlsSecret=x,model.source=claim,model.claim=c", "kind=deployment"),
        ("settings.AWNET_FINDINGS_CA=/ca.crt", "the chart sets it itself"),
        ("settings.AWNET_CONFIG=/awnet.toml", "no such file"),
        ("settings.AWNET_FINDINGS_DIR=/tmp", "the chart sets it itself"),
        ("settings.AWNET_MODEL_SOURCE=x", "the chart sets it itself"),
        ("model.source=pull", "needs model.pull.source"),
        (PULLED.replace("@sha256:" + "0" * 64, ":latest"), "#sha256=DIGEST"),
        (PULLED.replace("oci:", "file:"), "source"),
        (PULLED.partition(",networkPolicy")[0], "networkPolicy.egress"),
        (PULLED + ",triton.enabled=true", "config.pbtxt"),
        ("autoscaling.kind=keda,autoscaling.minReplicas=5,autoscaling.maxReplicas=2", "maxReplicas"),
        ("settings.AWNET_PORT=9000", "the chart sets it itself"),
        ("settings.PORT=9000", "settings"),
        ("replicsa=3", "replicsa"),
        ("autoscaling.kind=vpa", "autoscaling"),
        ("image.digest=sha256:12", "digest"),
        ("model.path=../etc,model.source=claim,model.claim=c", "path"),
    ],
)
def test_values_that_cannot_work_are_refused(values: str, why: str) -> None:
    """With a sentence, before anything reaches a cluster."""
    done = helm("template", "awnet", str(CHART), "--set", values)
    assert done.returncode != 0 and why in done.stderr
