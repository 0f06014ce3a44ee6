"""The plots of an evaluation: round numbers on the axes, marks where the numbers are."""

import xml.etree.ElementTree as ET

import pytest

from turbosparse.models.tools.charts import HEIGHT, WIDTH, Axis, Plot, linear, percent


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 0.243, [0, 0.05, 0.1, 0.15, 0.2, 0.25]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 1.1, [0, 0.25, 0.5, 0.75, 1, 1.25]),
        (0, 37_000, [0, 10_000, 20_000, 30_000, 40_000]),
        (0, 3e-7, [0, 1e-7, 2e-7, 3e-7]),
        (5, 5, [5, 6]),
        (0, 0, [0, 0.2]),
    ],
)
def test_an_axis_ends_at_round_numbers_that_hold_all_values(low, high, ticks):
    axis = linear("x", low, high)
    assert axis.ticks[0] <= low
    assert axis.ticks[-1] >= high
    assert list(axis.ticks) == pytest.approx(ticks, abs=1e-12)


def test_marks_stand_where_the_numbers_are():
    x = Axis("x", 1, 16, [1, 4, 16], doubling=True)
    y = Axis("y", 0, 1, [0, 1], percent)
    plot = Plot("a < b", x, y).line([(1, 0), (4, 0.5), (16, 1)], "main")
    svg = ET.fromstring(plot.dots([(4, 0.5)], "second", ["four & more"]).svg())
    assert svg.get("aria-label") == "a < b"
    first, middle, last = (
        tuple(map(float, point.split(","))) for point in svg.find("polyline").get("points").split()
    )
    assert middle == pytest.approx([(a + b) / 2 for a, b in zip(first, last, strict=True)], abs=0.1)
    assert first[1] > last[1], "larger is higher"
    assert 0 < first[0] < last[0] < WIDTH
    assert 0 < last[1] < first[1] < HEIGHT
    circle = svg.find("circle")
    assert (float(circle.get("cx")), float(circle.get("cy"))) == middle
    assert circle.findtext("title") == "four & more"
    assert "100%" in [text.text for text in svg.findall("text")]


def test_bars_stand_on_the_floor():
    x, y = Axis("layer", -0.7, 1.7, [0, 1]), linear("share", 0, 0.5)
    svg = ET.fromstring(Plot("bars", x, y).bars([0.5, 0.25], "main", ["a", "b"]).svg())
    tall, short = svg.findall("rect")
    assert float(tall.get("height")) == pytest.approx(2 * float(short.get("height")), abs=0.2)
    floors = {round(float(bar.get("y")) + float(bar.get("height"))) for bar in (tall, short)}
    assert len(floors) == 1


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (0.004, "0.4%"), (0.01, "1%"), (0.25, "25%"), (1, "100%")]
)
def test_small_shares_keep_a_decimal(share, text):
    assert percent(share) == text
