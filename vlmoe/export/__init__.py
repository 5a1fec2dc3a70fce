"""A trained mixture as one plain LoRA: what servers and other tools take, and what it loses."""
