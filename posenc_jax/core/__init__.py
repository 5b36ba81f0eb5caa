"""What all methods build on: tokens, encodings, chains, attention, spec strings, the registry."""
