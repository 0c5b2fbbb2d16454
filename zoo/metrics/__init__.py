"""The metrics: protocols, what they are made of, and the engine that scores."""

DEFAULT_PROTOCOL = "reg2rg"
