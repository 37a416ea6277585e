{{- define "awnet.name" -}}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{- end }}

{{- define "awnet.selector" -}}
app.kubernetes.io/name: awnet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "awnet.tritonSelector" -}}
app.kubernetes.io/name: awnet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: triton
{{- end }}

{{- define "awnet.labels" -}}
app.kubernetes.io/name: awnet
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "awnet.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "awnet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "awnet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Values that contradict each other, told at once instead of by a pod that does not start. */}}
{{- define "awnet.check" -}}
{{- $v := .Values }}
{{- if and (eq $v.model.source "image") (not $v.model.image.reference) }}{{ fail "model.source=image needs model.image.reference" }}{{ end }}
{{- if and (eq $v.model.source "claim") (not $v.model.claim) }}{{ fail "model.source=claim needs model.claim, the name of a PersistentVolumeClaim" }}{{ end }}
{{- if and $v.triton.enabled (eq $v.model.source "bundled") }}{{ fail "triton.enabled=true needs model.source=image or claim: Triton does not have the bundled model" }}{{ end }}
{{- if eq $v.model.source "pull" }}
{{- if not $v.model.pull.source }}{{ fail "model.source=pull needs model.pull.source" }}{{ end }}
{{- if not (or (regexMatch "(#sha256=|@sha256:)[0-9a-f]{64}$" $v.model.pull.source) $v.model.signingKeySecret) }}{{ fail "model.pull.source must end with #sha256=DIGEST, or oci:// with @sha256:DIGEST, as awnet pull prints it; or give model.signingKeySecret" }}{{ end }}
{{- if $v.triton.enabled }}{{ fail "triton.enabled=true needs model.source=image or claim: what is pulled has no config.pbtxt" }}{{ end }}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.egress) }}{{ fail "model.source=pull needs networkPolicy.egress, with rules for the source and for DNS: pods reach nothing else" }}{{ end }}
{{- end }}
{{- if and $v.tls.clientCa (not $v.tls.secret) }}{{ fail "tls.clientCa=true needs tls.secret, whose ca.crt is the authority" }}{{ end }}
{{- if and $v.monitoring.enabled $v.keys.secret (not $v.monitoring.keySecret) }}{{ fail "with keys.secret, monitoring needs monitoring.keySecret: an API key of scope metrics" }}{{ end }}
{{- if ne (empty $v.findings.webhook) (empty $v.findings.secret) }}{{ fail "findings.webhook and findings.secret belong together: each call is signed" }}{{ end }}
{{- if and $v.findings.webhook (not $v.findings.enabled) }}{{ fail "findings.webhook needs findings.enabled=true: what is sent is read from the journal" }}{{ end }}
{{- if and $v.findings.webhook $v.networkPolicy.enabled (not $v.networkPolicy.egress) }}{{ fail "findings.webhook needs networkPolicy.egress, with rules for the receiver and for DNS: pods reach nothing else" }}{{ end }}
{{- if $v.findings.caSecret }}
{{- if not $v.findings.enabled }}{{ fail "findings.caSecret needs findings.enabled=true: what is sent is read from the journal" }}{{ end }}
{{- if not (or $v.findings.webhook $v.settings.AWNET_FINDINGS_SYSLOG) }}{{ fail "findings.caSecret needs findings.webhook or settings.AWNET_FINDINGS_SYSLOG: there is no receiver whose certificate it is for" }}{{ end }}
{{- end }}
{{- if and (or $v.telemetry.headersSecret $v.telemetry.caSecret $v.telemetry.clientSecret) (not $v.settings.AWNET_OTLP_ENDPOINT) }}{{ fail "telemetry needs settings.AWNET_OTLP_ENDPOINT: nothing is sent without one" }}{{ end }}
{{- if and $v.triton.tlsSecret (not $v.triton.enabled) }}{{ fail "triton.tlsSecret needs triton.enabled=true" }}{{ end }}
{{- if and $v.triton.tlsSecret (eq $v.kind "kserve") }}{{ fail "triton.tlsSecret needs kind=deployment: KServe's Service speaks to its predictor without TLS" }}{{ end }}
{{- if and (eq $v.kind "kserve") (ne $v.autoscaling.kind "none") }}{{ fail "kind=kserve scales by KServe: set autoscaling.kind=none" }}{{ end }}
{{- if and (eq $v.autoscaling.kind "hpa") (lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) }}{{ fail "autoscaling.maxReplicas is below autoscaling.minReplicas" }}{{ end }}
{{- if and (eq $v.autoscaling.kind "keda") (lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) }}{{ fail "autoscaling.maxReplicas is below autoscaling.minReplicas" }}{{ end }}
{{- range $name, $_ := $v.settings }}
{{- if has $name (list "AWNET_HOST" "AWNET_PORT" "AWNET_GRPC_PORT" "AWNET_METRICS_HOST" "AWNET_METRICS_PORT" "AWNET_REPOSITORY" "AWNET_MODEL_SOURCE" "AWNET_MODEL_SOURCE_SECONDS" "AWNET_API_KEYS" "AWNET_TLS_CERTIFICATE" "AWNET_TLS_KEY" "AWNET_TLS_CLIENT_CA" "AWNET_SIGNING_KEY" "AWNET_FINDINGS_DIR" "AWNET_FINDINGS_WEBHOOK" "AWNET_FINDINGS_WEBHOOK_SECRET_FILE" "AWNET_FINDINGS_CA" "AWNET_ENGINE" "AWNET_TRITON_URLS" "AWNET_TRITON_TLS" "AWNET_TRITON_CA" "AWNET_DRAIN_SECONDS" "AWNET_SHUTDOWN_SECONDS") }}
{{- fail (printf "settings.%s: the chart sets it itself, by a value of its own" $name) }}
{{- end }}
{{- if eq $name "AWNET_CONFIG" }}{{ fail "settings.AWNET_CONFIG: pods have no such file; each setting of it is one of settings" }}{{ end }}
{{- end }}
{{- end }}

