"""A world file is read whole or refused with one line that says what to do; nothing in it can hurt."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save
from tiny_world import ABOUT, recache_graph, rezip, tick_graph, tiny_files, write_tiny

from export.world_file import write_world
from runtime.backends import load_backend
from runtime.errors import ActionError, WorldFileError, WorldloopError
from runtime.manifest import parse_manifest
from runtime.onnx_header import read_header
from runtime.session import Session
from runtime.world import World, shipped_worlds


def play_one_tick(path: Path) -> None:
    Session(World.open(path), backend="onnxruntime", threads=1).tick(["gas"])


def test_a_written_world_opens_and_says_what_it_was_told(tiny_file):
    manifest = World.open(tiny_file).manifest
    assert (manifest.name, manifest.tick_hz, manifest.height) == ("tiny", 25, 8)
    assert manifest.action_names == ("left", "right", "gas")
    assert manifest.state["bars"].shape == (1, 4) and manifest.state["frame"].dtype == np.int64
    assert [start.name for start in manifest.starts] == ["zero", "far"]
    assert (manifest.environment, manifest.adapter) == ("Bars-v0", "bars")


def test_the_same_content_makes_the_same_file(tmp_path):
    first, second = write_tiny(tmp_path / "a.world"), write_tiny(tmp_path / "b.world")
    assert first.read_bytes() == second.read_bytes()
    assert World.open(first).hash == World.open(second).hash


def test_the_hash_changes_with_any_byte_of_any_file(tmp_path, tiny_file):
    other = write_tiny(tmp_path / "a.world", {"starts/far.safetensors": save({"frame": np.array([8])})})
    assert World.open(other).hash != World.open(tiny_file).hash


def test_every_shipped_world_opens():
    for name in shipped_worlds():
        assert World.open(name).manifest.name == name


@pytest.mark.parametrize(
    "name, said", [("racerr", "shipped are"), ("no/such.world", "no world file at"), ("/", "a folder")]
)
def test_a_world_that_is_not_there_is_named(name, said):
    with pytest.raises(WorldFileError, match=said):
        World.open(name)


def test_any_truncation_is_refused(tiny_file, tmp_path):
    whole = tiny_file.read_bytes()
    for size in [0, 1, 4, 30, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        cut = tmp_path / "cut.world"
        cut.write_bytes(whole[:size])
        with pytest.raises(WorldFileError):
            World.open(cut)


def test_damage_anywhere_is_refused_or_harmless(tiny_file, tmp_path):
    """One flipped byte: either an error of ours, or the world still plays exactly as before."""
    whole, rng = tiny_file.read_bytes(), random.Random(1)
    good = Session(World.open(tiny_file), backend="onnxruntime", threads=1).tick(["gas"])
    for _ in range(150):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        hurt = tmp_path / "hurt.world"
        hurt.write_bytes(data)
        try:
            frame = Session(World.open(hurt), backend="onnxruntime", threads=1).tick(["gas"])
        except WorldloopError:
            continue
        assert np.array_equal(frame, good)


def test_a_file_whose_content_does_not_match_its_hash_is_not_used(tiny_file, tmp_path):
    graph = bytearray(tiny_files()["tick.onnx"])
    graph[-1] ^= 1
    with pytest.raises(WorldFileError, match="hash"):
        play_one_tick(rezip(tiny_file, tmp_path / "x.world", {"tick.onnx": bytes(graph)}))


@pytest.mark.parametrize("hidden", ["evil.py", "../outside.txt", "/etc/outside", "a/../../b"])
def test_a_file_that_the_manifest_does_not_list_is_refused(tiny_file, tmp_path, hidden):
    with pytest.raises(WorldFileError, match="does not list"):
        World.open(rezip(tiny_file, tmp_path / "x.world", {hidden: b"x"}))


@pytest.mark.parametrize(
    "name", ["../x.onnx", "/x.onnx", "a\\..\\b", ".hidden", "a//b", "manifest.json", "", "a" * 5000]
)
def test_a_listed_name_that_leads_outside_is_refused(tmp_path, name):
    raw = json.dumps(
        {"format": 1, **ABOUT, "files": {name: {"sha256": "0" * 64, "bytes": 0}}, "graphs": {}, "starts": []}
    )
    with pytest.raises(WorldFileError, match="not allowed"):
        parse_manifest(raw.encode(), "x")


def test_a_missing_file_is_named(tiny_file, tmp_path):
    with pytest.raises(WorldFileError, match=r"recache\.onnx is missing"):
        World.open(rezip(tiny_file, tmp_path / "x.world", {"recache.onnx": None}))


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.world"
    write_tiny(path, {"weights/more.safetensors": bytes(80 << 20)})
    assert path.stat().st_size < 1 << 20
    with pytest.raises(WorldFileError, match="bomb"):
        World.open(path)


def test_an_entry_that_claims_to_be_smaller_than_it_is_is_refused(tmp_path):
    """The directory says 10 bytes, as does the manifest, and the packed data would give 1 MB."""
    path = tmp_path / "liar.world"
    files = {**tiny_files(), "weights/more.safetensors": bytes(1 << 20)}
    write_world(path, ABOUT, files)
    data = path.read_bytes()
    real, claimed = (1 << 20).to_bytes(4, "little"), (10).to_bytes(4, "little")
    at = data.index(
        b"weights/more.safetensors", data.rindex(b"PK\x01\x02tick.onnx") if b"PK\x01\x02tick.onnx" in data else 0
    )
    assert at and data.count(real) >= 2
    path.write_bytes(data.replace(real, claimed))
    with pytest.raises(WorldFileError):
        World.open(path)


def floats(*shapes: list[int]) -> dict:
    return {f"x{i}": {"shape": shape, "dtype": "float32"} for i, shape in enumerate(shapes)}


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("tick_hz", 0, "tick_hz"),
        ("tick_hz", "25", "tick_hz"),
        ("tick_hz", True, "tick_hz"),
        ("height", 10**9, "height"),
        ("height", -1, "height"),
        ("name", "a/b", "name"),
        ("preview", 1, "preview"),
        ("actions", {}, "actions"),
        ("actions", [{"name": "x", "keys": "a"}], "keys"),
        ("actions", [{"name": "x", "keys": ["p"]}], "belongs to the player"),
        ("actions", [{"name": "x", "keys": []}] * 2, "same name"),
        ("actions", [{"name": f"a{i}", "keys": []} for i in range(65)], "64"),
        ("state", floats([2, 4]), "1 player"),
        ("state", floats([1, 1 << 40]), "shape"),
        ("state", floats([1, 1 << 30], [1, 1 << 30], [1, 8]), "the limit is 8192 MB"),
        ("state", {"x": {"shape": [1], "dtype": "object"}}, "dtype"),
        ("noise", {"shape": [1, 2]}, "shape"),
        ("default_start", "nowhere", "nowhere"),
        ("graphs", {"tick": {"file": "other.onnx"}}, "not listed"),
        ("prompts", "dark", "prompts"),
        ("title", "x" * 5000, "title"),
        ("flops_per_tick", -1, "flops_per_tick"),
    ],
)
def test_a_senseless_field_is_named(field, value, said):
    listed = {name: {"sha256": "0" * 64, "bytes": 1} for name in tiny_files()}
    raw = json.dumps({"format": 1, **ABOUT, "files": listed, field: value}).encode()
    with pytest.raises(WorldFileError, match=said):
        parse_manifest(raw, "x.world")


@pytest.mark.parametrize("field", [*sorted(ABOUT.keys() - {"environment", "flops_per_tick"}), "files", "format"])
def test_a_missing_field_is_named(field):
    document = {"format": 1, **ABOUT, "files": {}}
    del document[field]
    with pytest.raises(WorldFileError, match=f"{field} is missing"):
        parse_manifest(json.dumps(document).encode(), "x.world")


@pytest.mark.parametrize("version, cure", [(2, "update worldloop"), (0, "export the world again")])
def test_another_format_version_is_refused_with_the_cure(version, cure):
    with pytest.raises(WorldFileError, match=cure):
        parse_manifest(json.dumps({"format": version}).encode(), "x.world")


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100000, b'{"format": NaN}', b"null"])
def test_a_manifest_that_is_no_object_is_refused(raw):
    with pytest.raises(WorldFileError):
        parse_manifest(raw, "x.world")


@pytest.mark.parametrize(
    "tensors, said",
    [
        ({"nobody": np.zeros(3)}, "no state tensor 'nobody'"),
        ({"bars": np.zeros((1, 5), np.float32)}, "bars must be float32"),
        ({"bars": np.zeros((1, 4), np.float64)}, "bars must be float32"),
    ],
)
def test_a_start_that_does_not_fit_the_state_is_refused(tmp_path, tensors, said):
    path = write_tiny(tmp_path / "x.world", {"starts/zero.safetensors": save(tensors)})
    with pytest.raises(WorldFileError, match=said):
        play_one_tick(path)


@pytest.mark.parametrize("data", [b"", b"x" * 7, (1 << 60).to_bytes(8, "little") + b"{}", b"\x02" + bytes(7) + b"[]"])
def test_a_start_that_is_no_safetensors_file_is_refused(tmp_path, data):
    with pytest.raises(WorldFileError, match="safetensors"):
        play_one_tick(write_tiny(tmp_path / "x.world", {"starts/zero.safetensors": data}))


def test_an_unknown_start_lists_the_known_ones(tiny_file):
    with pytest.raises(WorldFileError, match="zero, far"):
        Session(World.open(tiny_file), backend="onnxruntime", start="nowhere")


def test_an_unknown_action_lists_the_known_ones(tiny_file):
    with pytest.raises(ActionError, match="left, right, gas"):
        World.open(tiny_file).action(["fly"])


def outside(location: str, offset: int, length: int) -> bytes:
    """The tick graph with its table elsewhere."""
    model = tick_graph()
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        table.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize(
    "graph, said",
    [
        (outside("/etc/passwd", 0, 100), "no file of this world"),
        (outside("../../etc/passwd", 0, 100), "no file of this world"),
        (outside("weights/world.safetensors", 0, 1 << 40), "beyond the end"),
        (outside("weights/world.safetensors", -8, 4), "beyond the end"),
        (b"", "not an ONNX graph"),
        (b"\xff" * 100, "not an ONNX graph"),
        (recache_graph().SerializeToString(), "gives no frame|unknown output"),
    ],
)
def test_a_graph_that_reaches_outside_or_is_none_is_refused(tmp_path, graph, said):
    with pytest.raises(WorldFileError, match=said):
        play_one_tick(write_tiny(tmp_path / "x.world", {"tick.onnx": graph}))


def test_weights_hidden_in_a_nested_graph_are_found():
    branch = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    hidden = TensorProto(name="y", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="/etc/passwd")
    branch.initializer.append(hidden)
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    outer = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    header = read_header(helper.make_model(outer).SerializeToString(), "x.onnx")
    assert "/etc/passwd" in {weights.location for weights in header.weights}


def test_a_graph_with_other_inputs_outputs_or_operators_is_refused(tmp_path):
    def changed(change) -> bytes:
        model = tick_graph()
        change(model)
        return model.SerializeToString()

    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "state.secret"

    def widen(model: onnx.ModelProto) -> None:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4096

    def foreign(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node("Run", [], ["x"], domain="evil.ops"))

    for change, said in ((rename, "unknown input"), (widen, "frame must be"), (foreign, "evil.ops")):
        with pytest.raises(WorldFileError, match=said):
            play_one_tick(write_tiny(tmp_path / "x.world", {"tick.onnx": changed(change)}))


def test_a_tokenizer_that_is_none_is_refused(tmp_path):
    with pytest.raises(WorldFileError, match="tokenizer"):
        play_one_tick(write_tiny(tmp_path / "x.world", {"tokenizer.json": b'{"model": 3}'}))


def test_unpacked_files_are_gone_after_loading(tiny_file, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    load_backend(World.open(tiny_file), "onnxruntime", threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_that_is_no_world_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    path = tmp_path / "x.world"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(WorldFileError, match=r"without manifest\.json"):
        World.open(path)
