"""Conversations from files and data sets, in parts that can be read alone."""
