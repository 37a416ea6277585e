"""From an attacked image to the people who hear of it: CUSUM, alerts, findings, traces, and what these cost."""
