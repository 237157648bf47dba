"""The CLIP pair: a text and a vision tower that embed into one space."""
