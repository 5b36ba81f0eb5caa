"""Evaluation of trained models beyond their length: protocols, exact match, tables and pictures."""
