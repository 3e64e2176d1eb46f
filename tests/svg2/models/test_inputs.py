"""Image and video inputs: read at the requested size, refused in one sentence."""

import numpy as np
import pytest
from PIL import Image

from svg2.errors import RequestError
from svg2.models.finding import model_spec
from svg2.models.inputs import check_image, check_video, read_image
from svg2.models.request import Request
from svg2.runs.call import read_video
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
