"""The demo: the whole line on one machine, measured against known truth."""
