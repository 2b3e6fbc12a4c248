"""Fuzzing of everything that parses signed or foreign bytes."""
