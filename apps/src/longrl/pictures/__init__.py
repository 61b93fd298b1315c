"""The quickstart's world of pictures: a tiny model learns to draw captions, first from drawings, then from rewards."""
