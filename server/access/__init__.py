"""Who asks, and what they may: API keys, callers, scopes."""