{{/* Names and values of the server's settings that follow from the chart's values. */}}
{{- define "awnet.settings" -}}
AWNET_HOST: "0.0.0.0"
AWNET_PORT: "8000"
AWNET_METRICS_HOST: "0.0.0.0"
AWNET_METRICS_PORT: "8003"
AWNET_DRAIN_SECONDS: {{ .Values.drainSeconds | quote }}
AWNET_SHUTDOWN_SECONDS: {{ .Values.shutdownSeconds | quote }}
{{- if .Values.grpc.enabled }}
AWNET_GRPC_PORT: "8001"
{{- end }}
{{- if and (ne .Values.model.source "bundled") (not .Values.triton.enabled) }}
AWNET_REPOSITORY: {{ include "awnet.repository" . }}
{{- end }}
{{- if .Values.model.signingKeySecret }}
AWNET_SIGNING_KEY: /etc/awnet/signing/key.pem
{{- end }}
{{- if .Values.keys.secret }}
AWNET_API_KEYS: /etc/awnet/keys/keys.toml
{{- end }}
{{- if .Values.tls.secret }}
AWNET_TLS_CERTIFICATE: /etc/awnet/tls/tls.crt
AWNET_TLS_KEY: /etc/awnet/tls/tls.key
{{- if .Values.tls.clientCa }}
AWNET_TLS_CLIENT_CA: /etc/awnet/tls/ca.crt
{{- end }}
{{- end }}
{{- if .Values.findings.enabled }}
AWNET_FINDINGS_DIR: /var/lib/awnet/findings
{{- if .Values.findings.caSecret }}
AWNET_FINDINGS_CA: /etc/awnet/findings-ca/ca.crt
{{- end }}
{{- if .Values.findings.webhook }}
AWNET_FINDINGS_WEBHOOK: {{ .Values.findings.webhook | quote }}
AWNET_FINDINGS_WEBHOOK_SECRET_FILE: /etc/awnet/findings/secret
{{- end }}
{{- end }}
{{- if .Values.triton.enabled }}
AWNET_ENGINE: triton
{{- if eq .Values.kind "kserve" }}
AWNET_TRITON_URLS: {{ include "awnet.name" . }}-predictor.{{ .Release.Namespace }}:80
{{- else }}
AWNET_TRITON_URLS: {{ include "awnet.name" . }}-triton:8101
{{- end }}
{{- if .Values.triton.tlsSecret }}
AWNET_TRITON_TLS: "true"
AWNET_TRITON_CA: /etc/awnet/triton/ca.crt
{{- end }}
{{- end }}
{{- range $name, $value := .Values.settings }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "awnet.repository" -}}
{{ printf "/models/%s" .Values.model.path | trimSuffix "/" }}
{{- end }}

