"""Findings: what a security team is told of attacks, as OCSF events in a journal that shows whether it was changed."""
