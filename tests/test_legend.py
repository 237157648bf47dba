import pytest
import torch
from steer.pictures.legend import absent, parse_legend, segments


def test_legend():
    text = "\n#FF0000: a red cat \n 0, 128,255 : sky @ 0.5\n\n#00ff00:grass@2"
    red, blue, green = parse_legend(text)
    assert (red.colour, red.phrase, red.strength) == ((255, 0, 0), "a red cat", 1.0)
    assert (blue.colour, blue.phrase, blue.strength) == ((0, 128, 255), "sky", 0.5)
    assert (green.colour, green.phrase, green.strength) == ((0, 255, 0), "grass", 2.0)


def test_colours_by_name():
    red, sky, pine = parse_legend("red: cat\nSkyBlue : blue sky @ 0.5\nGREEN:embedding:pine")
    assert (red.colour, sky.colour, pine.colour) == ((255, 0, 0), (135, 206, 235), (0, 128, 0))  # CSS Color Module 4
    assert (sky.phrase, sky.strength, pine.phrase) == ("blue sky", 0.5, "embedding:pine")


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("#ff0000: cat\n#00ff00 dog", "line 2: '#00ff00 dog'.*red: cat"),
        ("red: cat\nbleu: sky", "line 2: 'bleu' is not the name of a colour; did you mean `blue`"),
        ("xyzzy: sky", "line 1: 'xyzzy' is not the name of a colour; write a name of CSS"),
        ("light blue: sky", "line 1: 'light blue'.*did you mean `lightblue`"),
        ("#ff0000: cat\nRed: dog", r"line 2: Red \(#ff0000\) is 'cat' already"),
        ("#ff0000 cat", "line 1"),
        ("#ff000: cat", "line 1"),
        ("256, 0, 0: cat", "line 1"),
        ("#ff0000:", "line 1"),
        ("#ff0000: cat @ much", "line 1"),
        ("#ff0000: cat\n\n255,0,0: dog", "line 3: #ff0000 is 'cat' already"),
    ],
)
def test_bad_legends_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_legend(text)


def coloured_map():
    """Left red, right blue, a black row below; the second picture all red."""
    image = torch.zeros(2, 8, 8, 3)
    image[0, :7, :4] = torch.tensor([1.0, 0.0, 0.0])
    image[0, :7, 4:] = torch.tensor([0.0, 0.0, 1.0])
    image[1, :, :] = torch.tensor([1.0, 0.0, 0.0])
    return image


def test_segments_of_a_map_a_little_off():
    noise = torch.rand(2, 8, 8, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    image = (coloured_map() + 0.15 * noise).clamp(0, 1)
    red, blue = segments(image, parse_legend("#ff0000: cat\n#0000ff: sky @ 0.5"))
    assert torch.equal(red, (coloured_map()[..., 0] == 1).float())
    assert torch.equal(blue, (coloured_map()[..., 2] == 1).float())


def test_a_colour_that_is_not_in_the_map_is_said():
    legend = parse_legend("#ff0000: cat\nGreen: grass\n0, 0, 255: sky\n#ffffff: cloud")
    places = segments(coloured_map(), legend)
    assert [bool(masks.any()) for masks in places] == [True, False, True, False]
    text = absent(coloured_map(), legend, places)
    assert "no Green (#008000), #0000ff in picture 2, #ffffff, which" in text
    assert "are #ff0000, #0000ff, #000000" in text
    both, first = legend[::2], coloured_map()[:1]
    assert not absent(first, both, segments(first, both))
