"""TOSA 1.0 as a typed graph; imports no torch."""
