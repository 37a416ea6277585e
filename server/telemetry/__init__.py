"""Spans, metrics and log lines, sent by OTLP; the one room that knows OpenTelemetry, and only where it is asked for."""
