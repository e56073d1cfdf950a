"""Configs: read, overridden, checked. Nothing here knows a stage."""
