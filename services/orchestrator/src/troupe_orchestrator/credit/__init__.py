"""From rewards to advantages and per-token weights. Pure: plain frozen dataclasses in, mappings by id out."""
