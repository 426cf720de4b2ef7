{{- define "warmlane.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- /* Short enough that a component's name and the suffixes of a ReplicaSet and a pod fit after it. */ -}}
{{- define "warmlane.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- else if contains (include "warmlane.name" .) .Release.Name -}}
{{- .Release.Name | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "warmlane.name" .) | trunc 30 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "warmlane.selector" -}}
app.kubernetes.io/name: {{ include "warmlane.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "warmlane.labels" -}}
{{ include "warmlane.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* (dict "root" $ "image" NAME) */ -}}
{{- define "warmlane.image" -}}
{{- $image := index .root.Values.images .image -}}
image: {{ printf "%s:%s" $image.repository ($image.tag | default .root.Chart.AppVersion) }}
imagePullPolicy: {{ .root.Values.images.pullPolicy }}
{{- end -}}

{{- define "warmlane.secret" -}}
{{- .Values.secrets.existing | default (printf "%s-secrets" (include "warmlane.fullname" .)) -}}
{{- end -}}

{{- define "warmlane.natsUrl" -}}
{{- if eq .Values.nats.mode "single" -}}
nats://{{ include "warmlane.fullname" . }}-nats:4222
{{- else if eq .Values.nats.mode "external" -}}
{{- required "nats.url: where the nats-server is, as in nats://nats.nats:4222" .Values.nats.url -}}
{{- else -}}
{{- fail (printf "nats.mode is single or external, not %q" .Values.nats.mode) -}}
{{- end -}}
{{- end -}}

{{- /* What every pod of ours has. */ -}}
{{- define "warmlane.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "warmlane.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The environment of every process of ours. */ -}}
{{- define "warmlane.env" -}}
- {name: WARMLANE_NATS_URL, value: {{ include "warmlane.natsUrl" . | quote }}}
{{- if .Values.nats.caConfigMap }}
- {name: WARMLANE_NATS_CA, value: /etc/warmlane/nats-ca/ca.crt}
{{- end }}
- {name: WARMLANE_DATA_DIR, value: /data}
- {name: WARMLANE_PROFILE, value: {{ .Values.profile | quote }}}
- {name: WARMLANE_LOG_LEVEL, value: {{ .Values.logLevel | quote }}}
{{- if .Values.settings }}
- {name: WARMLANE_SETTINGS, value: /etc/warmlane/settings/inference_settings.json}
{{- end }}
{{- if .Values.otlpEndpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .Values.otlpEndpoint | quote }}}
{{- end }}
{{- end -}}

{{- /* (dict "role" ROLE): where a process finds the password of its role. */ -}}
{{- define "warmlane.passwordFile" -}}
- {name: WARMLANE_NATS_{{ upper .role }}_PASSWORD_FILE, value: /etc/warmlane/secrets/nats-{{ .role }}}
{{- end -}}

{{- define "warmlane.secretsMount" -}}
- {name: secrets, mountPath: /etc/warmlane/secrets, readOnly: true}
{{- end -}}

{{- /* (dict "root" $ "keys" LIST): those keys of the Secret, and no other. */ -}}
{{- define "warmlane.secretsVolume" -}}
- name: secrets
  secret:
    secretName: {{ include "warmlane.secret" .root }}
    defaultMode: 0440
    items:
      {{- range .keys }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end -}}

{{- /* Where artifacts are, for gateways and workers. */ -}}
{{- define "warmlane.artifactsEnv" -}}
{{- with .Values.artifacts -}}
{{- if .s3 }}
- {name: WARMLANE_ARTIFACTS, value: {{ .s3 | quote }}}
{{- if .endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ .endpoint | quote }}}
{{- end }}
{{- if .region }}
- {name: AWS_REGION, value: {{ .region | quote }}}
{{- end }}
{{- if .s3Secret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ .s3Secret }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .s3Secret }}, key: AWS_SECRET_ACCESS_KEY}}
{{- end }}
{{- else }}
- {name: WARMLANE_ARTIFACTS, value: /artifacts}
{{- end }}
{{- end }}
{{- end -}}

{{- /* `env` of values: a map of names and values. */ -}}
{{- define "warmlane.moreEnv" -}}
{{- range $name, $value := . }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- /* How many lanes of each model there are, as WARMLANE_LANES says it. */ -}}
{{- define "warmlane.lanesWanted" -}}
{{- $wanted := dict }}
{{- range $name, $given := .Values.lanes }}
{{- if $given }}
{{- $model := $given.model | default $name }}
{{- $replicas := ternary $given.replicas 1 (hasKey $given "replicas") }}
{{- $_ := set $wanted $model (add (get $wanted $model | default 0) $replicas) }}
{{- else }}
{{- $_ := set $wanted $name (add (get $wanted $name | default 0) 1) }}
{{- end }}
{{- end }}
{{- $words := list }}
{{- range $model, $count := $wanted }}
{{- $words = append $words (printf "%s=%d" $model $count) }}
{{- end }}
{{- join "," $words }}
{{- end -}}

