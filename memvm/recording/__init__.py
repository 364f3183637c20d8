"""Recordings: the file of what traces saw, and what can be computed from one. Needs no guest and no manager."""
