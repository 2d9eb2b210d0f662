"""What is measured: pipelines and transformers by name, random weights at published sizes, prompts."""
