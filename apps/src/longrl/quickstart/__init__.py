"""The quickstart: the whole stack on a small world, in about four minutes on two cores."""
