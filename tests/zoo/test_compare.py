"""Comparisons from per-study tables: what pairs up, what is refused, and which numbers come out."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from datamodules.study import DataFault
from zoo.command import UsageError
from zoo.leaderboard.compare import compare, show
from zoo.leaderboard.submission import add_predictions
from zoo.leaderboard.systems import Run, System, load_systems
from zoo.metrics.engine import evaluate
from zoo.metrics.per_study import write_table
from zoo.metrics.significance import holm, paired_permutation

PROTOCOL = "overlay"  # no Java, and BERTScore's encoder is not asked for
WORDS = ["no", "pleural", "effusion", "heart", "size", "normal", "lungs", "clear", "nodule", "right", "lobe", "upper"]
STUDIES = 24
KEYS = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l"]


@pytest.fixture(scope="module", autouse=True)
def without_weights(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "HF_HOME", "HF_HUB_CACHE", "ZOO_WEIGHTS"):
            patch.setenv(name, str(tmp_path_factory.mktemp("none")))
        yield


def rows_of(noise, seed, studies=STUDIES):
    """Predictions in which a share of the reference's words is replaced at random."""
    texts, random = np.random.default_rng(99), np.random.default_rng(seed)
    rows = []
    for i in range(studies):
        words = texts.choice(WORDS, 14)
        said = np.where(random.random(14) < noise, random.choice(WORDS, 14), words)
        rows.append({"id": f"study {i}", "reference": " ".join(words), "prediction": " ".join(said)})
    return rows


def write(path: Path, rows) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Predictions of a baseline, of a better and a similar system; the better one's in another order."""
    folder = tmp_path_factory.mktemp("predictions")
    write(folder / "base.jsonl", rows_of(0.5, 1))
    write(folder / "better.jsonl", rows_of(0.25, 2)[::-1])
    write(folder / "similar.jsonl", rows_of(0.5, 3))
    return folder


@pytest.fixture(scope="module")
def systems(folder):
    return load_systems([str(folder / f"{name}.jsonl") for name in ("base", "better", "similar")], PROTOCOL)


@pytest.fixture(scope="module")
def found(systems):
    return compare(systems, trials=2000)


def run_folder(path: Path, run: Run, rows=None) -> str:
    write_table(path / "per_study.csv", run.table)
    if rows:
        write(path / "predictions.jsonl", rows)
    return str(path)


def changed(system: System, **fields) -> System:
    run = system.runs[0]
    return System(system.name, (replace(run, references={}, table=replace(run.table, **fields)),))


def part(system: System, places) -> System:
    """The same system on some of its studies."""
    table = system.runs[0].table
    columns = {name: column[places] for name, column in table.columns.items()}
    return changed(system, ids=[table.ids[place] for place in places], columns=columns)


# Numbers


