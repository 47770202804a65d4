"""What is written from something else says what that is: the page of settings, the plot."""

from __future__ import annotations

import re

from bench import plots
from voicebot import settings_page
from voicebot.config import Settings, load


def test_the_page_is_up_to_date() -> None:
    assert settings_page.PAGE.read_text() == settings_page.page(), (
        "run python -m voicebot.settings_page"
    )


def test_every_variable_on_it_is_one_and_none_is_missing() -> None:
    variables = re.findall(r"^\| `([A-Z_0-9]+)`", settings_page.page(), re.MULTILINE)
    assert len(variables) == len(set(variables))
    load(dict.fromkeys(variables, ""))  # a name that is none is refused
    for name, field in Settings.model_fields.items():
        assert any(name.upper() in variable for variable in variables), (name, field)


def test_every_number_has_its_reason() -> None:
    rows = re.findall(r"^\| `(VOICEBOT_\w+__\w+)` \|.*\| (.*) \|$", settings_page.page(), re.M)
    assert len(rows) > 60
    assert [name for name, reason in rows if not reason.strip()] == []


def test_the_plots_show_the_tables_that_were_measured() -> None:
    drawings = plots.drawings(plots.TABLES.read_text())
    assert set(drawings) == set(plots.PLOTS.iterdir())
    for path, drawing in drawings.items():
        assert path.read_text() == drawing, "run python -m bench.plots"


def test_no_row_of_a_table_is_missing_in_its_plot() -> None:
    tables = plots.TABLES.read_text()
    assert [len(rows(tables)) for rows in (plots.onset, plots.policies, plots.turns)] == [8, 7, 5]
