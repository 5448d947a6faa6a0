"""What a kind of data set says of itself: how its lists are read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set of the registry."""

    name: str
    read: Callable[[Any], Any]
    """Called with the config's `data` section; returns a `listings.listing.Listing`."""
    lists: str = "splits"
    """Name of its folder or file of lists under ROOT/NAME."""
    make: str | None = None
    """`module:function` called with the `data` section and the seed before the lists are read: it
    makes the videos."""
    is_folder: bool = False
    """Whether classes are folders and there are no lists."""
