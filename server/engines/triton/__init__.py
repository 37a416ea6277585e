"""NVIDIA Triton as the engine: one client an address, a balancer over addresses, a runner that decodes here."""
