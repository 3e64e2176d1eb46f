"""Image and video inputs: read at the requested size, refused in one sentence."""

import contextlib
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from svg2 import cli
from svg2.errors import RequestError
from svg2.models.finding import model_spec
from svg2.models.inputs import (
    check_image,
    check_video,
    describe_cut,
    picture_of_cut,
    read_image,
)
from svg2.models.request import Request
from svg2.runs.call import describe_given, read_video
from svg2.trace.video import encode_mp4


@pytest.fixture
def files(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (3, 20, 40, 3), np.uint8)
    Image.fromarray(noise[0]).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:400])
    (tmp_path / "text.png").write_text("no image at all")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "good.mp4").write_bytes(encode_mp4(noise, 8))
    (tmp_path / "text.mp4").write_text("no video at all")
    return tmp_path


def test_an_image_covers_the_size_without_being_stretched(tmp_path):
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    image = read_image(str(tmp_path / "wide.png"), 64, 64)
    assert (image.size, image.mode) == ((64, 64), "RGB")
    assert {image.getpixel(at) for at in ((2, 2), (61, 61))} == {(0, 0, 255)}, "its middle"


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
NUMBERS = {
    "16-bit PNG": ("a.png", (RAMP * 65535).astype(np.uint16)),
    "16-bit TIFF": ("a.tif", (RAMP * 65535).astype(np.uint16)),
    "16-bit TIFF, other end first": ("a.tif", (RAMP * 65535).astype(">u2")),
    "32-bit TIFF": ("a.tif", (RAMP * 65535).astype(np.int32)),
    "32-bit TIFF of 8 bits": ("a.tif", (RAMP * 255).round().astype(np.int32)),
    "32-bit TIFF of 12 bits": ("a.tif", (RAMP * 4095).round().astype(np.int32)),
    "32-bit TIFF of a wide range": ("a.tif", (RAMP * 2e9).astype(np.int32)),
    "float TIFF": ("a.tif", RAMP.astype(np.float32)),
    "float TIFF of a scene": ("a.tif", (RAMP * 3500 - 200).astype(np.float32)),
    "8-bit PNG": ("a.png", (RAMP * 255).round().astype(np.uint8)),
}


