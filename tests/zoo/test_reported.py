"""The papers' tables as data: well-formed, consistent, and cell by cell what papers and released files print."""

import csv
import math
import re
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

import zoo

REPORTED = Path(zoo.__file__).parent / "leaderboard" / "reported"
# The papers' tables of results. Overlay-SFT's Table 1 lists models; ASaRG's are numbered in the running text only.
TABLES = {
    "reg2rg": ["I", "II", "III", "IV", "V", "VI", "VII", "VIII"],
    "regionformer": ["1", "2", "3"],
    "asarg": ["1", "2"],
    "overlay_sft": ["2", "3"],
}
NO_RESULTS = {"overlay_sft": ["1"]}
RELEASED = "reg2rg_released"
FILES = [*TABLES, RELEASED]

PAPER_FIELDS = {"id", "short", "title", "venue", "year", "url"}
OVERRIDES = {"protocol", "protocol_inferred", "protocol_note", "n", "n_inferred", "split_note", "doubts", "subset"}
TABLE_FIELDS = OVERRIDES | {"table", "what", "dataset", "split", "scale", "columns", "rows"}
ROW_FIELDS = OVERRIDES | {"method", "figures", "marks", "note", "group", "method_id", "recompute"}
NOT_TEXT = {
    "year",
    "n",
    "protocol_inferred",
    "n_inferred",
    "doubts",
    "columns",
    "rows",
    "scale",
    "figures",
    "recompute",
}
TEXTS = (PAPER_FIELDS | TABLE_FIELDS | ROW_FIELDS) - NOT_TEXT
METHODS = {"reg2rg", "regionformer", "asarg", "overlay_sft"}
FIGURE = re.compile(r"[+-]?\d+(\.\d+)?( ?± ?\d+(\.\d+)?)?|-")
SUITE = re.compile(
    r"bleu_[1-4]|rouge_[12l]|meteor|cider|bertscore_(p|r|f1)|radgraph_(simple|partial|complete)"
    r"|(chexbert_14|chexbert_5|radbert_ct_18)_(micro|macro|weighted|samples)_(precision|recall|f1)"
)
BESIDE = {"amount", "support", "precision", "recall", "f1_score"}  # printed, and no metric of the suite


def load(name: str) -> dict:
    return yaml.safe_load((REPORTED / f"{name}.yaml").read_text("utf-8"))


def rows(name: str, table: str | None = None) -> list[tuple[dict, dict]]:
    """`(table, row)` in the file's order."""
    tables = [entry for entry in load(name)["tables"] if table in (None, entry["table"])]
    return [(entry, row) for entry in tables for row in entry["rows"]]


def cells(entry: dict, row: dict) -> dict[str, str]:
    return dict(zip(entry["columns"], row["figures"], strict=True))


def mean(figure: str) -> Decimal:
    return Decimal(figure.split("±")[0].strip())


