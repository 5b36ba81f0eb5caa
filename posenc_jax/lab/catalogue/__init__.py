"""The pages and pictures of the catalogue."""
