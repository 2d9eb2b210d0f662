"""The search for a plan, and the judgement of what it found on pictures it has not seen."""
