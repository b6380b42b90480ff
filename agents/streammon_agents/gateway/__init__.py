"""The gateway: what services hand over on the node, by the protocols they speak already; one module each."""
