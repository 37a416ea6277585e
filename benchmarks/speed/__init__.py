"""What a request costs: time, CPU time and memory of the server, as a whole and in parts."""
