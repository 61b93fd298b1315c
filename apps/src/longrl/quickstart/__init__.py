"""The quickstart: the whole stack on a small world, in five minutes on two cores."""
