"""The checkpoint registry: what `checkpoints/manifest.yaml` names, how it is had, and how a model is made of it."""
