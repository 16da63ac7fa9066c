"""A set to show."""

from tests.data.conftest import fgr, options, photos  # noqa: F401
