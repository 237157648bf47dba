"""The templates' pictures reach the host's input folder, and its Load Image reads them as they are meant."""

import folder_paths
import nodes
import pytest
from steer.nodes.example_pictures import CAPTIONS, PICTURES, TRAINING, copy_example_pictures


@pytest.fixture
def input_folder(tmp_path):
    before = folder_paths.get_input_directory()
    folder_paths.set_input_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_input_directory(before)


def test_all_are_copied_and_what_is_there_stays(input_folder):
    (input_folder / "steer_cat.webp").write_text("mine")
    copy_example_pictures()
    assert {path.name for path in input_folder.iterdir()} == {
        TRAINING,
        *(path.name for path in PICTURES.glob("steer_*")),
    }
    assert (input_folder / "steer_cat.webp").read_text() == "mine"


def test_the_trainer_reads_the_photos_with_their_captions(input_folder):
    dataset = pytest.importorskip("comfy_extras.nodes_dataset")
    copy_example_pictures()
    pictures, captions = dataset.LoadImageTextDataSetFromFolderNode.execute(TRAINING).args
    assert sorted(captions) == sorted(CAPTIONS.values())
    assert [picture.shape for picture in pictures] == [(1, 512, 512, 3)] * len(CAPTIONS)


def test_a_folder_that_cannot_be_written_to_is_a_line_in_the_log(input_folder, caplog):
    folder_paths.set_input_directory(str(input_folder / "none"))
    copy_example_pictures()
    assert "could not be copied" in caplog.text


def test_the_hole_is_a_mask_and_the_map_is_white_around(input_folder):
    copy_example_pictures()
    picture, mask = nodes.LoadImage().load_image("steer_coffee_hole.webp")
    assert picture.shape == (1, 512, 512, 3) and 0.2 < mask.mean() < 0.6
    assert picture[0][mask[0] == 1].std() > 0.1  # its colours are under the hole
    layout, mask = nodes.LoadImage().load_image("steer_map.png")
    assert layout[0][mask[0] == 1].min() == 1.0
