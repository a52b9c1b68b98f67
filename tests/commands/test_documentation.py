"""The operator's guide works as it stands."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from extproc.demo.gateway import Gateway

GUIDE = (Path(__file__).parents[2] / "docs/accounts.md").read_text()
TOKEN = "9f2c51e7a80b4d6398be11fa6c0d27e4"
NEEDED = ("sh", "curl", "jq", "openssl")


@pytest.mark.skipif(not all(shutil.which(tool) for tool in NEEDED), reason=f"needs {', '.join(NEEDED)}")
def test_the_guide(tmp_path: Path) -> None:
    """All its commands, one after the other, beside its configuration and a server that runs with it."""
    configuration = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)[0])
    del configuration["database"]
    script = "set -eu\n" + "".join(re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL))
    secrets = {"EXTPROC_ADMIN_TOKEN": TOKEN, "DEEPSEEK_API_KEY": "pk-0123456789", "TMPDIR": str(tmp_path)}

    with Gateway(configuration, command="serve", environment=secrets) as server:
        done = subprocess.run(
            ["sh", "-c", script.replace("http://127.0.0.1:8081", server.http)],
            cwd=server.directory,
            env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "EXTPROC_ADMIN_TOKEN": TOKEN},
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
        )

    assert done.returncode == 0, done.stderr
    assert script.count("extproc ") > 20
    assert "the numbers agree with the rows" in done.stdout
    assert '"name":"globex"' in done.stdout
