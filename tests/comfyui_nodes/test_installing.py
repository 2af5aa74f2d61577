"""``ctq install-nodes``."""

import pytest

from convert_to_quant.converter.cli import install_nodes
from convert_to_quant.formats.errors import ConversionError


def test_installing_into_a_comfyui(tmp_path, capsys):
    """Link, copy, replace, remove; anything else of that name is left alone."""
    (tmp_path / "custom_nodes").mkdir()
    place = tmp_path / "custom_nodes" / "convert_to_quant_nodes"
    assert install_nodes.main([str(tmp_path)]) == 0
    assert place.is_symlink()
    assert (place / "hooks.py").is_file()
    assert install_nodes.main([str(tmp_path / "custom_nodes"), "--copy"]) == 0
    assert not place.is_symlink()
    assert (place / "hooks.py").is_file()
    assert install_nodes.main([str(tmp_path), "--remove"]) == 0
    assert not place.exists()
    assert "restart ComfyUI" in capsys.readouterr().out
    place.mkdir()
    with pytest.raises(ConversionError, match="is not this node pack"):
        install_nodes.install(tmp_path)
    with pytest.raises(ConversionError, match="not a ComfyUI folder"):
        install_nodes.install(place)
