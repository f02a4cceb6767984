"""The page of the report, its tables as text, and the comparisons in results.json."""

import json
import re

import pytest

from cadc_jax.study import report, results
from cadc_jax.study.cells import Cell


@pytest.fixture
def made(compared):
    """(text of the page, what it shows) of results by hand and a failed cell."""
    cell = Cell("ml-100k", "cadc_frozen", "two_tower", "recent", 0.5, 3)
    rows = [*compared.rows, results.failure(cell, "s1", "why <not>")]
    reports = report.write(compared.out, rows, "this & machine", "cadc study --quick")
    return (compared.out / "report.html").read_text(), reports


def words(text):
    """The text of a page without its tags, in single spaces."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def test_the_page_shows_what_was_run(made):
    text = words(made[0])
    assert "5 of 6 cells have a result. this &amp; machine; cadc_jax" in text
    assert "cadc study --quick" in text
    assert "Rows: 10 train, 4 validation, 4 test (3 of them drawn); 4 users, 29 items." in text


def test_the_page_has_the_tables_that_are_not_empty(made):
    titles = re.findall(r"<h3>(.*?)</h3>", made[0])
    assert titles == [
        "Comparisons",
        "The network against its own factors, by training rows of the item",
        "The network against its own factors, by training rows of the user",
        "By activity of the user (deciles of training rows)",
        "By popularity of the item (deciles of training rows)",
        "Sizes, and when a factorisation pays",
        "Among K unseen items only: (1+K)",
    ]
    assert made[0].count("<svg") == 1  # one rate: no plot of quality by rate
    assert made[0].count("<table>") == made[0].count("</table>") == 1 + len(titles) + 1


def test_a_difference_has_the_colour_of_its_verdict(rankings):
    """NDCG of 1 / log2(10) and twice 1 / log2(11), against 1 for each user."""
    rankings.add_ranks(Cell("ml-100k", "mf_alone"), [0, 0, -1, 0])
    rankings.add_ranks(Cell("ml-100k", "full", "two_tower"), [8, 9, -1, 9])
    (found,) = report.write(rankings.out, rankings.rows, "", "")
    (cell,) = set(re.findall(r'<td class="worse">(.*?)</td>', report.page([found], [], "", "")))
    assert cell.startswith("-0.7069 [-0.72")


def test_cells_without_a_result_are_listed_and_their_errors_escaped(made):
    name = "ml-100k, cadc_frozen, two_tower, recent, rate 0.5, seed 3"
    assert f"<tr><td>{name}</td><td>failed</td><td>why &lt;not&gt;</td></tr>" in made[0]


def test_the_page_needs_no_other_file(made):
    for outside in ("src=", "<link", "@import", "url(http"):
        assert outside not in made[0]


def test_a_sweep_has_a_section_a_variant_and_its_choice_first(compared):
    swept = [
        row | {"variant": f"als.alpha={alpha}", "validation": 0.1 * alpha}
        for alpha in (1, 5)
        for row in compared.rows
    ]
    reports = report.write(compared.out, swept, "", "")
    text = (compared.out / "report.html").read_text()
    titles = re.findall("<h2>(.*?)</h2>", text)
    choice = "ml-100k: which values validate best"
    assert titles == [choice, "ml-100k: als.alpha=1", "ml-100k: als.alpha=5"]
    made = json.loads((compared.out / "results.json").read_text())
    assert {x["variant"] for x in made["choices"] if x["best"]} == {"als.alpha=5"}
    assert len(made["cells"]) == len(swept)
    first, *_ = report.summary(reports, swept).split("\n\n")
    assert first.count("best of all") == text.count("<td>best of all</td>") == 4


def test_results_json_has_all_figures_and_no_number_that_json_lacks(compared):
    compared.rows[0]["ndcg"] = float("nan")
    report.write(compared.out, compared.rows, "this machine", "cadc study")

    def refuse(name):
        raise AssertionError(name)

    text = (compared.out / "results.json").read_text()
    made = json.loads(text, parse_constant=refuse)
    assert (made["machine"], made["command"]) == ("this machine", "cadc study")
    assert made["cells"][0]["ndcg"] is None and made["cells"][1]["validation"] == 0.5
    assert made["rows"][0]["peer_name"] == "MF alone"


def test_several_rates_have_a_plot(compared):
    cell = Cell("ml-100k", "cadc_frozen", "two_tower", "uniform", 0.5)
    compared.add_ranks(cell, [0, 0, -1, 0], train_s=3.0)
    report.write(compared.out, compared.rows, "", "")
    text = (compared.out / "report.html").read_text()
    assert text.count("<svg") == 2 and "Quality by rate" in text


def test_the_summary_has_the_first_tables_in_columns(made):
    text = report.summary(made[1], [])
    lines = text.splitlines()
    assert lines[0] == "ml-100k"
    place = lines[1].index("NDCG@10")
    (frozen,) = [line for line in lines[3:7] if line.startswith("CADC, frozen")]
    assert frozen[place:].startswith("0.8333 ± ")
    *_, last = text.split("\n\n")
    assert last.startswith("Among K unseen items only: (1+K)")  # after all of the full ranking
    assert "Intervals are over 2 seeds and users" in text
    assert any(line.startswith("Comparisons, ml-100k") for line in lines)


def test_results_json_has_the_comparisons(made, compared):
    found = json.loads((compared.out / "results.json").read_text())["comparisons"]
    assert [(x["peer"], x["metric"], x["over"]) for x in found] == [
        ("full", "ndcg@10", ["users"]),  # both have a single seed
        ("mf_alone", "ndcg@10", ["users"]),
    ]
    first = found[0]
    assert first["difference"] == pytest.approx(0.5) and first["p"] <= first["p_holm"] <= 1
    assert first["interval"][0] < 0.5 < first["interval"][1]
    assert first["verdict"] == "not told apart"  # three users


def test_one_seed_is_said_to_be_one(rankings):
    rankings.add_ranks(Cell("ml-100k", "mf_alone"), [2, 0, -1, 0])
    rankings.add_ranks(Cell("ml-100k", "full", "two_tower"), [0, 0, -1, 20])
    report.write(rankings.out, rankings.rows, "", "")
    text = words((rankings.out / "report.html").read_text())
    assert "Intervals are over users alone: with one seed nothing is known of others." in text


def test_json_rows_compare_each_sampled_arm_with_both_peers(made):
    mf, full = report.of_peers(made[1])
    for row in (mf, full):
        assert row["case"] == "ml-100k, two_tower, cadc_frozen, uniform 0.1"
        assert row["metric"] == "ndcg@10, mean of 2 seeds (larger is better)"
        assert row["ours"] == pytest.approx(5 / 6)
    assert (mf["peer_name"], full["peer_name"]) == ("MF alone", "full data")
    assert mf["peer"] == pytest.approx(5 / 6) and mf["ratio"] == pytest.approx(1)
    assert full["ratio"] == pytest.approx(2.5) and full["interval"][0] == pytest.approx(0.5)
