"""OpenTelemetry: a trace of each request, by the extra `otel`. Nothing of it is imported unless it is asked for."""
