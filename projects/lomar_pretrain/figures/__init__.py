"""Figures: what a model reconstructs, and what a run measured."""
