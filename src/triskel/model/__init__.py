"""The language model: loading, blocks by name, adapters, local training, what it costs."""