def test_values_and_intervals_are_the_engine_s(folder, found):
    rows = [json.loads(line) for line in (folder / "better.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: int(row["id"].split()[1]))  # the bootstrap takes studies by their place
    texts = ([row[what] for row in rows] for what in ("reference", "prediction", "id"))
    result = evaluate(*texts, PROTOCOL)
    assert list(found.metrics) == list(result["metrics"]) == KEYS
    for key, entries in found.metrics.items():
        assert entries["better"].value == pytest.approx(result["metrics"][key]["value"], abs=1e-12)
        assert entries["better"].ci95 == pytest.approx(result["metrics"][key]["ci95"], abs=1e-12)
        assert entries["better"].values == (entries["better"].value,)


def test_differences_point_from_the_baseline_to_the_system(found):
    assert (found.baseline, found.n, found.protocol) == ("base", STUDIES, PROTOCOL)
    for entries in found.metrics.values():
        base, better, similar = entries.values()
        assert (base.difference, base.p, base.p_holm, base.effect) == (None,) * 4
        assert better.difference == pytest.approx(better.value - base.value)
        assert better.difference_ci95[0] > 0
        assert better.p < 0.01 < similar.p
        assert better.effect > 0.5 > abs(similar.effect)
        assert similar.difference_ci95[0] < 0 < similar.difference_ci95[1]


@pytest.mark.parametrize("key", ["bleu_4", "rouge_l"])
def test_p_is_of_the_studies_paired_by_their_ids(systems, found, key):
    base, better = (system.runs[0].table for system in systems[:2])
    assert base.ids == better.ids[::-1] != better.ids
    aggregate = base.metric(key)[1]
    tables = base.metric(key)[0], better.metric(key)[0][::-1]
    assert found.metrics[key]["better"].p == paired_permutation(*tables, aggregate, trials=2000)
    assert found.metrics[key]["similar"].p != paired_permutation(*tables, aggregate, trials=2000)
    differences = better.columns[key][::-1] - base.columns[key]
    effect = stats.ttest_1samp(differences, 0).statistic / np.sqrt(STUDIES)
    assert found.metrics[key]["better"].effect == pytest.approx(effect)


def test_holm_goes_over_the_systems_of_a_metric(found):
    for entries in found.metrics.values():
        _, *others = entries.values()
        assert [entry.p_holm for entry in others] == holm([entry.p for entry in others])
    assert found.metrics["bleu_1"]["better"].p_holm == 2 * found.metrics["bleu_1"]["better"].p
    assert "Holm's p allows for 2 systems against one baseline, metric by metric." in found.notes


def test_a_system_does_not_differ_from_itself(systems):
    twin = System("twin", systems[0].runs)
    for entries in compare([systems[0], twin], trials=50, resamples=50).metrics.values():
        assert (entries["twin"].difference, entries["twin"].p, entries["twin"].effect) == (0.0, 1.0, 0.0)
        assert entries["twin"].difference_ci95 == (0.0, 0.0)


def test_seed_and_trials_are_what_they_are_said_to_be(systems, found):
    again = compare(systems, trials=2000)
    assert again == found
    other = compare(systems, ["bleu_4"], trials=1000, seed=4, resamples=500)
    assert list(other.metrics) == ["bleu_4"]
    assert other.metrics["bleu_4"]["similar"].p != found.metrics["bleu_4"]["similar"].p
    assert other.test == (
        f"paired permutation test, two-sided, 1,000 random swaps; 95 % percentile bootstrap over {STUDIES} studies, "
        "500 resamples; seed 4"
    )
    few = compare([part(systems[0], range(5)), part(systems[2], range(5))], trials=1000)
    assert "all 32 swaps" in few.test


# Runs


def test_several_runs_are_compared_by_welch_s_test(tmp_path):
    for seed in range(3):
        write(tmp_path / f"old-seed{seed}.jsonl", rows_of(0.5, seed))
        write(tmp_path / f"new-seed{seed}.jsonl", rows_of(0.42, 10 + seed))
    runs = ",".join(str(tmp_path / f"old-seed{seed}.jsonl") for seed in range(3))
    old, new = load_systems([runs, str(tmp_path / "new-*.jsonl")], PROTOCOL)
    assert (old.name, new.name) == ("old-seed (3 runs)", "new-seed (3 runs)")
    found = compare([old, new])
    assert found.test.startswith("Welch's t-test over runs, two-sided")
    for key in ("bleu_4", "rouge_l"):
        values = []
        for prefix, noise, start in (("old", 0.5, 0), ("new", 0.42, 10)):
            rows = [rows_of(noise, start + seed) for seed in range(3)]
            scored = [evaluate(*[[row[what] for row in run] for what in ("reference", "prediction", "id")], PROTOCOL,
                               resamples=0) for run in rows]  # fmt: skip
            values.append([one["metrics"][key]["value"] for one in scored])
            entry = found.metrics[key][f"{prefix}-seed (3 runs)"]
            assert entry.values == pytest.approx(values[-1], abs=1e-12)
            assert (entry.value, entry.sd) == pytest.approx((np.mean(values[-1]), np.std(values[-1], ddof=1)))
            assert entry.ci95 is None
        theirs = stats.ttest_ind(values[1], values[0], equal_var=False)
        assert (entry.p, entry.difference) == pytest.approx((theirs.pvalue, np.mean(values[1]) - np.mean(values[0])))
        assert entry.warning == ""
        greater = compare([old, new], [key], alternative="greater")
        assert greater.metrics[key]["new-seed (3 runs)"].p == pytest.approx(entry.p / 2)
        assert "one-sided (greater than the baseline)" in greater.test


def test_few_runs_are_warned_about_and_one_run_is_not_tested(systems):
    base, better, similar = systems
    two = System("two", better.runs + similar.runs)
    found = compare([base, two], ["bleu_4"])
    entry = found.metrics["bleu_4"]["two"]
    assert (entry.p, entry.p_holm, entry.effect) == (None, None, None)
    assert entry.difference == pytest.approx(entry.value - found.metrics["bleu_4"]["base"].value)
    assert "nothing to test" in entry.warning
    found = compare([System("pair", base.runs + similar.runs), two, better], ["bleu_4"])
    assert "fewer than 3 runs (2 and 2)" in found.metrics["bleu_4"]["two"].warning
    assert found.metrics["bleu_4"]["two"].p_holm == found.metrics["bleu_4"]["two"].p  # the only one tested
    assert "nothing to test" in printed(found)


# Where systems come from


def test_every_source_gives_the_same_comparison(folder, systems, found, tmp_path):
    base = run_folder(tmp_path / "runs" / "base", systems[0].runs[0], rows_of(0.5, 1))
    table = tmp_path / "better.csv"
    write_table(table, systems[1].runs[0].table)
    said = {"method": "m", "dataset": "d", "split": "test", "protocol": PROTOCOL}
    similar = add_predictions(folder / "similar.jsonl", tmp_path, "similar", **said)
    others = load_systems([base, str(table), str(similar)])
    assert [system.name for system in others] == ["base", "better", "similar"]
    assert [system.runs[0].hashed for system in others] == [False, False, True]
    assert not any(study.startswith("study") for study in others[2].runs[0].table.ids)
    assert compare(others, trials=2000) == found
    scored = load_systems([base, str(folder / "better.jsonl"), str(similar / "per_study.csv")], PROTOCOL)
    assert compare(scored, trials=2000).metrics == found.metrics


def test_two_submissions_pair_up(folder, found, tmp_path):
    said = {"method": "m", "dataset": "d", "split": "test", "protocol": PROTOCOL}
    names = ["base", "better", "similar"]
    made = [str(add_predictions(folder / f"{name}.jsonl", tmp_path, name, **said)) for name in names]
    assert compare(load_systems(made), trials=2000) == found


def test_a_submission_that_was_changed_is_refused(folder, tmp_path):
    said = {"method": "m", "dataset": "d", "split": "test", "protocol": PROTOCOL}
    made = add_predictions(folder / "base.jsonl", tmp_path, "base", **said)
    table = made / "per_study.csv"
    table.write_text(table.read_text().replace("0", "1", 1))
    with pytest.raises(DataFault):
        load_systems([str(made), str(folder / "better.jsonl")], PROTOCOL)


def test_a_run_without_a_table_is_scored_from_its_predictions(folder, systems, tmp_path):
    write(tmp_path / "run-7" / "predictions.jsonl", rows_of(0.25, 2))
    (system,) = load_systems([str(tmp_path / "run-7")], PROTOCOL)
    assert system.name == "run-7"
    assert sorted(system.runs[0].table.columns["bleu_4"]) == sorted(systems[1].runs[0].table.columns["bleu_4"])


def test_systems_of_the_same_name_are_told_apart(systems, tmp_path):
    paths = [run_folder(tmp_path / place / "run", systems[0].runs[0]) for place in ("here", "there")]
    assert [system.name for system in load_systems(paths)] == ["here/run", "there/run"]
    with pytest.raises(UsageError, match="named twice"):
        load_systems([paths[0], paths[0]])
    with pytest.raises(UsageError, match="twice as a run of one system"):
        load_systems([f"{paths[0]},{paths[0]}"])


def test_what_cannot_be_loaded_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    for source, words in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "nothing-*", "no file or folder fits"),
        (tmp_path / "empty", "no per_study.csv"),
        (",", "names no system"),
        (folder / "base.jsonl", "--protocol"),
    ):
        with pytest.raises(UsageError, match=words):
            load_systems([str(source)])
    with pytest.raises(UsageError, match="no protocol 'bleu'"):
        load_systems([str(folder / "base.jsonl")], "bleu")


