"""The world of pictures: captions, their drawings, a checker, and a tiny model that learns to draw them."""
