"""The report on a shift, a lot or any span of time: from the store to a page."""
