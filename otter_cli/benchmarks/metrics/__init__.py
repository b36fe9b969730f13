"""Metrics: functions from the stored rows of a method to figures with intervals."""
