"""``cleanprior speed``: what the software takes, beside peers in the same process."""
