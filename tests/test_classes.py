import pytest

from imagenet_rn50.classes import Classes
from imagenet_rn50.utils.errors import InputError


def test_index_is_the_rank_of_the_wnid_whatever_the_order_of_the_mapping(tmp_path):
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text("n02012849 crane\nn01440764 tench, Tinca tinca\n", encoding="utf-8")
    classes = Classes.from_synset_mapping(mapping)
    assert classes.index_of == {"n01440764": 0, "n02012849": 1}
    assert classes.names == ("tench, Tinca tinca", "crane")


def test_labels_are_distinct_when_two_classes_share_a_name():
    classes = Classes(
        wnids=("n01440764", "n02012849", "n03126707"), names=("tench", "crane", "crane")
    )
    assert classes.labels == ("tench", "crane (n02012849)", "crane (n03126707)")


def test_saving_and_loading_returns_the_same_classes(tmp_path):
    classes = Classes(wnids=("n01440764", "n02012849"), names=("tench", "grúa, crane"))
    classes.save(tmp_path)
    assert Classes.load(tmp_path) == classes


def test_a_mapping_from_windows_gives_the_same_classes(tmp_path):
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text("n01440764 tench\r\nn02012849 crane\r\n", encoding="utf-8-sig")
    classes = Classes.from_synset_mapping(mapping)
    assert classes == Classes(wnids=("n01440764", "n02012849"), names=("tench", "crane"))


@pytest.mark.parametrize(
    "line", ["n0144076 too short", "n01440764", "tench", "n02012849 crane twice"]
)
def test_a_line_that_names_no_new_class_is_refused_with_its_number(tmp_path, line):
    mapping = tmp_path / "LOC_synset_mapping.txt"
    mapping.write_text(f"n02012849 crane\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2 of"):
        Classes.from_synset_mapping(mapping)


def test_classes_out_of_order_are_refused():
    with pytest.raises(InputError, match="n01440764 is out of order"):
        Classes(wnids=("n02012849", "n01440764"), names=("crane", "tench"))


@pytest.mark.parametrize("name", ["classes.json", "mine.txt", "labels", "LOC_synset_mapping.txt"])
def test_a_list_of_classes_is_known_by_its_content_whatever_its_name(tmp_path, name):
    expected = Classes(wnids=("n01440764", "n02012849"), names=("tench", "crane"))
    expected.save(tmp_path)
    ours = (tmp_path / "classes.json").read_text(encoding="utf-8")
    keras = '{"1": ["n02012849", "crane"], "0": ["n01440764", "tench"]}'
    for text in (ours, keras, "n02012849 crane\nn01440764\ttench\n"):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert Classes.read(tmp_path / name) == expected
    assert Classes.read(tmp_path / name).names == expected.names


@pytest.mark.parametrize(
    "content",
    [
        "",
        "\n\n",
        "tench\ngoldfish\n",
        "n01440764\nn02012849\n",
        "[1, 2]",
        "{",
        '{"0": "tench"}',
        '{"0": ["n02012849", "crane"], "1": ["n01440764", "tench"]}',
        '{"1": ["n01440764", "tench"]}',
        '{"id2label": {"0": "tench"}}',
        '[{"index": 0, "name": "tench"}]',
        "[[0]]",
    ],
)
def test_a_file_that_lists_no_classes_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "mine.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"mine\.txt"):
        Classes.read(path)


def test_a_wnid_with_two_names_is_refused_with_both_and_their_lines(tmp_path):
    path = tmp_path / "mapping.txt"
    path.write_text("n02012849 crane\n\nn02012849 crane, bird\n", encoding="utf-8")
    with pytest.raises(InputError, match="'crane' in line 1, 'crane, bird' in line 3"):
        Classes.read(path)
