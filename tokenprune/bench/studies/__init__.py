"""Single questions, each answered by a command: where the error comes from, what the engine costs, and so on."""
