"""What is measured of requests and verdicts: detection, metrics, golden probes, clients, the request log."""