{{- define "warmlane.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.settings }}
- {name: settings, mountPath: /etc/warmlane/settings, readOnly: true}
{{- end }}
{{- if .Values.nats.caConfigMap }}
- {name: nats-ca, mountPath: /etc/warmlane/nats-ca, readOnly: true}
{{- end }}
{{- end -}}

{{- /* (dict "root" $ "tmp" SIZE) */ -}}
{{- define "warmlane.volumes" -}}
- {name: tmp, emptyDir: {sizeLimit: {{ .tmp }}}}
{{- with .root.Values }}
{{- if .settings }}
- {name: settings, configMap: {name: {{ include "warmlane.fullname" $.root }}-settings}}
{{- end }}
{{- if .nats.caConfigMap }}
- {name: nats-ca, configMap: {name: {{ .nats.caConfigMap }}}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "warmlane.artifactsMount" -}}
{{- if not .Values.artifacts.s3 }}
- {name: artifacts, mountPath: /artifacts}
{{- end }}
{{- end -}}

{{- define "warmlane.artifactsVolume" -}}
{{- if not .Values.artifacts.s3 }}
- name: artifacts
  persistentVolumeClaim: {claimName: {{ .Values.artifacts.claim.existing | default (printf "%s-artifacts" (include "warmlane.fullname" .)) }}}
{{- end }}
{{- end -}}

{{- /* What every pod template has above its containers. (dict "root" $ "component" NAME "labels" MAP "annotations" MAP) */ -}}
{{- define "warmlane.podMetadata" -}}
labels:
  {{- include "warmlane.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- range $key, $value := merge (dict) (.labels | default dict) .root.Values.podLabels }}
  {{ $key }}: {{ $value | quote }}
  {{- end }}
{{- $annotations := merge (dict) (.annotations | default dict) .root.Values.podAnnotations }}
{{- if .root.Values.settings }}
{{- $_ := set $annotations "checksum/settings" (sha256sum .root.Values.settings) }}
{{- end }}
{{- with $annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "warmlane.podCommon" -}}
serviceAccountName: {{ include "warmlane.fullname" . }}
automountServiceAccountToken: false
{{ include "warmlane.podConfined" . }}
{{- end -}}

{{- /* The pod template that includes this names the service account itself. */ -}}
{{- define "warmlane.podConfined" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - {name: {{ . }}}
  {{- end }}
{{- end }}
enableServiceLinks: false
securityContext:
  {{- include "warmlane.podSecurity" . | nindent 2 }}
{{- end -}}

{{- /* The egress that every process of ours has. */ -}}
{{- define "warmlane.basicEgress" }}
    - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]
    {{- if eq .Values.nats.mode "single" }}
    - to:
        - podSelector:
            matchLabels:
              {{- include "warmlane.selector" . | nindent 14 }}
              app.kubernetes.io/component: nats
      ports: [{port: 4222}]
    {{- else }}
    - ports: [{port: 4222}]
    {{- end }}
{{- end }}

{{- define "warmlane.s3Port" -}}
{{- $host := (urlParse (.Values.artifacts.endpoint | default "https://s3")).host -}}
{{- $plain := hasPrefix "http://" .Values.artifacts.endpoint -}}
{{- regexFind ":[0-9]+$" $host | trimPrefix ":" | default (ternary "80" "443" $plain) -}}
{{- end -}}
