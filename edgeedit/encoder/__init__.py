"""Encoder room (torch): vision encoders built from recipes, with named blocks, heads and first FFN matrices."""
