"""Packs and the order in which images are seen."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from celebdit_testing.packs import write_pack
from celebdit_testing.recipes import DIGEST, faces, tiny_pack

from model.dataset import BatchReader, PackCorrupt, PackWriter, indices_for_step, open_pack, verify_pack


@pytest.mark.parametrize(("num_images", "batch_images"), [(20, 8), (7, 16), (16, 16), (5, 1)])
def test_each_epoch_sees_every_image_exactly_once(num_images: int, batch_images: int) -> None:
    epochs = 4
    steps = -(-num_images * epochs // batch_images)
    drawn = [indices_for_step(seed=3, step=s, batch_images=batch_images, num_images=num_images) for s in range(steps)]
    order = np.concatenate(drawn)
    for epoch in range(epochs):
        assert Counter(order[epoch * num_images : (epoch + 1) * num_images]) == Counter(range(num_images))


def test_the_order_is_a_function_of_the_seed_and_differs_between_epochs() -> None:
    first, again, other = (indices_for_step(seed=seed, step=0, batch_images=20, num_images=20).tolist() for seed in (1, 1, 2))
    later = indices_for_step(seed=1, step=1, batch_images=20, num_images=20).tolist()
    assert first == again
    assert first != other
    assert first != later


def test_a_pack_gives_back_its_images_in_channels_first_order(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path / "pack")
    indices = np.array([3, 0, 19, 3])
    for on_device in (False, True):
        reader = BatchReader(pack, torch.device("cpu"), on_device=on_device)
        batch = reader.read(indices, next_indices=np.array([1, 2]))
        assert batch.shape == (4, 3, 16, 16)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.permute(0, 2, 3, 1), torch.from_numpy(faces(20)[indices]))
        assert torch.equal(reader.read(np.array([1, 2])).permute(0, 2, 3, 1), torch.from_numpy(faces(20)[[1, 2]]))
        assert torch.equal(reader.read(np.array([7])).permute(0, 2, 3, 1), torch.from_numpy(faces(20)[[7]]))
        reader.close()


def test_a_pack_that_was_not_finished_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    with pytest.raises(RuntimeError, match="power"), PackWriter(folder, shape=(4, 4), keys=["a", "b"], dataset_digest=DIGEST) as add:
        add(np.zeros((4, 4, 3), dtype=np.uint8))
        raise RuntimeError("power cut")
    with pytest.raises(PackCorrupt):
        open_pack(folder)


def test_a_pack_whose_files_do_not_fit_each_other_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write_pack(folder, faces(4), list("abcd"), dataset_digest=DIGEST)
    (folder / "pack.json").write_text(json.dumps({"dataset_digest": DIGEST, "pixels_sha256": DIGEST, "keys": ["a"]}))
    with pytest.raises(PackCorrupt, match=r"expected uint8 \(1"):
        open_pack(folder)


def test_rebuilding_a_pack_hides_the_old_one_first(tmp_path: Path) -> None:
    folder = tmp_path / "pack"
    write_pack(folder, faces(4), list("abcd"), dataset_digest=DIGEST)
    with (
        pytest.raises(PackCorrupt, match="1 images were added for 2 keys"),
        PackWriter(folder, shape=(16, 16), keys=["a", "b"], dataset_digest=DIGEST) as add,
    ):
        add(faces(1)[0])
    with pytest.raises(PackCorrupt):
        open_pack(folder)


def test_a_pack_whose_pixels_changed_is_found_out(tmp_path: Path) -> None:
    pack = tiny_pack(tmp_path / "pack")
    verify_pack(pack)
    with (tmp_path / "pack" / "images.npy").open("r+b") as file:
        file.seek(5000)
        file.write(bytes([file.read(1)[0] ^ 1]))
    with pytest.raises(PackCorrupt, match="pixels of the pack are corrupt"):
        verify_pack(open_pack(tmp_path / "pack"))


@pytest.mark.parametrize("kept_bytes", [0, 60, 5000])
def test_a_pack_that_was_cut_off_is_refused(tmp_path: Path, kept_bytes: int) -> None:
    tiny_pack(tmp_path / "pack")
    with (tmp_path / "pack" / "images.npy").open("r+b") as file:
        file.truncate(kept_bytes)
    with pytest.raises(PackCorrupt):
        open_pack(tmp_path / "pack")
