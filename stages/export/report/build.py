"""Write the report and the model card of an export that is there."""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.export.report import model_card
from stages.export.report.data import ReportData, write_metrics
from stages.export.report.page import build_report
from stages.export.report.pictures import write_pictures
from stages.export.results.record import GGUF, MODEL, Record
from stages.files import atomically, write_text

REPORT, METRICS, PICTURES, CARD = "report.html", "metrics.json", "pictures", "README.md"
MODELING = "modeling_prunecast.py"


def write_report(data: ReportData, folder: Path) -> None:
    """Write the page, its pictures and the metrics into a folder that has none of them."""
    write_pictures(data, folder / PICTURES)
    write_text(folder / REPORT, build_report(data))
    write_metrics(folder / METRICS, data)


def write_card(data: ReportData, record: Record, export: Path, pictures: Path) -> str:
    """Write the model card, and the `pictures` that it shows, into the model's folder of `export`.

    Each file takes the place of the one before in one step. Returns the card.
    """
    model = export / MODEL
    shown = [path for path in sorted(pictures.glob("*.png")) if path.stem in model_card.PICTURES]
    for picture in shown:
        with atomically(model / picture.name) as temporary:
            shutil.copyfile(picture, temporary)
    card = model_card.model_card(
        data,
        data.exported,
        record.base,
        own_code=(model / MODELING).is_file(),
        pictures=[picture.name for picture in shown],
        registered=record.registered,
        gguf=[path.name for path in sorted((export / GGUF).glob("*.gguf"))],
    )
    write_text(model / CARD, card)
    return card
