"""The engine: checkpoints to text through ``fdpp.ops``. The entrance is :class:`fdpp.engine.llm.LLM`."""
