"""Ray clusters: the token, their dashboard, one on this machine, and a check of a running one."""
