"""The console's addresses, a router for each kind of page."""
