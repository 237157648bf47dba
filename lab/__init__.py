"""The lab: a world whose truth is known, models made of it, and what drives ComfyUI with them. Users do not get it."""
