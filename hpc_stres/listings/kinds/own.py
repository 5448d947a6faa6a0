"""Data sets of one's own: a folder for each class, or a table of paths and labels."""

from hpc_stres.config.schema import DataConfig
from hpc_stres.listings.folders import read_folder
from hpc_stres.listings.listing import Listing
from hpc_stres.listings.splits import list_folder, read_csv, video_folder
from hpc_stres.registry import DATA_SETS
from hpc_stres.registry.dataset import DataSet


def folder(data: DataConfig) -> Listing:
    """One folder a class, split by a hash of each recording's name."""
    return read_folder(video_folder(data), data.test_fraction)


def csv(data: DataConfig) -> Listing:
    """Columns path, label, split."""
    return read_csv(video_folder(data), list_folder(data))


DATA_SETS.register(DataSet(name="folder", read=folder, is_folder=True))
DATA_SETS.register(DataSet(name="csv", read=csv, lists="videos.csv"))
