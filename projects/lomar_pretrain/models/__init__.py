"""The pretraining models, the encoder that they share, and what is built on it."""
