"""The protocol, the one attention, the spec language, the registry."""
