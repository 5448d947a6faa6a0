"""Data sets with official lists: UCF101, HMDB51, and the demonstration's, which is
written like UCF101."""

from hpc_stres.config.schema import DataConfig
from hpc_stres.listings.listing import Listing
from hpc_stres.listings.splits import list_folder, read_hmdb51, read_ucf101, video_folder
from hpc_stres.registry import DATA_SETS
from hpc_stres.registry.dataset import DataSet


def ucf101(data: DataConfig) -> Listing:
    """classInd.txt, trainlist0k.txt, testlist0k.txt."""
    return read_ucf101(video_folder(data), list_folder(data))


def hmdb51(data: DataConfig) -> Listing:
    """CLASS_test_splitk.txt."""
    return read_hmdb51(video_folder(data), list_folder(data))


DATA_SETS.register(DataSet(name="binding", read=ucf101, make="hpc_stres.prepare.binding:make"))
DATA_SETS.register(DataSet(name="ucf101", read=ucf101))
DATA_SETS.register(DataSet(name="hmdb51", read=hmdb51))
