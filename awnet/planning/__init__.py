"""How many replicas a load needs: a discrete-event simulation with the server's own scheduler in virtual time."""
