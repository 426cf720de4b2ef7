# The monitoring programs with their configuration: one image for each target. The files are in the images, not mounted:
# a container would keep the old file after git has replaced it.
#
#   docker build --file ops/deploy/images/observe.Dockerfile --target prometheus --tag warmlane-prometheus:0.1.0 .
FROM otel/opentelemetry-collector:0.159.0 AS otel-collector
COPY ops/deploy/observe/otel-collector.yaml /etc/otelcol/warmlane.yaml
USER 10001:10001

FROM jaegertracing/jaeger:2.19.0 AS jaeger
COPY ops/deploy/observe/jaeger.yaml /etc/jaeger/warmlane.yaml
USER 10001:10001

FROM prom/prometheus:v3.5.0 AS prometheus
COPY ops/deploy/observe/prometheus.yaml /etc/prometheus/prometheus.yaml
COPY ops/alerts /etc/prometheus/alerts
USER 65534:65534

FROM grafana/grafana:12.4.0 AS grafana
COPY ops/deploy/observe/grafana/datasources.yaml /etc/grafana/provisioning/datasources/warmlane.yaml
COPY ops/deploy/observe/grafana/dashboards.yaml /etc/grafana/provisioning/dashboards/warmlane.yaml
COPY ops/dashboards /etc/warmlane/dashboards
USER 472:0
