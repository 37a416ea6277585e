"""Train AW-Nets and measure them; nothing in here is needed to serve one."""