{{- define "awnet.probe" -}}
{{- if .root.Values.tls.clientCa -}}
tcpSocket: {port: http}
{{- else -}}
httpGet: {path: {{ .path }}, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne .root.Values.tls.secret "") }}}
{{- end -}}
{{- end }}

{{/* The server's container without its name: Deployment and InferenceService have it alike. */}}
{{- define "awnet.container" -}}
image: {{ include "awnet.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
envFrom:
  - configMapRef: {name: {{ include "awnet.name" . }}}
{{- with include "awnet.telemetry" . }}
env: {{- . | nindent 2 }}
{{- end }}
ports:
  - {name: http, containerPort: 8000, protocol: TCP}
{{- if .Values.grpc.enabled }}
  - {name: grpc, containerPort: 8001, protocol: TCP}
{{- end }}
  - {name: metrics, containerPort: 8003, protocol: TCP}
# Ready within two seconds; the model comes from a slow disk at times.
startupProbe:
  {{- include "awnet.probe" (dict "root" . "path" "/v2/health/live") | nindent 2 }}
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  {{- include "awnet.probe" (dict "root" . "path" "/v2/health/ready") | nindent 2 }}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
# Alive, not ready: a restart mends what hangs, and neither a model that loads nor a Triton that is gone.
livenessProbe:
  {{- include "awnet.probe" (dict "root" . "path" "/v2/health/live") | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 3
  failureThreshold: 3
resources: {{- toYaml .Values.resources | nindent 2 }}
securityContext: {{- include "awnet.containerSecurity" . | nindent 2 }}
volumeMounts: {{- include "awnet.mounts" . | nindent 2 }}
{{- end }}

{{/* Variables that OpenTelemetry's exporters read; they are no settings of the server. */}}
{{- define "awnet.telemetry" -}}
{{- with .Values.telemetry }}
{{- if .headersSecret }}
- {name: OTEL_EXPORTER_OTLP_HEADERS, valueFrom: {secretKeyRef: {name: {{ .headersSecret }}, key: headers}}}
{{- end }}
{{- if .caSecret }}
- {name: OTEL_EXPORTER_OTLP_CERTIFICATE, value: /etc/awnet/telemetry-ca/ca.crt}
{{- end }}
{{- if .clientSecret }}
- {name: OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE, value: /etc/awnet/telemetry/tls.crt}
- {name: OTEL_EXPORTER_OTLP_CLIENT_KEY, value: /etc/awnet/telemetry/tls.key}
{{- end }}
{{- end }}
{{- end }}

{{/* Volumes of authorities: of such a Secret, which may hold a key as well, ca.crt and nothing else. */}}
{{- define "awnet.authorities" -}}
{{- with .Values.findings.caSecret }}
- {name: findings-ca, secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- with .Values.telemetry.caSecret }}
- {name: telemetry-ca, secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- with .Values.triton.tlsSecret }}
- {name: triton-ca, secret: {secretName: {{ . }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- if and (eq .Values.model.source "pull") .Values.model.pull.caSecret }}
- {name: pull-ca, secret: {secretName: {{ .Values.model.pull.caSecret }}, defaultMode: 0440, items: [{key: ca.crt, path: ca.crt}]}}
{{- end }}
{{- end }}

{{- define "awnet.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if and (ne .Values.model.source "bundled") (not .Values.triton.enabled) }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- if .Values.model.signingKeySecret }}
- {name: signing, mountPath: /etc/awnet/signing, readOnly: true}
{{- end }}
{{- if .Values.keys.secret }}
- {name: keys, mountPath: /etc/awnet/keys, readOnly: true}
{{- end }}
{{- if .Values.tls.secret }}
- {name: tls, mountPath: /etc/awnet/tls, readOnly: true}
{{- end }}
{{- if .Values.findings.enabled }}
- {name: findings, mountPath: /var/lib/awnet}
{{- end }}
{{- if .Values.findings.secret }}
- {name: findings-secret, mountPath: /etc/awnet/findings, readOnly: true}
{{- end }}
{{- if .Values.findings.caSecret }}
- {name: findings-ca, mountPath: /etc/awnet/findings-ca, readOnly: true}
{{- end }}
{{- if .Values.telemetry.caSecret }}
- {name: telemetry-ca, mountPath: /etc/awnet/telemetry-ca, readOnly: true}
{{- end }}
{{- if .Values.telemetry.clientSecret }}
- {name: telemetry, mountPath: /etc/awnet/telemetry, readOnly: true}
{{- end }}
{{- if .Values.triton.tlsSecret }}
- {name: triton-ca, mountPath: /etc/awnet/triton, readOnly: true}
{{- end }}
{{- end }}

{{- define "awnet.volumes" -}}
- name: tmp
  emptyDir: {medium: Memory, sizeLimit: 64Mi}
{{- if not .Values.triton.enabled }}
{{- include "awnet.models" . }}
{{- end }}
{{- if .Values.model.signingKeySecret }}
- name: signing
  secret: {secretName: {{ .Values.model.signingKeySecret }}, defaultMode: 0440}
{{- end }}
{{- if and (eq .Values.model.source "pull") .Values.model.pull.dockerConfigSecret }}
- name: docker
  secret:
    secretName: {{ .Values.model.pull.dockerConfigSecret }}
    defaultMode: 0440
    items: [{key: .dockerconfigjson, path: config.json}]
{{- end }}
{{- if .Values.keys.secret }}
- name: keys
  secret: {secretName: {{ .Values.keys.secret }}, defaultMode: 0440}
{{- end }}
{{- if .Values.tls.secret }}
- name: tls
  secret: {secretName: {{ .Values.tls.secret }}, defaultMode: 0440}
{{- end }}
{{- if .Values.findings.enabled }}
# Four times what one worker keeps: restarts of the container find the journal again.
- name: findings
  emptyDir: {sizeLimit: 1Gi}
{{- end }}
{{- if .Values.findings.secret }}
- name: findings-secret
  secret: {secretName: {{ .Values.findings.secret }}, defaultMode: 0440}
{{- end }}
{{- if .Values.telemetry.clientSecret }}
- name: telemetry
  secret: {secretName: {{ .Values.telemetry.clientSecret }}, defaultMode: 0440}
{{- end }}
{{- with include "awnet.authorities" . }}
{{ . }}
{{- end }}
{{- end }}

{{/* The volume of models, for whoever runs them: the server, or its Triton. */}}
{{- define "awnet.models" }}
{{- if eq .Values.model.source "claim" }}
- name: models
  persistentVolumeClaim: {claimName: {{ .Values.model.claim }}, readOnly: true}
{{- else if and (eq .Values.model.source "image") (eq .Values.model.image.mount "volume") }}
- name: models
  image: {reference: {{ .Values.model.image.reference }}, pullPolicy: IfNotPresent}
{{- else if ne .Values.model.source "bundled" }}
- name: models
  emptyDir: {sizeLimit: {{ ternary "4Gi" "1Gi" (eq .Values.model.source "pull") }}}
{{- end }}
{{- end }}

{{/* What brings a model before the server starts, if anything does. */}}
{{- define "awnet.initContainers" }}
{{- if and (eq .Values.model.source "image") (eq .Values.model.image.mount "init") }}
{{- include "awnet.modelCopy" . }}
{{- else if eq .Values.model.source "pull" }}
{{- include "awnet.modelPull" . }}
{{- end }}
{{- end }}

{{/* The server's own program and settings; the secrets of the source are nobody else's. */}}
{{- define "awnet.modelPull" -}}
- name: model
  image: {{ include "awnet.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [python, -m, awnet, pull]
  envFrom:
    - configMapRef: {name: {{ include "awnet.name" . }}}
    {{- with .Values.model.pull.variablesSecret }}
    - secretRef: {name: {{ . }}}
    {{- end }}
  env:
    - {name: AWNET_MODEL_SOURCE, value: {{ .Values.model.pull.source | quote }}}
    - {name: AWNET_MODEL_SOURCE_SECONDS, value: {{ .Values.model.pull.seconds | quote }}}
    {{- if .Values.model.pull.dockerConfigSecret }}
    - {name: DOCKER_CONFIG, value: /etc/awnet/docker}
    {{- end }}
    {{- if .Values.model.pull.caSecret }}
    - {name: SSL_CERT_FILE, value: /etc/awnet/pull-ca/ca.crt}
    {{- end }}
  resources: {{- toYaml .Values.resources | nindent 4 }}
  securityContext: {{- include "awnet.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: models, mountPath: /models}
    {{- if .Values.model.signingKeySecret }}
    - {name: signing, mountPath: /etc/awnet/signing, readOnly: true}
    {{- end }}
    {{- if .Values.model.pull.dockerConfigSecret }}
    - {name: docker, mountPath: /etc/awnet/docker, readOnly: true}
    {{- end }}
    {{- if .Values.model.pull.caSecret }}
    - {name: pull-ca, mountPath: /etc/awnet/pull-ca, readOnly: true}
    {{- end }}
{{- end }}

{{- define "awnet.modelCopy" -}}
- name: model
  image: {{ .Values.model.image.reference }}
  # Into a folder of another name first, so that nobody sees half a version.
  command:
    - sh
    - -c
    - set -e; target="/models/$1"; mkdir -p "$(dirname "$target")"; cp -r "/$1" "$target.part"; mv "$target.part" "$target"
    - copy
    - {{ .Values.model.path | quote }}
  resources:
    requests: {cpu: 100m, memory: 64Mi}
    limits: {cpu: "1", memory: 256Mi}
  securityContext: {{- include "awnet.containerSecurity" . | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
{{- end }}

{{- define "awnet.placing" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "awnet.tritonContainer" -}}
image: {{ .root.Values.triton.image }}
args:
  - tritonserver
  - --model-repository={{ .repository }}
  # Looks for new versions itself; the calls that load and unload models stay off.
  - --model-control-mode=poll
  - --repository-poll-secs=5
  - --strict-readiness=true
  - --disable-auto-complete-config
  - --exit-timeout-secs=20
  - --http-port=8100
  - --grpc-port={{ .grpcPort }}
  - --metrics-port=8102
  {{- if .root.Values.triton.tlsSecret }}
  - --grpc-use-ssl=true
  - --grpc-server-cert=/etc/awnet/tls/tls.crt
  - --grpc-server-key=/etc/awnet/tls/tls.key
  {{- end }}
resources: {{- toYaml .root.Values.triton.resources | nindent 2 }}
securityContext: {{- include "awnet.containerSecurity" .root | nindent 2 }}
{{- end }}

{{- define "awnet.scaling" -}}
# Doubles at most every half minute, and leaves slowly: a replica that drains is not there for the next burst.
scaleUp:
  stabilizationWindowSeconds: 0
  policies: [{type: Percent, value: 100, periodSeconds: 30}]
scaleDown:
  stabilizationWindowSeconds: 300
  policies: [{type: Percent, value: 25, periodSeconds: 60}]
{{- end }}
