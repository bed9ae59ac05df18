"""Converters: one file per framework that models come from."""
