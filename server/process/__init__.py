"""One serving process: its parts, built and wired, and the ports that answer until a signal."""
