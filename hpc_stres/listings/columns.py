"""A column of one's own in the CSV of a data set: which videos it marks."""

from hpc_stres.config.schema import DataConfig
from hpc_stres.errors import UserError
from hpc_stres.listings import splits
from hpc_stres.listings.listing import printable
from hpc_stres.listings.textlists import read_table

YES = frozenset(("val", "valid", "validation", "held out", "held_out", "yes", "y", "true", "1"))
NO = frozenset(("", "train", "training", "test", "no", "n", "false", "0"))


def marked(data: DataConfig, name: str) -> set[str]:
    """Ids of the videos whose cell in a column says yes; refuses words that are
    neither yes nor no."""
    table = splits.list_folder(data)
    if data.kind != "csv" or not table.is_file():
        raise UserError(
            f"evaluation.validation_column={name}: {table}: a CSV with this column is needed, also to test\n"
            "Set data.kind to csv and data.lists to the file, or use evaluation.validation_share."
        )
    column = name.strip().lower()
    rows = read_table(table, (*splits.CSV_COLUMNS, column))
    home = splits.video_folder(data)
    ids = {video.path: video.id for video in splits.read_listing(data).videos.values()}
    held_out = set()
    for number, row in rows:
        word = row[column].lower()
        if word not in YES and word not in NO:
            raise UserError(
                f"{table}:{number}: {column} is {printable(row[column])!r}; expected val or nothing (or yes and no)"
            )
        if word in YES:
            held_out.add(ids[home / row["path"]])
    return held_out
