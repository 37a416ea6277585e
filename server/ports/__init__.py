"""The sockets of the server: bound, watched, and the certificate that they speak TLS with."""
