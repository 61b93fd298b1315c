"""The option that turns the covering selection of cases into all of them."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-case",
        action="store_true",
        help="run every combination of the parity suite (hours) rather than a selection where every two settings meet",
    )
