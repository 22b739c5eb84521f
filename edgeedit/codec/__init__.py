"""Codec room: numbers only; C++17 core and its thin Python face."""
