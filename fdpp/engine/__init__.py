"""The engine: from the parts of a model and token ids to text, through ``fdpp.ops``."""
