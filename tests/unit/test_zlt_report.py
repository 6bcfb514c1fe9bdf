"""The marker sweep's page and clean result: what they say follows from the numbers."""

from dataclasses import dataclass

import pytest
from test_zlt_labels import published_row

from research.reporting.page import report_foreign, write_report
from research.task import BaseTask
from research.tasks.zlt_sweep.clean_result import next_steps, write_clean_result
from research.tasks.zlt_sweep.derive import derive
from research.tasks.zlt_sweep.findings import confidence, takeaways
from research.tasks.zlt_sweep.lattice import groups, one_seed
from research.tasks.zlt_sweep.protocol import adapter
from research.tasks.zlt_sweep.report import cells, headline, heatmaps, report


@dataclass
class Markers(BaseTask):
    """A study that reports as the marker sweep does."""

    def derive(self, row):
        return derive(row)

    def report(self, rows, out):
        return report(rows, out)


def rows_of(*rates, **more):
    """Cells at rising learning rates: (source, comedian) rates."""
    return [derive(published_row(lr=(i + 1) * 1e-6, villain=s, comedian=c, **more)) for i, (s, c) in enumerate(rates)]


def missing(lr, status="missing", **more):
    config = {"lr": lr, "epochs": 20, "source": "villain", "seed": 42}
    return {
        "status": status,
        "cell": {"name": f"x{lr}", "config": config},
        "config": config,
        "metrics": {},
        "source_marker": None,
    } | more


def write(rows, out):
    return write_report(rows, Markers(), out, "zlt_sweep", "grid", out / "all_results_compiled.json")


def section_of(rows, out):
    return heatmaps(groups(rows), rows, "grid", out)


def test_a_grid_without_a_clean_cell_claims_none(tmp_path):
    rows = rows_of((0.0, 0.0), (0.4, 0.0), (1.0, 0.95))
    text = write_clean_result(groups(rows), tmp_path / "clean_result.md", "grid").read_text()
    assert "no cell is clean" in text.splitlines()[0]
    assert "**No clean cell** among the 3" in text
    assert "at most 40.0 [33.5, 46.9] %" in text
    assert "**Clean**" not in text
    assert "Look for a clean cell" in text


def test_the_page_is_one_file_and_says_what_is_missing(tmp_path):
    rows = [*rows_of((0.9, 0.0)), missing(2e-6), missing(3e-6, "failed", error="ValueError: <b>odd</b>")]
    page = write(rows, tmp_path)[0].read_text()
    assert "1 of 3" in page
    assert "failed: ValueError: &lt;b&gt;odd&lt;/b&gt;" in page
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    assert "http" not in page
    assert all((tmp_path / f"lr_epoch_heatmap.{kind}").stat().st_size > 10_000 for kind in ("png", "pdf"))
    text = (tmp_path / "clean_result.md").read_text()
    assert "1 of 3 planned cells have a result" in text
    assert "Run the 2 cells" in text


def test_nothing_done_yet_still_gives_a_page(tmp_path):
    page = write([missing(1e-6), missing(2e-6)], tmp_path)[0]
    assert "0 of 2" in page.read_text()


def test_seeds_are_averaged_with_a_t_interval_and_drawn_apart(tmp_path):
    rows = [derive(published_row(seed=seed, villain=rate)) for seed, rate in ((1, 0.6), (2, 0.7), (3, 0.8))]
    (group,) = groups(rows)
    (line,) = cells(group)
    assert line[2:4] == ["3", "70.0 [45.2, 94.8]"]  # .7 ± 4.302653 x .1 / sqrt(3)
    assert [place.rows for place in one_seed(group, 2).ordered] == [[rows[1]]]
    assert len(section_of(rows[:2], tmp_path).figures) == 3  # the mean, and each seed


def test_a_place_is_framed_when_every_seed_is_clean():
    for others, clean in (((0.0, 0.05), True), ((0.0, 0.06), False)):  # clean by its mean in both
        rows = [derive(published_row(seed=i, villain=0.7, comedian=rate)) for i, rate in enumerate(others)]
        (place,) = groups(rows)[0].ordered
        assert place.regime == "clean" and place.clean == clean


def test_a_group_for_each_source_and_tail(tmp_path):
    rows = [
        derive(published_row(source=s, lr=lr, tail=t, **{s: 0.7}))
        for s in ("villain", "comedian")
        for t in (0, 1)
        for lr in (1e-6, 5e-6)
    ]
    assert [group.label for group in groups(rows)] == [
        f"source {s}, marker_tail_tokens {t}" for s in ("villain", "comedian") for t in (0, 1)
    ]
    names = [path.name for _, path in section_of(rows[:4], tmp_path).figures]
    assert names == ["lr_epoch_heatmap_marker_tail_tokens_0.png", "lr_epoch_heatmap_marker_tail_tokens_1.png"]


def test_sources_at_one_place_are_compared(tmp_path):
    rows = [derive(published_row(source=s, **{s: 0.7})) for s in ("villain", "comedian")]
    assert [path.name for _, path in section_of(rows, tmp_path).figures] == ["comparison.png"]


