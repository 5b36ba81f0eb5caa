"""The protocol: tokens, encodings and their doors, chains, masks, families, the registry."""