# What must not be compared


def test_protocols_and_versions_are_not_mixed(systems):
    base, better, _ = systems
    for fields, words in (({"protocol": "coco"}, "protocol coco version 1"), ({"version": 7}, "overlay version 7")):
        with pytest.raises(UsageError, match=f"{words}: these must not be compared"):
            compare([base, changed(better, **fields)])


def test_different_studies_are_refused_with_their_numbers(systems):
    base, better, similar = systems
    with pytest.raises(UsageError) as refused:
        compare([part(base, range(2, 20)), part(better, range(10))])  # better's first ten are the last of base's
    assert str(refused.value) == (
        "base and better are not on the same studies: 6 are shared; better lacks 12 of base's 18, base lacks 4 of "
        "better's 10; --common compares what is shared"
    )
    with pytest.raises(UsageError, match="no study in common"):
        compare([part(base, range(5)), part(better, range(5))], common=True)
    with pytest.raises(UsageError, match="no study that all systems share"):
        compare([base, part(base, range(5)), part(similar, range(5, 9))], common=True)


def test_common_studies_are_compared_where_asked_for(systems):
    base, better, similar = systems
    found = compare([base, part(better, range(4, 18)), part(similar, range(3, 16))], common=True, trials=100)
    assert found.n == 10  # better's are studies 6 to 19, similar's 3 to 15
    same = [part(base, range(6, 16)), part(better, range(8, 18)), part(similar, range(6, 16))]
    assert compare(same, trials=100).metrics == found.metrics
    assert "Only the 10 studies that all share are compared (base: 24, better: 14, similar: 13)." in found.notes


