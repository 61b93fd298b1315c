"""The quickstart: the whole stack on a small world, in ten minutes on two cores."""
