"""Network definitions: backbones, heads and what joins them. Needs torch."""
