"""Several processes behind one port: the supervisor, its members, merged metrics, shared sockets."""
