"""The quickstart: the whole stack on a small world, in four minutes on two cores."""
