"""Tables as CSV and as LaTeX."""

from __future__ import annotations

import csv
import io
import re

from clsearch.report.tables import Sheet

_PLUS_MINUS = " ± "


def file_name(sheet: Sheet, taken: set[str]) -> str:
    """A name for the files of a table, from its title."""
    stem = re.sub(r"[^a-z0-9]+", "_", sheet.title.lower()).strip("_")
    number = 1 + sum(re.fullmatch(rf"{stem}(_\d+)?", other) is not None for other in taken)
    return stem if number == 1 else f"{stem}_{number}"


def as_csv(sheet: Sheet) -> str:
    """The table as RFC 4180 has it; a mean ± deviation becomes two columns of numbers."""
    columns = list(zip(*sheet.rows, strict=True)) or [()] * len(sheet.header)
    header: list[str] = []
    cells: list[tuple[str, ...]] = []
    for i, (name, column) in enumerate(zip(sheet.header, columns, strict=True)):
        header.append(name)
        if i in sheet.text:
            cells.append(column)
            continue
        numbers = [cell.replace(",", "") for cell in column]
        cells.append(tuple(_number(cell.partition(_PLUS_MINUS)[0]) for cell in numbers))
        if any(_PLUS_MINUS in cell for cell in numbers):
            header.append(f"{name}, standard deviation")
            cells.append(tuple(_number(cell.partition(_PLUS_MINUS)[2]) for cell in numbers))
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows(zip(*cells, strict=True))
    return stream.getvalue()


def _number(cell: str) -> str:
    """A cell without the marks that the table's note explains; empty for none."""
    return "" if cell == "-" else cell.rstrip("†‡")


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "±": r"$\pm$", "−": "$-$", "θ": r"$\theta$", "λ": r"$\lambda$", "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$", "…": r"\dots{}", "–": "--", "×": r"$\times$", "≤": r"$\leq$",
}  # fmt: skip


def latex_text(text: str) -> str:
    """Text in one line that LaTeX sets as it is."""
    return "".join(_LATEX.get(c, c) for c in " ".join(text.split()))


def as_latex(sheet: Sheet) -> str:
    """The table as a `tabular` in booktabs' style, title and note in comments."""
    kinds = "".join("l" if i in sheet.text else "r" for i in range(len(sheet.header)))
    rows = [" & ".join(map(_in_cell, row)) + r" \\" for row in sheet.rows]
    comments = [f"% {' '.join(text.split())}" for text in (sheet.title, sheet.note) if text]
    return "\n".join(
        [
            *comments,
            r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            " & ".join(map(_in_cell, sheet.header)) + r" \\",
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _in_cell(text: str) -> str:
    """Braces keep a `[` at the beginning of a row from being read as an option of the line break
    before it."""
    said = latex_text(text)
    return f"{{{said}}}" if said.startswith(("[", "*")) else said
