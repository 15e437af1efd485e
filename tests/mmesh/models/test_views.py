import numpy as np
from PIL import Image

from mmesh.content import Content, Role
from mmesh.models.encoders.lite import load_lite
from mmesh.models.encoders.lite.image import ImageTower, whole
from mmesh.models.protocol import encode_together


def test_a_square_picture_is_looked_at_once_and_a_long_one_twice():
    assert len(ImageTower.views(Image.new("RGB", (100, 95)))) == 1
    assert len(ImageTower.views(Image.new("RGB", (300, 100)))) == 2


def test_the_whole_picture_stands_on_white_and_keeps_its_shape():
    seen = np.asarray(whole(Image.new("RGB", (400, 100), (255, 0, 0))))
    assert seen.shape == (224, 224, 3)
    red = (seen == (255, 0, 0)).all(axis=2)
    assert red.sum() == 224 * 56
    assert (seen[~red] == 255).all()


def test_a_picture_of_one_pixel_in_height_is_still_seen():
    seen = np.asarray(whole(Image.new("RGB", (20_000, 1), (255, 0, 0))))
    assert (seen == (255, 0, 0)).all(axis=2).sum() == 224


def test_what_lies_beside_the_middle_square_counts(pictures):
    tower = load_lite(threads=1)

    def vector(left):
        picture = Image.new("RGB", (480, 160), (255, 255, 255))
        picture.paste(Image.fromarray(pictures.pixels(left, 160)), (0, 0))
        picture.paste(Image.fromarray(pictures.pixels(9, 160)), (160, 0))
        data = pictures.encode(picture, "PNG")
        return encode_together(tower, [tower.prepare(Content.of(data), Role.CANDIDATE, "")])[0]

    assert vector(1) @ vector(2) < 0.999


def test_two_pictures_of_one_content_weigh_alike_whatever_their_shape(pictures):
    tower = load_lite(threads=1)
    square = pictures.png(1, 160)
    long = pictures.encode(Image.fromarray(pictures.pixels(2, 160)).resize((320, 100)), "PNG")

    def vector(*parts):
        return encode_together(tower, [tower.prepare(Content.of(*parts), Role.CANDIDATE, "")])[0]

    mean = vector(square) + vector(long)
    np.testing.assert_allclose(vector(square, long), mean / np.linalg.norm(mean), atol=1e-5)
