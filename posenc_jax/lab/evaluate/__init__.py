"""Evaluation of trained models at and beyond their trained length: protocols, exact match, tables
and pictures.
"""
