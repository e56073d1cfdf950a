"""Configs: read, overridden, checked and frozen."""
