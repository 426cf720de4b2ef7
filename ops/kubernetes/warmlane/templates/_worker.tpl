{{- /*
The pod of a worker. (dict "root" $ "component" lane|degraded "worker" the merged values "labels" MAP "args" LIST)
Its slot is the one card that the pod was given, or a CPU slot named after the pod (`--slot auto`).
*/ -}}
{{- define "warmlane.worker" -}}
{{- $root := .root }}
{{- $worker := .worker }}
{{- $card := $worker.card }}
{{- if not (has $card.by (list "none" "device-plugin" "claim" "shared-claim")) }}
{{- fail (printf "card.by is none, device-plugin, claim or (degraded only) shared-claim, not %q" $card.by) }}
{{- end }}
{{- if and (eq $card.by "shared-claim") (ne .component "degraded") }}
{{- fail "card.by: shared-claim is for the degraded worker and its standby: a lane has its card for itself" }}
{{- end }}
{{- if and (eq $card.by "none") (ne $root.Values.profile "tiny") }}
{{- fail (printf "profile %s needs a card for each worker: set worker.card.by to device-plugin or claim" $root.Values.profile) }}
{{- end }}
{{- $annotations := dict }}
{{- if eq $root.Values.monitoring.scrape "annotations" }}
{{- $annotations = dict "prometheus.io/scrape" "true" "prometheus.io/port" "9464" "prometheus.io/path" "/metrics" }}
{{- end }}
metadata:
  {{- include "warmlane.podMetadata" (dict "root" $root "component" .component "labels" .labels "annotations" $annotations) | nindent 2 }}
spec:
  {{- include "warmlane.podCommon" $root | nindent 2 }}
  # pause then reaps the children of a killed fork server, and the PID that Warmlane logs is not 1 in every pod
  shareProcessNamespace: true
  terminationGracePeriodSeconds: {{ $worker.terminationGracePeriodSeconds }}
  {{- with $worker.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $worker.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $worker.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- $tolerations := $worker.tolerations }}
  {{- if $worker.nodeLostSeconds }}
  {{- range list "not-ready" "unreachable" }}
  {{- $tolerations = append $tolerations (dict "key" (printf "node.kubernetes.io/%s" .) "operator" "Exists" "effect" "NoExecute" "tolerationSeconds" $worker.nodeLostSeconds) }}
  {{- end }}
  {{- end }}
  {{- with $tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $worker.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $worker.topologySpreadConstraints }}
  topologySpreadConstraints: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq $card.by "claim" }}
  resourceClaims: [{name: card, resourceClaimTemplateName: {{ include "warmlane.fullname" $root }}-{{ .claim }}}]
  {{- else if eq $card.by "shared-claim" }}
  resourceClaims: [{name: card, resourceClaimName: {{ include "warmlane.fullname" $root }}-{{ .claim }}}]
  {{- end }}
  containers:
    - name: worker
      {{- include "warmlane.image" (dict "root" $root "image" "worker") | nindent 6 }}
      args: {{ toJson .args }}
      env:
        {{- include "warmlane.env" $root | nindent 8 }}
        {{- include "warmlane.passwordFile" (dict "role" .component) | nindent 8 }}
        {{- include "warmlane.artifactsEnv" $root | nindent 8 }}
        - {name: WARMLANE_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: WARMLANE_SLOT, value: auto}
        - {name: WARMLANE_METRICS_HOST, value: 0.0.0.0}
        - {name: WARMLANE_METRICS_PORT, value: "9464"}
        {{- if ne $card.by "none" }}
        # FR-010. The image sets them too, and the pipeline host checks them once more.
        - {name: PYTORCH_ALLOC_CONF, value: "expandable_segments:True,pinned_max_round_threshold_mb:1"}
        - {name: PYTORCH_CUDA_ALLOC_CONF, value: "expandable_segments:True,pinned_max_round_threshold_mb:1"}
        - {name: PYTORCH_NVML_BASED_CUDA_CHECK, value: "1"}
        {{- end }}
        {{- include "warmlane.moreEnv" $worker.env | nindent 8 }}
      ports: [{name: metrics, containerPort: 9464}]
      startupProbe:
        httpGet: {path: /livez, port: metrics}
        periodSeconds: 2
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /livez, port: metrics}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      # a lane is ready once it is warm, so that a rollout replaces the next one only then
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: 2
        timeoutSeconds: 5
      securityContext:
        {{- include "warmlane.containerSecurity" $root | nindent 8 }}
      {{- $resources := deepCopy $worker.resources }}
      {{- if eq $card.by "device-plugin" }}
      {{- $_ := set $resources "limits" (merge (dict $card.resource 1) ($resources.limits | default dict)) }}
      {{- else if ne $card.by "none" }}
      {{- $_ := set $resources "claims" (list (dict "name" "card")) }}
      {{- end }}
      resources: {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /data}
        {{- include "warmlane.secretsMount" $root | nindent 8 }}
        {{- include "warmlane.mounts" $root | nindent 8 }}
        {{- include "warmlane.artifactsMount" $root | nindent 8 }}
        {{- if $root.Values.models }}
        - {name: models, mountPath: /data/models, readOnly: true}
        {{- end }}
  volumes:
    {{- if eq $card.by "shared-claim" }}
    # every worker that sees the card has to see its lock: the claim keeps them on one node, and they share this volume
    - {name: data, persistentVolumeClaim: {claimName: {{ include "warmlane.fullname" $root }}-{{ .claim }}}}
    {{- else }}
    - {name: data, emptyDir: {sizeLimit: {{ $worker.scratch }}}}
    {{- end }}
    {{- include "warmlane.secretsVolume" (dict "root" $root "keys" (list (printf "nats-%s" .component))) | nindent 4 }}
    {{- include "warmlane.volumes" (dict "root" $root "tmp" $worker.tmp) | nindent 4 }}
    {{- include "warmlane.artifactsVolume" $root | nindent 4 }}
    {{- with $root.Values.models }}
    - name: models
      {{- toYaml . | nindent 6 }}
    {{- end }}
{{- end -}}

{{- /* The request for one card. (dict "card" the card's values) */ -}}
{{- define "warmlane.deviceRequest" -}}
devices:
  requests:
    - name: card
      exactly:
        deviceClassName: {{ .card.deviceClass }}
        {{- with .card.selectors }}
        selectors:
          {{- range . }}
          - cel: {expression: {{ . | quote }}}
          {{- end }}
        {{- end }}
{{- end -}}
