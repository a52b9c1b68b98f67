"""Files that Envoy watches: whole at every moment, and in an order that drops no call."""

from pathlib import Path

import pytest
import yaml
from envoyconf.configs import MANY, ONE, load, rendered

from extproc.envoyconf.files import EnvoyFiles

KINDS = {
    "clusters.yaml": "envoy.config.cluster.v3.Cluster",
    "listeners.yaml": "envoy.config.listener.v3.Listener",
    "routes.yaml": "envoy.config.route.v3.RouteConfiguration",
}


@pytest.fixture(name="files")
def _files(tmp_path: Path) -> EnvoyFiles:
    files = EnvoyFiles(tmp_path / "envoy" / "run")
    loaded, _ = load(MANY)
    files.write_all(loaded.config, rendered(MANY, files.directory), "v1")
    return files


def test_all_of_them(files: EnvoyFiles) -> None:
    """The bootstrap and one file for each kind of resource, in a directory that is made; nothing else is left."""
    assert sorted(f.name for f in files.directory.iterdir()) == sorted([*KINDS, "bootstrap.yaml"])
    assert files.bootstrap == files.directory / "bootstrap.yaml"


@pytest.mark.parametrize("name", KINDS)
def test_a_discovery_response(files: EnvoyFiles, name: str) -> None:
    """Each is a discovery response with its version, of the kind that Envoy asks for."""
    response = yaml.safe_load((files.directory / name).read_text())

    assert response["version_info"] == "v1"
    assert {r["@type"] for r in response["resources"]} == {f"type.googleapis.com/{KINDS[name]}"}
    assert all(r["name"] for r in response["resources"])


def test_a_file_is_replaced_and_never_rewritten(files: EnvoyFiles) -> None:
    """Who reads while we write reads the old file, whole."""
    with (files.directory / "routes.yaml").open() as reader:
        start = reader.read(10)
        files.write_traffic(rendered(ONE, files.directory), "v2")
        rest = reader.read()

    assert yaml.safe_load(start + rest)["version_info"] == "v1"
    assert yaml.safe_load((files.directory / "routes.yaml").read_text())["version_info"] == "v2"


def test_clusters_are_written_by_themselves(files: EnvoyFiles) -> None:
    """New clusters come before the routes that need them, and those of calls in flight may stay."""
    old = rendered(MANY).clusters[-1]
    files.write_clusters(rendered(ONE), "v2", beside=[old])

    written = yaml.safe_load((files.directory / "clusters.yaml").read_text())
    assert [c["name"] for c in written["resources"]][-2:] == ["near/m", old["name"]]
    assert yaml.safe_load((files.directory / "routes.yaml").read_text())["version_info"] == "v1"