def test_no_file_too_many() -> None:
    assert sorted(path.stem for path in REPORTED.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_fields(name: str) -> None:
    content = load(name)
    assert set(content) == {"paper", "tables"}
    paper = content["paper"]
    assert paper["id"] == name and set(paper) - {"url"} == PAPER_FIELDS - {"url"}
    assert isinstance(paper["year"], int)
    for entry in content["tables"]:
        assert (
            {"table", "what", "dataset", "split", "protocol", "scale", "columns", "rows"} <= set(entry) <= TABLE_FIELDS
        )
        assert entry["rows"] and isinstance(entry["table"], str), entry["table"]
        assert "n" in entry or all("n" in row for row in entry["rows"]), entry["table"]
        assert not entry.get("protocol_inferred") or entry.get("protocol_note"), "an inferred protocol says from what"
        for row in entry["rows"]:
            assert {"method", "figures"} <= set(row) <= ROW_FIELDS, row
            assert row.get("method_id", "reg2rg") in METHODS
            assert set(row.get("recompute", {"file": ""})) == {"file"}
        for holder in (paper, entry, *entry["rows"]):
            assert all(
                isinstance(holder[key], str) and holder[key] == holder[key].strip() for key in TEXTS if key in holder
            )
            assert holder.get("n") is None or (type(holder["n"]) is int and holder["n"] > 0)
            assert all(type(holder.get(key, True)) is bool for key in ("protocol_inferred", "n_inferred"))
            doubts = holder.get("doubts", [])
            assert all(isinstance(doubt, str) and doubt.endswith(".") for doubt in doubts)
            assert len(set(doubts)) == len(doubts)


@pytest.mark.parametrize("name", FILES)
def test_figures(name: str) -> None:
    for entry, row in rows(name):
        place = f"{entry['table']}, {row['method']}"
        assert len(set(entry["columns"])) == len(entry["columns"]) == len(row["figures"]), place
        assert all(isinstance(figure, str) and FIGURE.fullmatch(figure) for figure in row["figures"]), place
        scale = entry["scale"]
        assert scale in (1, 0.01) if not isinstance(scale, dict) else set(scale) <= set(entry["columns"]), place
        for column, figure in cells(entry, row).items():
            factor = scale.get(column, 1) if isinstance(scale, dict) else scale
            share = not re.match("cider|amount|support", column) and figure != "-"
            assert not share or abs(mean(figure)) * Decimal(str(factor)) <= 1, f"{place}: {column} {figure}"


@pytest.mark.parametrize("name", FILES)
def test_columns_are_metrics_of_the_protocol(name: str) -> None:
    from zoo.metrics.protocols import PROTOCOLS

    for entry, row in rows(name):
        protocol = row.get("protocol", entry["protocol"])
        bare = [re.sub("_(delta|overall)$", "", column) for column in entry["columns"] if column not in BESIDE]
        if protocol == "region_recognition":
            assert set(bare) == {"region_precision", "region_recall", "region_f1"}
            continue
        assert all(SUITE.fullmatch(column) for column in bare), entry["table"]
        if protocol != "unknown":
            assert set(bare) <= set(PROTOCOLS[protocol].metrics), entry["table"]


def test_every_table_is_there() -> None:
    for name, numbers in TABLES.items():
        assert list(dict.fromkeys(entry["table"] for entry in load(name)["tables"])) == numbers


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_have_no_other_tables(name: str, shared: Path) -> None:
    text = (shared / "papers" / f"{name}.txt").read_text("utf-8")
    if name == "asarg":
        numbers = sorted(set(re.findall(r"in Tab\. (\d+)", text)))
        assert len(re.findall(r"^Method \|", text, re.M)) == len(numbers)
    else:
        numbers = sorted(set(re.findall(r"^(?:TABLE|Table) ([IVX]+|\d+)\b", text, re.M)))
    assert numbers == sorted(TABLES[name] + NO_RESULTS.get(name, []))


# A column as papers print it → how our key for it ends.
PRINTED = {
    **{f"{short}-{n}": f"bleu_{n}" for short in ("BL", "BLEU") for n in range(1, 5)},
    **dict.fromkeys(["MTR", "METEOR"], "meteor"),
    **{"ROUGE-1": "rouge_1", "ROUGE-2": "rouge_2"},
    **dict.fromkeys(["RG-L", "ROUGE-L", "ROUGEL"], "rouge_l"),
    **dict.fromkeys(["CIDEr", "CIDEr-D"], "cider"),
    **dict.fromkeys(["Pre.", "Precision", "CE (Pr)"], "_precision"),
    **dict.fromkeys(["Rec.", "Recall", "CE (Rc)"], "_recall"),
    **dict.fromkeys(["F1", "F1-score", "CE (F1)"], "_f1"),
    **{"BERTScore": "bertscore_f1", "BERTScore-P": "bertscore_p"},
    **{"F1CheXbert": "chexbert_5_micro_f1", "F1RadGraph": "radgraph_partial"},
}


def printed(text: str) -> list[tuple[list[str], list[str], list[str]]]:
    """`(header, labels, figures)` of each line of the paper's tables: lines of at least three figures or "*"."""
    found, header = [], []
    for line in text.replace("\\pm ", "±").replace("\\%", "%").replace("$", "").splitlines():
        parts = [re.sub(r"</?\w+>|\*\*|\[\d+\]", "", cell).strip() for cell in re.split(r"[\t|]", line)]
        names = [PRINTED[cell] for cell in parts if cell in PRINTED]
        header = names if len(names) >= 3 else header
        figures = [
            cell for cell in parts if FIGURE.fullmatch(cell) and cell != "-" and not re.fullmatch("20[12]\\d", cell)
        ]
        labels = [cell for cell in parts if re.search(r"\w", cell) and cell not in figures and not cell.isdigit()]
        if len(figures) + parts.count("*") >= 3:
            found.append((header, labels, figures))
    return found


def transcribed(name: str) -> list[tuple[list[str], str, list[str]]]:
    """`(columns, everything that names the row, figures)` of each line as the paper prints it, "-" left out."""
    found = []
    for entry, row in rows(name):
        own = {key: str(row.get(key, "")) for key in ("method", "marks", "group", "subset", "note")}
        words = "{group} {method}{marks} {group} {subset} {note} ".format(**own) + f"{entry['dataset']} {entry['what']}"
        found.append((entry["columns"], words, [figure for figure in row["figures"] if figure != "-"]))
    if name == "regionformer":  # Table 1 is printed the other way round: a line is a metric
        inputs = [row["method"] for _, row in rows(name, "1")]
        assert inputs == ["Only Images", "Images and Grounding Masks", "Only Grounding Masks"]
        image, both, mask = (cells(*pair) for pair in rows(name, "1"))
        lines = []
        for label in (
            "BLEU-1",
            "BLEU-2",
            "BLEU-3",
            "BLEU-4",
            "ROUGE-L",
            "CIDEr",
            "BERTScore",
            "F1CheXbert",
            "F1RadGraph",
        ):
            key, gain = PRINTED[label], f"{PRINTED[label]}_delta"
            lines.append(([], label, [image[key], both[key], both[gain], mask[key], mask[gain]]))
        found = lines + found[3:]
    return found


@pytest.mark.parametrize("name", TABLES)
def test_every_cell_is_the_papers(name: str, shared: Path) -> None:
    """Both ways, in order: no line of the paper's tables is missing and none is too many."""
    theirs = printed((shared / "papers" / f"{name}.txt").read_text("utf-8"))
    ours = transcribed(name)
    assert [figures for *_, figures in ours] == [figures for *_, figures in theirs]
    for (columns, words, figures), (header, labels, _) in zip(ours, theirs, strict=True):
        assert all(label.casefold() in words.casefold() for label in labels), (labels, words)
        if columns and figures:
            assert len(header) >= len(figures) - 1  # Reg2RG's Table IV has its Amount a line higher
            assert all(map(str.endswith, columns[-len(header) :], header)), (columns, header)


def released(path: Path) -> list[list[str]]:
    """The lines of a released result file as cells, the header first."""
    if path.suffix == ".csv":
        return list(csv.reader(path.open(encoding="utf-8")))
    lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    return [["label", *lines[0].split()], *(re.split(r"\s{2,}", line) for line in lines[1:])]


def our_key(column: str) -> str:
    key = re.sub("[- ]", "_", column.lower())
    return re.sub("^overall_(.*)", r"\1_overall", key)


@pytest.mark.parametrize("file", dict.fromkeys(entry["table"] for entry in load(RELEASED)["tables"]))
def test_released_cells(file: str, shared: Path) -> None:
    header, *lines = released(shared / "real" / "reg2rg_released" / "radgenome" / file)
    if header[0] == "BLEU-1":  # the one file whose line has no name
        header, lines = ["", *header], [["", *line] for line in lines]
    average = re.search("(micro|macro)_avg", file)
    expected: dict[str, dict[str, str]] = {}
    for name, *figures in lines:
        found = dict(zip(map(our_key, header[1:]), figures, strict=True))
        kind = average or re.match(r"(\w+) (?:avg|Average)", name)
        if kind:
            found = {
                key if key == "support" else f"radbert_ct_18_{kind[1].lower()}_{key.removesuffix('_score')}": figure
                for key, figure in found.items()
            }
        expected.setdefault("" if kind and not average else name, {}).update(found)
    ours = {
        row.get("subset", row.get("group", "")).removeprefix("label "): cells(entry, row)
        for entry, row in rows(RELEASED, file)
    }
    assert ours == expected
    assert {row["method"] for _, row in rows(RELEASED, file)} == {"Reg2RG"}
    assert len(ours) == len(rows(RELEASED, file))


def test_rows_name_the_files_of_their_predictions(shared: Path) -> None:
    folder = shared / "real" / "reg2rg_released" / "radgenome"
    regions = {
        path.name: len(list(csv.DictReader(path.open(encoding="utf-8")))) for path in folder.glob("*_reports.csv")
    }
    assert len(regions) == 10
    for name, table in (("reg2rg", "IV"), (RELEASED, "nlg_evaluation_results_all_regions.csv")):
        named = {row["recompute"]["file"]: row for _, row in rows(name, table)}
        assert {file: row["n"] for file, row in named.items()} == regions
        assert all(file == f"{row['subset'].replace(' ', '_')}_reports.csv" for file, row in named.items())
    assert all(row["figures"][0] == str(row["n"]) for _, row in rows("reg2rg", "IV"))


def test_regions_bear_the_names_that_the_zoo_uses() -> None:
    from datamodules.masks import REGIONS

    for table in ("III", "IV"):
        assert {row["subset"] for _, row in rows("reg2rg", table)} == set(REGIONS)


@pytest.mark.parametrize("name", FILES)
def test_f1_fits_precision_and_recall(name: str) -> None:
    """Of micro averages, single labels and regions; F1 of averages over labels is no harmonic mean."""
    checked = 0
    for entry, row in rows(name):
        found = cells(entry, row)
        for stem in ("chexbert_14_micro_", "radbert_ct_18_micro_", "region_", ""):
            end = "f1_score" if stem == "" else "f1"
            triple = [found.get(stem + key) for key in ("precision", "recall", end)]
            if None in triple or "-" in triple:
                continue
            (low_p, high_p), (low_r, high_r), (low_f, high_f) = (rounded_from(figure) for figure in triple)
            low, high = harmonic(low_p, low_r), harmonic(high_p, high_r)
            assert low <= high_f + 1e-9 and low_f <= high + 1e-9, (entry["table"], row)
            checked += 1
    assert checked == {"reg2rg": 36, "asarg": 12, RELEASED: 47}.get(name, 0)


def rounded_from(figure: str) -> tuple[float, float]:
    """Between which values lies what is printed like this."""
    half = 0.5 * 10.0 ** int(mean(figure).as_tuple().exponent)
    return max(0.0, float(mean(figure)) - half), float(mean(figure)) + half


def harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


@pytest.mark.parametrize("name", FILES)
def test_longer_ngrams_match_less(name: str) -> None:
    """A swap of two columns of BLEU or ROUGE would show here."""
    for entry, row in rows(name):
        found = {key: mean(figure) for key, figure in cells(entry, row).items() if figure != "-"}
        for chain in (["bleu_1", "bleu_2", "bleu_3", "bleu_4"], ["rouge_1", "rouge_l"], ["rouge_1", "rouge_2"]):
            values = [found[key] for key in chain if key in found]
            assert values == sorted(values, reverse=True), (entry["table"], row)


def test_gains_are_differences_to_images_alone() -> None:
    image, *others = (cells(*pair) for pair in rows("regionformer", "1"))
    off = []
    for found in others:
        for key in [key for key in image if f"{key}_delta" in image]:
            gap = mean(found[f"{key}_delta"]) - (mean(found[key]) - mean(image[key]))
            assert abs(gap) <= Decimal("0.01")
            off += [key] if gap else []
    assert off == ["cider", "chexbert_5_micro_f1", "radgraph_partial"]  # as the row's note says


def test_runs_that_several_tables_show_agree() -> None:
    def own(table: str) -> dict[str, str]:
        """The complete method's figures, on RadGenome-ChestCT where there are two datasets."""
        return next(cells(*pair) for pair in rows("reg2rg", table) if "method_id" in pair[1])

    full = {**own("I"), **own("II")}
    for table in ("V", "VII", "VIII"):
        assert own(table).items() <= full.items()
    radfm = {key: value for table in ("I", "II") for key, value in cells(*rows("reg2rg", table)[2]).items()}
    assert cells(*rows("reg2rg", "VI")[0]).items() <= radfm.items()
    assert rows("reg2rg", "VI")[3][1]["figures"] == rows("reg2rg", "VII")[0][1]["figures"]
    _, both, mask = (cells(*pair) for pair in rows("regionformer", "1"))
    assert cells(*rows("regionformer", "2")[10]).items() <= mask.items()
    assert cells(*rows("regionformer", "2")[11]).items() <= both.items()
    assert cells(*rows("regionformer", "3")[0]).items() <= both.items()


def test_the_paper_prints_what_the_released_files_say() -> None:
    """Tables I, II and IV are roundings of the released files' figures."""
    pairs = [
        (rows("reg2rg", "I")[5], rows(RELEASED, "nlg_evaluation_results.csv")[0]),
        (rows("reg2rg", "II")[5], rows(RELEASED, "test_classification_report.txt")[0]),
    ]
    for file in ("nlg_evaluation_results_all_regions.csv", "all_regions_micro_avg_results.csv"):
        by_region = {row["subset"]: (entry, row) for entry, row in rows(RELEASED, file)}
        pairs += [(pair, by_region[pair[1]["subset"]]) for pair in rows("reg2rg", "IV")]
    compared = 0
    for (entry, row), (other_entry, other) in pairs:
        theirs = cells(other_entry, other)
        for key, figure in cells(entry, row).items():
            if key in theirs:
                scale = entry["scale"]
                factor = scale.get(key, 1) if isinstance(scale, dict) else scale
                low, high = (bound * factor for bound in rounded_from(figure))
                assert low - 1e-9 <= float(mean(theirs[key])) <= high + 1e-9, (entry["table"], row["method"], key)
                compared += 1
    assert compared == 6 + 3 + 10 * (4 + 3)


def test_known_doubts_stand_with_their_rows() -> None:
    def said(name: str, table: str, number: int) -> str:
        entry, row = rows(name, table)[number]
        return " ".join([*entry.get("doubts", []), *row.get("doubts", [])])

    assert "mix two runs" in said("reg2rg", "I", 11) and "mix two runs" not in said("reg2rg", "I", 5)
    assert "Cannot be recomputed" in said("reg2rg", "I", 5)
    assert all("micro average" in said("reg2rg", table, 1) for table in ("II", "IV", "V", "VI", "VII", "VIII"))
    assert all("joined together" in said("reg2rg", table, 1) for table in ("I", "II", "V", "VI", "VII", "VIII"))
    assert "Table VII" in said("reg2rg", "VI", 3) and said("reg2rg", "VII", 0).endswith(
        rows("reg2rg", "VI")[3][1]["doubts"][0]
    )
    assert all("best epoch on the test findings" in said("regionformer", table, 0) for table in TABLES["regionformer"])
    for name, protocol in {"regionformer": "regionformer", "asarg": "asarg", "overlay_sft": "overlay"}.items():
        for entry, row in rows(name):  # copied rows have a dagger; of all others the protocol is our conclusion
            copied = "†" in row.get("marks", "")
            assert entry["protocol"] == ("unknown" if copied else protocol)
            assert entry.get("protocol_inferred", False) is not copied


def test_the_spread_that_asarg_prints_fits_its_p_value() -> None:
    """Features against LLaVA, two stages: Welch gives the abstract's p = 0.012 only if ± was divided by four runs."""
    from scipy.stats import ttest_ind_from_stats

    def f1(number: int) -> tuple[float, float]:
        value, spread = cells(*rows("asarg", "2")[number])["chexbert_14_micro_f1"].split(" ± ")
        return float(value), float(spread) * math.sqrt(4 / 3)

    (baseline, low), (features, high) = f1(0), f1(2)
    test = ttest_ind_from_stats(features, high, 4, baseline, low, 4, equal_var=False, alternative="greater")
    assert round(float(test.pvalue), 3) == 0.012
