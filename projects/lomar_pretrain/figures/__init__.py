"""What a model reconstructs, and what a run measured, drawn."""
