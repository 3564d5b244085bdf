"""The station in a browser: the live line, its defect classes, and the frames that were not accepted."""