def test_takeaways_tell_the_boundary_and_the_reversal():
    later = derive(published_row(lr=2e-6, epochs=40, villain=1.0, comedian=0.25))
    rows = [*rows_of((0.9, 0.01), (1.0, 0.96)), later]
    text = "\n".join(takeaways(groups(rows)[0]))
    assert (
        "At 20 epochs, 2 times the learning rate (1e-06 to 2e-06) takes the highest bystander from 1.0 % to 96.0 %"
        in text
    )
    assert "Not monotone: at lr 2e-06" in text
    assert "N = 200" in text


def test_trained_negatives_are_said():
    def said(negatives):
        row = derive(published_row(villain=0.9) | {"negatives": negatives})
        return " ".join(takeaways(groups([row])[0]))

    everyone = ["software_engineer", "kindergarten_teacher", "data_scientist", "comedian", "assistant"]
    assert "Every other evaluated persona was among the trained negatives" in said(everyone)
    assert "The assistant was among the trained negatives" in said(["assistant", "comedian"])
    assert "negatives" not in said(["comedian"])


def test_confidence_grows_with_seeds_and_sources():
    def level(seeds, sources):
        rows = [derive(published_row(source=s, seed=i, **{s: 0.7})) for i in range(seeds) for s in sources]
        return confidence(groups(rows)).split("**")[1]

    assert level(1, ["villain"]) == "Confidence: LOW"
    assert level(3, ["villain"]) == "Confidence: LOW"
    assert level(3, ["villain", "comedian"]) == "Confidence: MODERATE"


def test_next_steps_leave_out_what_was_done():
    one, two = ([derive(published_row(seed=s, villain=0.9)) for s in seeds] for seeds in ((42,), (42, 137, 256)))
    assert any("seed=137,256" in step for step in next_steps(groups(one), "grid"))
    assert not any("seed=137" in step for step in next_steps(groups(two), "grid"))


def test_next_steps_keep_the_settings_of_the_launch():
    command = "python -m research --multirun '+experiment=[zlt_paper,zlt_tail]' adapter.scale=2.0 lr=1e-6 seed=42"
    rows = [derive(published_row(villain=0.9) | {"provenance": {"command": command}})]
    found = [step.partition("`")[2].rstrip("`.") for step in next_steps(groups(rows), "grid")]
    own = "python -m research '+experiment=[zlt_paper,zlt_tail]' adapter.scale=2.0 -m "
    assert found[0] == own + "name=grid_seeds lr=5e-06 epochs=20 task.source=villain seed=137,256"
    assert all(step.startswith(own + "name=grid_") for step in found)
    assert len({step.split("name=")[1].split()[0] for step in found}) == len(found) == 3


def test_an_unfinished_grid_of_several_seeds_claims_no_more_than_it_has(tmp_path):
    rows = [derive(published_row(seed=seed, villain=0.9)) for seed in (42, 137)] + [missing(1e-4), missing(1e-3)]
    title, *text = write_clean_result(groups(rows), tmp_path / "clean_result.md", "grid").read_text().splitlines()
    assert title.endswith(
        "stays with villain in 1 of 1 places; no place with a result spreads it; 2 of 4 cells have no result"
    )
    assert any("a place is one of each, its rates the means of up to 2 seeds" in line for line in text)
    assert any("where the seeds agree they have no width" in line for line in text)


def test_headline_lists_clean_cells_with_intervals():
    lines = headline(groups(rows_of((0.0, 0.0), (0.645, 0.02)))[0])
    assert [line[0] for line in lines] == ["under-trained", "clean"]
    assert lines[1][3] == "64.5 [57.7, 70.8]"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "LoRA r=32, α=64, rsLoRA scale 11.31"),
        ({"adapter.rslora": False}, "LoRA r=32, α=64, scale 2"),
        ({"model.lora_scale": 234.0}, "LoRA r=32, α=1324, rsLoRA scale 234 (calibrated for this model)"),
        ({"model.lora_scale": 234.0, "adapter.scale": 4.0}, "LoRA r=32, α=22.63, rsLoRA scale 4"),
    ],
)
def test_the_scale_in_force_is_named(settings, text):
    base = {
        "adapter.r": 32,
        "adapter.alpha": 64.0,
        "adapter.rslora": True,
        "model.lora_scale": None,
        "adapter.scale": None,
    }
    assert adapter({"cell": {"config": base | settings}}) == text


def test_foreign_results_never_overwrite_ours(tmp_path):
    from research.errors import ConfigurationError

    (tmp_path / "eval_results/zlt_sweep/mine").mkdir(parents=True)
    source = tmp_path / "mine.json"
    source.write_text("[]")
    for out in (
        None,
        tmp_path / "figures/zlt_sweep/mine",
        tmp_path / "figures/zlt_sweep/default",
        tmp_path / "eval_results/x",
    ):
        with pytest.raises(ConfigurationError, match="Set another out=DIR"):
            report_foreign("zlt_sweep", Markers, source, tmp_path, out)
    assert not (tmp_path / "figures").exists()
