import numpy as np
import pytest

from terrafm.data.land.landcover import WORLDCOVER_CLASSES, legend
from terrafm.data.land.legend import read_legend
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

COLOCATED = "codes: {1: 80, 2: 10, 3: 90, 4: 40, 5: 50, 6: 60, 7: 70, 9: 30}\n"

# A billion values in 400 bytes.
NINE_EACH = [f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11)]
LAUGHS = ", ".join(["&a0 [ha]", *NINE_EACH])


@pytest.fixture
def write(tmp_path):
    def text(content):
        (tmp_path / "legend.yaml").write_text(content)
        return str(tmp_path / "legend.yaml")

    return text


def test_codes_are_translated(write):
    mapping = read_legend(write(COLOCATED + "names: {30: rangeland}"))
    raw = np.array([[1, 9, 9], [4, 7, 2]], np.uint8)
    assert mapping.translate(raw, "here").tolist() == [[80, 30, 30], [40, 70, 10]]
    assert legend({30, 80}, mapping.names) == {30: "rangeland", 80: WORLDCOVER_CLASSES[80]}


def test_names_and_codes_that_older_yaml_takes_for_something_else(write):
    mapping = read_legend(write("codes: {010: 10, 08: 80}\nnames: {80: no, 10: 2021-01-01}"))
    assert mapping.codes == {10: 10, 8: 80}
    assert mapping.names == {80: "no", 10: "2021-01-01"}


def test_names_alone_leave_codes_as_they_are(write):
    mapping = read_legend(write("names: {1: water, 300: forest}"))
    assert mapping.translate(np.array([[300, 1]]), "here").tolist() == [[300, 1]]
    assert legend({1, 300}, mapping.names) == {1: "water", 300: "forest"}
    with pytest.raises(UsageError, match=r"code 2 of cell x \(1 pixels\).*add it under names"):
        mapping.translate(np.array([[2, 1]]), "cell x")


def test_a_code_that_is_not_mapped_is_named_with_its_place(write):
    with pytest.raises(UsageError, match=r"land-cover code 8, 11 of cell x \(3 pixels\) is not in"):
        read_legend(write(COLOCATED)).translate(np.array([[1, 8], [8, 11]]), "cell x")


def test_the_real_places_have_no_other_codes(realdata, write):
    mapping = read_legend(write(COLOCATED))
    source = GeotiffFolder(str(realdata / "colocated"), tuple(MODALITIES))
    for ref in source.cells():
        cover = source.read(ref).land_cover
        codes = mapping.translate(cover, ref.cell_id)
        assert codes.shape == cover.shape
        assert set(np.unique(codes)) <= set(WORLDCOVER_CLASSES)
        np.testing.assert_array_equal(codes == 80, cover == 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("codes: [1, 2]", "codes must map codes"),
        ("codes: {a: 10}", "codes must map a code"),
        ("codes: {1: ten}", "codes must map a code"),
        ("codes: {-1: 10}", "codes must map a code"),
        ("codes: {true: 10}", "codes must map a code"),
        ("names: {1: 2}", "names must map a code"),
        ("codes: {1: 11}", "code 11 is not one of WorldCover's"),
        ("colours: {1: red}", "must have the keys"),
        ("", "must have the keys"),
        ("codes: {1: 2", "cannot read the legend"),
        ("codes: 2021-13-45", "codes must map codes"),
        ("codes: {1: 10, 2: 20, 01: 30}", "the key 1 stands twice, on lines 1 and 1"),
        (
            "codes: {1: 10}\nnames: {10: a}\ncodes: {2: 20}",
            "'codes' stands twice, on lines 1 and 3",
        ),
        ("codes: " + "[" * 1000 + "]" * 1000, "cannot read the legend .*nested too deeply"),
        (f"codes: 0x{'f' * 5000}", "cannot read the legend .*more than 64 bits"),
        (f"codes: {{1: {'x' * 5000}}}", r"codes must map a code .*not 1: 'xxx.*\.\.\..*xxx'$"),
        ("codes: &a [*a]", "cannot read the legend .*more than 100,000 values"),
        (f"codes: [{LAUGHS}]", "cannot read the legend .*more than 100,000 values"),
        (f"codes: {{1: [{LAUGHS}]}}", "cannot read the legend .*more than 100,000 values"),
    ],
    ids=lambda text: text[:40],
)
def test_files_that_are_no_legend(write, content, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_legend(write(content))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="cannot read the legend"):
        read_legend(str(tmp_path / "no.yaml"))
