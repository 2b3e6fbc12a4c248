"""Pictures: what is small stands to the left and below, and what is equal is drawn as well."""

import xml.etree.ElementTree as ET

from commonweal_node.svg import curve, plane


def test_a_curve_goes_from_corner_to_corner() -> None:
    picture = ET.fromstring(curve("falls", [(1, 4.0), (2, 3.0), (3, 2.0)]))
    lines = [p.get("points", "").split() for p in picture.iter("polyline")]
    places = [tuple(map(float, point.split(","))) for point in lines[1]]
    # The axes' corners: left and top, right and bottom; and the middle half-way.
    assert places == [(44.0, 22.0), (320.0, 110.0), (596.0, 198.0)]
    assert [t.text for t in picture.iter("text")] == ["4.000", "2.000", "1", "3"]


def test_a_curve_of_one_point_or_of_equal_values_is_drawn() -> None:
    for points in ([(1, 2.0)], [(1, 2.0), (2, 2.0)]):
        assert "nan" not in curve("flat", points)


def test_in_a_plane_the_lower_left_is_the_least_of_both() -> None:
    drawn = ET.fromstring(plane("two losses", [(0.5, 2.0), (1.5, 1.0), (1.0, 1.5)]))
    places = [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in drawn.iter("circle")]
    assert places == [(44.0, 44.0), (276.0, 276.0), (160.0, 160.0)]
    assert [t.text for t in drawn.iter("text")] == ["1", "2", "3"]
