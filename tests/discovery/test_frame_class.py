"""The class of a frame, from its regions' classes and peaks."""

from discovery.frame_class import frame_class


def test_hottest_region_decides_the_class_of_a_frame():
    assert frame_class(["D-1", "D-2", "D-2"], [4.0, 0.3, 3.9]) == "D-1"
    assert frame_class(["D-1", "D-2"], [0.4, 3.0]) == "D-2"
    assert frame_class(["D-2", "D-1"], [2.0, 2.0]) == "D-2"


def test_frame_without_any_classified_region_has_no_class():
    assert frame_class([None, None], [5.0, 6.0]) is None
    assert frame_class([], []) is None
    assert frame_class([None, "D-3"], [5.0, 0.6]) == "D-3"
