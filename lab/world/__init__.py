"""The world whose truth is known: scenes of coloured shapes, their captions and pictures, and what measures them."""
