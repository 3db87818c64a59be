"""What a run trained, as folders that PEFT loads, with a manifest and a model card."""