@pytest.mark.parametrize(("name", "values"), NUMBERS.values(), ids=NUMBERS)
def test_grey_of_any_depth_keeps_its_shades(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    image = read_image(str(tmp_path / name), 64, 64)
    assert image.mode == "RGB"
    shades = np.asarray(image).astype(int)
    assert np.abs(shades - (RAMP * 255)[:, :, None]).max() <= 1


def test_dark_grey_stays_dark_and_one_shade_is_no_fault(tmp_path):
    for name, values in (
        ("dark.png", np.full((32, 32), 6000, np.uint16)),
        ("dark.tif", np.full((32, 32), 6000 / 65535, np.float32)),
    ):
        Image.fromarray(values).save(tmp_path / name)
        assert set(np.unique(read_image(str(tmp_path / name), 32, 32))) == {23}
    Image.fromarray(np.full((32, 32), -7, np.float32)).save(tmp_path / "flat.tif")
    assert set(np.unique(read_image(str(tmp_path / "flat.tif"), 32, 32))) == {0}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    Image.fromarray(np.full((32, 32), value, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(RequestError, match="infinite or not a number"):
        read_image(str(tmp_path / "a.tif"), 32, 32)


def transparent(mode):
    """Hidden red; 0, 50 and 100 % opaque blue from left to right."""
    colours = [(255, 0, 0, 0), (0, 0, 255, 128), (0, 0, 255, 255)]
    image = Image.new("RGBA", (96, 32))
    for i, colour in enumerate(colours):
        image.paste(colour, (32 * i, 0, 32 * i + 32, 32))
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("RGBA", "a.png"), ("RGBA", "a.webp"), ("RGBA", "a.tif"), ("LA", "a.png"), ("P", "a.gif")],
)
def test_transparent_parts_show_a_plain_ground(tmp_path, mode, name):
    if mode == "P":  # one of its colours is transparent
        image = Image.new("P", (96, 32), 1)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(0, (0, 0, 32, 32))
        image.save(tmp_path / name, transparency=0)
    else:
        image = transparent(mode)
        image.save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    read = np.asarray(read_image(str(tmp_path / name), 96, 32)).astype(int)
    assert (read[16, 8] >= 254).all(), "not the red beneath"
    opaque = read[16, 88]
    assert opaque[0] == opaque[1] if mode == "LA" else (opaque[0] <= 1 and opaque[2] >= 254)
    if mode == "RGBA":
        assert np.abs(read[16, 48] - (127, 127, 255)).max() <= 3


def test_transparent_colours_of_rgb_and_palettes_count_too(tmp_path):
    Image.new("RGB", (32, 32), (9, 8, 7)).save(tmp_path / "a.png", transparency=(9, 8, 7))
    Image.new("L", (32, 32), 9).save(tmp_path / "b.png", transparency=9)
    for name in ("a.png", "b.png"):
        assert set(np.unique(read_image(str(tmp_path / name), 32, 32))) == {255}


@pytest.mark.parametrize(
    ("size", "orientation", "video", "said"),
    [
        ((300, 100), 1, (100, 100), "67% of it are cut off, left and right"),
        ((100, 300), 1, (832, 480), "81% of it are cut off, above and below"),
        ((300, 100), 6, (100, 100), "67% of it are cut off, above and below"),
        ((300, 100), 6, (100, 300), None),
        ((832, 480), 1, (832, 480), None),
        ((833, 480), 1, (832, 480), None),
    ],
)
def test_what_is_cut_away_is_said_and_shown(tmp_path, size, orientation, video, said):
    exif = Image.Exif()
    exif[274] = orientation
    path = str(tmp_path / "a.png")
    Image.new("RGB", size, (0, 0, 200)).save(path, exif=exif)
    sentence = describe_cut(path, *video)
    assert (said in sentence) if said else sentence == ""
    picture = picture_of_cut(path, *video)
    assert max(picture.size) <= 240
    kept = (np.asarray(picture) == (0, 0, 200)).all(axis=2).mean()
    turned = size[::-1] if orientation == 6 else size
    fit = min(turned[0] / video[0], turned[1] / video[1])
    assert kept == pytest.approx(fit**2 * video[0] * video[1] / (size[0] * size[1]), abs=0.03)


HEADERS = {"short": b"II*", "cut": b"MM\0*\0\0\0\x08\0\x05", "no TIFF": b"nonsense"}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_damaged_header_is_no_traceback(tmp_path, monkeypatch, header):
    """Whatever Pillow makes of it: an image, or a refusal in one sentence."""
    path = tmp_path / "a.png"
    made = PngImagePlugin.PngInfo()
    made.add(b"eXIf", header)
    Image.new("RGB", (40, 20), "red").save(path, pnginfo=made)
    found = []
    for read in (lambda: describe_cut(str(path), 20, 20), lambda: read_image(str(path), 20, 20)):
        with contextlib.suppress(RequestError):
            found.append(read())
    assert all(isinstance(one, str | Image.Image) for one in found)


@pytest.mark.parametrize("error", [SyntaxError, struct.error, ValueError, OSError])
def test_what_pillow_says_of_a_header_is_one_sentence(files, monkeypatch, error):
    def fail(*_):
        raise error("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", fail)
    for read in (describe_cut, read_image):
        with pytest.raises(RequestError, match="is damaged"):
            read(str(files / "good.png"), 20, 20)


@pytest.mark.parametrize("name", ["nowhere.png", "text.png", "empty.png", "cut.png", ".", "a\0b"])
def test_a_file_that_is_not_an_image_is_refused_in_one_sentence(files, name):
    with pytest.raises(RequestError) as caught:
        read_image(str(files / name), 32, 32)
    assert str(caught.value).count("\n") == 0
    if name != "cut.png":  # found only by decoding
        with pytest.raises(RequestError):
            check_image(str(files / name))


def test_a_video_gives_its_first_frames(files):
    frames = read_video(str(files / "good.mp4"), 2, 32, 16)
    assert [frame.size for frame in frames] == [(32, 16)] * 2
    check_video(str(files / "good.mp4"))
    (files / "long.mp4").write_bytes(encode_mp4(np.zeros((2100, 16, 16, 3), np.uint8), 24))
    assert len(read_video(str(files / "long.mp4"), 5, 16, 16)) == 5, "of a long video too"
    with pytest.raises(RequestError, match="has 3 frames, but 9"):
        read_video(str(files / "good.mp4"), 9, 32, 16)


@pytest.mark.parametrize("name", ["nowhere.mp4", "text.mp4", "good.png"])
def test_a_file_that_is_not_a_video_is_refused_in_one_sentence(files, name):
    with pytest.raises(RequestError, match="video"):
        read_video(str(files / name), 1, 32, 32)


@pytest.mark.parametrize(
    ("model", "fields", "sentence"),
    [
        ("wan2.1-i2v-480p", {}, "starts from an image"),
        ("wan2.1-1.3b", {"image": "good.png"}, "takes no image"),
        ("hunyuanvideo", {"video": "good.mp4"}, "takes no video"),
        ("wan2.2-i2v-a14b", {"image": "text.png"}, "is not an image"),
        ("hunyuanvideo", {"negative_prompt": "blur"}, "true_cfg_scale"),
        (
            *("wan2.1-1.3b", {"negative_prompt": "blur", "guidance_scale": 1.0}),
            r"only with a guidance_scale above 1, not 1: .*\.$",
        ),
        ("wan2.1-1.3b", {"true_cfg_scale": 2.0}, "no true_cfg_scale"),
        ("wan2.1-1.3b", {"guidance_scale_2": 2.0}, "no guidance_scale_2"),
    ],
)
def test_an_unsupported_input_or_guidance_is_refused(files, model, fields, sentence):
    named = {k: str(files / v) if k in ("image", "video") else v for k, v in fields.items()}
    with pytest.raises(RequestError, match=sentence):
        model_spec(model).resolve(Request("a ball", model=model, **named))


def test_a_supported_input_or_guidance_is_resolved(files):
    image, video = str(files / "good.png"), str(files / "good.mp4")

    def kind(model, **fields):
        spec = model_spec(model)
        return spec.kind_for(spec.resolve(Request("a ball", model=model, **fields))).name

    assert kind("wan2.2-ti2v-5b") == "WanPipeline"
    assert kind("wan2.2-ti2v-5b", image=image) == "WanImageToVideoPipeline"
    assert kind("wan2.1-1.3b", video=video) == "WanVideoToVideoPipeline"
    assert kind("wan2.1-vace-1.3b", video=video) == "WanVACEPipeline"
    assert kind("hunyuanvideo", negative_prompt="blur", true_cfg_scale=4.0)
    two = model_spec("wan2.2-t2v-a14b").resolve(Request("a ball", model="wan2.2-t2v-a14b"))
    assert (two.guidance_scale, two.guidance_scale_2) == (4.0, 3.0)
    one = Request("a ball", model="wan2.2-t2v-a14b", guidance_scale=1.0)
    assert model_spec("wan2.2-t2v-a14b").resolve(one).guidance_scale_2 == 1.0
    spec = model_spec("wan2.1-i2v-480p")
    asked = spec.resolve(Request("a ball", model="wan2.1-i2v-480p", image=image))
    assert asked.to_dict()["image"] == "good.png", "without its folder"


VIDEOS = {
    "as the model has it": ((48, 32), 8, []),
    "faster": ((48, 32), 30, ["30 frames per second and the model's clips have 8", "slower"]),
    "slower": ((48, 32), 4, ["4 frames per second", "plays faster"]),
    "nearly as fast": ((48, 32), 8.2, []),
    "portrait": ((32, 96), 8, ["32 by 96 pixels", "78% of it are cut off, above and below"]),
    "wide": ((96, 32), 8, ["50% of it are cut off, left and right"]),
}


@pytest.mark.parametrize(("size", "fps", "said"), VIDEOS.values(), ids=VIDEOS)
def test_what_becomes_of_a_video_is_said(tmp_path, size, fps, said):
    path = tmp_path / "a.mp4"
    path.write_bytes(encode_mp4(np.zeros((3, size[1], size[0], 3), np.uint8), fps))
    request = SimpleNamespace(image=None, video=str(path), width=48, height=32)
    run = SimpleNamespace(request=request, spec=SimpleNamespace(fps=8))
    sentences = " ".join(describe_given(run))
    assert all(words in sentences for words in said)
    assert bool(sentences) == bool(said)


def test_a_file_that_is_no_video_is_refused_before_the_model_is_loaded(files):
    request = SimpleNamespace(image=None, video=str(files / "text.mp4"), width=48, height=32)
    with pytest.raises(RequestError, match="can't be read as MP4 or MOV: ffmpeg refused"):
        describe_given(SimpleNamespace(request=request))


def test_the_command_line_says_what_becomes_of_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("svg2.cli._output_folder", lambda *_, **__: pytest.fail("all is sound"))
    Image.new("RGB", (100, 300)).save(tmp_path / "a.png")
    (tmp_path / "a.mp4").write_text("no video")
    asked = ["compare", "--prompt", "a ball", "--out", str(tmp_path)]
    image = [*asked, "--model", "wan2.1-i2v-480p", "--image", str(tmp_path / "a.png")]
    with pytest.raises(pytest.fail.Exception):
        cli.main(image)
    assert "svg2: The image has 100 by 300 pixels" in capsys.readouterr().err
    video = [*asked, "--model", "wan2.1-1.3b", "--video", str(tmp_path / "a.mp4")]
    assert cli.main(video) == 2
    assert "can't be read as MP4 or MOV" in capsys.readouterr().err
