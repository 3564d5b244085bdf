"""Whole frames that stay for people to judge: which, where they come from, and when they go."""
