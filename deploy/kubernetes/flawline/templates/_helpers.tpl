{{/* Labels of an object of a component; the dot is (dict "root" $ "component" "workers"). */}}
{{- define "flawline.labels" -}}
{{ include "flawline.selector" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* Labels that never change, by which pods are chosen. */}}
{{- define "flawline.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* A value in TOML: JSON, except that a table inside has an equals sign. */}}
{{- define "flawline.tomlValue" -}}
{{- $comma := "" -}}
{{- if kindIs "map" . -}}
{ {{- range $key, $value := . }}{{ $comma }} {{ $key }} = {{ include "flawline.tomlValue" $value }}{{ $comma = "," }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{- range $value := . }}{{ $comma }} {{ include "flawline.tomlValue" $value }}{{ $comma = "," }}{{ end }} ]
{{- else -}}
{{ toJson . }}
{{- end -}}
{{- end }}

{{/* line.toml: the keys of the line first, then its sections, then its cameras. It refuses secrets, and an address with a password. */}}
{{- define "flawline.toml" -}}
{{- if or .Values.line.webhooks .Values.line.outbound }}
{{- fail "line: webhooks and outbound belong to notify.webhooks and notify.outbound, which one pod alone reads" }}
{{- end }}
{{- range $section, $keys := .Values.line }}
{{- if kindIs "map" $keys }}
{{- range $key, $value := $keys }}
{{- if or (eq $key "sasl_password" "token" "store_url") (and (eq $section "store") (eq $key "url")) }}
{{- fail (printf "line.%s.%s is a secret: put it into a Secret and name that in secrets" $section $key) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- range $key, $value := .Values.line }}
{{- if not (or (kindIs "map" $value) (eq $key "cameras")) }}
{{ $key }} = {{ include "flawline.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $section, $keys := .Values.line }}
{{- if kindIs "map" $keys }}

[{{ $section }}]
{{- range $key, $value := $keys }}
{{ $key }} = {{ include "flawline.tomlValue" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- range $camera := .Values.line.cameras }}
{{- if hasKey $camera "url" }}
{{- fail (printf "line.cameras: the url of %s may hold a password: put it into the Secret of secrets.cameras, and name its file by url_file" $camera.name) }}
{{- end }}

[[cameras]]
{{- range $key, $value := $camera }}
{{ $key }} = {{ include "flawline.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end }}

{{/* What is the same in the spec of every pod. */}}
{{- define "flawline.pod" -}}
serviceAccountName: {{ .root.Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: 60
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range $name := . }}
  - name: {{ $name }}
{{- end }}
{{- end }}
{{- with .values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with .values.affinity }}
affinity: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Annotations of a pod: a change of line.toml starts it again, and Prometheus may look for its port. */}}
{{- define "flawline.annotations" -}}
checksum/line: {{ include "flawline.toml" .root | sha256sum }}
{{- if and .port (eq .root.Values.monitoring.kind "annotations") }}
prometheus.io/scrape: "true"
prometheus.io/path: /metrics
prometheus.io/port: {{ .port | quote }}
{{- end }}
{{- end }}

{{/* What is the same in every container: image, rights, settings, secrets, mounts. `gpu`, `store` and `objects` say what it needs. */}}
{{- define "flawline.container" -}}
image: {{ printf "%s:%s" .root.Values.image.repository (ternary .root.Values.image.gpuTag .root.Values.image.tag (gt (int .gpus) 0)) }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
env:
  - {name: HOME, value: /tmp}
  - {name: FLAWLINE_CACHE, value: /var/lib/flawline/cache}
{{- $kafka := .values.kafkaSecret | default .root.Values.secrets.kafka.name }}
{{- if $kafka }}
  - name: FLAWLINE_KAFKA__SASL_USERNAME
    valueFrom: {secretKeyRef: {name: {{ $kafka }}, key: {{ .root.Values.secrets.kafka.usernameKey }}}}
  - {name: FLAWLINE_KAFKA__SASL_PASSWORD_FILE, value: /run/secrets/kafka/{{ .root.Values.secrets.kafka.passwordKey }}}
{{- end }}
{{- if .store }}
  - {name: FLAWLINE_STORE__URL_FILE, value: /run/secrets/store/{{ .root.Values.secrets.store.key }}}
{{- end }}
{{- if .token }}
  - {name: RAY_AUTH_MODE, value: token}
  - name: RAY_AUTH_TOKEN
    valueFrom: {secretKeyRef: {name: {{ required "secrets.ray.name: a Ray cluster needs a token" .root.Values.secrets.ray.name }}, key: {{ .root.Values.secrets.ray.key }}}}
{{- end }}
{{- range $name, $value := .env }}
  - {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- if and .objects .root.Values.secrets.objects.name }}
envFrom:
  - secretRef: {name: {{ .root.Values.secrets.objects.name }}}
{{- end }}
resources:
{{- if gt (int .gpus) 0 }}
  {{- with .resources.requests }}
  requests: {{ toYaml . | nindent 4 }}
  {{- end }}
  limits:
  {{- with .resources.limits }}{{ toYaml . | nindent 4 }}{{ end }}
    nvidia.com/gpu: {{ int .gpus }}
{{- else }} {{ toYaml .resources | nindent 2 }}
{{- end }}
volumeMounts:
  - {name: line, mountPath: /etc/flawline/line.toml, subPath: line.toml, readOnly: true}
  - {name: data, mountPath: /var/lib/flawline}
  - {name: tmp, mountPath: /tmp}
{{- if .shm }}
  - {name: shm, mountPath: /dev/shm}
{{- end }}
{{- if $kafka }}
  - {name: kafka, mountPath: /run/secrets/kafka, readOnly: true}
{{- end }}
{{- if .store }}
  - {name: store, mountPath: /run/secrets/store, readOnly: true}
{{- end }}
{{- if .root.Values.secrets.cameras.name }}
  - {name: cameras, mountPath: /run/secrets/cameras, readOnly: true}
{{- end }}
{{- if and .outbound .root.Values.secrets.outbound.name }}
  - {name: outbound, mountPath: /run/secrets/outbound, readOnly: true}
{{- end }}
{{- if .root.Values.secrets.certificates.name }}
  - {name: certificates, mountPath: /etc/flawline/certificates, readOnly: true}
{{- end }}
{{- end }}

{{/* The volumes behind these mounts. Without `disk` the data is what a pod may lose. */}}
{{- define "flawline.volumes" -}}
- name: line
  configMap: {name: {{ .root.Release.Name }}-line}
- name: tmp
  emptyDir: {}
{{- if not .disk }}
- name: data
  emptyDir: {}
{{- end }}
{{- if .shm }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: 1Gi}
{{- end }}
{{- with .values.kafkaSecret | default .root.Values.secrets.kafka.name }}
- name: kafka
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if .store }}
- name: store
  secret: {secretName: {{ required "secrets.store.name: discovery and console need PostgreSQL" .root.Values.secrets.store.name }}, defaultMode: 0440}
{{- end }}
{{- with .root.Values.secrets.cameras.name }}
- name: cameras
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- if and .outbound .root.Values.secrets.outbound.name }}
- name: outbound
  secret: {secretName: {{ .root.Values.secrets.outbound.name }}, defaultMode: 0440}
{{- end }}
{{- with .root.Values.secrets.certificates.name }}
- name: certificates
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{/* Probes of a role that serves metrics: it lives while it answers, and is ready while station/probe.py finds that it works. */}}
{{- define "flawline.probes" -}}
ports:
  - {name: metrics, containerPort: {{ int .port }}}
startupProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /metrics, port: metrics}
  periodSeconds: 20
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  exec: {command: [python, -m, station.probe, {{ .component }}, "http://127.0.0.1:{{ int .port }}/metrics"]}
  periodSeconds: 10
  timeoutSeconds: 10
{{- end }}

{{/* The claim of a role's disk. */}}
{{- define "flawline.disk" -}}
- metadata: {name: data}
  spec:
    accessModes: [ReadWriteOnce]
    resources: {requests: {storage: {{ .size }}}}
    {{- with .storageClass }}
    storageClassName: {{ . }}
    {{- end }}
{{- end }}

{{/* TCP ports of a network policy. */}}
{{- define "flawline.ports" -}}
{{- range $port := . }}
- {protocol: TCP, port: {{ int $port }}}
{{- end }}
{{- end }}