def test_an_id_that_comes_twice_is_refused(systems):
    base, better, _ = systems
    ids = [*better.runs[0].table.ids[:-1], better.runs[0].table.ids[0]]
    with pytest.raises(DataFault, match="1 ids come more than once: study 23"):
        compare([base, changed(better, ids=ids)])


def test_other_references_under_the_same_ids_are_refused(folder, systems, tmp_path):
    rows = rows_of(0.25, 2)
    rows[3]["reference"] += " opacity"
    rows[4]["reference"] = rows[4]["reference"].replace(" ", "  ")  # white space is no other reference
    other = load_systems([write(tmp_path / "other.jsonl", rows)], PROTOCOL)
    with pytest.raises(DataFault, match="base and other have different references for 1 of 24 shared studies"):
        compare([systems[0], *other])
    beside = run_folder(tmp_path / "run", other[0].runs[0], rows)
    with pytest.raises(DataFault, match="different references"):
        compare([systems[0], *load_systems([beside])])


def test_metrics_are_those_that_all_have(systems):
    base, better, _ = systems
    columns = {name: column for name, column in better.runs[0].table.columns.items() if name != "rouge_2"}
    poorer = changed(better, columns=columns)
    found = compare([base, poorer], trials=10, resamples=10)
    assert list(found.metrics) == [key for key in KEYS if key != "rouge_2"]
    assert "Left out, as not all systems have them: rouge_2." in found.notes
    with pytest.raises(UsageError, match="better has no rouge_2"):
        compare([base, poorer], ["rouge_2"])
    with pytest.raises(UsageError, match="overlay has no metric 'cider'; it has bleu_1"):
        compare([base, better], ["cider"])
    with pytest.raises(UsageError, match="no metric that all systems have"):
        compare([base, changed(better, columns={})])
    with pytest.raises(UsageError, match="at least two systems"):
        compare([base])


# Showing


def printed(comparison, width=80):
    screen = io.StringIO()
    show(comparison, Console(file=screen, width=width))
    return screen.getvalue()


def test_the_table_fits_eighty_columns_and_names_its_test(systems, found):
    text = printed(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    entry = found.metrics["bleu_4"]["better"]
    shown = lines[lines.index("BLEU-4") + 2]
    assert shown.split() == [
        "B", f"{entry.value:.4f}", f"[{entry.ci95[0]:.4f},", f"{entry.ci95[1]:.4f}]",
        f"{entry.difference:+.4f}", f"[{entry.difference_ci95[0]:+.4f},", f"{entry.difference_ci95[1]:+.4f}]",
        f"{entry.p:.4f}", f"{entry.p_holm:.4f}", f"{entry.effect:+.2f}",
    ]  # fmt: skip
    flat = " ".join(text.split())
    for words in (
        "A base (baseline)",
        "B better",
        "24 studies, protocol overlay (version 1)",
        found.test,
        *found.notes,
    ):
        assert words in flat


@pytest.mark.parametrize("beside", ["metrics.json", "submission.json"])
def test_the_phantom_is_named(folder, systems, tmp_path, beside):
    said = {"method": "m", "dataset": "d", "split": "test", "protocol": PROTOCOL, "phantom": True}
    if beside == "submission.json":
        path = str(add_predictions(folder / "base.jsonl", tmp_path, "base", **said))
    else:
        path = run_folder(tmp_path / "base", systems[0].runs[0])
        (tmp_path / "base" / beside).write_text('{"phantom": true}')
    for source in (path, f"{path}/per_study.csv"):
        found = compare([*load_systems([source]), systems[2]], ["bleu_1"], trials=10, resamples=10)
        assert found.phantom
        assert printed(found).startswith("phantom, not patients: 24 studies")
    assert not compare([systems[0], systems[2]], ["bleu_1"], trials=10, resamples=10).phantom


def test_long_names_do_not_push_the_figures_away(found):
    long = {name: f"[bold]{name} {'x' * 90}" for name in found.metrics["bleu_1"]}
    renamed = {key: {long[name]: entry for name, entry in entries.items()} for key, entries in found.metrics.items()}
    text = printed(replace(found, metrics=renamed, baseline=long["base"]))
    assert "[bold]better" in text  # a name is no markup
    figures = [line for line in printed(found).splitlines() if line.startswith("B  ") and "[" in line]
    assert len(figures) == len(KEYS)
    assert all(line in text.splitlines() for line in figures)


def test_json_holds_everything(found):
    content = json.loads(found.as_json())
    assert content["baseline"] == "base" and content["version"] == 1
    entry = content["metrics"]["rouge_l"]["similar"]
    assert entry["difference_ci95"] == list(found.metrics["rouge_l"]["similar"].difference_ci95)
    assert (entry["p"], content["notes"]) == (found.metrics["rouge_l"]["similar"].p, list(found.notes))
