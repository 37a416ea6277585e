"""Several worker processes behind one port: supervisor, members, merged metrics, shared sockets."""
