"""Arrays in the journals: the folder above the runs has them whole, each run
hears of its element."""

from collections.abc import Mapping
from pathlib import Path

from hpc_stres.launch import scheduler
from hpc_stres.launch.journal import Journal
from hpc_stres.launch.survey import settle


def catch_up(home: Journal, seconds: float) -> list[scheduler.Row]:
    """Find out what came of an array whose fate is unknown, and tell each run of its element;
    what the queue has."""
    rows = scheduler.look(seconds)
    if home.asked is not None:
        notes: list[str] = []
        rows = settle(home, rows, seconds, notes)
        for note in notes:
            print(f"  {note}")
    tell(home, {})
    return rows


def tell(home: Journal, open_journals: Mapping[Path, Journal]) -> None:
    """Write the elements of new arrays into the journals of their runs. Whoever calls holds
    the folder's lock."""
    for array in home.untold:
        for index, own in array["runs"].items():
            folder = home.run_dir / own["run"]
            (open_journals.get(folder) or Journal.read(folder)).hear(array, int(index))
        home.told(array["id"])
