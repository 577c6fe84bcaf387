"""The files of ``cluster/`` are what the code and their readers expect. Needs no hosts."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import im_actors
from im_actors.actors.placement import DISK, HEAD
from im_actors.actors.processes import OBJECT_STORE_BYTES
from im_actors.cli.main import build_parser
from im_actors.client.config import PORT_DEFAULT
from im_actors.server.cluster_file import default_data

CLUSTER = Path(__file__).parents[2] / "cluster"
ENVIRONMENTS = ("head.env", "data.env")
RAY_UP = ("onprem.yaml", "aws.yaml")
METRICS_PORT = "8090"
RAY_PORT = "6379"
RAY_LEAST = (2, 52)
"""The first that knows tokens."""


def text_of(name: str) -> str:
    return (CLUSTER / name).read_text()


def parsed(name: str) -> Any:
    return yaml.safe_load(text_of(name))


def environment(name: str) -> dict[str, str]:
    """What a process gets that is started after the file was sourced."""
    command = f". {CLUSTER / 'env' / name} && env -0"
    bare = {"PATH": "/usr/bin:/bin"}
    told = subprocess.run(["sh", "-c", command], env=bare, capture_output=True, check=True)
    pairs = (line.split("=", 1) for line in told.stdout.decode().split("\0") if line)
    return {key: value for key, value in pairs if key not in ("PWD", "SHLVL", "_", "OLDPWD")}


def kuberay() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for document in yaml.safe_load_all(text_of("kuberay.yaml")):
        found.setdefault(document["kind"], []).append(document)
    return found


def pods() -> list[tuple[dict[str, str], dict[str, Any]]]:
    """(parameters of ``ray start``, pod), the head first."""
    (cluster,) = kuberay()["RayCluster"]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [(group["rayStartParams"], group["template"]["spec"]) for group in groups]


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_takes_the_file(name: str) -> None:
    ray = importlib.util.find_spec("ray")
    if ray is None or ray.origin is None:
        pytest.skip("Ray is not installed: pip install 'im-actors[server]'")
    jsonschema = pytest.importorskip("jsonschema")
    schema = Path(ray.origin).parent / "autoscaler" / "ray-schema.json"
    jsonschema.validate(parsed(name), json.loads(schema.read_text()))
    assert "--no-restart" in text_of("onprem.yaml")


def test_hosts_start_alike_wherever_they_are() -> None:
    head, worker = "head_start_ray_commands", "worker_start_ray_commands"
    for commands in (head, worker):
        assert parsed("aws.yaml")[commands] == parsed("onprem.yaml")[commands]
    for commands, takes in ((head, HEAD), (worker, f"{DISK}${{IM_ACTORS_DISK:?}}")):
        start = " ".join(parsed("onprem.yaml")[commands])
        assert "/host.env && ray stop" in start
        for option in (
            f"--object-store-memory={OBJECT_STORE_BYTES}",
            f"--metrics-export-port={METRICS_PORT}",
            "--node-ip-address=$IM_ACTORS_ADDRESS",
        ):
            assert option in start
        assert takes in start
    assert f"--port={RAY_PORT}" in parsed("onprem.yaml")[head][1]
    assert f"$RAY_HEAD_IP:{RAY_PORT}" in parsed("onprem.yaml")[worker][0]


def test_the_resource_of_a_disk_is_json_when_the_shell_is_through_with_it() -> None:
    (start,) = parsed("onprem.yaml")["worker_start_ray_commands"]
    assert subprocess.run(["bash", "-n", "-c", start]).returncode == 0
    (words,) = re.findall(r"--resources=(\S+ \S+)", start)
    said = subprocess.run(
        ["bash", "-c", f"echo {words}"], env={"IM_ACTORS_DISK": "a"}, capture_output=True, text=True
    )
    assert json.loads(said.stdout) == {f"{DISK}a": 1}


def test_a_data_host_tries_until_its_disk_is_there_and_ray_starts(tmp_path: Path) -> None:
    """As after a reboot: no disk at first, then a Ray that fails, then one that starts."""
    for name, script in (
        ("ray", 'echo "$@" >> said; [ "$1" = stop ] || [ $(grep -c start said) -ge 2 ]'),
        ("sleep", "echo 'IM_ACTORS_DISK=a IM_ACTORS_ADDRESS=10.0.0.11' > host.env"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (start,) = parsed("onprem.yaml")["worker_start_ray_commands"]
    done = subprocess.run(
        ["bash", "-c", start.replace("/srv/im-actors", str(tmp_path))],
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_HEAD_IP": "10.0.0.10"},
        capture_output=True,
    )
    assert done.returncode == 0
    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    assert [words[0] for words in said] == ["stop", "start", "stop", "start"]
    assert {'{"im_disk_a":', "--node-ip-address=10.0.0.11", "--address=10.0.0.10:6379"} <= {
        word.removeprefix("--resources=") for word in said[-1]
    }


def test_environments_differ_in_what_a_host_is() -> None:
    head, data = (environment(name) for name in ENVIRONMENTS)
    own = {"IM_ACTORS_ADDRESS", "IM_ACTORS_DISK", "IM_ACTORS_TOKEN_SECRET_FILE"}
    own.add("RAY_enable_autoscaler_v2")
    assert {k: v for k, v in head.items() if k not in own} == {
        k: v for k, v in data.items() if k not in own
    }
    assert "IM_ACTORS_DISK" not in head
    assert head["RAY_AUTH_MODE"] == "token"
    assert head["RAY_worker_niceness"] == "0"
    assert head["RAY_USE_UVLOOP"] == "1"


def test_variables_are_ones_that_somebody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "".join(path.read_text() for path in Path(im_actors.__file__).parent.rglob("*.py"))
    starts = "".join(map(str, parsed("onprem.yaml").values()))
    shipped = "".join(p.read_text() for p in CLUSTER.rglob("*") if p.suffix in (".env", ".yaml"))
    named = set(re.findall(r"\bIM_ACTORS_[A-Z_]+\b", shipped + text_of("README.md")))
    assert [name for name in named if name not in code and f"${name}" not in starts] == []
    monkeypatch.setenv("IM_ACTORS_DATA", environment("data.env")["IM_ACTORS_DATA"])
    assert str(default_data()) == "/srv/im-actors/data"


def test_commands_are_ones_that_there_are() -> None:
    parser = build_parser()
    found = []
    for path in sorted(CLUSTER.rglob("*.*")):
        if path.suffix in (".yaml", ".md"):
            found += re.findall(r"im-actors (up --[^'`\n]+)", path.read_text())
    parsed = [
        parser.parse_args(shlex.split(command.rstrip("\\ ")))
        for command in found
        if "--help" not in command
    ]
    several_hosts = [args for args in parsed if args.address != "local"]
    assert len(several_hosts) >= 4
    for args in several_hosts:
        assert (args.address, args.replicas, args.host) == ("auto", 4, "0.0.0.0")
        assert args.port == PORT_DEFAULT


def test_every_data_pod_has_a_disk_of_its_own() -> None:
    (head, head_pod), *data = pods()
    claims = {claim["metadata"]["name"] for claim in kuberay()["PersistentVolumeClaim"]}
    used = [pod["volumes"][0]["persistentVolumeClaim"]["claimName"] for _, pod in pods()]
    assert sorted(used) == sorted(claims)
    resources = [json.loads(json.loads(parameters["resources"])) for parameters, _ in pods()]
    assert resources == [{HEAD: 1}, *({DISK + disk: 1} for disk in "abcd")]
    assert used[1:] == [f"im-actors-{disk}" for disk in "abcd"]
    assert len(data) == 4
    for parameters, pod in pods():
        assert parameters["object-store-memory"] == str(OBJECT_STORE_BYTES)
        assert parameters["metrics-export-port"] == METRICS_PORT
        (container,) = pod["containers"]
        assert container["volumeMounts"][0]["mountPath"] == "/srv/im-actors"
        shared = {entry["name"]: entry["value"] for entry in container["env"]}
        for name, value in environment("data.env").items():
            if name in shared:
                assert shared[name] == value
    assert head["num-cpus"] == "0"
    assert "ports" not in head_pod["containers"][0], "clients do not come to the head"


def test_ports_are_those_of_the_code() -> None:
    (service,) = kuberay()["Service"]
    ports = {port["port"] for port in service["spec"]["ports"]}
    ports |= {p["containerPort"] for _, pod in pods()[1:] for p in pod["containers"][0]["ports"]}
    assert ports == {PORT_DEFAULT}
    told = re.findall(r"^\| (\d+) \|", text_of("README.md"), re.MULTILINE)
    assert {str(PORT_DEFAULT), METRICS_PORT, RAY_PORT} < set(told)


def test_versions_are_those_of_the_code() -> None:
    for name in ("aws.yaml", "kuberay.yaml"):
        said = set(re.findall(r"im-actors(?:\[server\]==|:)(\d+\.[\d.]+)", text_of(name)))
        assert said == {im_actors.__version__}, name
    (cluster,) = kuberay()["RayCluster"]
    version = cluster["spec"]["rayVersion"]
    assert f"rayproject/ray:{version}\\n" in text_of("kuberay.yaml")
    assert tuple(map(int, version.split(".")[:2])) >= RAY_LEAST


def test_readme_names_every_file() -> None:
    told = text_of("README.md")
    for path in sorted(CLUSTER.iterdir()):
        if path.is_file() and path.name != "README.md":
            assert path.name in told
